// Distances by NEON, whose popcount is one of bytes; a part of kernel_set.h.

namespace agmh::AGMH_ISA {
namespace {

// Eight rows at a time: their counts are added, neighbours to neighbours across two vectors, until each row has one
// number left; so they come out in order.
constexpr int kRows = 8;

AGMH_INLINE uint8x16_t ones_between(const uint8_t* row, const uint8x16_t& query) {
  return vcntq_u8(veorq_u8(vld1q_u8(row), query));
}
AGMH_INLINE uint8x16_t repeated_half(const uint8_t* query) { return vcombine_u8(vld1_u8(query), vld1_u8(query)); }
AGMH_INLINE void store_eight(int16_t* out, const uint16x8_t& sums) { vst1q_s16(out, vreinterpretq_s16_u16(sums)); }

void quarter_words(const uint8_t* query, const uint8_t* rows, int count, int, int16_t* out) {
  const uint8x16_t q = vreinterpretq_u8_u16(vdupq_n_u16(load<uint16_t>(query)));
  int i = 0;
  for (; i + kRows <= count; i += kRows, rows += 16) store_eight(out + i, vpaddlq_u8(ones_between(rows, q)));
  one_word<uint16_t>(query, rows, count - i, 1, out + i);
}

void half_words(const uint8_t* query, const uint8_t* rows, int count, int, int16_t* out) {
  const uint8x16_t q = vreinterpretq_u8_u32(vdupq_n_u32(load<uint32_t>(query)));
  int i = 0;
  for (; i + kRows <= count; i += kRows, rows += 32)
    store_eight(out + i, vpaddlq_u8(vpaddq_u8(ones_between(rows, q), ones_between(rows + 16, q))));
  one_word<uint32_t>(query, rows, count - i, 1, out + i);
}

void single_words(const uint8_t* query, const uint8_t* rows, int count, int, int16_t* out) {
  const uint8x16_t q = repeated_half(query);
  int i = 0;
  for (; i + kRows <= count; i += kRows, rows += 64) {
    const uint8x16_t low = vpaddq_u8(ones_between(rows, q), ones_between(rows + 16, q));
    const uint8x16_t high = vpaddq_u8(ones_between(rows + 32, q), ones_between(rows + 48, q));
    store_eight(out + i, vpaddlq_u8(vpaddq_u8(low, high)));
  }
  one_word<uint64_t>(query, rows, count - i, 1, out + i);
}

// One row: the counts of its bytes two by two, with `words` known to the compiler or not.
AGMH_INLINE uint16x8_t row_counts(const uint8_t* query, const uint8_t* row, int words) {
  uint16x8_t sum = vdupq_n_u16(0);
  for (int w = 0; w + 2 <= words; w += 2) sum = vpadalq_u8(sum, ones_between(row + 8 * w, vld1q_u8(query + 8 * w)));
  if (words % 2 != 0) {
    const uint8x8_t last = vcnt_u8(veor_u8(vld1_u8(row + 8 * words - 8), vld1_u8(query + 8 * words - 8)));
    sum = vaddw_u8(sum, last);
  }
  return sum;
}

AGMH_INLINE void wide_rows(const uint8_t* query, const uint8_t* rows, int count, int words, int16_t* out) {
  const int64_t bytes = 8 * int64_t{words};
  const auto two = [&](const uint8_t* at) {
    return vpaddq_u16(row_counts(query, at, words), row_counts(query, at + bytes, words));
  };
  const auto four = [&](const uint8_t* at) { return vpaddq_u16(two(at), two(at + 2 * bytes)); };
  int i = 0;
  for (; i + kRows <= count; i += kRows, rows += kRows * bytes)
    store_eight(out + i, vpaddq_u16(four(rows), four(rows + 4 * bytes)));
  for (; i < count; ++i, rows += bytes) out[i] = wide_distance(query, rows, words);
}

void two_words(const uint8_t* query, const uint8_t* rows, int count, int, int16_t* out) {
  wide_rows(query, rows, count, 2, out);
}

void four_words(const uint8_t* query, const uint8_t* rows, int count, int, int16_t* out) {
  wide_rows(query, rows, count, 4, out);
}

void many_words(const uint8_t* query, const uint8_t* rows, int count, int words, int16_t* out) {
  wide_rows(query, rows, count, words, out);
}

}  // namespace
}  // namespace agmh::AGMH_ISA
