// Convolutions of rows: 3x3 over a support or over a whole map, 1x1 over any rows.
#include <ATen/Functions.h>
#include <ATen/Parallel.h>

#include <algorithm>
#include <array>
#include <limits>

#include "checks.h"
#include "costs.h"
#include "gradients.h"
#include "operands.h"
#include "operators.h"
#include "tables.h"

namespace sparse_dset {
namespace {

constexpr int64_t TILES_AT_A_TIME = 48;  // of 4x4: what they become fits the second cache
constexpr int64_t POINTWISE_ROWS = 192;  // as many rows of features stay in the second cache

void run_indirect(const Convolution& conv, const PairLists& pairs) {
  const int64_t blocks = pairs.blocks(), panels = count_panels(conv.out_channels);
  const auto run = [&](int64_t panel, int64_t block) {
    kernels().indirect(conv,
                       {int(pairs.first_row(block)), int(pairs.first_row(block + 1)),
                        pairs.offsets(block), pairs.in(), pairs.out(), int(pairs.taps)},
                       int(panel));
  };
  // Threads share out what is larger, weights or rows, and the other is read by all of them.
  if (pairs.taps * conv.out_channels > 8 * pairs.rows && panels >= at::get_num_threads())
    at::parallel_for(0, panels, 1, [&](int64_t begin, int64_t end) {
      for (int64_t panel = begin; panel < end; ++panel)
        for (int64_t block = 0; block < blocks; ++block) run(panel, block);
    });
  else
    at::parallel_for(0, blocks, 1, [&](int64_t begin, int64_t end) {
      for (int64_t panel = 0; panel < panels; ++panel)
        for (int64_t block = begin; block < end; ++block) run(panel, block);
    });
}

void run_winograd(const Convolution& conv, const TileList& tiles) {
  const int size = tiles.size, points = tiles.side() * tiles.side();
  const int64_t count = tiles.count(), panels = count_panels(conv.out_channels);
  const int64_t threads = at::get_num_threads(), most = TILES_AT_A_TIME * 36 / points;
  // Few tiles: each thread makes its own columns of all of them, so that no weight is read twice.
  const bool by_panels = count < threads * most && panels >= threads;
  const int64_t columns = by_panels ? threads : 1;
  const int64_t chunks_needed = (count + most - 1) / most;
  const int64_t chunks = by_panels ? chunks_needed : std::max(threads, (chunks_needed + threads - 1) / threads * threads);
  at::parallel_for(0, columns * chunks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t column = task / chunks, chunk = task % chunks;
      const int64_t first = count * chunk / chunks, last = count * (chunk + 1) / chunks;
      if (first == last) continue;
      kernels().winograd(conv, size, tiles.rows() + first * points, int(last - first),
                         int(panels * column / columns), int(panels * (column + 1) / columns),
                         scratch(kernels().winograd_scratch(size, int(last - first), conv.in_channels)));
    }
  });
}

// The cells of a map [B, C, H, W] as rows [B * H * W, C]; a copy only where their memory is not laid
// out as rows, which those of some channels of a channels-last map are.
at::Tensor rows_of_map(const at::Tensor& x) {
  const int64_t step = x.stride(3);
  const bool as_rows = x.stride(1) == 1 && step >= x.size(1) && x.stride(2) == step * x.size(3) &&
                       x.stride(0) == step * x.size(3) * x.size(2);
  if (as_rows) return x.as_strided({x.size(0) * x.size(2) * x.size(3), x.size(1)}, {step, 1});
  return x.permute({0, 2, 3, 1}).reshape({-1, x.size(1)});
}

}  // namespace

at::Tensor sparse_conv2d(const at::Tensor& features, const at::Tensor& weight,
                         const std::optional<at::Tensor>& bias, const at::Tensor& table,
                         const std::optional<at::Tensor>& row_map, c10::string_view algorithm,
                         c10::string_view activation, bool transposed,
                         const std::optional<at::Tensor>& addend) {
  check_table(table);
  check_weight(features, weight, bias, table.size(1), transposed);
  const Derivation chosen = algorithm == "auto"
                                ? choose(table, row_map, weight.size(1), weight.size(0))
                                : parse_algorithm(algorithm);
  // A submanifold convolution's windows are symmetric: its transpose has them too, turned.
  const WeightForm form = {transposed, transposed && row_map.has_value()};
  Operands operands(features, weight, bias, table.size(0), chosen, activation, form);
  if (operands.out.numel() == 0) return operands.out;
  operands.add(addend);
  if (chosen == Derivation::indirect) {
    const PairLists pairs = pairs_of(table);
    check_reach(pairs.num_input_rows(), features);
    run_indirect(operands.conv, pairs);
    return operands.out;
  }
  CHECK_ARGUMENT(row_map && table.size(1) == 9, name_of(chosen), " needs 3x3 kernels and stride 1");
  const TileList tiles = tiles_of(*row_map, tile_size(chosen));
  CHECK_ARGUMENT(tiles.num_rows() == features.size(0) && tiles.num_rows() == table.size(0),
              "row_map has ", tiles.num_rows(), " rows, features ", features.size(0), " and table ",
              table.size(0));
  run_winograd(operands.conv, tiles);
  return operands.out;
}

at::Tensor dense_conv2d(const at::Tensor& x, const at::Tensor& weight,
                        const std::optional<at::Tensor>& bias, c10::string_view algorithm,
                        c10::string_view activation, const std::optional<at::Tensor>& addend) {
  check_tensor(x, "x", at::kFloat, 4, "float32 [B, C, H, W]");
  CHECK_ARGUMENT(x.size(1) > 0, "x needs at least one channel, got ", x.sizes());
  check_range("the number of cells of x", x.numel() / x.size(1), 0, std::numeric_limits<int32_t>::max());
  refuse_gradients("dense_conv2d", {x, weight});
  const at::Tensor features = rows_of_map(x);
  check_weight(features, weight, bias, 9);
  const Derivation chosen = algorithm == "auto" ? Derivation::winograd4 : parse_algorithm(algorithm);
  CHECK_ARGUMENT(chosen != Derivation::indirect, "a dense convolution is computed by winograd2 or winograd4");
  Operands operands(features, weight, bias, features.size(0), chosen, activation);
  if (addend) {
    check_tensor(*addend, "addend", at::kFloat, 4, "float32 [B, C_out, H, W]");
    const std::array<int64_t, 4> shape = {x.size(0), weight.size(0), x.size(2), x.size(3)};
    CHECK_ARGUMENT(addend->sizes() == at::IntArrayRef(shape), "addend must be ", at::IntArrayRef(shape),
                ", got ", addend->sizes());
    if (weight.size(0) > 0) operands.add(rows_of_map(*addend));
  }
  if (operands.out.numel() != 0)
    run_winograd(operands.conv, full_tiles(x.size(0), x.size(2), x.size(3), tile_size(chosen)));
  return operands.out.view({x.size(0), x.size(2), x.size(3), weight.size(0)}).permute({0, 3, 1, 2});
}

at::Tensor pointwise_conv(const at::Tensor& features, const at::Tensor& weight,
                          const std::optional<at::Tensor>& bias,
                          const std::optional<at::Tensor>& addend,
                          const std::optional<at::Tensor>& addend_rows, c10::string_view activation) {
  check_weight(features, weight, bias, 1);
  refuse_gradients("pointwise_conv", {features, weight});
  Operands operands(features, weight, bias, features.size(0), Derivation::pointwise, activation);
  if (operands.out.numel() == 0) return operands.out;
  operands.add(addend, addend_rows);
  const int64_t rows = features.size(0), panels = count_panels(weight.size(0));
  const auto run = [&](int64_t first_row, int64_t last_row, int64_t first_panel, int64_t last_panel) {
    for (int64_t first = first_row; first < last_row; first += POINTWISE_ROWS)
      for (int64_t panel = first_panel; panel < last_panel; ++panel)
        kernels().pointwise(operands.conv, int(first), int(std::min(first + POINTWISE_ROWS, last_row)),
                            int(panel));
  };
  // Threads share out what is larger, weights or rows, as far as it comes out even.
  if (rows < weight.size(0) && panels % at::get_num_threads() == 0)
    at::parallel_for(0, panels, 1, [&](int64_t begin, int64_t end) { run(0, rows, begin, end); });
  else
    at::parallel_for(0, rows, 48, [&](int64_t begin, int64_t end) { run(begin, end, 0, panels); });
  return operands.out;
}

}  // namespace sparse_dset
