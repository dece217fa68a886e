// Weights are packed, and arguments checked, in the same way for every convolution.
#include "operands.h"

#include <ATen/Functions.h>
#include <ATen/Parallel.h>

#include <algorithm>
#include <string>
#include <vector>

#include "checks.h"
#include "costs.h"
#include "memory.h"

namespace sparse_dset {
namespace {

Activation parse_activation(c10::string_view name) {
  if (name == "none") return Activation::none;
  if (name == "relu") return Activation::relu;
  if (name == "relu6") return Activation::relu6;
  if (name == "silu") return Activation::silu;
  CHECK_ARGUMENT(false, "activation must be none, relu, relu6 or silu, got ", std::string(name));
}

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

}  // namespace

at::Tensor with_dense_rows(const at::Tensor& rows) {
  return rows.stride(1) == 1 || rows.size(1) == 1 ? rows : rows.contiguous();
}

int64_t count_panels(int64_t channels) {
  return (channels + kernels().panel - 1) / kernels().panel;
}

float* scratch(int64_t floats) {
  thread_local std::vector<float> memory;
  if (int64_t(memory.size()) < floats) memory.resize(floats);
  return memory.data();
}

Operands::Operands(const at::Tensor& features_, const at::Tensor& weight,
         const std::optional<at::Tensor>& bias_, int64_t out_rows, Derivation algorithm,
         c10::string_view activation, WeightForm form)
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

void Operands::add(const std::optional<at::Tensor>& source, const std::optional<at::Tensor>& rows) {
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
                  const std::optional<at::Tensor>& bias, int64_t taps, bool transposed) {
  check_rows(features, "features");
  check_kernel(weight);
  const int64_t in = transposed ? 0 : 1;
  CHECK_ARGUMENT(weight.size(in) == features.size(1) &&
                  weight.numel() == weight.size(0) * weight.size(1) * taps,
              "weight must be float32 with ", features.size(1), " input channels and ", taps,
              " taps, got ", weight.scalar_type(), " ", weight.sizes());
  check_bias(bias, weight.size(1 - in));
}

}  // namespace sparse_dset
