// Convolutions of rows: 3x3 over a support, 1x1 over any rows.
#include <ATen/Functions.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "checks.h"
#include "derived.h"
#include "dispatch.h"
#include "gradients.h"
#include "memory.h"
#include "tables.h"

namespace sparse_dset {
namespace {

// What a unit of work costs, for the choice of an algorithm.
struct Costs {
  double indirect, winograd2, winograd4;  // a multiply-add
  double transform2, transform4;          // a channel of a tile, in and out
  double weight;                          // a packed weight, which every call reads once
};
Costs costs = {0.006, 0.0037, 0.0020, 3.7, 10.9, 0.17};  // nanoseconds, see ops/costs.py

constexpr int64_t TILES_AT_A_TIME = 48;  // of 4x4: what they become fits the second cache
constexpr int64_t POINTWISE_ROWS = 192;  // as many rows of features stay in the second cache

Activation parse_activation(c10::string_view name) {
  if (name == "none") return Activation::none;
  if (name == "relu") return Activation::relu;
  if (name == "relu6") return Activation::relu6;
  if (name == "silu") return Activation::silu;
  CHECK_ARGUMENT(false, "activation must be none, relu, relu6 or silu, got ", std::string(name));
}

// Rows may be farther apart than they are long (a slice of wider rows).
at::Tensor with_dense_rows(const at::Tensor& rows) {
  return rows.stride(1) == 1 || rows.size(1) == 1 ? rows : rows.contiguous();
}

int64_t count_panels(int64_t channels) {
  return (channels + kernels().panel - 1) / kernels().panel;
}

// Memory that a thread keeps for its next task.
float* scratch(int64_t floats) {
  thread_local std::vector<float> memory;
  if (int64_t(memory.size()) < floats) memory.resize(floats);
  return memory.data();
}

Derivation parse_algorithm(c10::string_view name) {
  if (name == "indirect") return Derivation::indirect;
  if (name == "winograd2") return Derivation::winograd2;
  if (name == "winograd4") return Derivation::winograd4;
  CHECK_ARGUMENT(false, "algorithm must be auto, indirect, winograd2 or winograd4, got ", std::string(name));
}

const char* name_of(Derivation algorithm) {
  if (algorithm == Derivation::winograd2) return "winograd2";
  return algorithm == Derivation::winograd4 ? "winograd4" : "indirect";
}

int tile_size(Derivation algorithm) { return algorithm == Derivation::winograd2 ? 2 : 4; }

// The algorithm that is expected to be fastest; without a row map the stride is 2, which only the
// indirect one can do.
Derivation choose(const at::Tensor& table, const std::optional<at::Tensor>& row_map,
                  int64_t in_channels, int64_t out_channels) {
  if (!row_map) return Derivation::indirect;
  const SiteCounts counts = counts_of(table, *row_map);
  const double products = double(in_channels) * out_channels;
  const double channels = double(in_channels + out_channels);
  const double indirect = products * (counts.pairs * costs.indirect + 9 * costs.weight);
  const double two = products * (16 * counts.tiles2 * costs.winograd2 + 16 * costs.weight) +
                     channels * counts.tiles2 * costs.transform2;
  const double four = products * (36 * counts.tiles4 * costs.winograd4 + 36 * costs.weight) +
                      channels * counts.tiles4 * costs.transform4;
  if (indirect <= std::min(two, four)) return Derivation::indirect;
  return two < four ? Derivation::winograd2 : Derivation::winograd4;
}

// Which of a weight's forms a convolution uses.
struct WeightForm {
  bool transposed = false;  // C_in and C_out change places: the gradient of the input
  bool turned = false;      // and the kernel is turned by 180 degrees
};

// Weights of one matrix per tap, packed. Those of a depthwise convolution, [C, 1, k, k], are matrices of
// a single row.
at::Tensor pack_taps(const at::Tensor& weight, Derivation derivation, WeightForm form) {
  return derive_from_weight(weight, derivation, form.transposed + 2 * form.turned, [&] {
    const at::Tensor source = weight.contiguous();
    int in = weight.size(1), out = weight.size(0);
    const int taps = source.numel() / std::max<int64_t>(1, int64_t(out) * in);
    int64_t row_stride = taps, column_stride = int64_t(in) * taps;
    if (form.transposed) std::swap(in, out), std::swap(row_stride, column_stride);
    const float* first = source.const_data_ptr<float>() + (form.turned ? taps - 1 : 0);
    at::Tensor packed = at::empty({kernels().packed_size(taps, in, out)}, weight.options());
    float* to = packed.data_ptr<float>();
    at::parallel_for(0, count_panels(out), 1, [&](int64_t begin, int64_t end) {
      for (int64_t panel = begin; panel < end; ++panel)
        kernels().pack(first, taps, in, out, form.turned ? -1 : 1, row_stride, column_stride,
                       int(panel), to);
    });
    return packed;
  });
}

at::Tensor pack(const at::Tensor& weight, Derivation derivation, WeightForm form) {
  if (derivation != Derivation::winograd2 && derivation != Derivation::winograd4)
    return pack_taps(weight, derivation, form);
  return derive_from_weight(weight, derivation, form.transposed + 2 * form.turned, [&] {
    const int size = tile_size(derivation), points = (size + 2) * (size + 2);
    const int in = weight.size(form.transposed ? 0 : 1), out = weight.size(form.transposed ? 1 : 0);
    const at::Tensor taps = pack_taps(weight, Derivation::indirect, form);
    at::Tensor packed = at::empty({kernels().packed_size(points, in, out)}, weight.options());
    const float* from = taps.const_data_ptr<float>();
    float* to = packed.data_ptr<float>();
    at::parallel_for(0, count_panels(out), 1, [&](int64_t begin, int64_t end) {
      for (int64_t panel = begin; panel < end; ++panel)
        kernels().winograd_weight(from, in, out, size, int(panel), to);
    });
    return packed;
  });
}

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

// A convolution's operands, checked, and the memory that they lie in.
struct Operands {
  at::Tensor features, packed, bias, addend, addend_rows, zeros, out;
  Convolution conv;

  Operands(const at::Tensor& features_, const at::Tensor& weight,
           const std::optional<at::Tensor>& bias_, int64_t out_rows, Derivation algorithm,
           c10::string_view activation, WeightForm form = {})
      : features(with_dense_rows(features_)),
        packed(pack(weight, algorithm, form)),
        bias(bias_ ? bias_->contiguous() : at::Tensor()),
        zeros(at::zeros({features.size(1)}, features.options())),
        out(empty_floats({out_rows, weight.size(form.transposed ? 1 : 0)})),
        conv{features.const_data_ptr<float>(),
             features.stride(0),
             zeros.const_data_ptr<float>(),
             packed.const_data_ptr<float>(),
             bias_ ? bias.const_data_ptr<float>() : nullptr,
             nullptr,
             nullptr,
             out.data_ptr<float>(),
             int(features.size(1)),
             int(out.size(1)),
             parse_activation(activation)} {
  }

  // Adds rows of a tensor, its own to each output row or those that `rows` names.
  void add(const std::optional<at::Tensor>& source, const std::optional<at::Tensor>& rows = {}) {
    if (!source) return;
    check_rows(*source, "addend");
    CHECK_ARGUMENT(source->size(1) == out.size(1) && (rows || source->size(0) == out.size(0)),
                "addend must be [", rows ? "any" : std::to_string(out.size(0)), ", ", out.size(1),
                "], got ", source->sizes());
    addend = source->contiguous();
    conv.addend = addend.const_data_ptr<float>();
    if (!rows) return;
    check_tensor(*rows, "addend_rows", at::kLong, 1, "int64 [N]");
    CHECK_ARGUMENT(rows->size(0) == out.size(0), "addend_rows must be int64 [", out.size(0), "], got ",
                rows->sizes());
    addend_rows = rows->contiguous();
    conv.addend_rows = addend_rows.const_data_ptr<int64_t>();
    for (int64_t n = 0; n < out.size(0); ++n)
      CHECK_ARGUMENT(conv.addend_rows[n] >= 0 && conv.addend_rows[n] < addend.size(0), "addend_rows[", n,
                  "] = ", conv.addend_rows[n], " of ", addend.size(0));
  }
};

// A table whose largest row is `num_input_rows` - 1 reads these features.
void check_reach(int64_t num_input_rows, const at::Tensor& features) {
  CHECK_ARGUMENT(num_input_rows <= features.size(0), "table names row ", num_input_rows - 1, " of ",
              features.size(0));
}

void check_bias(const std::optional<at::Tensor>& bias, int64_t channels) {
  if (!bias) return;
  check_tensor(*bias, "bias", at::kFloat, 1, "float32 [C_out]");
  CHECK_ARGUMENT(bias->size(0) == channels, "bias must be float32 [", channels, "], got ", bias->sizes());
}

void check_kernel(const at::Tensor& weight) {
  check_tensor(weight, "weight", at::kFloat, std::max<int64_t>(2, weight.dim()),
               "float32 [C_out, C_in / groups, ...]");
}

void check_weight(const at::Tensor& features, const at::Tensor& weight,
                  const std::optional<at::Tensor>& bias, int64_t taps, bool transposed = false) {
  check_rows(features, "features");
  check_kernel(weight);
  const int64_t in = transposed ? 0 : 1;
  CHECK_ARGUMENT(weight.size(in) == features.size(1) &&
                  weight.numel() == weight.size(0) * weight.size(1) * taps,
              "weight must be float32 with ", features.size(1), " input channels and ", taps,
              " taps, got ", weight.scalar_type(), " ", weight.sizes());
  check_bias(bias, weight.size(1 - in));
}

void check_depthwise(const at::Tensor& features, const at::Tensor& weight,
                     const std::optional<at::Tensor>& bias, const at::Tensor& table) {
  check_rows(features, "features");
  check_table(table);
  check_kernel(weight);
  const int64_t channels = features.size(1), taps = table.size(1);
  check_range("the number of taps of a depthwise kernel", taps, 1, MAX_TAPS);
  CHECK_ARGUMENT(weight.size(0) == channels && weight.size(1) == 1 && weight.numel() == channels * taps,
              "weight must be float32 [", channels, ", 1, k, k] with ", taps, " taps, got ",
              weight.scalar_type(), " ", weight.sizes());
  check_bias(bias, channels);
  check_reach(num_input_rows(table), features);
}

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

// The cells of a map [B, C, H, W] as rows [B * H * W, C]; a copy only where their memory is not laid
// out as rows, which those of some channels of a channels-last map are.
at::Tensor rows_of_map(const at::Tensor& x) {
  const int64_t step = x.stride(3);
  const bool as_rows = x.stride(1) == 1 && step >= x.size(1) && x.stride(2) == step * x.size(3) &&
                       x.stride(0) == step * x.size(3) * x.size(2);
  if (as_rows) return x.as_strided({x.size(0) * x.size(2) * x.size(3), x.size(1)}, {step, 1});
  return x.permute({0, 2, 3, 1}).reshape({-1, x.size(1)});
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

at::Tensor depthwise_conv2d(const at::Tensor& features, const at::Tensor& weight,
                            const std::optional<at::Tensor>& bias, const at::Tensor& table,
                            c10::string_view activation) {
  check_depthwise(features, weight, bias, table);
  const int64_t taps = table.size(1);
  const Operands operands(features, weight, bias, table.size(0), Derivation::depthwise, activation);
  at::parallel_for(0, table.size(0), 64, [&](int64_t begin, int64_t end) {
    kernels().depthwise(operands.conv, table.const_data_ptr<int32_t>(), int(taps), int(begin), int(end));
  });
  return operands.out;
}

at::Tensor depthwise_weight_gradient(const at::Tensor& features_, const at::Tensor& grad_,
                                     const at::Tensor& table) {
  check_rows(features_, "features");
  check_rows(grad_, "grad");
  check_table(table);
  check_range("the number of taps of a depthwise kernel", table.size(1), 1, MAX_TAPS);
  refuse_gradients("the gradient of a depthwise convolution", {features_, grad_});
  const at::Tensor features = with_dense_rows(features_), grad = grad_.contiguous();
  const int64_t taps = table.size(1), channels = features.size(1), rows = table.size(0);
  CHECK_ARGUMENT(grad.size(0) == rows && grad.size(1) == channels, "grad must be [", rows, ", ", channels,
              "], got ", grad.sizes());
  check_reach(num_input_rows(table), features);
  const int64_t parts = at::get_num_threads();
  const at::Tensor sums = at::zeros({parts, taps, channels}, features.options());
  float* to = sums.data_ptr<float>();
  at::parallel_for(0, parts, 1, [&](int64_t begin, int64_t end) {
    for (int64_t part = begin; part < end; ++part)
      kernels().depthwise_gradient(features.const_data_ptr<float>(), int(features.stride(0)),
                                   grad.const_data_ptr<float>(), table.const_data_ptr<int32_t>(), int(taps),
                                   int(channels), int(rows * part / parts), int(rows * (part + 1) / parts),
                                   to + part * taps * channels);
  });
  return sums.sum(0).t().contiguous();
}

std::string chosen_algorithm(const at::Tensor& table, const std::optional<at::Tensor>& row_map,
                             int64_t in_channels, int64_t out_channels) {
  check_table(table);
  check_range("in_channels", in_channels, 1, std::numeric_limits<int32_t>::max());
  check_range("out_channels", out_channels, 1, std::numeric_limits<int32_t>::max());
  return name_of(choose(table, row_map, in_channels, out_channels));
}

void set_costs(at::ArrayRef<double> values) {
  CHECK_ARGUMENT(values.size() == 6, "6 costs are needed, got ", values.size());
  for (const double value : values)
    CHECK_ARGUMENT(std::isfinite(value) && value >= 0, "a cost must be finite and not below 0, got ", value);
  costs = {values[0], values[1], values[2], values[3], values[4], values[5]};
}

std::vector<double> get_costs() {
  return {costs.indirect,   costs.winograd2,  costs.winograd4,
          costs.transform2, costs.transform4, costs.weight};
}

std::string cpu_capability() { return kernels().name; }

}  // namespace

TORCH_LIBRARY_FRAGMENT(sparse_dset, m) {
  m.def("sparse_conv2d_cpu(Tensor features, Tensor weight, Tensor? bias, Tensor table, Tensor? row_map, "
        "str algorithm, str activation, bool transposed=False, Tensor? addend=None) -> Tensor");
  m.def("sparse_conv2d_cpu_weight_gradient(Tensor features, Tensor grad, Tensor table, Tensor? row_map, "
        "str algorithm) -> Tensor");
  m.def("dense_conv2d_cpu(Tensor x, Tensor weight, Tensor? bias, str algorithm, str activation, "
        "Tensor? addend=None) -> Tensor");
  m.def("depthwise_conv2d_cpu(Tensor features, Tensor weight, Tensor? bias, Tensor table, str activation) "
        "-> Tensor");
  m.def("depthwise_conv2d_cpu_weight_gradient(Tensor features, Tensor grad, Tensor table) -> Tensor");
  m.def("pointwise_conv_cpu(Tensor features, Tensor weight, Tensor? bias, Tensor? addend, "
        "Tensor? addend_rows, str activation) -> Tensor");
  m.def("chosen_algorithm(Tensor table, Tensor? row_map, int in_channels, int out_channels) -> str",
        chosen_algorithm);
  m.def("set_costs(float[] values) -> ()", set_costs);
  m.def("get_costs() -> float[]", get_costs);
  m.def("cpu_capability() -> str", cpu_capability);
}

TORCH_LIBRARY_IMPL(sparse_dset, CPU, m) {
  m.impl("sparse_conv2d_cpu", sparse_conv2d);
  m.impl("sparse_conv2d_cpu_weight_gradient", weight_gradient);
  m.impl("dense_conv2d_cpu", dense_conv2d);
  m.impl("depthwise_conv2d_cpu", depthwise_conv2d);
  m.impl("depthwise_conv2d_cpu_weight_gradient", depthwise_weight_gradient);
  m.impl("pointwise_conv_cpu", pointwise_conv);
}

}  // namespace sparse_dset
