// Every operator's schema, and the kernel that a CPU runs. Shapes for tracing and gradients are
// registered in sparse_dset/ops/backends/cpu_operators.py.
#include <torch/library.h>

#include "cpu/dispatch.h"
#include "cpu/operators.h"

namespace sparse_dset {
namespace {

std::string cpu_capability() { return kernels().name; }

}  // namespace

TORCH_LIBRARY_FRAGMENT(sparse_dset, m) {
  m.def("sparse_conv2d_cpu(Tensor features, Tensor weight, Tensor? bias, Tensor table, Tensor? row_map, "
        "str algorithm, str activation, bool transposed=False, Tensor? addend=None) -> Tensor");
  m.def("sparse_conv2d_cpu_weight_gradient(Tensor features, Tensor grad, Tensor table, Tensor? row_map, "
        "str algorithm) -> Tensor");
  m.def("dense_conv2d_cpu(Tensor x, Tensor weight, Tensor? bias, str algorithm, str activation, "
        "Tensor? addend=None) -> Tensor");
  m.def("depthwise_conv2d_cpu(Tensor features, Tensor weight, Tensor? bias, Tensor table, str activation) "
        "-> Tensor");
  m.def("depthwise_conv2d_cpu_weight_gradient(Tensor features, Tensor grad, Tensor table) -> Tensor");
  m.def("pointwise_conv_cpu(Tensor features, Tensor weight, Tensor? bias, Tensor? addend, "
        "Tensor? addend_rows, str activation) -> Tensor");
  m.def("chosen_algorithm(Tensor table, Tensor? row_map, int in_channels, int out_channels) -> str",
        chosen_algorithm);
  m.def("set_costs(float[] values) -> ()", set_costs);
  m.def("get_costs() -> float[]", get_costs);
  m.def("cpu_capability() -> str", cpu_capability);
  m.def("deform_attn_cpu(Tensor rows, Tensor[] row_maps, SymInt[] level_sizes, Tensor locations, "
        "Tensor weights, Tensor extents, Tensor background, bool whole_rows) -> (Tensor, Tensor)");
  m.def("deform_attn_cpu_backward(Tensor grad, Tensor rows, Tensor[] row_maps, SymInt[] level_sizes, "
        "Tensor locations, Tensor weights, Tensor extents, Tensor background) "
        "-> (Tensor, Tensor, Tensor, Tensor)");
  m.def("sites_of_mask(Tensor mask) -> (Tensor, Tensor)");
  m.def("parent_rows(Tensor indices, Tensor coarser_row_map) -> Tensor");
  m.def("window_table(Tensor row_map, Tensor indices, int size, int stride) -> Tensor");
  m.def("inverse_table(Tensor table, SymInt num_rows) -> Tensor");
}

TORCH_LIBRARY_IMPL(sparse_dset, CPU, m) {
  m.impl("sparse_conv2d_cpu", sparse_conv2d);
  m.impl("sparse_conv2d_cpu_weight_gradient", weight_gradient);
  m.impl("dense_conv2d_cpu", dense_conv2d);
  m.impl("depthwise_conv2d_cpu", depthwise_conv2d);
  m.impl("depthwise_conv2d_cpu_weight_gradient", depthwise_weight_gradient);
  m.impl("pointwise_conv_cpu", pointwise_conv);
  m.impl("deform_attn_cpu", deform_attn);
  m.impl("deform_attn_cpu_backward", deform_attn_backward);
  m.impl("sites_of_mask", sites_of_mask);
  m.impl("parent_rows", parent_rows);
  m.impl("window_table", window_table);
  m.impl("inverse_table", inverse_table);
}

}  // namespace sparse_dset
