// Bilinear sampling of the rows of several levels, forward and backward.

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
