// Distances of one row, and what sets of rows of any width share; a part of kernel_set.h.

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

}  // namespace
}  // namespace agmh::AGMH_ISA
