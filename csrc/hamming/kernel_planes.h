// Bit planes: transposing codes, tables of triples, and counting; a part of kernel_set.h.

namespace agmh::AGMH_ISA {
namespace {

#if AGMH_VECTOR_BYTES == 64
using Vec = __m512i;
#else
using Vec = uint64_t __attribute__((vector_size(AGMH_VECTOR_BYTES)));
#endif
// Vectors that make up a plane of 512 bits.
constexpr int kShares = kPlaneBytes / AGMH_VECTOR_BYTES;

AGMH_INLINE const Vec* vectors(const void* from) { return static_cast<const Vec*>(from); }
AGMH_INLINE Vec* vectors(void* from) { return static_cast<Vec*>(from); }

// The low and the high bit of x + y + z.
#ifdef AGMH_TERNARY
AGMH_INLINE Vec low_bit(const Vec& x, const Vec& y, const Vec& z) { return _mm512_ternarylogic_epi64(x, y, z, 0x96); }
AGMH_INLINE Vec high_bit(const Vec& x, const Vec& y, const Vec& z) { return _mm512_ternarylogic_epi64(x, y, z, 0xe8); }
#else
AGMH_INLINE Vec low_bit(const Vec& x, const Vec& y, const Vec& z) { return x ^ y ^ z; }
AGMH_INLINE Vec high_bit(const Vec& x, const Vec& y, const Vec& z) { return ((x ^ y) & z) | (x & y); }
#endif

#ifdef AGMH_COMPRESS
// 8 × 8 transpose of 64-bit words.
AGMH_INLINE void transpose8(Vec (&r)[8]) {
  Vec a[8], b[8];
  for (int i = 0; i < 4; ++i) {
    a[2 * i] = _mm512_unpacklo_epi64(r[2 * i], r[2 * i + 1]);
    a[2 * i + 1] = _mm512_unpackhi_epi64(r[2 * i], r[2 * i + 1]);
  }
  for (int i = 0; i < 2; ++i)
    for (int j = 0; j < 2; ++j) {
      b[4 * i + j] = _mm512_shuffle_i64x2(a[4 * i + j], a[4 * i + j + 2], 0x88);
      b[4 * i + j + 2] = _mm512_shuffle_i64x2(a[4 * i + j], a[4 * i + j + 2], 0xdd);
    }
  for (int j = 0; j < 4; ++j) {
    r[j] = _mm512_shuffle_i64x2(b[j], b[j + 4], 0x88);
    r[j + 4] = _mm512_shuffle_i64x2(b[j], b[j + 4], 0xdd);
  }
}

// Byte b of word w goes to byte w of word b; reversed, to byte 7 − w.
constexpr std::array<uint8_t, 64> byte_transpose(bool reversed) {
  std::array<uint8_t, 64> order{};
  for (size_t w = 0; w < 8; ++w)
    for (size_t b = 0; b < 8; ++b) order[8 * b + (reversed ? 7 - w : w)] = static_cast<uint8_t>(8 * w + b);
  return order;
}
alignas(64) constexpr auto kForward = byte_transpose(false), kReversed = byte_transpose(true);

// 512 words of 64 bits to 64 planes; bit i of a plane belongs to word i.
void planes_of_words(const uint8_t* words, uint64_t* planes) {
  const Vec forward = _mm512_load_si512(kForward.data()), reversed = _mm512_load_si512(kReversed.data());
  // Multiplied by a matrix over GF(2), the byte 1 << k yields column k of the matrix.
  const Vec unit = _mm512_set1_epi64(static_cast<int64_t>(0x8040201008040201));
  Vec blocks[8][8];  // of 64 words each: vector j holds their bits 8j .. 8j + 7, one bit a word
  for (int h = 0; h < 8; ++h) {
    Vec(&r)[8] = blocks[h];
    for (int g = 0; g < 8; ++g) {
      const Vec bytes = _mm512_permutexvar_epi8(reversed, _mm512_loadu_si512(words + 64 * (8 * h + g)));
      r[g] = _mm512_gf2p8affine_epi64_epi8(unit, bytes, 0);
    }
    transpose8(r);
    for (Vec& x : r) x = _mm512_permutexvar_epi8(forward, x);
  }
  for (int j = 0; j < 8; ++j) {
    Vec r[8];
    for (int h = 0; h < 8; ++h) r[h] = blocks[h][j];
    transpose8(r);
    for (int b = 0; b < 8; ++b) _mm512_store_si512(planes + 8 * (8 * j + b), r[b]);
  }
}
#else
// 512 words of 64 bits to 64 planes; bit i of a plane belongs to word i. Eight transposes of 64 × 64 bits side by side,
// each by swapping quarters of blocks, then of their quarters, and so on.
void planes_of_words(const uint8_t* words, uint64_t* planes) {
  for (int g = 0; g < 8; ++g)
    for (int i = 0; i < 64; ++i) planes[8 * i + g] = load<uint64_t>(words + 8 * (64 * g + i));
  uint64_t mask = 0x00000000ffffffff;
  for (int half = 32; half != 0; half >>= 1, mask ^= mask << half)
    for (int i = 0; i < 64; i = ((i | half) + 1) & ~half) {
      uint64_t *low = planes + 8 * i, *high = planes + 8 * (i + half);
      for (int g = 0; g < 8; ++g) {
        const uint64_t swapped = ((low[g] >> half) ^ high[g]) & mask;
        low[g] ^= swapped << half;
        high[g] ^= swapped;
      }
    }
}
#endif

// Every `stride`-th Word from `from` on, zeros beyond `count`.
template <class Word>
AGMH_INLINE void widen(const uint8_t* from, int count, int64_t stride, uint64_t* words) {
  for (int i = 0; i < count; ++i) words[i] = load<Word>(from + i * stride);
  std::fill(words + count, words + kPlaneItems, 0);
}

// Word `word` of the rows, zero beyond `count` and beyond a row's end; where such words do not adjoin they are copied.
const uint8_t* gather_words(const uint8_t* rows, int count, int row_bytes, int word, uint64_t* words) {
  if (row_bytes == 8 && word == 0 && count == kPlaneItems) return rows;
  const uint8_t* from = rows + 8 * word;
  if (8 * word >= row_bytes)
    widen<uint64_t>(from, 0, 0, words);
  else if (row_bytes == 2)
    widen<uint16_t>(from, count, 2, words);
  else if (row_bytes == 4)
    widen<uint32_t>(from, count, 4, words);
  else if (row_bytes == 16)
    widen<uint64_t>(from, count, 16, words);
  else
    widen<uint64_t>(from, count, row_bytes, words);
  return reinterpret_cast<const uint8_t*>(words);
}

void build(const uint8_t* rows, int count, int row_bytes, int chunk, const int16_t* positions, const PlanePlan& plan,
           uint8_t* table) {
  alignas(64) uint64_t words[kPlaneItems];
  alignas(64) uint64_t planes[129][kPlaneWords];
  const int first_word = chunk * plan.chunk_bits() / 64;
  for (int w = 0; w < plan.chunk_bits() / 64; ++w)
    planes_of_words(gather_words(rows, count, row_bytes, first_word + w, words), planes[64 * w]);
  std::memset(planes[128], 0, sizeof planes[128]);
  const auto plane = [&](int i) { return planes[positions[i] < 0 ? 128 : positions[i] - 64 * first_word]; };
  for (int t = 0; t < plan.triples; ++t) {
    const uint64_t *a = plane(3 * t), *b = plane(3 * t + 1), *c = plane(3 * t + 2);
    for (int share = 0; share < kShares; ++share) {
      const Vec x = vectors(a)[share], y = vectors(b)[share], z = vectors(c)[share];
      Vec* to = vectors(table + t * kTriplePlanes * kPlaneBytes) + share;
      const Vec sum = low_bit(x, y, z);
      to[0] = sum;
      to[kShares] = ~sum;
      for (int value = 0; value < 8; ++value)
        to[(2 + value) * kShares] = high_bit(value & 1 ? ~x : x, value & 2 ? ~y : y, value & 4 ? ~z : z);
    }
  }
}

// Adds planes of weight 1, 2, 4, …: `sum` holds the count's bits, the last of them whether it ever reached 2^Levels. Of
// each weight one plane waits for a second, so that a full adder takes both; where each goes is known at compile time.
template <int Levels>
struct Counter {
  Vec sum[Levels + 1];
  Vec waiting[Levels + 1];

  static AGMH_INLINE Vec add(Vec& a, const Vec& b, const Vec& c) {
    const Vec carry = high_bit(b, c, a);
    a = low_bit(b, c, a);
    return carry;
  }

  // The n-th plane of weight 2^L. Every triple pushes one of weight 2 before one of weight 1, and the carries of the
  // latter come between.
  template <int L, int n>
  AGMH_INLINE void push(const Vec& x) {
    if constexpr (L >= Levels)
      sum[Levels] |= x;
    else if constexpr (n % 2 == 0)
      waiting[L] = x;
    else
      push<L + 1, L == 0 ? n + 1 + n / 2 : n / 2>(add(sum[L], waiting[L], x));
  }

  // Adds what still waits, `count` planes of weight 2^L having been pushed; `others` of the next weight did not come
  // from this one.
  template <int L, int count, int others>
  AGMH_INLINE void finish() {
    if constexpr (L < Levels) {
      if constexpr (count % 2 == 1) {
        const Vec carry = sum[L] & waiting[L];
        sum[L] ^= waiting[L];
        push<L + 1, others + count / 2>(carry);
      }
      finish<L + 1, others + (count + 1) / 2, 0>();
    }
  }
};

template <int Triples, int Levels, int t = 0>
AGMH_INLINE void add_triples(Counter<Levels>& counter, const uint8_t* table, const uint16_t* offsets) {
  if constexpr (t < Triples) {
    counter.template push<1, t + t / 2>(*vectors(table + offsets[2 * t + 1]));
    counter.template push<0, t>(*vectors(table + offsets[2 * t]));
    add_triples<Triples, Levels, t + 1>(counter, table, offsets);
  } else {
    counter.template finish<0, Triples, Triples>();
  }
}

AGMH_INLINE Vec filled(bool ones) {
#if AGMH_VECTOR_BYTES == 64
  return _mm512_set1_epi64(-int64_t{ones});
#else
  return Vec{} - uint64_t{ones};
#endif
}

// The count starts at 2^Levels − 1 − limit, so that its last plane says "farther than limit".
template <int Triples, int Levels>
void count_planes(const PlaneCount& task) {
  for (int q = 0; q < task.queries; ++q) {
    uint64_t* hits = task.hits + q * kPlaneWords;
    for (int share = 0; share < kShares; ++share) {
      Counter<Levels> counter;
      Vec* state = vectors(task.state + static_cast<int64_t>(q) * (Levels + 1) * kPlaneWords) + share;
      const int start = (1 << Levels) - 1 - task.limits[q];
#pragma GCC unroll 16
      for (int l = 0; l <= Levels; ++l) counter.sum[l] = task.first ? filled(start >> l & 1) : state[l * kShares];
      add_triples<Triples, Levels>(counter, task.table + share * AGMH_VECTOR_BYTES, task.offsets + q * task.stride);
      if (task.last) {
        vectors(hits)[share] = ~counter.sum[Levels];
      } else {
#pragma GCC unroll 16
        for (int l = 0; l <= Levels; ++l) state[l * kShares] = counter.sum[l];
      }
    }
    if (!task.last) continue;
#ifdef AGMH_TERNARY
    const int occupied = _mm512_test_epi64_mask(*vectors(hits), *vectors(hits));
#else
    int occupied = 0;
    for (int w = 0; w < kPlaneWords; ++w) occupied |= (hits[w] != 0) << w;
#endif
    task.occupied[q * task.occupied_stride] = static_cast<uint8_t>(occupied);
  }
}

void count(const PlanePlan& plan, const PlaneCount& task) {
  switch (plan.triples * 16 + plan.levels) {
    case 4 * 16 + 4:
      return count_planes<4, 4>(task);
    case 5 * 16 + 4:
      return count_planes<5, 4>(task);
    case 8 * 16 + 5:
      return count_planes<8, 5>(task);
    case 11 * 16 + 5:
      return count_planes<11, 5>(task);
    case 16 * 16 + 6:
      return count_planes<16, 6>(task);
    case 21 * 16 + 6:
      return count_planes<21, 6>(task);
    case 22 * 16 + 7:
      return count_planes<22, 7>(task);
    case 43 * 16 + 8:
      return count_planes<43, 8>(task);
    case 43 * 16 + 9:
      return count_planes<43, 9>(task);
    case 43 * 16 + 10:
      return count_planes<43, 10>(task);
    case 43 * 16 + 11:
      return count_planes<43, 11>(task);
    case 43 * 16 + 12:
      return count_planes<43, 12>(task);
    case 43 * 16 + 13:
      return count_planes<43, 13>(task);
  }
}

}  // namespace
}  // namespace agmh::AGMH_ISA
