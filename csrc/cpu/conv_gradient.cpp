// The gradient of a 3x3 convolution's weight, pair by pair or tile by tile.
#include <ATen/Functions.h>
#include <ATen/Parallel.h>

#include <algorithm>

#include "checks.h"
#include "costs.h"
#include "gradients.h"
#include "memory.h"
#include "operands.h"
#include "operators.h"
#include "tables.h"

namespace sparse_dset {
namespace {

// Matrices [taps, C_in, C_out] as kernels [C_out, C_in, taps].
at::Tensor as_kernels(const at::Tensor& matrices) {
  constexpr int64_t BLOCK = 16;  // rows that are written side by side: a line of what is read
  const int64_t taps = matrices.size(0), in = matrices.size(1), out = matrices.size(2);
  at::Tensor kernels = at::empty({out, in, taps}, matrices.options());
  const float* from = matrices.const_data_ptr<float>();
  float* to = kernels.data_ptr<float>();
  at::parallel_for(0, (out + BLOCK - 1) / BLOCK, 1, [&](int64_t begin, int64_t end) {
    for (int64_t first = begin * BLOCK; first < std::min(end * BLOCK, out); first += BLOCK)
      for (int64_t i = 0; i < in; ++i)
        for (int64_t tap = 0; tap < taps; ++tap)
          for (int64_t o = first; o < std::min(first + BLOCK, out); ++o)
            to[(o * in + i) * taps + tap] = from[(tap * in + i) * out + o];
  });
  return kernels;
}

// features^T times grad, pair by pair: [taps, C_in, C_out].
at::Tensor gradient_by_pairs(const at::Tensor& features, const at::Tensor& grad,
                             const PairLists& pairs) {
  const int64_t in = features.size(1), out = grad.size(1), panels = count_panels(out);
  at::Tensor result = at::zeros({pairs.taps, in, out}, features.options());
  at::parallel_for(0, pairs.taps * panels, 1, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t tap = task / panels, panel = task % panels;
      for (int64_t block = 0; block < pairs.blocks(); ++block) {
        const int32_t first = pairs.offsets(block)[tap], count = pairs.offsets(block)[tap + 1] - first;
        float* packed = scratch(int64_t(count) * kernels().panel);
        kernels().gather_panel(grad.const_data_ptr<float>(), pairs.out() + first, count, int(out),
                               int(panel), packed);
        kernels().weight_gradient(features.const_data_ptr<float>(), int(in), pairs.in() + first, packed,
                                  count, int(in), int(out), int(panel),
                                  result.data_ptr<float>() + tap * in * out);
      }
    }
  });
  return result;
}

// The same by tiles: products of transformed features and gradients, transformed back.
at::Tensor gradient_by_tiles(const at::Tensor& features, const at::Tensor& grad,
                             const TileList& tiles) {
  const int64_t in = features.size(1), out = grad.size(1), panels = count_panels(out);
  const int64_t count = tiles.count(), points = tiles.side() * tiles.side();
  const int64_t width = kernels().width, panel_width = kernels().panel;
  const int64_t in_stride = (in + width - 1) / width * width;
  const at::Tensor zeros = at::zeros({in}, features.options());
  at::Tensor inputs = empty_floats({points * count * in_stride});
  at::Tensor grads = empty_floats({panels * points * count * panel_width});
  at::Tensor products = at::zeros({points, in, out}, features.options());
  at::Tensor result = at::empty({9, in, out}, features.options());
  at::Tensor every_tile = at::arange(count, at::kInt);
  Convolution conv = {};
  conv.features = features.const_data_ptr<float>();
  conv.feature_stride = conv.in_channels = int(in);
  conv.zero_row = zeros.const_data_ptr<float>();
  const auto columns = [&](int64_t panel) {
    return (std::min(panel_width, out - panel * panel_width) + width - 1) / width * width;
  };
  const auto panel_grads = [&](int64_t panel) {
    return grads.data_ptr<float>() + panel * points * count * panel_width;
  };
  at::parallel_for(0, count, 8, [&](int64_t begin, int64_t end) {
    const int32_t* rows = tiles.rows() + begin * points;
    const int number = int(end - begin);
    kernels().winograd_input(conv, tiles.size, rows, number, count * in_stride,
                             inputs.data_ptr<float>() + begin * in_stride);
    for (int64_t panel = 0; panel < panels; ++panel)
      kernels().winograd_gradient(grad.const_data_ptr<float>(), int(out), tiles.size, rows, number,
                                  int(panel), count * columns(panel),
                                  panel_grads(panel) + begin * columns(panel));
  });
  at::parallel_for(0, points * panels, 1, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t point = task / panels, panel = task % panels;
      kernels().weight_gradient(inputs.const_data_ptr<float>() + point * count * in_stride,
                                int(in_stride), every_tile.const_data_ptr<int32_t>(),
                                panel_grads(panel) + point * count * columns(panel), int(count), int(in),
                                int(out), int(panel), products.data_ptr<float>() + point * in * out);
    }
  });
  at::parallel_for(0, panels, 1, [&](int64_t begin, int64_t end) {
    for (int64_t panel = begin; panel < end; ++panel)
      kernels().winograd_kernel_gradient(products.const_data_ptr<float>(), int(in), int(out), tiles.size,
                                         int(panel), result.data_ptr<float>());
  });
  return result;
}

}  // namespace

at::Tensor weight_gradient(const at::Tensor& features_, const at::Tensor& grad_, const at::Tensor& table,
                           const std::optional<at::Tensor>& row_map, c10::string_view algorithm) {
  check_rows(features_, "features");
  check_rows(grad_, "grad");
  check_table(table);
  check_range("the number of taps", table.size(1), 1, MAX_TAPS);
  refuse_gradients("the gradient of a convolution", {features_, grad_});
  CHECK_ARGUMENT(grad_.size(0) == table.size(0), "grad must have ", table.size(0), " rows, got ",
              grad_.size(0));
  const at::Tensor features = features_.contiguous(), grad = grad_.contiguous();
  const Derivation chosen = algorithm == "auto"
                                ? choose(table, row_map, features.size(1), grad.size(1))
                                : parse_algorithm(algorithm);
  if (chosen == Derivation::indirect) {
    const PairLists pairs = pairs_of(table);
    check_reach(pairs.num_input_rows(), features);
    return as_kernels(gradient_by_pairs(features, grad, pairs));
  }
  CHECK_ARGUMENT(row_map && table.size(1) == 9, name_of(chosen), " needs 3x3 kernels and stride 1");
  const TileList tiles = tiles_of(*row_map, tile_size(chosen));
  CHECK_ARGUMENT(tiles.num_rows() == features.size(0) && tiles.num_rows() == grad.size(0),
              "row_map has ", tiles.num_rows(), " rows, features ", features.size(0), " and grad ",
              grad.size(0));
  return as_kernels(gradient_by_tiles(features, grad, tiles));
}

}  // namespace sparse_dset
