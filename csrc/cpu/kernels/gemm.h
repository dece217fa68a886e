// Matrix products: packed weights, the register tile, and the convolutions and gradients that are
// made of it. What is done to a row at its end (bias, addend, activation) stands here too.

constexpr int ROWS = 6;  // of a register tile
constexpr int MAX_VECS = SIMD_BYTES == 64 ? 4 : 2;  // and its columns, in vectors
constexpr int PANEL = MAX_VECS * WIDTH;
constexpr int DEPTH = 128;           // input channels at a time: a panel's part fits the first cache
constexpr int GRADIENT_PAIRS = 96;  // pairs at a time, whose gradients fit the first cache

INLINE int at_most(int a, int b) { return a < b ? a : b; }
INLINE int round_up(int n) { return (n + WIDTH - 1) / WIDTH * WIDTH; }
// Columns of a panel that exist.
INLINE int panel_columns(int columns, int index) { return at_most(columns - index * PANEL, PANEL); }

int64_t packed_size(int count, int rows, int columns) {
  return int64_t(count) * rows * round_up(columns);
}

// Where a panel starts in packed memory.
INLINE int64_t panel_offset(int count, int rows, int index) {
  return int64_t(count) * rows * PANEL * index;
}

void pack(const float* source, int count, int rows, int columns, int64_t matrix_stride,
          int64_t row_stride, int64_t column_stride, int panel_index, float* packed) {
  const int real = panel_columns(columns, panel_index), padded = round_up(real);
  packed += panel_offset(count, rows, panel_index);
  source += panel_index * PANEL * column_stride;
  for (int m = 0; m < count; ++m)
    for (int r = 0; r < rows; ++r, packed += padded) {
      const float* from = source + m * matrix_stride + r * row_stride;
      for (int c = 0; c < real; ++c) packed[c] = from[c * column_stride];
      for (int c = real; c < padded; ++c) packed[c] = 0.0f;
    }
}

// outs[i] (+)= rows[i] [depth] times panel [depth, V * WIDTH]; all sums stay in registers, and what
// was there is added at the end: a sum of few long sums is more exact than one running one. Meanwhile
// `depth` lines of what comes next are brought nearer.
template <int M, int V, bool ACCUMULATE>
void multiply(const float* const* rows, const float* panel, int depth, float* const* outs, int columns,
              const float* next) {
  const int last = columns - (V - 1) * WIDTH;
  Vec sums[M][V] = {};
  const float* row[M];
#pragma GCC unroll 8
  for (int i = 0; i < M; ++i) row[i] = rows[i];
  for (int k = 0; k < depth; ++k) {
    Vec b[V];
#pragma GCC unroll 4
    for (int j = 0; j < V; ++j) b[j] = load(panel + j * WIDTH);
    panel += V * WIDTH;
    __builtin_prefetch(next + k * WIDTH, 0, 2);
#pragma GCC unroll 8
    for (int i = 0; i < M; ++i) {
      const float a = row[i][k];
#pragma GCC unroll 4
      for (int j = 0; j < V; ++j) sums[i][j] += b[j] * a;
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < M; ++i) {
    if (ACCUMULATE) {
#pragma GCC unroll 4
      for (int j = 0; j < V - 1; ++j) sums[i][j] += load(outs[i] + j * WIDTH);
      sums[i][V - 1] += load_first(outs[i] + (V - 1) * WIDTH, last);
    }
#pragma GCC unroll 4
    for (int j = 0; j < V - 1; ++j) store(outs[i] + j * WIDTH, sums[i][j]);
    store_first(outs[i] + (V - 1) * WIDTH, sums[i][V - 1], last);
  }
}

// A table of function<rows, vectors>, indexed by [vectors - 1][rows - 1].
#define TILE_ROW(f, v) \
  { f<1, v>, f<2, v>, f<3, v>, f<4, v>, f<5, v>, f<6, v> }
#if SIMD_BYTES == 64
#define TILE_TABLE(f) TILE_ROW(f, 1), TILE_ROW(f, 2), TILE_ROW(f, 3), TILE_ROW(f, 4)
#else
#define TILE_TABLE(f) TILE_ROW(f, 1), TILE_ROW(f, 2)
#endif

template <int M, int V>
constexpr auto set = multiply<M, V, false>;
template <int M, int V>
constexpr auto add = multiply<M, V, true>;

typedef void (*Multiply)(const float* const*, const float*, int, float* const*, int, const float*);

INLINE Multiply multiply_for(int rows, int vecs, bool accumulate) {
  static constexpr Multiply sets[MAX_VECS][ROWS] = {TILE_TABLE(set)};
  static constexpr Multiply adds[MAX_VECS][ROWS] = {TILE_TABLE(add)};
  return (accumulate ? adds : sets)[vecs - 1][rows - 1];
}

// row = activation(row + bias + addend)
template <Activation activation>
void finish(float* row, const float* bias, const float* addend, int columns) {
  for (int c = 0; c < columns; c += WIDTH) {
    const int left = columns - c;
    Vec sum = load_first(row + c, left);
    if (bias) sum += load_first(bias + c, left);
    if (addend) sum += load_first(addend + c, left);
    store_first(row + c, activate<activation>(sum), left);
  }
}

template <auto VALUE>
struct Constant {
  static constexpr auto value = VALUE;
};

// Calls body with the activation as a constant.
template <class Body>
INLINE void with_activation(Activation activation, Body&& body) {
  switch (activation) {
    case Activation::none: return body(Constant<Activation::none>{});
    case Activation::relu: return body(Constant<Activation::relu>{});
    case Activation::relu6: return body(Constant<Activation::relu6>{});
    case Activation::silu: return body(Constant<Activation::silu>{});
  }
}

// Calls body with a number of vectors of a panel as a constant.
template <class Body>
INLINE void with_vectors(int vectors, Body&& body) {
  switch (vectors) {
    case 1: return body(Constant<1>{});
    case 2: return body(Constant<2>{});
#if SIMD_BYTES == 64
    case 3: return body(Constant<3>{});
    case 4: return body(Constant<4>{});
#endif
  }
}

INLINE void finish_row(const Convolution& conv, int r, int column, int columns) {
  float* row = conv.out + int64_t(r) * conv.out_channels + column;
  const float* bias = conv.bias ? conv.bias + column : nullptr;
  const float* addend = nullptr;
  if (conv.addend)
    addend = conv.addend + (conv.addend_rows ? conv.addend_rows[r] : r) * conv.out_channels + column;
  if (!bias && !addend && conv.activation == Activation::none) return;
  with_activation(conv.activation, [&](auto constant) {
    finish<constant.value>(row, bias, addend, columns);
  });
}

void pointwise(const Convolution& conv, int first, int last, int panel_index) {
  const int column = panel_index * PANEL;
  const int columns = panel_columns(conv.out_channels, panel_index), padded = round_up(columns);
  const float* panel = conv.weight + panel_offset(1, conv.in_channels, panel_index);
  for (int k = 0; k < conv.in_channels; k += DEPTH) {
    const int depth = at_most(conv.in_channels - k, DEPTH);
    const float* weight = panel + int64_t(k) * padded;
    const float* next = weight + int64_t(depth) * padded;
    for (int r = first; r < last; r += ROWS) {
      const int m = at_most(last - r, ROWS);
      const float* rows[ROWS];
      float* outs[ROWS];
      for (int i = 0; i < m; ++i) {
        rows[i] = conv.features + (r + i) * conv.feature_stride + k;
        outs[i] = conv.out + int64_t(r + i) * conv.out_channels + column;
      }
      multiply_for(m, padded / WIDTH, k > 0)(rows, weight, depth, outs, columns, next);
      if (r < first + 3 * ROWS) next += depth * WIDTH;
      if (k + depth == conv.in_channels)
        for (int i = 0; i < m; ++i) finish_row(conv, r + i, column, columns);
    }
  }
}

void indirect(const Convolution& conv, const PairBlock& block, int panel_index) {
  const int column = panel_index * PANEL;
  const int columns = panel_columns(conv.out_channels, panel_index), padded = round_up(columns);
  const auto out_row = [&](int r) { return conv.out + int64_t(r) * conv.out_channels + column; };
  for (int r = block.first_row; r < block.last_row; ++r)
    __builtin_memset(out_row(r), 0, sizeof(float) * columns);
  const float* weight = conv.weight + panel_offset(block.taps, conv.in_channels, panel_index);
  for (int tap = 0; tap < block.taps; ++tap)
    for (int k = 0; k < conv.in_channels; k += DEPTH) {
      const int depth = at_most(conv.in_channels - k, DEPTH), end = block.offsets[tap + 1];
      const float* next = weight + int64_t(depth) * padded;
      for (int pair = block.offsets[tap]; pair < end; pair += ROWS) {
        const int m = at_most(end - pair, ROWS);
        const float* rows[ROWS];
        float* outs[ROWS];
        for (int i = 0; i < m; ++i) {
          rows[i] = conv.features + block.in[pair + i] * conv.feature_stride + k;
          outs[i] = out_row(block.out[pair + i]);
        }
        multiply_for(m, padded / WIDTH, true)(rows, weight, depth, outs, columns, next);
        if (pair < block.offsets[tap] + 3 * ROWS) next += depth * WIDTH;
      }
      weight += int64_t(depth) * padded;
    }
  for (int r = block.first_row; r < block.last_row; ++r) finish_row(conv, r, column, columns);
}

// result[M, V * WIDTH] += features[pairs, M]^T times grad[pairs, V * WIDTH].
template <int M, int V>
void add_outer_products(const float* features, int feature_stride, const int32_t* rows,
                        const float* grad, int count, int columns, float* result, int result_stride) {
  const int last = columns - (V - 1) * WIDTH;
  const auto columns_of = [&](int j) { return j < V - 1 ? WIDTH : last; };
  Vec sums[M][V];
#pragma GCC unroll 8
  for (int i = 0; i < M; ++i)
#pragma GCC unroll 4
    for (int j = 0; j < V; ++j)
      sums[i][j] = load_first(result + int64_t(i) * result_stride + j * WIDTH, columns_of(j));
  for (int p = 0; p < count; ++p, grad += V * WIDTH) {
    const float* a = features + int64_t(rows[p]) * feature_stride;
    Vec b[V];
#pragma GCC unroll 4
    for (int j = 0; j < V; ++j) b[j] = load(grad + j * WIDTH);
#pragma GCC unroll 8
    for (int i = 0; i < M; ++i)
#pragma GCC unroll 4
      for (int j = 0; j < V; ++j) sums[i][j] += b[j] * a[i];
  }
#pragma GCC unroll 8
  for (int i = 0; i < M; ++i)
#pragma GCC unroll 4
    for (int j = 0; j < V; ++j)
      store_first(result + int64_t(i) * result_stride + j * WIDTH, sums[i][j], columns_of(j));
}

typedef void (*AddOuterProducts)(const float*, int, const int32_t*, const float*, int, int, float*, int);

void weight_gradient(const float* features, int feature_stride, const int32_t* in, const float* grad,
                     int count, int in_channels, int out_channels, int panel_index, float* result) {
  static constexpr AddOuterProducts table[MAX_VECS][ROWS] = {TILE_TABLE(add_outer_products)};
  const int columns = panel_columns(out_channels, panel_index), padded = round_up(columns);
  const AddOuterProducts* functions = table[padded / WIDTH - 1];
  result += panel_index * PANEL;
  for (int pair = 0; pair < count; pair += GRADIENT_PAIRS)
    for (int c = 0; c < in_channels; c += ROWS)
      functions[at_most(in_channels - c, ROWS) - 1](
          features + c, feature_stride, in + pair, grad + int64_t(pair) * padded,
          at_most(count - pair, GRADIENT_PAIRS), columns, result + int64_t(c) * out_channels,
          out_channels);
}

void gather_panel(const float* grad, const int32_t* out, int count, int out_channels,
                  int panel_index, float* packed) {
  const int columns = panel_columns(out_channels, panel_index), padded = round_up(columns);
  for (int p = 0; p < count; ++p, packed += padded) {
    const float* from = grad + int64_t(out[p]) * out_channels + panel_index * PANEL;
    for (int c = 0; c < padded; c += WIDTH) store(packed + c, load_first(from + c, columns - c));
  }
}
