// The choice of an algorithm for a 3x3 convolution.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

#include "derived.h"

namespace sparse_dset {

// The algorithm that is called so.
Derivation parse_algorithm(c10::string_view name);

const char* name_of(Derivation algorithm);

int tile_size(Derivation algorithm);

// The algorithm that is expected to be fastest; without a row map the stride is 2, which only the
// indirect one can do.
Derivation choose(const at::Tensor& table, const std::optional<at::Tensor>& row_map,
                  int64_t in_channels, int64_t out_channels);

}  // namespace sparse_dset
