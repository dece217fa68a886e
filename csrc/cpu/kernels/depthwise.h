// One kernel per channel, over the rows that a table names.

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
