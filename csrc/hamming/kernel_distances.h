// Distances, and lists of the items that are near; a part of kernel_set.h.

namespace agmh::AGMH_ISA {
namespace {

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

}  // namespace
}  // namespace agmh::AGMH_ISA
