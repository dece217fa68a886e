// Winograd's minimal filtering F(m x m, 3 x 3): Lavin and Gray, "Fast Algorithms for Convolutional
// Neural Networks", 2016.
//
//   A tile of F(4 x 4, 3 x 3):
//
//      6 x 6 rows under the tile          36 points           36 products         4 x 4 outputs
//      . + + + + .
//      + # # # # +      in, down         o o o o o o        o o o o o o
//      + # # # # +      and across       o o o o o o  x     o o o o o o    out     # # # #
//      + # # # # +     ----------->      o o o o o o  u --> o o o o o o  ------>   # # # #
//      + # # # # +                       o o o o o o        o o o o o o            # # # #
//      . + + + + .                       o o o o o o        o o o o o o            # # # #
//                                        o o o o o o        o o o o o o
//      # the outputs' own sites
//      + their border                     u: the 3 x 3 kernel, made 6 x 6 by `weight` once
//
//   Of a direct convolution the sixteen outputs take 16 * 9 = 144 products per pair of channels, here
//   they take 36. A product of a point is a row of tiles [tiles, C_in] times a matrix [C_in, C_out],
//   so that all tiles share each of the 36 matrices.
//
//   On kept sites the tiles lie on a grid of 4 x 4 cells, wherever a cell of it is kept. A site that is
//   not kept is read as zero, and is not written:
//
//      kept sites      tiles           One block of 4 x 4 is one tile and wastes nothing; a lone site
//      ....####....    |    |####|    | costs a whole tile. That is why the choice of an algorithm
//      ....####....    |    |####|    | counts tiles as well as pairs.
//      ..#.####....    |  # |####|    |
//      ....####....    |    |####|    |
//
// Each `in`, `weight` and `out` is one of the two one-dimensional transforms; the gradients are the
// transposes of the last two.

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
