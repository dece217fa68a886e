// Depthwise convolution of the rows that a table names, and the gradient of its weight.
#include <ATen/Functions.h>
#include <ATen/Parallel.h>

#include "checks.h"
#include "gradients.h"
#include "operands.h"
#include "operators.h"
#include "tables.h"

namespace sparse_dset {
namespace {

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

}  // namespace

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

}  // namespace sparse_dset
