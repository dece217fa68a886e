#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/core/grad_mode.h>

#include <initializer_list>

#include "checks.h"

namespace sparse_dset {

// Operators without a backward pass would leave gradients out without a word.
inline void refuse_gradients(const char* name, std::initializer_list<at::Tensor> inputs) {
  if (!at::GradMode::is_enabled()) return;
  for (const at::Tensor& input : inputs)
    CHECK_ARGUMENT(!input.requires_grad(), name, " has no gradient: call it under torch.no_grad(), or with ",
                "the backend \"reference\"");
}

}  // namespace sparse_dset
