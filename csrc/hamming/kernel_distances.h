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

}  // namespace
}  // namespace agmh::AGMH_ISA
