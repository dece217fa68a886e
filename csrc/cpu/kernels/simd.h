// Vectors of floats for whatever instruction set the including file is compiled for.
//
// Included inside a namespace of its own by each of those files: every function is internal to it, so
// that code for one processor can never be linked into code for another.
#ifndef SIMD_BYTES
#error "define SIMD_BYTES before including simd.h"
#endif

typedef float Vec __attribute__((vector_size(SIMD_BYTES)));
typedef int32_t IntVec __attribute__((vector_size(SIMD_BYTES)));
typedef float UnalignedVec __attribute__((vector_size(SIMD_BYTES), aligned(4), may_alias));

#define INLINE static inline __attribute__((always_inline))

constexpr int WIDTH = SIMD_BYTES / 4;

INLINE Vec load(const float* p) { return *reinterpret_cast<const UnalignedVec*>(p); }
INLINE void store(float* p, Vec v) { *reinterpret_cast<UnalignedVec*>(p) = v; }

// The first n floats, then zeros.
INLINE Vec load_first(const float* p, int n) {
  if (n >= WIDTH) return load(p);
  Vec v = {};
  __builtin_memcpy(&v, p, sizeof(float) * n);
  return v;
}

INLINE void store_first(float* p, Vec v, int n) {
  if (n >= WIDTH) return store(p, v);
  __builtin_memcpy(p, &v, sizeof(float) * n);
}

INLINE Vec select(IntVec mask, Vec a, Vec b) { return mask ? a : b; }

// e^x by 2^n * e^r with |r| <= ln(2) / 2 and a polynomial of degree 6 (relative error below 2e-7).
INLINE Vec exponential(Vec x) {
  const Vec zero = {};
  const Vec lowest = zero - 87.0f, highest = zero + 88.0f;
  x = select(x < lowest, lowest, x);
  x = select(x > highest, highest, x);
  const float magic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
  const Vec n = (x * 1.44269504f + magic) - magic;
  const Vec r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  Vec p = r * (1.0f / 720) + 1.0f / 120;
  p = p * r + 1.0f / 24;
  p = p * r + 1.0f / 6;
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  const IntVec exponent = (__builtin_convertvector(n, IntVec) + 127) << 23;
  return p * __builtin_bit_cast(Vec, exponent);
}

template <Activation activation>
INLINE Vec activate(Vec x) {
  if (activation == Activation::relu) return select(x < Vec{}, Vec{}, x);  // keeps NaN
  if (activation == Activation::relu6) {
    const Vec six = Vec{} + 6.0f;
    x = select(x < Vec{}, Vec{}, x);
    return select(x > six, six, x);
  }
  if (activation == Activation::silu) return x / (1.0f + exponential(-x));
  return x;
}
