#pragma once

#include <ATen/core/Tensor.h>

namespace sparse_dset {

// Like at::empty for float32 on the CPU. Large blocks are kept when they are freed and given out
// again: the C library would hand them back to the system, which then clears every page anew, and
// that takes longer than many a convolution that fills them. At most twice as much is kept as was in
// use at once: blocks of all the sizes that a network asks for.
at::Tensor empty_floats(at::IntArrayRef sizes);

}  // namespace sparse_dset
