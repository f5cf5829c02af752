// Lists of the items that are near; a part of kernel_set.h.

namespace agmh::AGMH_ISA {
namespace {

// Distances looked at together: most groups have none within the limit.
constexpr int kGroup = 32;

#ifdef AGMH_COMPRESS
// The places of the bits that are set in `word`, ascending, a byte each.
AGMH_INLINE __m512i places_of(uint64_t word) {
  alignas(64) static constexpr auto kOrder = [] {
    std::array<uint8_t, 64> order{};
    for (size_t i = 0; i < 64; ++i) order[i] = static_cast<uint8_t>(i);
    return order;
  }();
  return _mm512_maskz_compress_epi8(word, _mm512_load_si512(kOrder.data()));
}

// `first` plus the place of every bit that is set in `word`, ascending; returns how many are.
AGMH_INLINE int bits_of(uint64_t word, int first, uint16_t* index) {
  const __m512i places = places_of(word);
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

int near_of_wide(const uint8_t* query, const uint8_t* rows, int count, int row_bytes, int16_t limit, int64_t first,
                 Key* keys) {
  alignas(64) int16_t all[kMaxTile];
  uint16_t index[kMaxTile + kIndexSlack];
  distances(row_bytes)(query, rows, count, row_bytes / 8, all);
  const int found = within(all, count, limit, index);
  for (int i = 0; i < found; ++i) keys[i] = key_of(all[index[i]], first + index[i]);
  return found;
}

#ifdef AGMH_COMPRESS
// Keys of the rows whose bit is set in `hits`, of 64 rows from position `first` on; `bytes` are their distances. Most
// groups have few, so that eight are stored at once.
AGMH_INLINE int keys_of(uint64_t hits, const __m512i& bytes, int64_t first, Key* keys) {
  __m512i near = _mm512_maskz_compress_epi8(hits, bytes), places = places_of(hits);
  const __m512i base = _mm512_set1_epi64(first);
  const int found = std::popcount(hits);
  for (int i = 0;; i += 8) {
    const __m512i distance = _mm512_cvtepu8_epi64(_mm512_castsi512_si128(near));
    const __m512i position = _mm512_add_epi64(base, _mm512_cvtepu8_epi64(_mm512_castsi512_si128(places)));
    _mm512_storeu_si512(keys + i, _mm512_slli_epi64(distance, kPositionBits) | position);
    if (i + 8 >= found) return found;
    // The next eight bytes come first.
    near = _mm512_alignr_epi64(near, near, 1);
    places = _mm512_alignr_epi64(places, places, 1);
  }
}

// Bytes are compared in whatever order they are; only where one is near they are put into that of the rows.
template <class Word>
int near_narrow(const uint8_t* query, const uint8_t* rows, int count, int16_t limit, int64_t first, Key* keys) {
  constexpr int kBytes = static_cast<int>(sizeof(Word));
  const __m512i q = repeated<Word>(query), most = _mm512_set1_epi8(static_cast<int8_t>(limit));
  int found = 0, i = 0;
  for (; i + 64 <= count; i += 64, rows += 64 * kBytes) {
    const __m512i bytes = byte_distances<Word>(rows, q);
    // Where every other group has one there is no telling, and not asking is cheaper.
    if (128 * found < i && _mm512_cmple_epu8_mask(bytes, most) == 0) continue;
    const __m512i ordered = in_order<Word>(bytes);
    found += keys_of(_mm512_cmple_epu8_mask(ordered, most), ordered, first + i, keys + found);
  }
  for (; i < count; ++i, rows += kBytes) {
    const int distance = word_distance<Word>(query, rows);
    keys[found] = key_of(distance, first + i);
    found += distance <= limit;
  }
  return found;
}
#endif

int near(const uint8_t* query, const uint8_t* rows, int count, int row_bytes, int16_t limit, int64_t first, Key* keys) {
  if (limit < 0) return 0;
#ifdef AGMH_COMPRESS
  switch (row_bytes) {
    case 2:
      return near_narrow<uint16_t>(query, rows, count, limit, first, keys);
    case 4:
      return near_narrow<uint32_t>(query, rows, count, limit, first, keys);
    case 8:
      return near_narrow<uint64_t>(query, rows, count, limit, first, keys);
  }
#endif
  return near_of_wide(query, rows, count, row_bytes, limit, first, keys);
}

}  // namespace
}  // namespace agmh::AGMH_ISA
