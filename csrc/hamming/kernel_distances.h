// The kernel for each width, and distances of rows here and there; a part of kernel_set.h.

namespace agmh::AGMH_ISA {
namespace {

DistanceKernel distances(int row_bytes) {
  switch (row_bytes) {
    case 2:
      return quarter_words;
    case 4:
      return half_words;
    case 8:
      return single_words;
    case 16:
      return two_words;
    case 32:
      return four_words;
    default:
      return many_words;
  }
}

// Calls give(i, distance to row index[i]) for each i < count.
template <class Word, class Give>
AGMH_INLINE void one_word_at(const uint8_t* query, const uint8_t* rows, const uint16_t* index, int count,
                             const Give& give) {
  const Word q = load<Word>(query);
  for (int i = 0; i < count; ++i)
    give(i, std::popcount(static_cast<Word>(q ^ load<Word>(rows + index[i] * sizeof(Word)))));
}

template <class Give>
AGMH_INLINE void each_at(const uint8_t* query, const uint8_t* rows, int row_bytes, const uint16_t* index, int count,
                         const Give& give) {
  switch (row_bytes) {
    case 2:
      return one_word_at<uint16_t>(query, rows, index, count, give);
    case 4:
      return one_word_at<uint32_t>(query, rows, index, count, give);
    case 8:
      return one_word_at<uint64_t>(query, rows, index, count, give);
    default:
      for (int i = 0; i < count; ++i)
        give(i, wide_distance(query, rows + static_cast<int64_t>(index[i]) * row_bytes, row_bytes / 8));
  }
}

void distances_at(const uint8_t* query, const uint8_t* rows, int row_bytes, const uint16_t* index, int count,
                  int16_t* out) {
  each_at(query, rows, row_bytes, index, count,
          [out](int i, int distance) { out[i] = static_cast<int16_t>(distance); });
}

void keys_at(const uint8_t* query, const uint8_t* rows, int row_bytes, const uint16_t* index, int count, int64_t first,
             Key* out) {
  each_at(query, rows, row_bytes, index, count,
          [=](int i, int distance) { out[i] = key_of(distance, first + index[i]); });
}

}  // namespace
}  // namespace agmh::AGMH_ISA
