// The inner loops for any processor: the compiler cuts the vectors as it has to.
#include "kernels.h"

#define SIMD_BYTES 16

namespace sparse_dset {
namespace {
#include "all.h"
}  // namespace

const Kernels kernels_portable = KERNELS("portable");

}  // namespace sparse_dset
