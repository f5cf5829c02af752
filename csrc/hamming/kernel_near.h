// Lists of the items that are near; a part of kernel_set.h.

namespace agmh::AGMH_ISA {
namespace {

// Distances looked at together: most groups have none within the limit.
constexpr int kGroup = 32;

// `first` plus the place of every bit that is set in `word`, ascending; returns how many are.
#ifdef AGMH_COMPRESS
AGMH_INLINE int bits_of(uint64_t word, int first, uint16_t* index) {
  alignas(64) static constexpr auto kOrder = [] {
    std::array<uint8_t, 64> order{};
    for (size_t i = 0; i < 64; ++i) order[i] = static_cast<uint8_t>(i);
    return order;
  }();
  const __m512i places = _mm512_maskz_compress_epi8(word, _mm512_load_si512(kOrder.data()));
  const int found = std::popcount(word);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(index), _mm_add_epi16(_mm_set1_epi16(static_cast<int16_t>(first)),
                                                                    _mm_cvtepu8_epi16(_mm512_castsi512_si128(places))));
  if (found > 8) {
    const __m512i base = _mm512_set1_epi16(static_cast<int16_t>(first));
    _mm512_storeu_si512(index, _mm512_add_epi16(base, _mm512_cvtepu8_epi16(_mm512_castsi512_si256(places))));
    if (found > 32)
      _mm512_storeu_si512(index + 32,
                          _mm512_add_epi16(base, _mm512_cvtepu8_epi16(_mm512_extracti64x4_epi64(places, 1))));
  }
  return found;
}
#else
AGMH_INLINE int bits_of(uint64_t word, int first, uint16_t* index) {
  int found = 0;
  for (; word != 0; word &= word - 1) index[found++] = static_cast<uint16_t>(first + std::countr_zero(word));
  return found;
}
#endif

int set_bits(const uint64_t* words, int64_t tile_stride, uint64_t occupied, uint16_t* index) {
  int found = 0;
  for (; occupied != 0; occupied &= occupied - 1) {
    const int place = std::countr_zero(occupied);
    found += bits_of(words[place / kPlaneWords * tile_stride + place % kPlaneWords], 64 * place, index + found);
  }
  return found;
}

// The bytes are looked at 64 at a time; the rest, and sets without comparisons into masks, one by one.
int nonzero(const uint8_t* bytes, int count, uint16_t* index) {
  int found = 0, first = 0;
#ifdef AGMH_TERNARY
  for (; first + 64 <= count; first += 64) {
    const __m512i some = _mm512_loadu_si512(bytes + first);
    found += bits_of(_mm512_test_epi8_mask(some, some), first, index + found);
  }
#else
  for (; first + 8 <= count; first += 8) {
    if (load<uint64_t>(bytes + first) == 0) continue;
    for (int i = first; i < first + 8; ++i) {
      index[found] = static_cast<uint16_t>(i);
      found += bytes[i] != 0;
    }
  }
#endif
  for (int i = first; i < count; ++i) {
    index[found] = static_cast<uint16_t>(i);
    found += bytes[i] != 0;
  }
  return found;
}

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
    if (hits != 0) found += bits_of(hits, first, index + found);
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

int near_of_wide(const uint8_t* query, const uint8_t* rows, int count, int row_bytes, int16_t limit, uint16_t* index,
                 int16_t* near) {
  alignas(64) int16_t all[kMaxTile];
  distances(row_bytes)(query, rows, count, row_bytes / 8, all);
  const int found = within(all, count, limit, index);
  for (int i = 0; i < found; ++i) near[i] = all[index[i]];
  return found;
}

#ifdef AGMH_COMPRESS
// Bytes are compared in whatever order they are; only where one is near they are put into that of the rows.
template <class Word>
int near_narrow(const uint8_t* query, const uint8_t* rows, int count, int16_t limit, uint16_t* index,
                int16_t* distances) {
  constexpr int kBytes = static_cast<int>(sizeof(Word));
  const __m512i q = repeated<Word>(query), most = _mm512_set1_epi8(static_cast<int8_t>(limit));
  int found = 0, i = 0;
  for (; i + 64 <= count; i += 64, rows += 64 * kBytes) {
    const __m512i bytes = byte_distances<Word>(rows, q);
    if (_mm512_cmple_epu8_mask(bytes, most) == 0) continue;
    const __m512i ordered = in_order<Word>(bytes);
    const uint64_t hits = _mm512_cmple_epu8_mask(ordered, most);
    const __m512i near = _mm512_maskz_compress_epi8(hits, ordered);
    _mm512_storeu_si512(distances + found, _mm512_cvtepu8_epi16(_mm512_castsi512_si256(near)));
    _mm512_storeu_si512(distances + found + 32, _mm512_cvtepu8_epi16(_mm512_extracti64x4_epi64(near, 1)));
    found += bits_of(hits, i, index + found);
  }
  for (; i < count; ++i, rows += kBytes) {
    const int distance = word_distance<Word>(query, rows);
    index[found] = static_cast<uint16_t>(i);
    distances[found] = static_cast<int16_t>(distance);
    found += distance <= limit;
  }
  return found;
}
#endif

int near(const uint8_t* query, const uint8_t* rows, int count, int row_bytes, int16_t limit, uint16_t* index,
         int16_t* distances) {
  if (limit < 0) return 0;
#ifdef AGMH_COMPRESS
  switch (row_bytes) {
    case 2:
      return near_narrow<uint16_t>(query, rows, count, limit, index, distances);
    case 4:
      return near_narrow<uint32_t>(query, rows, count, limit, index, distances);
    case 8:
      return near_narrow<uint64_t>(query, rows, count, limit, index, distances);
  }
#endif
  return near_of_wide(query, rows, count, row_bytes, limit, index, distances);
}

}  // namespace
}  // namespace agmh::AGMH_ISA
