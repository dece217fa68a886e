#pragma once

#include <vector>

#include "kernels/kernels.h"

namespace sparse_dset {

// The fastest set of inner loops that this processor runs, or the one that the environment variable
// SPARSE_DSET_CPU_CAPABILITY names (avx512, avx2, portable).
const Kernels& kernels();

// All sets that this processor runs, fastest first.
std::vector<const Kernels*> available_kernels();

}  // namespace sparse_dset
