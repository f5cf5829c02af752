// All kernels, as a template of the instruction set: included once by each kernels_*.cpp, inside a region that tells
// the compiler what it may use. AGMH_ISA names the set, AGMH_VECTOR_BYTES is its vector, AGMH_TERNARY says that it has
// AVX-512's three-operand logic, AGMH_COMPRESS that it has VBMI2's compression and GFNI, AGMH_RUNS_HERE when it runs.
// The including file has included every header that is used here, so that none is compiled inside that region.

#if defined(__GNUC__)
#define AGMH_INLINE inline __attribute__((always_inline))
#else
#define AGMH_INLINE inline
#endif

namespace agmh::AGMH_ISA {
namespace {

// ---- distances

template <class Word>
AGMH_INLINE Word load(const uint8_t* from) {
  Word word;
  std::memcpy(&word, from, sizeof word);
  return word;
}

// Rows of one word. The query is a scalar, so that compilers turn the loop into vectors of rows.
template <class Word>
void one_word(const uint8_t* query, const uint8_t* rows, int count, int, int16_t* out) {
  const Word q = load<Word>(query);
  for (int i = 0; i < count; ++i) {
    const Word x = load<Word>(rows + static_cast<int64_t>(i) * static_cast<int64_t>(sizeof(Word)));
    out[i] = static_cast<int16_t>(std::popcount(static_cast<Word>(q ^ x)));
  }
}

AGMH_INLINE int16_t wide_distance(const uint8_t* query, const uint8_t* row, int words) {
  int64_t distance = 0;
  for (int w = 0; w < words; ++w)
    distance += std::popcount(load<uint64_t>(query + 8 * w) ^ load<uint64_t>(row + 8 * w));
  return static_cast<int16_t>(distance);
}

#ifdef AGMH_TERNARY
AGMH_INLINE __m512i ones_between(const uint8_t* row, const __m512i& query) {
  return _mm512_popcnt_epi64(_mm512_loadu_si512(row) ^ query);
}
// Of each vector the sums of neighbouring lanes, those of `b` between those of `a`.
AGMH_INLINE __m512i add_neighbours(const __m512i& a, const __m512i& b) {
  return _mm512_add_epi64(_mm512_unpacklo_epi64(a, b), _mm512_unpackhi_epi64(a, b));
}
// The same of neighbouring pairs of lanes, those of `b` after those of `a`.
AGMH_INLINE __m512i add_neighbouring_pairs(const __m512i& a, const __m512i& b) {
  return _mm512_add_epi64(_mm512_shuffle_i64x2(a, b, 0x88), _mm512_shuffle_i64x2(a, b, 0xdd));
}
AGMH_INLINE void store_eight(int16_t* out, const __m512i& distances) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(out), _mm512_cvtepi64_epi16(distances));
}

// Eight rows at a time, whose words are counted where they lie and then added across lanes.
void two_words(const uint8_t* query, const uint8_t* rows, int count, int, int16_t* out) {
  const __m512i q = _mm512_broadcast_i64x2(_mm_loadu_si128(reinterpret_cast<const __m128i*>(query)));
  const __m512i order = _mm512_setr_epi64(0, 2, 4, 6, 1, 3, 5, 7);
  int i = 0;
  for (; i + 8 <= count; i += 8, rows += 128) {
    const __m512i sums = add_neighbours(ones_between(rows, q), ones_between(rows + 64, q));
    store_eight(out + i, _mm512_permutexvar_epi64(order, sums));
  }
  for (; i < count; ++i, rows += 16) out[i] = wide_distance(query, rows, 2);
}

void four_words(const uint8_t* query, const uint8_t* rows, int count, int, int16_t* out) {
  const __m512i q = _mm512_broadcast_i64x4(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(query)));
  const __m512i order = _mm512_setr_epi64(0, 2, 1, 3, 4, 6, 5, 7);
  int i = 0;
  for (; i + 8 <= count; i += 8, rows += 256) {
    const __m512i low = add_neighbours(ones_between(rows, q), ones_between(rows + 64, q));
    const __m512i high = add_neighbours(ones_between(rows + 128, q), ones_between(rows + 192, q));
    store_eight(out + i, _mm512_permutexvar_epi64(order, add_neighbouring_pairs(low, high)));
  }
  for (; i < count; ++i, rows += 32) out[i] = wide_distance(query, rows, 4);
}

void many_words(const uint8_t* query, const uint8_t* rows, int count, int words, int16_t* out) {
  const int64_t bytes = 8 * int64_t{words};
  int i = 0;
  for (; i + 8 <= count; i += 8, rows += 8 * bytes) {
    __m512i sum[8];
    for (__m512i& x : sum) x = _mm512_setzero_si512();
    for (int w = 0; w < words; w += 8) {
      const auto there = static_cast<__mmask8>(words - w >= 8 ? 0xff : (1 << (words - w)) - 1);
      const __m512i q = _mm512_maskz_loadu_epi64(there, query + 8 * w);
      for (int r = 0; r < 8; ++r) {
        const __m512i x = _mm512_maskz_loadu_epi64(there, rows + r * bytes + 8 * w);
        sum[r] = _mm512_add_epi64(sum[r], _mm512_popcnt_epi64(x ^ q));
      }
    }
    __m512i pairs[4];
    for (int r = 0; r < 4; ++r) pairs[r] = add_neighbours(sum[2 * r], sum[2 * r + 1]);
    store_eight(out + i, add_neighbouring_pairs(add_neighbouring_pairs(pairs[0], pairs[1]),
                                                add_neighbouring_pairs(pairs[2], pairs[3])));
  }
  for (; i < count; ++i, rows += bytes) out[i] = wide_distance(query, rows, words);
}
#else
template <int Words>
void few_words(const uint8_t* query, const uint8_t* rows, int count, int, int16_t* out) {
  uint64_t q[Words];
  std::memcpy(q, query, sizeof q);
  for (int i = 0; i < count; ++i, rows += sizeof q) {
    int distance = 0;
    for (int w = 0; w < Words; ++w) distance += std::popcount(q[w] ^ load<uint64_t>(rows + 8 * w));
    out[i] = static_cast<int16_t>(distance);
  }
}

void two_words(const uint8_t* query, const uint8_t* rows, int count, int words, int16_t* out) {
  few_words<2>(query, rows, count, words, out);
}

void four_words(const uint8_t* query, const uint8_t* rows, int count, int words, int16_t* out) {
  few_words<4>(query, rows, count, words, out);
}

void many_words(const uint8_t* query, const uint8_t* rows, int count, int words, int16_t* out) {
  for (int i = 0; i < count; ++i, rows += 8 * static_cast<int64_t>(words)) out[i] = wide_distance(query, rows, words);
}
#endif

template <class Word>
AGMH_INLINE void one_word_at(const uint8_t* query, const uint8_t* rows, const uint16_t* index, int count,
                             int16_t* out) {
  const Word q = load<Word>(query);
  for (int i = 0; i < count; ++i)
    out[i] = static_cast<int16_t>(std::popcount(static_cast<Word>(q ^ load<Word>(rows + index[i] * sizeof(Word)))));
}

void distances_at(const uint8_t* query, const uint8_t* rows, int row_bytes, const uint16_t* index, int count,
                  int16_t* out) {
  switch (row_bytes) {
    case 2:
      return one_word_at<uint16_t>(query, rows, index, count, out);
    case 4:
      return one_word_at<uint32_t>(query, rows, index, count, out);
    case 8:
      return one_word_at<uint64_t>(query, rows, index, count, out);
    default:
      for (int i = 0; i < count; ++i)
        out[i] = wide_distance(query, rows + static_cast<int64_t>(index[i]) * row_bytes, row_bytes / 8);
  }
}

// ---- lists of indices

// Distances looked at together: most groups have none within the limit.
constexpr int kGroup = 32;

#ifdef AGMH_COMPRESS
int set_bits(uint64_t word, int first, uint16_t* index) {
  alignas(64) static constexpr auto kOrder = [] {
    std::array<uint8_t, 64> order{};
    for (size_t i = 0; i < 64; ++i) order[i] = static_cast<uint8_t>(i);
    return order;
  }();
  const __m512i places = _mm512_maskz_compress_epi8(word, _mm512_load_si512(kOrder.data()));
  const __m512i base = _mm512_set1_epi16(static_cast<int16_t>(first));
  const int found = std::popcount(word);
  _mm512_storeu_si512(index, _mm512_add_epi16(base, _mm512_cvtepu8_epi16(_mm512_castsi512_si256(places))));
  if (found > 32)
    _mm512_storeu_si512(index + 32, _mm512_add_epi16(base, _mm512_cvtepu8_epi16(_mm512_extracti64x4_epi64(places, 1))));
  return found;
}
#else
int set_bits(uint64_t word, int first, uint16_t* index) {
  int found = 0;
  for (; word != 0; word &= word - 1) index[found++] = static_cast<uint16_t>(first + std::countr_zero(word));
  return found;
}
#endif

#ifdef AGMH_TERNARY
int within(const int16_t* distances, int count, int16_t limit, uint16_t* index) {
  const __m512i most = _mm512_set1_epi16(limit);
  int found = 0;
  for (int first = 0; first < count; first += 2 * kGroup) {
    const int left = count - first;
    const uint32_t low = left >= kGroup ? ~uint32_t{0} : (uint32_t{1} << left) - 1;
    const uint32_t high = left >= 2 * kGroup ? ~uint32_t{0} : left > kGroup ? (uint32_t{1} << (left - kGroup)) - 1 : 0;
    uint64_t hits = _mm512_mask_cmple_epi16_mask(low, _mm512_maskz_loadu_epi16(low, distances + first), most);
    hits |=
        uint64_t{_mm512_mask_cmple_epi16_mask(high, _mm512_maskz_loadu_epi16(high, distances + first + kGroup), most)}
        << kGroup;
    if (hits != 0) found += set_bits(hits, first, index + found);
  }
  return found;
}
#else
int within(const int16_t* distances, int count, int16_t limit, uint16_t* index) {
  int found = 0, first = 0;
  for (; first + kGroup <= count; first += kGroup) {
    int16_t least = distances[first];
    for (int i = 1; i < kGroup; ++i) least = least < distances[first + i] ? least : distances[first + i];
    if (least > limit) continue;
    for (int i = first; i < first + kGroup; ++i) {
      index[found] = static_cast<uint16_t>(i);
      found += distances[i] <= limit;
    }
  }
  for (int i = first; i < count; ++i) {
    index[found] = static_cast<uint16_t>(i);
    found += distances[i] <= limit;
  }
  return found;
}
#endif

// ---- bit planes

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
void planes_of_words(const uint64_t* words, uint64_t* planes) {
  const Vec forward = _mm512_load_si512(kForward.data()), reversed = _mm512_load_si512(kReversed.data());
  // Multiplied by a matrix over GF(2), the byte 1 << k yields column k of the matrix.
  const Vec unit = _mm512_set1_epi64(static_cast<int64_t>(0x8040201008040201));
  Vec blocks[8][8];  // of 64 words each: vector j holds their bits 8j .. 8j + 7, one bit a word
  for (int h = 0; h < 8; ++h) {
    Vec(&r)[8] = blocks[h];
    for (int g = 0; g < 8; ++g) {
      const Vec bytes = _mm512_permutexvar_epi8(reversed, _mm512_loadu_si512(words + 8 * (8 * h + g)));
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
void planes_of_words(const uint64_t* words, uint64_t* planes) {
  for (int g = 0; g < 8; ++g)
    for (int i = 0; i < 64; ++i) planes[8 * i + g] = words[64 * g + i];
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

// Word `word` of the rows, zero beyond `count` and beyond a row's end.
void gather_words(const uint8_t* rows, int count, int row_bytes, int word, uint64_t* words) {
  std::memset(words, 0, kPlaneItems * sizeof(uint64_t));
  if (8 * word >= row_bytes) return;
  const uint8_t* from = rows + 8 * word;
  switch (row_bytes) {
    case 2:
      for (int i = 0; i < count; ++i) words[i] = load<uint16_t>(from + 2 * i);
      break;
    case 4:
      for (int i = 0; i < count; ++i) words[i] = load<uint32_t>(from + 4 * i);
      break;
    default:
      for (int i = 0; i < count; ++i) words[i] = load<uint64_t>(from + static_cast<int64_t>(i) * row_bytes);
  }
}

void build(const uint8_t* rows, int count, int row_bytes, int bits, int chunk, const PlanePlan& plan, uint8_t* table) {
  alignas(64) uint64_t words[kPlaneItems];
  alignas(64) uint64_t planes[129][kPlaneWords];
  const int first_word = chunk * plan.chunk_bits() / 64;
  for (int w = 0; w < plan.chunk_bits() / 64; ++w) {
    gather_words(rows, count, row_bytes, first_word + w, words);
    planes_of_words(words, planes[64 * w]);
  }
  std::memset(planes[128], 0, sizeof planes[128]);
  int16_t positions[3 * 43];
  plane_positions(bits, chunk, plan, positions);
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

// ---- counts of every distance, from planes

#ifdef AGMH_TERNARY
AGMH_INLINE int64_t sum_of(const Vec& x) { return _mm512_reduce_add_epi64(x); }

void tally(const Tally& task) {
  constexpr int kTiles = 8;
  // Of each tile the items whose distance ends in each value of its three low bits.
  Vec low[kTiles][8];
  for (int first = 0; first < task.tiles; first += kTiles) {
    const int tiles = task.tiles - first < kTiles ? task.tiles - first : kTiles;
    const uint64_t* planes = task.planes + first * task.tile_stride;
    for (int t = 0; t < tiles; ++t) {
      const Vec* at = vectors(planes + t * task.tile_stride);
      const Vec items = vectors(task.items)[first + t];
      for (int value = 0; value < 8; ++value)
        low[t][value] =
            ((value & 1 ? at[0] : ~at[0]) & (value & 2 ? at[1] : ~at[1])) & ((value & 4 ? at[2] : ~at[2]) & items);
    }
    for (int base = 0; base <= task.bits; base += 8) {
      Vec all[8], chosen[8];
      for (int value = 0; value < 8; ++value) all[value] = chosen[value] = _mm512_setzero_si512();
      for (int t = 0; t < tiles; ++t) {
        const Vec* at = vectors(planes + t * task.tile_stride);
        Vec high = filled(true);
        for (int l = 3; l < task.levels; ++l) high &= base >> l & 1 ? at[l] : ~at[l];
        // Most distances lie close together.
        if (_mm512_test_epi64_mask(high, high) == 0) continue;
        for (int value = 0; value < 8; ++value)
          all[value] = _mm512_add_epi64(all[value], _mm512_popcnt_epi64(high & low[t][value]));
        if (task.chosen == nullptr) continue;
        high &= vectors(task.chosen)[first + t];
        for (int value = 0; value < 8; ++value)
          chosen[value] = _mm512_add_epi64(chosen[value], _mm512_popcnt_epi64(high & low[t][value]));
      }
      for (int value = 0; value < 8 && base + value <= task.bits; ++value) {
        int64_t* to = task.counts + (base + value) * (task.chosen == nullptr ? 1 : 2);
        to[0] += sum_of(all[value]);
        if (task.chosen != nullptr) to[1] += sum_of(chosen[value]);
      }
    }
  }
}
#else
void tally(const Tally& task) {
  const int64_t channels = task.chosen == nullptr ? 1 : 2;
  for (int64_t word = 0; word < int64_t{task.tiles} * kPlaneWords; ++word) {
    const uint64_t* at = task.planes + word / kPlaneWords * task.tile_stride + word % kPlaneWords;
    uint64_t low[8];
    for (int value = 0; value < 8; ++value) {
      low[value] = task.items[word];
      for (int l = 0; l < 3; ++l) low[value] &= value >> l & 1 ? at[l * kPlaneWords] : ~at[l * kPlaneWords];
    }
    for (int base = 0; base <= task.bits; base += 8) {
      uint64_t high = ~uint64_t{0};
      for (int l = 3; l < task.levels; ++l) high &= base >> l & 1 ? at[l * kPlaneWords] : ~at[l * kPlaneWords];
      if (high == 0) continue;
      for (int value = 0; value < 8 && base + value <= task.bits; ++value) {
        int64_t* to = task.counts + (base + value) * channels;
        to[0] += std::popcount(high & low[value]);
        if (channels == 2) to[1] += std::popcount(high & low[value] & task.chosen[word]);
      }
    }
  }
}
#endif

Equals equals_before(const Tally& task, int item) {
  const int last = item / kPlaneItems, word = item % kPlaneItems / 64;
  const uint64_t* own = task.planes + last * task.tile_stride + word;
  Equals found{0, 0, 0};
  for (int l = 0; l < task.levels; ++l)
    found.distance |= static_cast<int>(own[l * kPlaneWords] >> (item % 64) & 1) << l;
  alignas(64) uint64_t earlier[kPlaneWords];  // of the item's own tile
  for (int w = 0; w < kPlaneWords; ++w)
    earlier[w] = w < word ? ~uint64_t{0} : w == word ? (uint64_t{1} << (item % 64)) - 1 : 0;
#ifdef AGMH_TERNARY
  Vec all = filled(false), chosen = all;
  for (int t = 0; t <= last; ++t) {
    const Vec* at = vectors(task.planes + t * task.tile_stride);
    Vec equal = vectors(task.items)[t];
    if (t == last) equal &= *vectors(earlier);
    for (int l = 0; l < task.levels; ++l) equal &= found.distance >> l & 1 ? at[l] : ~at[l];
    all = _mm512_add_epi64(all, _mm512_popcnt_epi64(equal));
    chosen = _mm512_add_epi64(chosen, _mm512_popcnt_epi64(equal & vectors(task.chosen)[t]));
  }
  found.all = sum_of(all);
  found.chosen = sum_of(chosen);
#else
  for (int64_t w = 0; w <= int64_t{last} * kPlaneWords + word; ++w) {
    const uint64_t* at = task.planes + w / kPlaneWords * task.tile_stride + w % kPlaneWords;
    uint64_t equal = task.items[w];
    if (w / kPlaneWords == last) equal &= earlier[w % kPlaneWords];
    for (int l = 0; l < task.levels; ++l) equal &= found.distance >> l & 1 ? at[l * kPlaneWords] : ~at[l * kPlaneWords];
    found.all += std::popcount(equal);
    found.chosen += std::popcount(equal & task.chosen[w]);
  }
#endif
  return found;
}

bool runs_here() { return AGMH_RUNS_HERE; }

}  // namespace

#define AGMH_TEXT_(name) #name
#define AGMH_TEXT(name) AGMH_TEXT_(name)

const KernelSet kSet{.name = AGMH_TEXT(AGMH_ISA),
                     .runs_here = runs_here,
                     .bytes2 = one_word<uint16_t>,
                     .bytes4 = one_word<uint32_t>,
                     .words1 = one_word<uint64_t>,
                     .words2 = two_words,
                     .words4 = four_words,
                     .words = many_words,
                     .within = within,
                     .set_bits = set_bits,
                     .distances_at = distances_at,
                     .planes = {build, count, tally, equals_before, AGMH_PLANE_QUERIES}};

}  // namespace agmh::AGMH_ISA
