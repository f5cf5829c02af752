// Vectors, products by tiles of registers, and transposing, for the instruction set that the including file has chosen:
// see kernels.h.
#include "attention/kernel_table.h"

namespace agmh::AGMH_ISA {

#define AGMH_INLINE inline __attribute__((always_inline))

constexpr int kLanes = AGMH_LANES;
constexpr int kPair = 2 * kLanes;
// Rows of a product's tile: rows × two vectors of sums, with the operands, fill the registers.
constexpr int kRows = AGMH_ROWS;
static_assert(kPanel % kPair == 0);

using Vec __attribute__((vector_size(kLanes * sizeof(float)))) = float;
using Ints __attribute__((vector_size(kLanes * sizeof(int32_t)))) = int32_t;

AGMH_INLINE Vec load(const float* from) {
  Vec x;
  std::memcpy(&x, from, sizeof x);
  return x;
}

AGMH_INLINE void store(float* to, Vec x) { std::memcpy(to, &x, sizeof x); }

AGMH_INLINE void store_pair(float* to, Vec x, Vec y) {
  store(to, x);
  store(to + kLanes, y);
}

AGMH_INLINE void add_pair(float* to, Vec x, Vec y) { store_pair(to, load(to) + x, load(to + kLanes) + y); }

AGMH_INLINE Vec splat(float x) { return x - Vec{}; }

AGMH_INLINE float total(Vec x) {
  float sum = 0;
  for (int i = 0; i < kLanes; ++i) sum += x[i];
  return sum;
}

AGMH_INLINE Ints bits_of(Vec x) {
  Ints bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits;
}

// e^x for x <= 0 to about one unit in the last place; the polynomial is that of the Cephes library. NaN stays NaN.
AGMH_INLINE Vec exp_nonpositive(Vec x) {
  const Vec lowest = splat(-87.0f), magic = splat(12582912.0f);  // 1.5 · 2²³: adding it rounds to an integer
  x = x < lowest ? lowest : x;
  const Vec rounded = x * 1.44269504088896341f + magic;
  const Vec k = rounded - magic;
  const Vec f = x - k * 0.693359375f + k * 2.12194440e-4f;
  Vec p = f * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * f + 8.3334519073e-3f;
  p = p * f + 4.1665795894e-2f;
  p = p * f + 1.6666665459e-1f;
  p = p * f + 5.0000001201e-1f;
  p = p * f * f + f + 1.0f;
  const Ints power = (bits_of(rounded) - bits_of(magic) + 127) << 23;
  Vec scale;
  std::memcpy(&scale, &power, sizeof scale);
  return p * scale;
}

// One tile: `done(i, x, y)` gets the two vectors of sums of row i.
template <int M, class Done>
AGMH_INLINE void tile(int64_t depth, const float* a, int64_t row, int64_t step, const float* b, int64_t b_step,
                      const Done& done) {
  Vec acc[M][2] = {};
  for (int64_t k = 0; k < depth; ++k) {
    const Vec b0 = load(b), b1 = load(b + kLanes);
#pragma GCC unroll 16
    for (int i = 0; i < M; ++i) {
      const float x = a[i * row];
      acc[i][0] += x * b0;
      acc[i][1] += x * b1;
    }
    a += step;
    b += b_step;
  }
#pragma GCC unroll 16
  for (int i = 0; i < M; ++i) done(i, acc[i][0], acc[i][1]);
}

// Left side of a product: element (i, k) lies at data[i · row + k · step].
struct Left {
  const float* data;
  int64_t row, step;
};

// Right side: column j of depth k lies at data[j / kPair · panel + k · step + j % kPair].
struct Right {
  const float* data;
  int64_t panel, step;
};

AGMH_INLINE Right packed(const float* data, int64_t depth) { return {data, depth * kPair, kPair}; }
AGMH_INLINE Right rows_of(const float* data, int64_t stride) { return {data, kPair, stride}; }

// Rows [first, first + M) of a product, panel by panel: done(i, j, x, y) for row first + i, columns [j, j + kPair).
template <int M, class Done>
AGMH_INLINE void strip(int64_t first, int64_t from, int64_t columns, int64_t depth, const Left& a, const Right& b,
                       const Done& done) {
  for (int64_t j = from; j < columns; j += kPair)
    tile<M>(depth, a.data + first * a.row, a.row, a.step, b.data + j / kPair * b.panel, b.step,
            [&](int i, Vec x, Vec y) __attribute__((always_inline)) { done(i, j, x, y); });
}

// Calls body.template operator()<M>(first, fresh) for strips of M rows that cover `rows`. The last strip reaches back
// over rows that are done already: those below `fresh` are computed again, with the same result.
template <class Body>
AGMH_INLINE void in_strips(int64_t rows, const Body& body) {
  if (rows < kRows) {
    for (int64_t i = 0; i < rows; ++i) body.template operator()<1>(i, i);
    return;
  }
  for (int64_t done = 0; done < rows; done += kRows)
    body.template operator()<kRows>(std::min(done, rows - kRows), done);
}

// Columns of a depth × columns matrix, zero-padded to whole panels of kPair.
void pack(const float* from, int64_t depth, int64_t columns, int64_t step, int64_t column, float* to) {
  for (int64_t j = 0; j < padded(columns); j += kPair)
    for (int64_t k = 0; k < depth; ++k)
      for (int64_t i = j; i < j + kPair; ++i) *to++ = i < columns ? from[k * step + i * column] : 0.0f;
}

AGMH_INLINE float widened(uint16_t x) {
  const uint32_t bits = static_cast<uint32_t>(x) << 16;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

AGMH_INLINE uint16_t narrowed(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  if (x != x) return 0x7fc0;
  return static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

#if defined(__has_builtin)
#if __has_builtin(__builtin_shufflevector)
#define AGMH_TRANSPOSE 1
#endif
#endif

#ifdef AGMH_TRANSPOSE
template <int... I>
AGMH_INLINE void interleave(Vec a, Vec b, Vec& low, Vec& high, std::integer_sequence<int, I...>) {
  low = __builtin_shufflevector(a, b, (I / 2 + I % 2 * kLanes)...);
  high = __builtin_shufflevector(a, b, (kLanes / 2 + I / 2 + I % 2 * kLanes)...);
}

// kLanes × kLanes in place: each round interleaves the first half of the rows with the second.
AGMH_INLINE void transpose(Vec (&x)[kLanes]) {
  for (int round = 1; round < kLanes; round *= 2) {
    Vec y[kLanes];
#pragma GCC unroll 16
    for (int i = 0; i < kLanes / 2; ++i)
      interleave(x[i], x[i + kLanes / 2], y[2 * i], y[2 * i + 1], std::make_integer_sequence<int, kLanes>{});
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i) x[i] = y[i];
  }
}

AGMH_INLINE void transpose_block(const float* from, int64_t stride, float* to, int64_t to_stride) {
  Vec x[kLanes];
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; ++i) x[i] = load(from + i * stride);
  transpose(x);
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; ++i) store(to + i * to_stride, x[i]);
}
#endif

// to (columns, rows) = from (rows, columns) transposed; the strides are in elements. Goes along the rows of `from`, or
// with Gather along those of `to`: that side is then read or written in long runs.
template <bool Gather>
void transposed(const float* from, int64_t stride, int64_t rows, int64_t columns, float* to, int64_t to_stride) {
  int64_t whole_rows = 0, whole_columns = 0;
#ifdef AGMH_TRANSPOSE
  whole_rows = rows / kLanes * kLanes;
  whole_columns = columns / kLanes * kLanes;
  for (int64_t i = 0; i < (Gather ? whole_columns : whole_rows); i += kLanes)
    for (int64_t j = 0; j < (Gather ? whole_rows : whole_columns); j += kLanes) {
      const int64_t row = Gather ? j : i, column = Gather ? i : j;
      transpose_block(from + row * stride + column, stride, to + column * to_stride + row, to_stride);
    }
#endif
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t j = i < whole_rows ? whole_columns : 0; j < columns; ++j) to[j * to_stride + i] = from[i * stride + j];
}

}  // namespace agmh::AGMH_ISA
