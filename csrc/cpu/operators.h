// All operators, as registration.cpp names them; ops/ in Python says what they compute.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <string>
#include <tuple>
#include <vector>

namespace sparse_dset {

// conv.cpp
at::Tensor sparse_conv2d(const at::Tensor& features, const at::Tensor& weight,
                         const std::optional<at::Tensor>& bias, const at::Tensor& table,
                         const std::optional<at::Tensor>& row_map, c10::string_view algorithm,
                         c10::string_view activation, bool transposed,
                         const std::optional<at::Tensor>& addend);
at::Tensor dense_conv2d(const at::Tensor& x, const at::Tensor& weight,
                        const std::optional<at::Tensor>& bias, c10::string_view algorithm,
                        c10::string_view activation, const std::optional<at::Tensor>& addend);
at::Tensor pointwise_conv(const at::Tensor& features, const at::Tensor& weight,
                          const std::optional<at::Tensor>& bias,
                          const std::optional<at::Tensor>& addend,
                          const std::optional<at::Tensor>& addend_rows, c10::string_view activation);

// conv_gradient.cpp
at::Tensor weight_gradient(const at::Tensor& features, const at::Tensor& grad, const at::Tensor& table,
                           const std::optional<at::Tensor>& row_map, c10::string_view algorithm);

// depthwise.cpp
at::Tensor depthwise_conv2d(const at::Tensor& features, const at::Tensor& weight,
                            const std::optional<at::Tensor>& bias, const at::Tensor& table,
                            c10::string_view activation);
at::Tensor depthwise_weight_gradient(const at::Tensor& features, const at::Tensor& grad,
                                     const at::Tensor& table);

// costs.cpp
std::string chosen_algorithm(const at::Tensor& table, const std::optional<at::Tensor>& row_map,
                             int64_t in_channels, int64_t out_channels);
void set_costs(at::ArrayRef<double> values);
std::vector<double> get_costs();

// sampling.cpp
std::tuple<at::Tensor, at::Tensor> deform_attn(const at::Tensor& rows, at::TensorList row_maps,
                                               at::IntArrayRef level_sizes, const at::Tensor& locations,
                                               const at::Tensor& weights, const at::Tensor& extents,
                                               const at::Tensor& background, bool whole_rows);
std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> deform_attn_backward(
    const at::Tensor& grad, const at::Tensor& rows, at::TensorList row_maps,
    at::IntArrayRef level_sizes, const at::Tensor& locations, const at::Tensor& weights,
    const at::Tensor& extents, const at::Tensor& background);

// tables.cpp
at::Tensor window_table(const at::Tensor& row_map, const at::Tensor& indices, int64_t size,
                        int64_t stride);
at::Tensor inverse_table(const at::Tensor& table, int64_t num_rows);
std::tuple<at::Tensor, at::Tensor> sites_of_mask(const at::Tensor& mask);
at::Tensor parent_rows(const at::Tensor& indices, const at::Tensor& coarser_row_map);

}  // namespace sparse_dset
