// Every CUDA kernel of the Hamming engine against the CPU engine, bit for bit. Built by test_kernels.py; memory that
// the kernels write starts as garbage.
#include <cstdio>
#include <cstring>
#include <vector>

#include "../csrc/check_cases.h"
#include "hamming/cuda/engine.h"
#include "hamming/engine.h"

namespace {

// Codes as the GPU gets them: zero-padded to whole words of 64 bits.
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
  CHECK(agmh::cuda::distance(query_words.data(), item_words.data(), q, n, (bits + 63) / 64, sizeof(Out) == 2,
                             out.data(), nullptr) == 0);
  CHECK(out == expected);
}

}  // namespace

int main() {
  for (const int64_t n : {0, 1, 31, 128, 300})
    for (const int64_t q : {0, 1, 3, 9, 40}) {
      for (const int bits : {1, 33, 64, 128, 255}) check_distance<uint8_t>(bits, q, n);
      for (const int bits : {256, 600, 4096}) check_distance<uint16_t>(bits, q, n);
    }
  std::puts("all as expected");
}
