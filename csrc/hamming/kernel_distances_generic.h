// Distances a word at a time; a part of kernel_set.h.

namespace agmh::AGMH_ISA {
namespace {

void quarter_words(const uint8_t* query, const uint8_t* rows, int count, int, int16_t* out) {
  one_word<uint16_t>(query, rows, count, 1, out);
}

void half_words(const uint8_t* query, const uint8_t* rows, int count, int, int16_t* out) {
  one_word<uint32_t>(query, rows, count, 0, out);
}

void single_words(const uint8_t* query, const uint8_t* rows, int count, int, int16_t* out) {
  one_word<uint64_t>(query, rows, count, 1, out);
}

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

}  // namespace
}  // namespace agmh::AGMH_ISA
