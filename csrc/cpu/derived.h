#pragma once

#include <ATen/core/Tensor.h>

#include <functional>

namespace sparse_dset {

// What a tensor is a source of.
enum class Derivation {
  indirect, winograd2, winograd4, pointwise, depthwise,  // of a weight
  pairs, tiles2, tiles4, counts, last_row                // of a table
};

// Returns what `make` makes of a weight, made once and kept as long as the weight's memory and values
// stay as they are. Values are watched through the version counter, which in-place operations move.
// Writing through `.data` and fused optimisers do not move it: of a weight that is trained all values
// are watched, of others 64 that are spread over it. Inference tensors have no version: nothing is
// kept for them.
at::Tensor derive_from_weight(const at::Tensor& weight, Derivation, int variant,
                              const std::function<at::Tensor()>& make);

// The same for tables, which are never written to once they exist.
at::Tensor derive_from_table(const at::Tensor& table, Derivation, const std::function<at::Tensor()>& make);

}  // namespace sparse_dset
