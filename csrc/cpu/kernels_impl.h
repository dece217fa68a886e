// The inner loops for vectors of SIMD_BYTES; see kernels.h.

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

// row = activation(bias + the sum over taps of weight[tap] * inputs[tap]), V vectors of it.
template <int V, Activation activation>
void depthwise_site(const float* const* inputs, const uint8_t* taps, int count, const float* weight,
                    const float* bias, int columns, float* row) {
  const auto columns_of = [&](int j) { return columns - j * WIDTH; };
  Vec sums[V];
#pragma GCC unroll 4
  for (int j = 0; j < V; ++j) sums[j] = bias ? load_first(bias + j * WIDTH, columns_of(j)) : Vec{};
  for (int i = 0; i < count; ++i) {
    const float* w = weight + taps[i] * (V * WIDTH);
#pragma GCC unroll 4
    for (int j = 0; j < V - 1; ++j) sums[j] += load(inputs[i] + j * WIDTH) * load(w + j * WIDTH);
    constexpr int last = (V - 1) * WIDTH;
    sums[V - 1] += load_first(inputs[i] + last, columns - last) * load(w + last);
  }
#pragma GCC unroll 4
  for (int j = 0; j < V; ++j)
    store_first(row + j * WIDTH, activate<activation>(sums[j]), columns_of(j));
}

template <Activation activation>
void run_depthwise(const Convolution& conv, const int32_t* table, int taps, int first, int last) {
  constexpr int SITES = 16;  // at a time: each panel's weights are read once for all of them
  const float* inputs[SITES][MAX_TAPS];
  uint8_t which[SITES][MAX_TAPS];
  int counts[SITES];
  for (int start = first; start < last; start += SITES) {
    const int sites = at_most(last - start, SITES);
    for (int s = 0; s < sites; ++s) {
      const int32_t* rows = table + int64_t(start + s) * taps;
      int count = 0;
      for (int tap = 0; tap < taps; ++tap)
        if (rows[tap] >= 0) {
          inputs[s][count] = conv.features + rows[tap] * conv.feature_stride;
          which[s][count++] = uint8_t(tap);
        }
      counts[s] = count;
    }
    for (int column = 0, panel = 0; column < conv.out_channels; column += PANEL, ++panel) {
      const int columns = panel_columns(conv.out_channels, panel);
      const float* weight = conv.weight + panel_offset(1, taps, panel);
      const float* bias = conv.bias ? conv.bias + column : nullptr;
      const auto run = [&](auto vectors) {
        for (int s = 0; s < sites; ++s) {
          depthwise_site<vectors.value, activation>(
              inputs[s], which[s], counts[s], weight, bias, columns,
              conv.out + int64_t(start + s) * conv.out_channels + column);
        }
      };
      for (int s = 0; s < sites && column; ++s)
        for (int i = 0; i < counts[s]; ++i) inputs[s][i] += PANEL;
      with_vectors(round_up(columns) / WIDTH, run);
    }
  }
}

void depthwise(const Convolution& conv, const int32_t* table, int taps, int first, int last) {
  with_activation(conv.activation, [&](auto constant) {
    run_depthwise<constant.value>(conv, table, taps, first, last);
  });
}

void depthwise_gradient(const float* features, int feature_stride, const float* grad,
                        const int32_t* table, int taps, int channels, int first, int last,
                        float* result) {
  for (int r = first; r < last; ++r)
    for (int tap = 0; tap < taps; ++tap) {
      const int32_t row = table[int64_t(r) * taps + tap];
      if (row < 0) continue;
      const float* a = features + int64_t(row) * feature_stride;
      const float* b = grad + int64_t(r) * channels;
      float* to = result + int64_t(tap) * channels;
      for (int c = 0; c < channels; c += WIDTH) {
        const int left = channels - c;
        store_first(to + c, load_first(to + c, left) + load_first(a + c, left) * load_first(b + c, left),
                    left);
      }
    }
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

// Winograd's minimal filtering F(m x m, 3 x 3): Lavin and Gray, "Fast Algorithms for Convolutional
// Neural Networks", 2016. Each `in`, `weight` and `out` is
// one of the two one-dimensional transforms; the gradients are the transposes of the last two.
template <int SIZE>
struct Winograd;

template <>
struct Winograd<2> {
  template <class T>
  INLINE void in(const T (&d)[4], T (&v)[4]) {
    v[0] = d[0] - d[2];
    v[1] = d[1] + d[2];
    v[2] = d[2] - d[1];
    v[3] = d[1] - d[3];
  }
  template <class T>
  INLINE void weight(const T (&g)[3], T (&u)[4]) {
    u[0] = g[0];
    u[1] = 0.5f * (g[0] + g[1] + g[2]);
    u[2] = 0.5f * (g[0] - g[1] + g[2]);
    u[3] = g[2];
  }
  template <class T>
  INLINE void out(const T (&m)[4], T (&y)[2]) {
    y[0] = m[0] + m[1] + m[2];
    y[1] = m[1] - m[2] - m[3];
  }
  template <class T>
  INLINE void out_gradient(const T (&y)[2], T (&m)[4]) {
    m[0] = y[0];
    m[1] = y[0] + y[1];
    m[2] = y[0] - y[1];
    m[3] = -y[1];
  }
  template <class T>
  INLINE void weight_gradient(const T (&u)[4], T (&g)[3]) {
    const T half = 0.5f * (u[1] + u[2]);
    g[0] = u[0] + half;
    g[1] = 0.5f * (u[1] - u[2]);
    g[2] = half + u[3];
  }
};

template <>
struct Winograd<4> {
  template <class T>
  INLINE void in(const T (&d)[6], T (&v)[6]) {
    const T a = d[4] - 4.0f * d[2], b = d[3] - 4.0f * d[1];
    const T c = d[4] - d[2], e = 2.0f * (d[3] - d[1]);
    v[0] = 4.0f * d[0] - 5.0f * d[2] + d[4];
    v[1] = a + b;
    v[2] = a - b;
    v[3] = c + e;
    v[4] = c - e;
    v[5] = 4.0f * d[1] - 5.0f * d[3] + d[5];
  }
  template <class T>
  INLINE void weight(const T (&g)[3], T (&u)[6]) {
    u[0] = 0.25f * g[0];
    u[1] = (-1.0f / 6) * (g[0] + g[1] + g[2]);
    u[2] = (-1.0f / 6) * (g[0] - g[1] + g[2]);
    u[3] = (1.0f / 24) * g[0] + (1.0f / 12) * g[1] + (1.0f / 6) * g[2];
    u[4] = (1.0f / 24) * g[0] - (1.0f / 12) * g[1] + (1.0f / 6) * g[2];
    u[5] = g[2];
  }
  template <class T>
  INLINE void out(const T (&m)[6], T (&y)[4]) {
    const T a = m[1] + m[2], b = m[1] - m[2], c = m[3] + m[4], d = m[3] - m[4];
    y[0] = m[0] + a + c;
    y[1] = b + 2.0f * d;
    y[2] = a + 4.0f * c;
    y[3] = b + 8.0f * d + m[5];
  }
  template <class T>
  INLINE void out_gradient(const T (&y)[4], T (&m)[6]) {
    const T a = y[0] + y[2], b = y[1] + y[3];
    const T c = y[0] + 4.0f * y[2], d = 2.0f * y[1] + 8.0f * y[3];
    m[0] = y[0];
    m[1] = a + b;
    m[2] = a - b;
    m[3] = c + d;
    m[4] = c - d;
    m[5] = y[3];
  }
  template <class T>
  INLINE void weight_gradient(const T (&u)[6], T (&g)[3]) {
    const T a = (1.0f / 6) * (u[1] + u[2]), b = (1.0f / 6) * (u[3] + u[4]);
    g[0] = 0.25f * (u[0] + b) - a;
    g[1] = (1.0f / 12) * (u[3] - u[4]) - (1.0f / 6) * (u[1] - u[2]);
    g[2] = b - a + u[5];
  }
};

template <int SIZE>
void transform_weight(const float* taps, int in_channels, int padded, float* packed) {
  constexpr int N = SIZE + 2;
  const int64_t matrix = int64_t(in_channels) * padded;
  for (int64_t i = 0; i < matrix; i += WIDTH) {
    Vec columns[N][3];
#pragma GCC unroll 4
    for (int x = 0; x < 3; ++x) {
      Vec g[3], u[N];
#pragma GCC unroll 4
      for (int y = 0; y < 3; ++y) g[y] = load(taps + (3 * y + x) * matrix + i);
      Winograd<SIZE>::weight(g, u);
#pragma GCC unroll 8
      for (int y = 0; y < N; ++y) columns[y][x] = u[y];
    }
#pragma GCC unroll 8
    for (int y = 0; y < N; ++y) {
      Vec u[N];
      Winograd<SIZE>::weight(columns[y], u);
#pragma GCC unroll 8
      for (int x = 0; x < N; ++x) store(packed + (y * N + x) * matrix + i, u[x]);
    }
  }
}

void winograd_weight(const float* taps, int in_channels, int out_channels, int size, int panel_index,
                     float* packed) {
  const int points = (size + 2) * (size + 2);
  (size == 2 ? transform_weight<2> : transform_weight<4>)(
      taps + panel_offset(9, in_channels, panel_index), in_channels,
      round_up(panel_columns(out_channels, panel_index)),
      packed + panel_offset(points, in_channels, panel_index));
}

int64_t winograd_scratch(int size, int tiles, int in_channels) {
  const int points = (size + 2) * (size + 2);
  return int64_t(points) * tiles * (round_up(in_channels) + PANEL);
}

// Gathers and transforms tiles to [points, tiles, C_in rounded up], points `matrix` floats apart.
template <int SIZE>
void transform_input(const Convolution& conv, const int32_t* tiles, int num_tiles, int64_t matrix,
                     float* transformed) {
  constexpr int N = SIZE + 2;
  const int channels = round_up(conv.in_channels);
  for (int t = 0; t < num_tiles; ++t) {
    const float* rows[N * N];
    for (int i = 0; i < N * N; ++i) {
      const int32_t row = tiles[t * N * N + i];
      rows[i] = row < 0 ? conv.zero_row : conv.features + row * conv.feature_stride;
    }
    for (int c = 0; c < channels; c += WIDTH) {
      const int left = conv.in_channels - c;
      Vec columns[N][N];
#pragma GCC unroll 8
      for (int x = 0; x < N; ++x) {
        Vec d[N], v[N];
#pragma GCC unroll 8
        for (int y = 0; y < N; ++y) d[y] = load_first(rows[y * N + x] + c, left);
        Winograd<SIZE>::in(d, v);
#pragma GCC unroll 8
        for (int y = 0; y < N; ++y) columns[y][x] = v[y];
      }
      float* to = transformed + t * channels + c;
#pragma GCC unroll 8
      for (int y = 0; y < N; ++y) {
        Vec v[N];
        Winograd<SIZE>::in(columns[y], v);
#pragma GCC unroll 8
        for (int x = 0; x < N; ++x) store(to + (y * N + x) * matrix, v[x]);
      }
    }
  }
}

// Transforms [points, tiles, padded] back and scatters the outputs that exist.
template <int SIZE, Activation activation>
void transform_output(const Convolution& conv, const int32_t* tiles, int num_tiles, int column,
                      int columns, const float* products) {
  constexpr int N = SIZE + 2;
  const int padded = round_up(columns);
  const int64_t matrix = int64_t(num_tiles) * padded;
  for (int c = 0; c < columns; c += WIDTH) {
    const int left = columns - c;
    const Vec bias = conv.bias ? load_first(conv.bias + column + c, left) : Vec{};
    const float* addend = conv.addend ? conv.addend + column + c : nullptr;
    for (int t = 0; t < num_tiles; ++t) {
      const float* from = products + t * padded + c;
      Vec half[SIZE][N];
#pragma GCC unroll 8
      for (int x = 0; x < N; ++x) {
        Vec m[N], y[SIZE];
#pragma GCC unroll 8
        for (int i = 0; i < N; ++i) m[i] = load(from + (i * N + x) * matrix);
        Winograd<SIZE>::out(m, y);
#pragma GCC unroll 8
        for (int i = 0; i < SIZE; ++i) half[i][x] = y[i];
      }
#pragma GCC unroll 4
      for (int i = 0; i < SIZE; ++i) {
        Vec y[SIZE];
        Winograd<SIZE>::out(half[i], y);
#pragma GCC unroll 4
        for (int x = 0; x < SIZE; ++x) {
          const int32_t row = tiles[t * N * N + (i + 1) * N + x + 1];
          if (row < 0) continue;
          const int64_t at = int64_t(row) * conv.out_channels;
          Vec sum = y[x] + bias;
          if (addend) sum += load_first(addend + at, left);
          store_first(conv.out + at + column + c, activate<activation>(sum), left);
        }
      }
    }
  }
}

template <int SIZE>
void run_winograd(const Convolution& conv, const int32_t* tiles, int num_tiles, int first_panel,
                  int last_panel, float* scratch) {
  constexpr int POINTS = (SIZE + 2) * (SIZE + 2);
  const int channels = round_up(conv.in_channels);
  float* products = scratch + int64_t(POINTS) * num_tiles * channels;
  transform_input<SIZE>(conv, tiles, num_tiles, int64_t(num_tiles) * channels, scratch);
  for (int p = first_panel; p < last_panel; ++p) {
    const int columns = panel_columns(conv.out_channels, p), padded = round_up(columns);
    const float* weight = conv.weight + panel_offset(POINTS, conv.in_channels, p);
    for (int point = 0; point < POINTS; ++point)
      for (int k = 0; k < conv.in_channels; k += DEPTH) {
        const int depth = at_most(conv.in_channels - k, DEPTH);
        const float* row = scratch + int64_t(point) * num_tiles * channels + k;
        const float* next = weight + int64_t(depth) * padded;
        float* out = products + int64_t(point) * num_tiles * padded;
        for (int t = 0; t < num_tiles; t += ROWS) {
          const int m = at_most(num_tiles - t, ROWS);
          const float* rows[ROWS];
          float* outs[ROWS];
          for (int i = 0; i < m; ++i, row += channels, out += padded) rows[i] = row, outs[i] = out;
          multiply_for(m, padded / WIDTH, k > 0)(rows, weight, depth, outs, padded, next);
          next += depth * WIDTH;
        }
        weight += int64_t(depth) * padded;
      }
    with_activation(conv.activation, [&](auto constant) {
      transform_output<SIZE, constant.value>(conv, tiles, num_tiles, p * PANEL, columns, products);
    });
  }
}

void winograd(const Convolution& conv, int size, const int32_t* tiles, int num_tiles, int first_panel,
              int last_panel, float* scratch) {
  (size == 2 ? run_winograd<2> : run_winograd<4>)(conv, tiles, num_tiles, first_panel, last_panel,
                                                  scratch);
}

void winograd_input(const Convolution& conv, int size, const int32_t* tiles, int num_tiles,
                    int64_t matrix, float* transformed) {
  (size == 2 ? transform_input<2> : transform_input<4>)(conv, tiles, num_tiles, matrix, transformed);
}

// Gathers one panel of the inner rows of tiles and transforms them to [points, tiles, columns].
template <int SIZE>
void transform_gradient(const float* grad, int out_channels, const int32_t* tiles, int num_tiles,
                        int panel_index, int64_t matrix, float* transformed) {
  constexpr int N = SIZE + 2;
  const int column = panel_index * PANEL, columns = panel_columns(out_channels, panel_index);
  const int padded = round_up(columns);
  for (int t = 0; t < num_tiles; ++t)
    for (int c = 0; c < padded; c += WIDTH) {
      Vec half[N][SIZE];
#pragma GCC unroll 4
      for (int x = 0; x < SIZE; ++x) {
        Vec y[SIZE], m[N];
#pragma GCC unroll 4
        for (int i = 0; i < SIZE; ++i) {
          const int32_t row = tiles[t * N * N + (i + 1) * N + x + 1];
          y[i] = row < 0 ? Vec{}
                         : load_first(grad + int64_t(row) * out_channels + column + c, columns - c);
        }
        Winograd<SIZE>::out_gradient(y, m);
#pragma GCC unroll 8
        for (int i = 0; i < N; ++i) half[i][x] = m[i];
      }
#pragma GCC unroll 8
      for (int i = 0; i < N; ++i) {
        Vec m[N];
        Winograd<SIZE>::out_gradient(half[i], m);
#pragma GCC unroll 8
        for (int x = 0; x < N; ++x) store(transformed + (i * N + x) * matrix + t * padded + c, m[x]);
      }
    }
}

void winograd_gradient(const float* grad, int out_channels, int size, const int32_t* tiles,
                       int num_tiles, int panel_index, int64_t matrix, float* transformed) {
  (size == 2 ? transform_gradient<2> : transform_gradient<4>)(
      grad, out_channels, tiles, num_tiles, panel_index, matrix, transformed);
}

template <int SIZE>
void transform_kernel_gradient(const float* transformed, int in_channels, int out_channels,
                               int panel_index, float* result) {
  constexpr int N = SIZE + 2;
  const int column = panel_index * PANEL, columns = panel_columns(out_channels, panel_index);
  const int64_t matrix = int64_t(in_channels) * out_channels;
  for (int i = 0; i < in_channels; ++i)
    for (int c = 0; c < columns; c += WIDTH) {
      const int64_t at = int64_t(i) * out_channels + column + c;
      Vec half[3][N];
#pragma GCC unroll 8
      for (int x = 0; x < N; ++x) {
        Vec u[N], g[3];
#pragma GCC unroll 8
        for (int y = 0; y < N; ++y)
          u[y] = load_first(transformed + (y * N + x) * matrix + at, columns - c);
        Winograd<SIZE>::weight_gradient(u, g);
#pragma GCC unroll 4
        for (int y = 0; y < 3; ++y) half[y][x] = g[y];
      }
#pragma GCC unroll 4
      for (int y = 0; y < 3; ++y) {
        Vec g[3];
        Winograd<SIZE>::weight_gradient(half[y], g);
#pragma GCC unroll 4
        for (int x = 0; x < 3; ++x)
          store_first(result + (3 * y + x) * matrix + at, g[x], columns - c);
      }
    }
}

void winograd_kernel_gradient(const float* transformed, int in_channels, int out_channels, int size,
                              int panel_index, float* result) {
  (size == 2 ? transform_kernel_gradient<2> : transform_kernel_gradient<4>)(
      transformed, in_channels, out_channels, panel_index, result);
}

// One level as one image sees it.
struct Level {
  const int32_t* row_map;
  const float* rows;
  const float* background;
  int stride;                        // cells from one line of the row map to the next
  int height, width;                 // cells that are not padding
  float extent_height, extent_width;
};

// How many of a level's cells an image covers, none where its extent is not a number.
INLINE int covered(float extent, int cells) {
  if (!(extent > 0.0f)) return 0;
  return extent < cells ? at_most(cells, int(__builtin_ceilf(extent))) : cells;
}

INLINE Level level_of(const Sampling& s, int level) {
  const float height = s.extents[2 * level], width = s.extents[2 * level + 1];
  return {s.row_maps[level],
          s.rows[level],
          s.background + int64_t(level) * s.row_width,
          s.widths[level],
          covered(height, s.heights[level]),
          covered(width, s.widths[level]),
          height,
          width};
}

// A sample between four cells: the one above and left of it, and how far it lies beyond.
struct Place {
  int x, y;
  float fx, fy;
  float share(int corner) const {
    return (corner & 1 ? fx : 1.0f - fx) * (corner & 2 ? fy : 1.0f - fy);
  }
};

// False where no corner lies inside the image, also for NaN; what passes fits an int.
INLINE bool find_place(const Level& level, const float* location, Place& at) {
  const float x = location[0] * level.extent_width - 0.5f;
  const float y = location[1] * level.extent_height - 0.5f;
  if (!(x > -1.0f && y > -1.0f && x < level.width && y < level.height)) return false;
  at.x = x < 0.0f ? -1 : int(x);
  at.y = y < 0.0f ? -1 : int(y);
  at.fx = x - at.x;
  at.fy = y - at.y;
  return true;
}

INLINE bool is_inside(const Level& level, const Place& at, int corner) {
  const int x = at.x + (corner & 1), y = at.y + (corner >> 1);
  return x >= 0 && y >= 0 && x < level.width && y < level.height;
}

// The row of a corner that is inside, or -1.
INLINE int32_t corner_row(const Level& level, const Place& at, int corner) {
  return level.row_map[(at.y + (corner >> 1)) * level.stride + at.x + (corner & 1)];
}

INLINE const float* read_row(const Sampling& s, const Level& level, int32_t row) {
  return row >= 0 ? level.rows + int64_t(row) * s.row_width : level.background;
}

// Lists what one head reads of all levels; returns how much.
int find_corners(const Sampling& s, const Level* levels, const float* locations, const float* weights,
                 int column, Corner* corners, float* inside) {
  int count = 0;
  float total = 0.0f;
  for (int l = 0; l < s.levels; ++l)
    for (int p = 0; p < s.points; ++p, locations += 2, ++weights) {
      Place at;
      if (!find_place(levels[l], locations, at)) continue;
      for (int corner = 0; corner < 4; ++corner) {
        if (!is_inside(levels[l], at, corner)) continue;
        const float weight = *weights * at.share(corner);
        total += weight;
        corners[count++] = {read_row(s, levels[l], corner_row(levels[l], at, corner)) + column, weight};
      }
    }
  *inside = total;
  return count;
}

template <int V>
INLINE void weighted_sum(const Corner* corners, int count, int column, float* out, int last) {
  Vec sums[V] = {};
  for (int i = 0; i < count; ++i) {
    const float* row = corners[i].row + column;
#pragma GCC unroll 8
    for (int j = 0; j < V; ++j)
      sums[j] += load_first(row + j * WIDTH, j < V - 1 ? WIDTH : last) * corners[i].weight;
  }
#pragma GCC unroll 8
  for (int j = 0; j < V; ++j) store_first(out + j * WIDTH, sums[j], j < V - 1 ? WIDTH : last);
}

// Columns are the outer loop: heads that read the same rows find them in the first cache.
template <int V>
INLINE int sum_columns(const Sampling& s, const Corner* corners, const int* counts, int column, float* out) {
  constexpr int STEP = V * WIDTH;
  for (; column + (V > 1 ? STEP : 1) <= s.head_width; column += STEP)
    for (int h = 0; h < s.heads; ++h)
      weighted_sum<V>(corners + h * s.levels * s.points * 4, counts[h], column,
                      out + h * s.head_width + column,
                      V > 1 ? WIDTH : at_most(s.head_width - column, WIDTH));
  return column;
}

void sample(const Sampling& s, const float* locations, const float* weights, Corner* corners,
            float* out, float* coverage) {
  const int samples = s.levels * s.points;
  Level levels[MAX_LEVELS];
  int counts[MAX_HEADS];
  for (int l = 0; l < s.levels; ++l) levels[l] = level_of(s, l);
  for (int h = 0; h < s.heads; ++h)
    counts[h] = find_corners(s, levels, locations + 2 * h * samples, weights + h * samples,
                             h * s.head_stride, corners + 4 * h * samples, coverage + h);
  int column = sum_columns<4>(s, corners, counts, 0, out);
  column = sum_columns<2>(s, corners, counts, column, out);
  sum_columns<1>(s, corners, counts, column, out);
}

INLINE float sum_of(Vec v) {
  float total = 0.0f;
  for (int i = 0; i < WIDTH; ++i) total += v[i];
  return total;
}

INLINE float dot(const float* a, const float* b, int n) {
  Vec sum = {};
  for (int c = 0; c < n; c += WIDTH) sum += load_first(a + c, n - c) * load_first(b + c, n - c);
  return sum_of(sum);
}

INLINE void add_scaled(float* to, const float* from, float scale, int n) {
  for (int c = 0; c < n; c += WIDTH)
    store_first(to + c, load_first(to + c, n - c) + load_first(from + c, n - c) * scale, n - c);
}

void sample_backward(const Sampling& s, int head, const float* grad, const float* locations,
                     const float* weights, float* const* grad_rows, float* grad_background,
                     float* grad_locations, float* grad_weights) {
  const int column = head * s.head_stride;
  for (int l = 0; l < s.levels; ++l) {
    const Level level = level_of(s, l);
    for (int p = 0; p < s.points; ++p) {
      const int i = l * s.points + p;
      grad_locations[2 * i] = grad_locations[2 * i + 1] = grad_weights[i] = 0.0f;
      Place at;
      if (!find_place(level, locations + 2 * i, at)) continue;
      float products[4] = {};
      for (int corner = 0; corner < 4; ++corner) {
        if (!is_inside(level, at, corner)) continue;
        const int32_t row = corner_row(level, at, corner);
        products[corner] = dot(grad, read_row(s, level, row) + column, s.head_width);
        grad_weights[i] += at.share(corner) * products[corner];
        float* to = row >= 0 ? grad_rows[l] + int64_t(row) * s.row_width
                             : grad_background + int64_t(l) * s.row_width;
        add_scaled(to + column, grad, at.share(corner) * weights[i], s.head_width);
      }
      const float dx = (1 - at.fy) * (products[1] - products[0]) + at.fy * (products[3] - products[2]);
      const float dy = (1 - at.fx) * (products[2] - products[0]) + at.fx * (products[3] - products[1]);
      grad_locations[2 * i] = weights[i] * level.extent_width * dx;
      grad_locations[2 * i + 1] = weights[i] * level.extent_height * dy;
    }
  }
}

#define KERNELS(name)                                                              \
  {name,           WIDTH,           PANEL,                                         \
   packed_size,    pack,            pointwise,                                     \
   indirect,       gather_panel,    depthwise,                                     \
   depthwise_gradient, weight_gradient,                                            \
   winograd_weight, winograd_scratch, winograd,                                    \
   winograd_input, winograd_gradient, winograd_kernel_gradient,                    \
   sample,         sample_backward}
