// Checks of arguments, one per kind. Every message starts with the project's name, so that it is told
// from PyTorch's own.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <limits>

#define CHECK_ARGUMENT(condition, ...) TORCH_CHECK(condition, "sparse_dset: ", __VA_ARGS__)

namespace sparse_dset {

// Operators that no device is registered for are called with any tensor.
inline void check_tensor(const at::Tensor& tensor, const char* name, at::ScalarType dtype, int64_t dim,
                         const char* expected) {
  CHECK_ARGUMENT(tensor.defined() && tensor.layout() == at::kStrided && tensor.is_cpu(), name,
                 " must be a dense tensor on the CPU");
  CHECK_ARGUMENT(tensor.dim() == dim && tensor.scalar_type() == dtype, name, " must be ", expected,
                 ", got ", tensor.scalar_type(), " ", tensor.sizes());
}

// Rows of floats, with at least one channel.
inline void check_rows(const at::Tensor& rows, const char* name) {
  check_tensor(rows, name, at::kFloat, 2, "float32 [N, channels]");
  CHECK_ARGUMENT(rows.size(1) > 0, name, " need at least one channel, got ", rows.sizes());
}

// Integers that the kernels walk through.
inline void check_integers(const at::Tensor& tensor, const char* name, int64_t dim, const char* expected) {
  check_tensor(tensor, name, at::kInt, dim, expected);
  CHECK_ARGUMENT(tensor.is_contiguous(), name, " must be contiguous");
  CHECK_ARGUMENT(tensor.numel() <= std::numeric_limits<int32_t>::max(), name, " ", tensor.sizes(),
                 " is too large for 32-bit rows");
}

inline void check_row_map(const at::Tensor& row_map) {
  check_integers(row_map, "row_map", 3, "int32 [B, H, W]");
}

inline void check_table(const at::Tensor& table) {
  check_integers(table, "table", 2, "int32 [N, taps]");
}

inline void check_indices(const at::Tensor& indices) {
  check_integers(indices, "indices", 2, "int32 [N, 3]");
  CHECK_ARGUMENT(indices.size(1) == 3, "indices must be int32 [N, 3], got ", indices.sizes());
}

inline void check_range(const char* name, int64_t value, int64_t least, int64_t most) {
  CHECK_ARGUMENT(value >= least && value <= most, name, " must be in ", least, "..", most, ", got ", value);
}

}  // namespace sparse_dset
