// Multi-scale deformable sampling of rows.
#include <ATen/Functions.h>
#include <ATen/Parallel.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "checks.h"
#include "dispatch.h"
#include "gradients.h"
#include "operators.h"
#include "tables.h"

namespace sparse_dset {
namespace {

// The arguments of both directions, checked and made contiguous.
struct Arguments {
  at::Tensor rows, locations, weights, extents, background;
  std::vector<at::Tensor> row_maps;
  std::vector<int> heights, widths;
  std::vector<int64_t> first_rows;
  int64_t batch, queries, heads, levels, points;
  int head_stride, head_width;

  Arguments(const at::Tensor& rows_, at::TensorList row_maps_, at::IntArrayRef level_sizes,
            const at::Tensor& locations_, const at::Tensor& weights_, const at::Tensor& extents_,
            const at::Tensor& background_, bool whole_rows) {
    check_rows(rows_, "rows");
    check_tensor(locations_, "locations", at::kFloat, 6, "float32 [B, Q, heads, L, P, 2]");
    check_tensor(weights_, "weights", at::kFloat, 5, "float32 [B, Q, heads, L, P]");
    check_tensor(extents_, "extents", at::kFloat, 3, "float32 [B, L, 2]");
    check_tensor(background_, "background", at::kFloat, 2, "float32 [L, channels]");
    rows = rows_.contiguous(), locations = locations_.contiguous(), weights = weights_.contiguous();
    extents = extents_.contiguous(), background = background_.contiguous();
    CHECK_ARGUMENT(locations.size(5) == 2, "locations must be [B, Q, heads, L, P, 2], got ",
                locations.sizes());
    batch = locations.size(0), queries = locations.size(1), heads = locations.size(2);
    levels = locations.size(3), points = locations.size(4);
    check_range("the number of heads", heads, 1, MAX_HEADS);
    check_range("the number of levels", levels, 1, MAX_LEVELS);
    check_range("the number of points", points, 1, std::numeric_limits<int16_t>::max());
    CHECK_ARGUMENT(weights.sizes() == locations.sizes().slice(0, 5), "weights must be ",
                locations.sizes().slice(0, 5), ", got ", weights.sizes());
    CHECK_ARGUMENT(extents.size(0) == batch && extents.size(1) == levels &&
                    extents.size(2) == 2,
                "extents must be [B, L, 2], got ", extents.sizes());
    CHECK_ARGUMENT(int64_t(row_maps_.size()) == levels && int64_t(level_sizes.size()) == levels,
                "there must be a row map and a size for each of ", levels, " levels");
    CHECK_ARGUMENT(whole_rows || rows.size(1) % heads == 0,
                "rows must be [M, a multiple of ", heads, " heads], got ", rows.sizes());
    CHECK_ARGUMENT(background.size(0) == levels && background.size(1) == rows.size(1),
                "background must be ", levels, " rows like those of the levels, got ",
                background.sizes());
    int64_t first = 0;
    for (int64_t level = 0; level < levels; ++level) {
      const at::Tensor& map = row_maps_[level];
      check_tensor(map, "row maps", at::kInt, 3, "int32 [B, H, W]");
      check_range("the number of cells of a row map", map.numel(), 0, std::numeric_limits<int32_t>::max());
      CHECK_ARGUMENT(map.size(0) == batch, "row maps must be of ", batch, " images, got ", map.sizes());
      check_range("level_sizes", level_sizes[level], 0, rows.size(0));
      row_maps.push_back(map.contiguous());
      const int64_t named = rows_named(row_maps.back());
      CHECK_ARGUMENT(named <= level_sizes[level], "the row map of level ", level, " names row ",
                  named - 1, " of ", level_sizes[level]);
      heights.push_back(int(map.size(1)));
      widths.push_back(int(map.size(2)));
      first_rows.push_back(first);
      first += level_sizes[level];
    }
    CHECK_ARGUMENT(first == rows.size(0), "levels have ", first, " rows, but there are ", rows.size(0));
    head_stride = whole_rows ? 0 : int(rows.size(1) / heads);
    head_width = whole_rows ? int(rows.size(1)) : head_stride;
  }

  std::vector<const float*> level_rows() const {
    std::vector<const float*> pointers;
    for (const int64_t first : first_rows)
      pointers.push_back(rows.const_data_ptr<float>() + first * rows.size(1));
    return pointers;
  }

  std::vector<const int32_t*> image_row_maps(int64_t image) const {
    std::vector<const int32_t*> pointers;
    for (const at::Tensor& map : row_maps)
      pointers.push_back(map.const_data_ptr<int32_t>() + image * map.size(1) * map.size(2));
    return pointers;
  }

  // The pointers must live as long as the result.
  Sampling sampling(int64_t image, const std::vector<const float*>& level_rows,
                    const std::vector<const int32_t*>& maps) const {
    return {level_rows.data(),
            background.const_data_ptr<float>(),
            int(rows.size(1)),
            maps.data(),
            heights.data(),
            widths.data(),
            extents.const_data_ptr<float>() + image * levels * 2,
            int(heads),
            int(levels),
            int(points),
            head_stride,
            head_width};
  }
};

// In [0, 1], also for what is not a number.
float clamped(float x) { return x > 0.0f ? std::min(x, 1.0f) : 0.0f; }

// Orders queries by where they look, strip by strip: neighbours read the same rows, which then are
// still in the second cache.
std::vector<int64_t> reading_order(const float* locations, int64_t queries, int64_t heads,
                                   int64_t samples_per_head) {
  constexpr float STRIPS = 8.0f;
  std::vector<std::pair<float, int64_t>> keys(queries);
  for (int64_t q = 0; q < queries; ++q) {
    float x = 0.0f, y = 0.0f;
    for (int64_t h = 0; h < heads; ++h) {
      const float* first = locations + (q * heads + h) * samples_per_head * 2;
      x += clamped(first[0]);
      y += clamped(first[1]);
    }
    const float strip = std::floor(y / heads * STRIPS);
    keys[q] = {strip * 2.0f + x / heads, q};
  }
  std::sort(keys.begin(), keys.end());
  std::vector<int64_t> order(queries);
  for (int64_t q = 0; q < queries; ++q) order[q] = keys[q].second;
  return order;
}

}  // namespace

std::tuple<at::Tensor, at::Tensor> deform_attn(const at::Tensor& rows, at::TensorList row_maps,
                                               at::IntArrayRef level_sizes, const at::Tensor& locations,
                                               const at::Tensor& weights, const at::Tensor& extents,
                                               const at::Tensor& background, bool whole_rows) {
  const Arguments a(rows, row_maps, level_sizes, locations, weights, extents, background, whole_rows);
  at::Tensor out = at::empty({a.batch, a.queries, a.heads, a.head_width}, a.rows.options());
  at::Tensor coverage = at::empty({a.batch, a.queries, a.heads}, a.rows.options());
  const int64_t samples = a.heads * a.levels * a.points;
  const auto level_rows = a.level_rows();
  for (int64_t image = 0; image < a.batch; ++image) {
    const auto maps = a.image_row_maps(image);
    const Sampling sampling = a.sampling(image, level_rows, maps);
    const auto order = reading_order(
        a.locations.const_data_ptr<float>() + image * a.queries * samples * 2, a.queries, a.heads,
        a.levels * a.points);
    at::parallel_for(0, a.queries, 16, [&](int64_t begin, int64_t end) {
      std::vector<Corner> corners(4 * samples);
      for (int64_t i = begin; i < end; ++i) {
        const int64_t q = image * a.queries + order[i];
        kernels().sample(sampling, a.locations.const_data_ptr<float>() + q * samples * 2,
                         a.weights.const_data_ptr<float>() + q * samples, corners.data(),
                         out.data_ptr<float>() + q * a.heads * a.head_width,
                         coverage.data_ptr<float>() + q * a.heads);
      }
    });
  }
  return {out, coverage};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> deform_attn_backward(
    const at::Tensor& grad_, const at::Tensor& rows, at::TensorList row_maps,
    at::IntArrayRef level_sizes, const at::Tensor& locations, const at::Tensor& weights,
    const at::Tensor& extents, const at::Tensor& background) {
  refuse_gradients("the gradient of deformable attention",
                   {grad_, rows, locations, weights, background});
  const Arguments a(rows, row_maps, level_sizes, locations, weights, extents, background, false);
  check_tensor(grad_, "grad", at::kFloat, grad_.dim(), "float32");
  CHECK_ARGUMENT(grad_.numel() == a.batch * a.queries * a.heads * a.head_width && grad_.dim() > 0 &&
                  grad_.size(0) == a.batch,
              "grad must be of the output's shape [", a.batch, ", ", a.queries, ", ", a.heads, ", ",
              a.head_width, "], got ", grad_.sizes());
  const at::Tensor grad = grad_.contiguous();
  at::Tensor grad_rows = at::zeros_like(a.rows), grad_background = at::zeros_like(a.background);
  at::Tensor grad_locations = at::empty_like(a.locations), grad_weights = at::empty_like(a.weights);
  const int64_t samples = a.levels * a.points;
  const auto level_rows = a.level_rows();
  std::vector<float*> grad_level_rows;
  for (const int64_t first : a.first_rows)
    grad_level_rows.push_back(grad_rows.data_ptr<float>() + first * a.rows.size(1));
  // A head has columns of its own: threads never add to the same place.
  at::parallel_for(0, a.heads, 1, [&](int64_t begin, int64_t end) {
    for (int64_t image = 0; image < a.batch; ++image) {
      const auto maps = a.image_row_maps(image);
      const Sampling sampling = a.sampling(image, level_rows, maps);
      for (int64_t q = image * a.queries; q < (image + 1) * a.queries; ++q)
        for (int64_t head = begin; head < end; ++head) {
          const int64_t i = q * a.heads + head;
          kernels().sample_backward(sampling, int(head), grad.const_data_ptr<float>() + i * a.head_width,
                                    a.locations.const_data_ptr<float>() + i * samples * 2,
                                    a.weights.const_data_ptr<float>() + i * samples,
                                    grad_level_rows.data(), grad_background.data_ptr<float>(),
                                    grad_locations.data_ptr<float>() + i * samples * 2,
                                    grad_weights.data_ptr<float>() + i * samples);
        }
    }
  });
  return {grad_rows, grad_locations, grad_weights, grad_background};
}

}  // namespace sparse_dset
