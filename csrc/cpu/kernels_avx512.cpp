// The inner loops for AVX-512.
#include "kernels.h"

#ifdef __x86_64__

// The headers above must not be compiled for it: their code may be linked into other files.
#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx512f,avx512dq,avx512vl,avx512bw,fma,bmi2"))), apply_to = function)
#else
#pragma GCC target("avx512f,avx512dq,avx512vl,avx512bw,fma,bmi2")
#endif

#define SIMD_BYTES 64

namespace sparse_dset {
namespace {
#include "simd.h"

#include "kernels_impl.h"
}  // namespace

const Kernels kernels_avx512 = KERNELS("avx512");

}  // namespace sparse_dset

#ifdef __clang__
#pragma clang attribute pop
#endif

#endif  // __x86_64__
