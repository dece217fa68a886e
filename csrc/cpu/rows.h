// What every operator on rows [N, channels] needs.
#pragma once

#include <ATen/core/Tensor.h>

#include <string>

#include "dispatch.h"

namespace sparse_dset {

inline Activation parse_activation(c10::string_view name) {
  if (name == "none") return Activation::none;
  if (name == "relu") return Activation::relu;
  if (name == "relu6") return Activation::relu6;
  if (name == "silu") return Activation::silu;
  TORCH_CHECK(false, "activation must be none, relu, relu6 or silu, got ", std::string(name));
}

inline void check_rows(const at::Tensor& rows, const char* name) {
  TORCH_CHECK(rows.scalar_type() == at::kFloat && rows.dim() == 2, name,
              " must be float32 [N, channels], got ", rows.scalar_type(), " ", rows.sizes());
}

// Rows may be farther apart than they are long (a slice of wider rows).
inline at::Tensor with_dense_rows(const at::Tensor& rows) {
  return rows.stride(1) == 1 || rows.size(1) == 1 ? rows : rows.contiguous();
}

inline int64_t count_panels(int64_t channels) {
  return (channels + kernels().panel - 1) / kernels().panel;
}

}  // namespace sparse_dset
