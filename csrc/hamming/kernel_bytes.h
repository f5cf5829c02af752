// Distances of one byte each; a part of kernel_set.h.

namespace agmh::AGMH_ISA {
namespace {

template <class Word>
AGMH_INLINE int word_distance(const uint8_t* query, const uint8_t* row) {
  return std::popcount(static_cast<Word>(load<Word>(query) ^ load<Word>(row)));
}

#ifdef AGMH_COMPRESS
// The distances of 64 rows of up to a word, a byte each: byte i of lane l is that of row i · lanes + l.
template <class Word>
AGMH_INLINE __m512i byte_distances(const uint8_t* rows, const __m512i& query) {
  const auto ones = [&](int i) {
    const __m512i differing = _mm512_loadu_si512(rows + 64 * i) ^ query;
    if constexpr (sizeof(Word) == 2) return _mm512_popcnt_epi16(differing);
    if constexpr (sizeof(Word) == 4) return _mm512_popcnt_epi32(differing);
    if constexpr (sizeof(Word) == 8) return _mm512_popcnt_epi64(differing);
  };
  __m512i packed = _mm512_setzero_si512();
#pragma GCC unroll 8
  for (int i = 0; i < static_cast<int>(sizeof(Word)); ++i) {
    if constexpr (sizeof(Word) == 2) packed = _mm512_shrdi_epi16(packed, ones(i), 8);
    if constexpr (sizeof(Word) == 4) packed = _mm512_shrdi_epi32(packed, ones(i), 8);
    if constexpr (sizeof(Word) == 8) packed = _mm512_shrdi_epi64(packed, ones(i), 8);
  }
  return packed;
}

// Where byte_distances has the row i.
template <class Word>
constexpr std::array<uint8_t, 64> byte_order() {
  constexpr size_t kBytes = sizeof(Word), kLanes = 64 / kBytes;
  std::array<uint8_t, 64> order{};
  for (size_t row = 0; row < 64; ++row) order[row] = static_cast<uint8_t>(row % kLanes * kBytes + row / kLanes);
  return order;
}

template <class Word>
AGMH_INLINE __m512i repeated(const uint8_t* query) {
  if constexpr (sizeof(Word) == 2) return _mm512_set1_epi16(load<int16_t>(query));
  if constexpr (sizeof(Word) == 4) return _mm512_set1_epi32(load<int32_t>(query));
  if constexpr (sizeof(Word) == 8) return _mm512_set1_epi64(load<int64_t>(query));
}

template <class Word>
AGMH_INLINE __m512i in_order(const __m512i& bytes) {
  alignas(64) static constexpr auto kOrder = byte_order<Word>();
  return _mm512_permutexvar_epi8(_mm512_load_si512(kOrder.data()), bytes);
}

template <class Word>
void narrow_bytes(const uint8_t* query, const uint8_t* rows, int count, uint8_t* out) {
  constexpr int kBytes = static_cast<int>(sizeof(Word));
  const __m512i q = repeated<Word>(query);
  int i = 0;
  for (; i + 64 <= count; i += 64, rows += 64 * kBytes)
    _mm512_storeu_si512(out + i, in_order<Word>(byte_distances<Word>(rows, q)));
  for (; i < count; ++i, rows += kBytes) out[i] = static_cast<uint8_t>(word_distance<Word>(query, rows));
}
#endif

void distance_bytes(const uint8_t* query, const uint8_t* rows, int count, int row_bytes, uint8_t* out) {
#ifdef AGMH_COMPRESS
  switch (row_bytes) {
    case 2:
      return narrow_bytes<uint16_t>(query, rows, count, out);
    case 4:
      return narrow_bytes<uint32_t>(query, rows, count, out);
    case 8:
      return narrow_bytes<uint64_t>(query, rows, count, out);
  }
#endif
  alignas(64) int16_t all[kMaxTile];
  distances(row_bytes)(query, rows, count, row_bytes / 8, all);
  for (int i = 0; i < count; ++i) out[i] = static_cast<uint8_t>(all[i]);
}

}  // namespace
}  // namespace agmh::AGMH_ISA
