// The inner loops for AVX-512.
#include "kernels.h"

#ifdef __x86_64__

namespace sparse_dset {

// These are the targets below; this function itself must not be compiled for them.
bool runs_avx512() {
  __builtin_cpu_init();
  return __builtin_cpu_supports("avx512f") &&
         __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("fma") &&
         __builtin_cpu_supports("bmi2");
}

}  // namespace sparse_dset

// The headers above must not be compiled for it: their code may be linked into other files.
#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx512f,avx512dq,avx512vl,avx512bw,fma,bmi2"))), apply_to = function)
#else
#pragma GCC target("avx512f,avx512dq,avx512vl,avx512bw,fma,bmi2")
#endif

#define SIMD_BYTES 64

namespace sparse_dset {
namespace {
#include "all.h"
}  // namespace

const Kernels kernels_avx512 = KERNELS("avx512");

}  // namespace sparse_dset

#ifdef __clang__
#pragma clang attribute pop
#endif

#endif  // __x86_64__
