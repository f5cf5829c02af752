// Every CUDA kernel of the Hamming engine against the CPU engine, bit for bit. Built by test_kernels.py; memory that
// the kernels write starts as garbage.
#include <cstdio>
#include <cstring>

#include "device_cases.h"

namespace {

// Rows of whole words of 64 bits.
std::vector<uint64_t> as_words(const Rows& rows) {
  const size_t words = static_cast<size_t>((rows.bits + 63) / 64), count = static_cast<size_t>(rows.count);
  std::vector<uint64_t> padded(words * count);
  for (size_t i = 0; i < count; ++i)
    std::memcpy(&padded[i * words], rows.codes().row(static_cast<int64_t>(i)),
                static_cast<size_t>(agmh::packed_bytes(rows.bits)));
  return padded;
}

template <class Out>
void check_distance(int bits, int64_t q, int64_t n) {
  const Rows queries(bits, q, 0, 5), items(bits, n, 0, 50);
  const std::vector<uint64_t> query_words = as_words(queries), item_words = as_words(items);
  auto expected = garbage<Out>(q * n), out = garbage<Out>(q * n);
  agmh::Task task;
  task.bits = bits;
  task.queries = queries.codes();
  task.items = items.codes();
  agmh::distance(task, expected.data());
  CHECK(agmh::cuda::distance(query_words.data(), item_words.data(), q, n, (bits + 63) / 64, sizeof(Out), out.data(),
                             nullptr) == 0);
  CHECK(out == expected);
}

void check_distances(bool brief) {
  for (const int64_t n : brief ? std::vector<int64_t>{300} : std::vector<int64_t>{0, 1, 31, 128, 300})
    for (const int64_t q : brief ? std::vector<int64_t>{9} : std::vector<int64_t>{0, 1, 3, 9, 40}) {
      for (const int bits : {1, 33, 64, 128, 255}) check_distance<uint8_t>(bits, q, n);
      for (const int bits : {256, 600, 4096}) check_distance<uint16_t>(bits, q, n);
      for (const int bits : {64, 600}) check_distance<int32_t>(bits, q, n);
    }
}

}  // namespace

// "brief" leaves out what takes long under the thread sanitizer; another argument runs one part.
int main(int count, char** arguments) {
  const char* part = count > 1 ? arguments[1] : "";
  const bool brief = std::strcmp(part, "brief") == 0, all = *part == 0 || brief;
  if (all || std::strcmp(part, "distance") == 0) check_distances(brief);
  if (all || std::strcmp(part, "plan") == 0) check_plan();
  if (all || std::strcmp(part, "topk") == 0) check_topk(brief);
  if (all || std::strcmp(part, "sifted") == 0) check_sifted_topk(brief);
  if (all || std::strcmp(part, "range") == 0) check_range(brief);
  if (all || std::strcmp(part, "histogram") == 0) check_histogram(brief);
  if (all || std::strcmp(part, "ranking") == 0) check_ranking(brief);
  std::puts("all as expected");
}
