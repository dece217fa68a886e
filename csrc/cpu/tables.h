#pragma once

#include <ATen/core/Tensor.h>

namespace sparse_dset {

// The tiles of `size` x `size` cells that hold a site, made once per row map.
struct TileList {
  at::Tensor memory;  // int32: the number of rows, then the tiles
  int size;
  int64_t side() const { return size + 2; }
  int64_t count() const { return (memory.numel() - 1) / (side() * side()); }
  int64_t num_rows() const { return *memory.const_data_ptr<int32_t>(); }
  // [count, side^2], the rows under each tile and its border, -1 = none.
  const int32_t* rows() const { return memory.const_data_ptr<int32_t>() + 1; }
};

// row_map: int32 [B, H, W], the row of each cell, -1 = none.
TileList tiles_of(const at::Tensor& row_map, int size);

// The tiles of a batch of maps whose cells all hold a site, kept for the next call.
TileList full_tiles(int64_t batch, int64_t height, int64_t width, int size);

// How much there is to do for a 3x3 convolution of stride 1, counted once per row map.
struct SiteCounts {
  int64_t pairs, tiles2, tiles4;
};

SiteCounts counts_of(const at::Tensor& table, const at::Tensor& row_map);

// The existing pairs of blocks of output rows, tap by tap, made once per table.
struct PairLists {
  at::Tensor memory;  // int32: numbers of input rows and of blocks, offsets [blocks, taps + 1], in, out
  int64_t rows, taps;
  int64_t num_input_rows() const { return *memory.const_data_ptr<int32_t>(); }
  int64_t blocks() const { return memory.const_data_ptr<int32_t>()[1]; }
  int64_t pairs() const { return (memory.numel() - 2 - blocks() * (taps + 1)) / 2; }
  // The first output row of a block.
  int64_t first_row(int64_t block) const { return rows * block / blocks(); }
  // [taps + 1], places in `in` and `out`.
  const int32_t* offsets(int64_t block) const {
    return memory.const_data_ptr<int32_t>() + 2 + block * (taps + 1);
  }
  const int32_t* in() const { return offsets(blocks()); }
  const int32_t* out() const { return in() + pairs(); }
};

// table: int32 [N_out, taps], the input row under each tap, -1 = none.
PairLists pairs_of(const at::Tensor& table);

// One more than the largest row that a table, or any contiguous int32 tensor, names; found once.
int64_t num_input_rows(const at::Tensor& table);
int64_t rows_named(const at::Tensor& rows);

}  // namespace sparse_dset
