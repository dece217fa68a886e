// Convolutions of tiles, and their gradients: transform, multiply point by point, transform back.

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
