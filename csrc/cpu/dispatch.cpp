// The choice of the instruction set, once per process.
#include "dispatch.h"

#include <c10/util/Exception.h>

#include <cstdlib>
#include <string>

namespace sparse_dset {
namespace {

bool runs_here(const Kernels& kernels) {
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (&kernels == &kernels_avx512)
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("fma");
  if (&kernels == &kernels_avx2)
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#endif
  return &kernels == &kernels_portable;
}

const Kernels& choose() {
  const char* wanted = std::getenv("SPARSE_DSET_CPU_CAPABILITY");
  for (const Kernels* kernels : available_kernels()) {
    if (!wanted) return *kernels;
    if (std::string(wanted) == kernels->name) return *kernels;
  }
  TORCH_CHECK(false, "SPARSE_DSET_CPU_CAPABILITY = ", wanted,
              " does not run on this processor: use avx512, avx2 or portable, or leave it unset");
}

}  // namespace

std::vector<const Kernels*> available_kernels() {
  std::vector<const Kernels*> found;
#if defined(__x86_64__)
  for (const Kernels* kernels : {&kernels_avx512, &kernels_avx2})
    if (runs_here(*kernels)) found.push_back(kernels);
#endif
  found.push_back(&kernels_portable);
  return found;
}

const Kernels& kernels() {
  static const Kernels& chosen = choose();
  return chosen;
}

}  // namespace sparse_dset
