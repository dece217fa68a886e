// A convolution's operands: checked, packed, and ready for the kernels.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

#include "derived.h"
#include "dispatch.h"

namespace sparse_dset {

// Which of a weight's forms a convolution uses.
struct WeightForm {
  bool transposed = false;  // C_in and C_out change places: the gradient of the input
  bool turned = false;      // and the kernel is turned by 180 degrees
};

// A convolution's operands and the memory that they lie in.
struct Operands {
  at::Tensor features, packed, bias, addend, addend_rows, zeros, out;
  Convolution conv;

  Operands(const at::Tensor& features, const at::Tensor& weight, const std::optional<at::Tensor>& bias,
           int64_t out_rows, Derivation algorithm, c10::string_view activation, WeightForm form = {});

  // Adds rows of a tensor, its own to each output row or those that `rows` names.
  void add(const std::optional<at::Tensor>& source, const std::optional<at::Tensor>& rows = {});
};

// Rows may be farther apart than they are long (a slice of wider rows).
at::Tensor with_dense_rows(const at::Tensor& rows);

int64_t count_panels(int64_t channels);

// Memory that a thread keeps for its next task.
float* scratch(int64_t floats);

// A table whose largest row is `num_input_rows` - 1 reads these features.
void check_reach(int64_t num_input_rows, const at::Tensor& features);

void check_bias(const std::optional<at::Tensor>& bias, int64_t channels);

void check_kernel(const at::Tensor& weight);

void check_weight(const at::Tensor& features, const at::Tensor& weight,
                  const std::optional<at::Tensor>& bias, int64_t taps, bool transposed = false);

}  // namespace sparse_dset
