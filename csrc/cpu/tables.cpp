// Tables of rows: windows of a support, their inverse, tiles, lists of pairs.
#include "tables.h"

#include <ATen/Functions.h>
#include <ATen/Parallel.h>

#include <algorithm>
#include <array>
#include <limits>
#include <map>
#include <mutex>
#include <tuple>
#include <vector>

#include "checks.h"
#include "derived.h"
#include "operators.h"

namespace sparse_dset {
namespace {

// No window that anyone reads is wider, and no level is coarser.
constexpr int64_t LARGEST_WINDOW = 63, LARGEST_STRIDE = 64;

void check_site(const int32_t* site, int64_t n, int64_t images) {
  CHECK_ARGUMENT(site[0] >= 0 && site[0] < images, "site ", n, " is of image ", site[0], " of ", images);
  CHECK_ARGUMENT(site[1] >= 0 && site[2] >= 0, "site ", n, " lies at (y, x) = (", site[1], ", ", site[2],
                 "), outside every grid");
}

// The row of a cell, -1 outside the grid.
struct Grid {
  explicit Grid(const at::Tensor& row_map)
      : rows(row_map.const_data_ptr<int32_t>()), height(row_map.size(1)), width(row_map.size(2)) {}

  int32_t at(int64_t batch, int64_t y, int64_t x) const {
    if (y < 0 || x < 0 || y >= height || x >= width) return -1;
    return rows[(batch * height + y) * width + x];
  }

  const int32_t* rows;
  const int64_t height, width;
};

}  // namespace

// The row under each tap of a size x size window around (y, x) * stride: int32 [N, size^2].
at::Tensor window_table(const at::Tensor& row_map, const at::Tensor& indices, int64_t size,
                        int64_t stride) {
  check_row_map(row_map);
  check_range("a window's size", size, 1, LARGEST_WINDOW);
  CHECK_ARGUMENT(size % 2, "a window's size must be odd, got ", size);
  check_range("stride", stride, 1, LARGEST_STRIDE);
  check_indices(indices);
  const int64_t count = indices.size(0);
  const int64_t taps = size * size, reach = size / 2;
  at::Tensor table = at::empty({count, taps}, indices.options());
  const Grid grid(row_map);
  const int32_t* site = indices.const_data_ptr<int32_t>();
  int32_t* out = table.data_ptr<int32_t>();
  at::parallel_for(0, count, 4096, [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n) {
      const int64_t batch = site[3 * n], y = site[3 * n + 1] * stride, x = site[3 * n + 2] * stride;
      check_site(site + 3 * n, n, row_map.size(0));
      for (int64_t i = -reach, tap = taps * n; i <= reach; ++i)
        for (int64_t j = -reach; j <= reach; ++j) out[tap++] = grid.at(batch, y + i, x + j);
    }
  });
  return table;
}

at::Tensor inverse_table(const at::Tensor& table, int64_t num_rows) {
  check_table(table);
  check_range("num_rows", num_rows, 0, std::numeric_limits<int32_t>::max());
  const int64_t count = table.size(0), taps = table.size(1);
  at::Tensor inverse = at::full({num_rows, taps}, -1, table.options());
  const int32_t* in = table.const_data_ptr<int32_t>();
  int32_t* out = inverse.data_ptr<int32_t>();
  for (int64_t n = 0; n < count; ++n)
    for (int64_t tap = 0; tap < taps; ++tap) {
      const int64_t row = in[n * taps + tap];
      if (row < 0) continue;
      CHECK_ARGUMENT(row < num_rows, "table[", n, ", ", tap, "] = ", row, " but there are ", num_rows,
                  " rows");
      out[row * taps + tap] = int32_t(n);
    }
  return inverse;
}

// The sites of a mask [B, H, W]: indices [N, 3], sorted, and the row map.
std::tuple<at::Tensor, at::Tensor> sites_of_mask(const at::Tensor& mask_) {
  check_tensor(mask_, "mask", at::kBool, 3, "bool [B, H, W]");
  CHECK_ARGUMENT(mask_.numel() <= std::numeric_limits<int32_t>::max(), "mask ", mask_.sizes(),
                 " is too large for 32-bit rows");
  const at::Tensor mask = mask_.contiguous();
  const bool* kept = mask.const_data_ptr<bool>();
  const at::Tensor row_map = at::empty(mask.sizes(), mask.options().dtype(at::kInt));
  int32_t *rows = row_map.data_ptr<int32_t>(), count = 0;
  for (int64_t cell = 0; cell < mask.numel(); ++cell) rows[cell] = kept[cell] ? count++ : -1;
  const at::Tensor indices = at::empty({count, 3}, row_map.options());
  int32_t* site = indices.data_ptr<int32_t>();
  if (count == 0) return {indices, row_map};
  for (int32_t batch = 0; batch < mask.size(0); ++batch)
    for (int32_t y = 0; y < mask.size(1); ++y)
      for (int32_t x = 0; x < mask.size(2); ++x)
        if (*kept++) *site++ = batch, *site++ = y, *site++ = x;
  return {indices, row_map};
}

// The row of the cell (y / 2, x / 2) of each site, -1 = none: int64 [N].
at::Tensor parent_rows(const at::Tensor& indices, const at::Tensor& coarser_row_map) {
  check_row_map(coarser_row_map);
  check_indices(indices);
  const at::Tensor parents = at::empty({indices.size(0)}, indices.options().dtype(at::kLong));
  const Grid grid(coarser_row_map);
  const int32_t* site = indices.const_data_ptr<int32_t>();
  int64_t* out = parents.data_ptr<int64_t>();
  for (int64_t n = 0; n < indices.size(0); ++n, site += 3) {
    check_site(site, n, coarser_row_map.size(0));
    out[n] = grid.at(site[0], site[1] / 2, site[2] / 2);
  }
  return parents;
}

namespace {

// Copies the rows of a window, whose first cell may lie outside the grid.
void copy_window(const Grid& grid, int64_t batch, int64_t y, int64_t x, int side, int32_t* out) {
  const bool inside = y >= 0 && x >= 0 && y + side <= grid.height && x + side <= grid.width;
  for (int i = 0; i < side; ++i, out += side)
    if (inside)
      std::copy_n(grid.rows + (batch * grid.height + y + i) * grid.width + x, side, out);
    else
      for (int j = 0; j < side; ++j) out[j] = grid.at(batch, y + i, x + j);
}

int64_t count_tiles(const at::Tensor& row_map, int size) {
  const Grid grid(row_map);
  const int64_t columns = (grid.width + size - 1) / size;
  std::vector<uint8_t> kept(columns);
  int64_t count = 0;
  for (int64_t batch = 0; batch < row_map.size(0); ++batch)
    for (int64_t y = 0; y < grid.height; ++y) {
      if (y % size == 0) std::fill(kept.begin(), kept.end(), 0);
      const int32_t* line = grid.rows + (batch * grid.height + y) * grid.width;
      for (int64_t x = 0; x < grid.width; ++x) kept[x / size] |= line[x] >= 0;
      if (y % size == size - 1 || y + 1 == grid.height)
        count += std::count(kept.begin(), kept.end(), 1);
    }
  return count;
}

at::Tensor make_tiles(const at::Tensor& row_map, int size) {
  const int side = size + 2;
  const Grid grid(row_map);
  const int64_t rows = (grid.height + size - 1) / size, columns = (grid.width + size - 1) / size;
  const int64_t most = row_map.size(0) * rows * columns * side * side;
  at::Tensor memory = at::empty({1 + most}, row_map.options());
  int32_t* const start = memory.data_ptr<int32_t>();
  int32_t last = -1, *tile = start + 1;
  for (int64_t batch = 0; batch < row_map.size(0); ++batch)
    for (int64_t y = 0; y < grid.height; y += size)
      for (int64_t x = 0; x < grid.width; x += size) {
        copy_window(grid, batch, y - 1, x - 1, side, tile);
        int32_t largest = -1;
        for (int i = 1; i <= size; ++i)
          for (int j = 1; j <= size; ++j) largest = std::max(largest, tile[i * side + j]);
        last = std::max(last, largest);
        if (largest >= 0) tile += side * side;  // else the next one takes its place
      }
  *start = last + 1;
  return memory.narrow(0, 0, tile - start);
}

// Output rows of a block at most: their sums stay in the second cache.
constexpr int64_t BLOCK_ROWS = 512;

at::Tensor make_pairs(const at::Tensor& table) {
  const int64_t rows = table.size(0), taps = table.size(1);
  const int32_t* source = table.const_data_ptr<int32_t>();
  std::vector<int32_t> offsets, in, out;
  in.reserve(rows * taps);
  out.reserve(rows * taps);
  const int64_t threads = at::get_num_threads(), per_thread = (rows + threads - 1) / threads;
  const int64_t blocks = threads * ((per_thread + BLOCK_ROWS - 1) / BLOCK_ROWS);
  for (int64_t block = 0; block < blocks; ++block) {
    const int64_t start = rows * block / blocks, end = rows * (block + 1) / blocks;
    for (int64_t tap = 0; tap < taps; ++tap) {
      offsets.push_back(int32_t(in.size()));
      for (int64_t n = start; n < end; ++n)
        if (source[n * taps + tap] >= 0) {
          in.push_back(source[n * taps + tap]);
          out.push_back(int32_t(n));
        }
    }
    offsets.push_back(int32_t(in.size()));
  }
  at::Tensor memory = at::empty({int64_t(2 + offsets.size() + 2 * in.size())}, table.options());
  int32_t* to = memory.data_ptr<int32_t>();
  const int64_t last = in.empty() ? -1 : *std::max_element(in.begin(), in.end());
  *to++ = int32_t(std::min<int64_t>(1 + last, std::numeric_limits<int32_t>::max()));
  *to++ = int32_t(blocks);
  to = std::copy(offsets.begin(), offsets.end(), to);
  to = std::copy(in.begin(), in.end(), to);
  std::copy(out.begin(), out.end(), to);
  return memory;
}

}  // namespace

TileList tiles_of(const at::Tensor& row_map, int size) {
  check_row_map(row_map);
  const Derivation tiles = size == 2 ? Derivation::tiles2 : Derivation::tiles4;
  return {derive_from_table(row_map, tiles, [&] { return make_tiles(row_map, size); }), size};
}

TileList full_tiles(int64_t batch, int64_t height, int64_t width, int size) {
  static std::mutex mutex;
  static auto* row_maps = new std::map<std::array<int64_t, 3>, at::Tensor>();  // outlives its users
  at::Tensor row_map;
  {
    const std::lock_guard<std::mutex> lock(mutex);
    if (row_maps->size() > 64) row_maps->clear();
    at::Tensor& kept = (*row_maps)[{batch, height, width}];
    if (!kept.defined())
      kept = at::arange(batch * height * width, at::kInt).view({batch, height, width});
    row_map = kept;
  }
  return tiles_of(row_map, size);
}

SiteCounts counts_of(const at::Tensor& table, const at::Tensor& row_map) {
  check_table(table);
  check_row_map(row_map);
  const auto make = [&] {
    at::Tensor counts = at::empty({3}, row_map.options().dtype(at::kLong));
    const int32_t* rows = table.const_data_ptr<int32_t>();
    int64_t* to = counts.data_ptr<int64_t>();
    to[0] = std::count_if(rows, rows + table.numel(), [](int32_t row) { return row >= 0; });
    to[1] = count_tiles(row_map, 2);
    to[2] = count_tiles(row_map, 4);
    return counts;
  };
  const at::Tensor counts = derive_from_table(row_map, Derivation::counts, make);
  const int64_t* values = counts.const_data_ptr<int64_t>();
  return {values[0], values[1], values[2]};
}

PairLists pairs_of(const at::Tensor& table) {
  check_table(table);
  const auto make = [&] { return make_pairs(table); };
  return {derive_from_table(table, Derivation::pairs, make), table.size(0), table.size(1)};
}

int64_t num_input_rows(const at::Tensor& table) {
  check_table(table);
  return rows_named(table);
}

int64_t rows_named(const at::Tensor& rows) {
  const auto make = [&] {
    const int32_t* first = rows.const_data_ptr<int32_t>();
    const at::Tensor largest = at::empty({1}, rows.options());
    *largest.data_ptr<int32_t>() = rows.numel() ? *std::max_element(first, first + rows.numel()) : -1;
    return largest;
  };
  return 1 + int64_t(*derive_from_table(rows, Derivation::last_row, make).const_data_ptr<int32_t>());
}

}  // namespace sparse_dset
