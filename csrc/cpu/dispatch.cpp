// The choice of the instruction set, once per process.
#include "dispatch.h"

#include <c10/util/Exception.h>

#include <cstdlib>
#include <string>

namespace sparse_dset {
namespace {

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
  if (runs_avx512()) found.push_back(&kernels_avx512);
  if (runs_avx2()) found.push_back(&kernels_avx2);
#endif
  found.push_back(&kernels_portable);
  return found;
}

const Kernels& kernels() {
  static const Kernels& chosen = choose();
  return chosen;
}

}  // namespace sparse_dset
