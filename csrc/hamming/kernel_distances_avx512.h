// Distances by AVX-512's popcounts; a part of kernel_set.h.

namespace agmh::AGMH_ISA {
namespace {

// Rows of words at a time: the counts of words that share a lane are packed into it, 16 bits each, before anything is
// added across lanes or stored.
constexpr int kRows = 32;

// 16-bit indices of a vector: result[i] = place(i).
template <class Place>
constexpr std::array<uint16_t, 32> order_of(Place place) {
  std::array<uint16_t, 32> order{};
  for (int i = 0; i < 32; ++i) order[static_cast<size_t>(i)] = static_cast<uint16_t>(place(i));
  return order;
}

AGMH_INLINE __m512i ones_between(const uint8_t* row, const __m512i& query) {
  return _mm512_popcnt_epi64(_mm512_loadu_si512(row) ^ query);
}
// `packed` a quarter of a lane down, `counts` above it.
AGMH_INLINE __m512i pack(const __m512i& packed, const __m512i& counts) {
#ifdef AGMH_COMPRESS
  return _mm512_shrdi_epi64(packed, counts, 16);
#else
  return _mm512_srli_epi64(packed, 16) | _mm512_slli_epi64(counts, 48);
#endif
}
// Counts of four vectors: number i in the i-th quarter of each lane.
AGMH_INLINE __m512i four_counts(const uint8_t* rows, const __m512i& query) {
  __m512i packed = _mm512_setzero_si512();
  for (int i = 0; i < 4; ++i) packed = pack(packed, ones_between(rows + 64 * i, query));
  return packed;
}
// Of each vector the sums of neighbouring lanes, those of `b` between those of `a`.
AGMH_INLINE __m512i add_neighbours(const __m512i& a, const __m512i& b) {
  return _mm512_add_epi16(_mm512_unpacklo_epi64(a, b), _mm512_unpackhi_epi64(a, b));
}
// The same of neighbouring pairs of lanes, those of `b` after those of `a`.
AGMH_INLINE __m512i add_neighbouring_pairs(const __m512i& a, const __m512i& b) {
  return _mm512_add_epi16(_mm512_shuffle_i64x2(a, b, 0x88), _mm512_shuffle_i64x2(a, b, 0xdd));
}

void quarter_words(const uint8_t* query, const uint8_t* rows, int count, int, int16_t* out) {
  one_word<uint16_t>(query, rows, count, 1, out);
}

void half_words(const uint8_t* query, const uint8_t* rows, int count, int, int16_t* out) {
  alignas(64) static constexpr auto kOrder = order_of([](int row) { return row % 16 * 2 + row / 16; });
  const __m512i q = _mm512_set1_epi32(load<int32_t>(query)), order = _mm512_load_si512(kOrder.data());
  int i = 0;
  for (; i + kRows <= count; i += kRows, rows += 128) {
    const __m512i low = _mm512_popcnt_epi32(_mm512_loadu_si512(rows) ^ q);
    const __m512i high = _mm512_popcnt_epi32(_mm512_loadu_si512(rows + 64) ^ q);
    _mm512_storeu_si512(out + i, _mm512_permutexvar_epi16(order, low | _mm512_slli_epi32(high, 16)));
  }
  one_word<uint32_t>(query, rows, count - i, 1, out + i);
}

void single_words(const uint8_t* query, const uint8_t* rows, int count, int, int16_t* out) {
  alignas(64) static constexpr auto kOrder = order_of([](int row) { return row % 8 * 4 + row / 8; });
  const __m512i q = _mm512_set1_epi64(load<int64_t>(query)), order = _mm512_load_si512(kOrder.data());
  int i = 0;
  for (; i + kRows <= count; i += kRows, rows += 256)
    _mm512_storeu_si512(out + i, _mm512_permutexvar_epi16(order, four_counts(rows, q)));
  one_word<uint64_t>(query, rows, count - i, 1, out + i);
}

void two_words(const uint8_t* query, const uint8_t* rows, int count, int, int16_t* out) {
  alignas(64) static constexpr auto kOrder = order_of([](int row) { return row % 4 * 8 + row / 16 * 4 + row / 4 % 4; });
  const __m512i q = _mm512_broadcast_i64x2(_mm_loadu_si128(reinterpret_cast<const __m128i*>(query)));
  const __m512i order = _mm512_load_si512(kOrder.data());
  int i = 0;
  for (; i + kRows <= count; i += kRows, rows += 512)
    _mm512_storeu_si512(
        out + i, _mm512_permutexvar_epi16(order, add_neighbours(four_counts(rows, q), four_counts(rows + 256, q))));
  for (; i < count; ++i, rows += 16) out[i] = wide_distance(query, rows, 2);
}

void four_words(const uint8_t* query, const uint8_t* rows, int count, int, int16_t* out) {
  alignas(64) static constexpr auto kOrder =
      order_of([](int row) { return row / 16 * 16 + row % 2 * 8 + row / 8 % 2 * 4 + row / 2 % 4; });
  const __m512i q = _mm512_broadcast_i64x4(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(query)));
  const __m512i order = _mm512_load_si512(kOrder.data());
  int i = 0;
  for (; i + kRows <= count; i += kRows, rows += 1024) {
    const __m512i low = add_neighbours(four_counts(rows, q), four_counts(rows + 256, q));
    const __m512i high = add_neighbours(four_counts(rows + 512, q), four_counts(rows + 768, q));
    _mm512_storeu_si512(out + i, _mm512_permutexvar_epi16(order, add_neighbouring_pairs(low, high)));
  }
  for (; i < count; ++i, rows += 32) out[i] = wide_distance(query, rows, 4);
}

// Rows of any number of words, by whole vectors and, with Rest, some words more. A row's counts are added in eight
// lanes; `Vectors` of -1 are as many as there are.
template <int Vectors, bool Rest>
struct WideRows {
  const uint8_t* query;
  int words;
  __mmask8 rest;

  AGMH_INLINE __m512i ones(const uint8_t* row) const {
    const int vectors = Vectors < 0 ? words / 8 : Vectors;
    __m512i sum = _mm512_setzero_si512();
    for (int v = 0; v < vectors; ++v) sum += ones_between(row + 64 * v, _mm512_loadu_si512(query + 64 * v));
    if constexpr (Rest)
      sum += _mm512_popcnt_epi64(_mm512_maskz_loadu_epi64(rest, row + 64 * vectors) ^
                                 _mm512_maskz_loadu_epi64(rest, query + 64 * vectors));
    return sum;
  }
  AGMH_INLINE const uint8_t* row(const uint8_t* rows, int index) const { return rows + index * 8 * int64_t{words}; }
  AGMH_INLINE __m512i four(const uint8_t* rows) const {
    __m512i packed = _mm512_setzero_si512();
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) packed = pack(packed, ones(row(rows, i)));
    return packed;
  }
  AGMH_INLINE __m512i eight(const uint8_t* rows) const { return add_neighbours(four(rows), four(row(rows, 4))); }
  AGMH_INLINE __m512i sixteen(const uint8_t* rows) const {
    return add_neighbouring_pairs(eight(rows), eight(row(rows, 8)));
  }
  void distances(const uint8_t* rows, int count, int16_t* out) const {
    int i = 0;
    for (; i + kRows <= count; i += kRows, rows = row(rows, kRows))
      _mm512_storeu_si512(out + i, add_neighbouring_pairs(sixteen(rows), sixteen(row(rows, 16))));
    for (; i < count; ++i, rows = row(rows, 1)) out[i] = wide_distance(query, rows, words);
  }
};

template <bool Rest>
AGMH_INLINE void wide_rows(const uint8_t* query, const uint8_t* rows, int count, int words, int16_t* out) {
  const auto rest = static_cast<__mmask8>((1 << words % 8) - 1);
  switch (words / 8) {
    case 0:
      return WideRows<0, Rest>{query, words, rest}.distances(rows, count, out);
    case 1:
      return WideRows<1, Rest>{query, words, rest}.distances(rows, count, out);
    case 2:
      return WideRows<2, Rest>{query, words, rest}.distances(rows, count, out);
    case 4:
      return WideRows<4, Rest>{query, words, rest}.distances(rows, count, out);
    default:
      return WideRows<-1, Rest>{query, words, rest}.distances(rows, count, out);
  }
}

void many_words(const uint8_t* query, const uint8_t* rows, int count, int words, int16_t* out) {
  if (words % 8 == 0)
    wide_rows<false>(query, rows, count, words, out);
  else
    wide_rows<true>(query, rows, count, words, out);
}

}  // namespace
}  // namespace agmh::AGMH_ISA
