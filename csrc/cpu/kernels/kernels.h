// The inner loops, one set per instruction set: no threads, no memory of their own.
//
// Weights come packed: C_out is cut into panels of `panel` columns (the last one may be narrower,
// rounded up to `width`), and a panel holds its matrices [C_in, columns] one after the other.
#pragma once

#include <cstdint>

namespace sparse_dset {

enum class Activation { none, relu, relu6, silu };

// A convolution from rows to rows.
struct Convolution {
  const float* features;  // [N_in, C_in], rows `feature_stride` floats apart
  int64_t feature_stride;
  const float* zero_row;  // [C_in] zeros
  const float* weight;    // packed
  const float* bias;      // [C_out] or null
  const float* addend;    // [any, C_out] or null, added before the activation; not of depthwise
  const int64_t* addend_rows;  // [N_out], which row of addend, or null: the row's own (pointwise only)
  float* out;             // [N_out, C_out], contiguous
  int in_channels, out_channels;
  Activation activation;
};

// The existing (input row, output row) pairs of a block of output rows, tap by tap.
struct PairBlock {
  int first_row, last_row;  // the output rows
  const int32_t* offsets;   // [taps + 1] into `in` and `out`
  const int32_t* in;
  const int32_t* out;
  int taps;
};

constexpr int MAX_TAPS = 49;  // of a depthwise kernel

constexpr int MAX_LEVELS = 16, MAX_HEADS = 64;  // of a sampling

// Multi-scale bilinear sampling of rows for one image; see ops/deform_attn.py for its meaning.
struct Sampling {
  const float* const* rows;  // per level
  const float* background;  // [levels, row_width], what a cell without a row reads
  int row_width;
  const int32_t* const* row_maps;  // per level [height, width], the row of each cell or -1
  const int* heights;
  const int* widths;
  const float* extents;  // [levels, 2], (height, width) in cells, fractions included
  int heads, levels, points;
  int head_stride;  // head h reads columns [h * head_stride, h * head_stride + head_width)
  int head_width;
};

// What a corner of a sample reads, and how much of it.
struct Corner {
  const float* row;
  float weight;
};

struct Kernels {
  const char* name;
  int width;  // floats per vector
  int panel;  // columns per panel

  // Floats that `count` matrices [rows, columns] take when packed.
  int64_t (*packed_size)(int count, int rows, int columns);
  // Packs one panel of matrices whose element (m, r, c) is at
  // m * matrix_stride + r * row_stride + c * column_stride.
  void (*pack)(const float* source, int count, int rows, int columns, int64_t matrix_stride,
               int64_t row_stride, int64_t column_stride, int panel_index, float* packed);

  // Rows [first, last) times one matrix; one panel of columns.
  void (*pointwise)(const Convolution&, int first, int last, int panel_index);
  // One matrix per tap; one block of output rows and one panel of columns.
  void (*indirect)(const Convolution&, const PairBlock&, int panel_index);
  // One panel of the rows that `out` names: [count, columns rounded up].
  void (*gather_panel)(const float* grad, const int32_t* out, int count, int out_channels,
                       int panel_index, float* packed);
  // One kernel per channel, weights packed as `taps` matrices [1, C]: output rows [first, last) of
  // table [N_out, taps], the input row under each tap, -1 = none.
  void (*depthwise)(const Convolution&, const int32_t* table, int taps, int first, int last);
  // Adds the products of grad [N_out, C] and the rows under each tap to result [taps, C].
  void (*depthwise_gradient)(const float* features, int feature_stride, const float* grad,
                             const int32_t* table, int taps, int channels, int first, int last,
                             float* result);
  // Adds features[in]^T times such rows to one panel of result [C_in, C_out].
  void (*weight_gradient)(const float* features, int feature_stride, const int32_t* in,
                          const float* packed_grad, int count, int in_channels, int out_channels,
                          int panel_index, float* result);

  // One panel of packed matrices, from one per tap of 3x3 to (size + 2)^2.
  void (*winograd_weight)(const float* taps, int in_channels, int out_channels, int size,
                          int panel_index, float* packed);
  // Floats of scratch memory that `winograd` needs for so many tiles.
  int64_t (*winograd_scratch)(int size, int tiles, int in_channels);
  // Panels [first_panel, last_panel) of tiles [T, (size + 2)^2], the input rows under each tile
  // (-1 = no site), whose inner size x size rows are the output rows.
  void (*winograd)(const Convolution&, int size, const int32_t* tiles, int num_tiles, int first_panel,
                   int last_panel, float* scratch);

  // The three parts of a weight's gradient by Winograd; points are `matrix` floats apart.
  // Features under tiles to [points, tiles, C_in rounded up].
  void (*winograd_input)(const Convolution&, int size, const int32_t* tiles, int num_tiles,
                         int64_t matrix, float* transformed);
  // One panel of the inner rows of tiles to [points, tiles, columns rounded up].
  void (*winograd_gradient)(const float* grad, int out_channels, int size, const int32_t* tiles,
                            int num_tiles, int panel_index, int64_t matrix, float* transformed);
  // One panel of products [points, C_in, C_out] to [9, C_in, C_out].
  void (*winograd_kernel_gradient)(const float* products, int in_channels, int out_channels, int size,
                                   int panel_index, float* result);

  // One query: locations [heads, levels, points, 2], weights [heads, levels, points] to
  // out [heads, head_width] and coverage [heads], the weight that falls inside the image.
  // `corners` is scratch for 4 * heads * levels * points.
  void (*sample)(const Sampling&, const float* locations, const float* weights, Corner* corners,
                 float* out, float* coverage);
  // One query and head; adds to grad_rows (per level) and grad_background, writes the others.
  void (*sample_backward)(const Sampling&, int head, const float* grad, const float* locations,
                          const float* weights, float* const* grad_rows, float* grad_background,
                          float* grad_locations, float* grad_weights);
};

extern const Kernels kernels_avx512, kernels_avx2, kernels_portable;

// Whether this processor has every instruction set that these were compiled with.
bool runs_avx512();
bool runs_avx2();

}  // namespace sparse_dset
