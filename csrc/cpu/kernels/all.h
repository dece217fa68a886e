// All inner loops for vectors of SIMD_BYTES; see kernels.h. These files are included within a namespace
// of each instruction set's own, once for each.
#include "simd.h"

#include "gemm.h"
#include "depthwise.h"
#include "winograd_transforms.h"
#include "winograd.h"
#include "sampling.h"

#define KERNELS(isa)                                        \
  {                                                         \
    .name = isa,                                            \
    .width = WIDTH,                                         \
    .panel = PANEL,                                         \
    .packed_size = packed_size,                             \
    .pack = pack,                                           \
    .pointwise = pointwise,                                 \
    .indirect = indirect,                                   \
    .gather_panel = gather_panel,                           \
    .depthwise = depthwise,                                 \
    .depthwise_gradient = depthwise_gradient,               \
    .weight_gradient = weight_gradient,                     \
    .winograd_weight = winograd_weight,                     \
    .winograd_scratch = winograd_scratch,                   \
    .winograd = winograd,                                   \
    .winograd_input = winograd_input,                       \
    .winograd_gradient = winograd_gradient,                 \
    .winograd_kernel_gradient = winograd_kernel_gradient,   \
    .sample = sample,                                       \
    .sample_backward = sample_backward,                     \
  }
