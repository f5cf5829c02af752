// What the checks of the engine and of the index are made of.
#pragma once

#include <algorithm>
#include <atomic>
#include <bit>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <vector>

#include "hamming/engine.h"

// Bytes held through operator new, and the most there ever were since the last reset.
inline std::atomic<int64_t> held{0}, most{0};
// Allocations until one fails; negative: none does.
inline std::atomic<int64_t> spare{-1};

inline std::mt19937_64 generator(1);
inline int64_t draw(int64_t low, int64_t high) { return std::uniform_int_distribution<int64_t>(low, high)(generator); }

[[noreturn]] inline void fail(const char* what, int line) {
  std::printf("FAILED line %d: %s\n", line, what);
  std::exit(1);
}
#define CHECK(condition) \
  if (!(condition)) fail(#condition, __LINE__)

// Packed codes in rows that lie `gap` bytes apart; few distinct ones, so that ties are many.
struct Rows {
  int bits;
  int64_t count, stride;
  std::vector<uint8_t> bytes;

  Rows(int code_bits, int64_t rows, int64_t gap, int distinct)
      : bits(code_bits), count(rows), stride(agmh::packed_bytes(code_bits) + gap) {
    const int width = agmh::packed_bytes(bits);
    std::vector<std::vector<uint8_t>> values(static_cast<size_t>(distinct),
                                             std::vector<uint8_t>(static_cast<size_t>(width)));
    for (auto& value : values) {
      for (uint8_t& byte : value) byte = static_cast<uint8_t>(draw(0, 255));
      value.back() = static_cast<uint8_t>(value.back() & ~agmh::padding_mask(bits));
    }
    bytes.assign(static_cast<size_t>(std::max<int64_t>(0, count * stride - gap)), 0xEE);
    for (int64_t i = 0; i < count; ++i) {
      const auto& value = values[static_cast<size_t>(draw(0, distinct - 1))];
      std::copy(value.begin(), value.end(), bytes.begin() + i * stride);
    }
  }
  agmh::Codes codes() const { return {bytes.data(), count, stride, agmh::packed_bytes(bits)}; }
  int distance(int64_t i, const Rows& other, int64_t j) const {
    int sum = 0;
    for (int b = 0; b < agmh::packed_bytes(bits); ++b)
      sum += std::popcount(static_cast<unsigned>(codes().row(i)[b] ^ other.codes().row(j)[b]));
    return sum;
  }
};

template <class T>
std::vector<T> garbage(int64_t count) {
  return std::vector<T>(static_cast<size_t>(count), static_cast<T>(77));
}

// In index_check.cpp: an index's groups, its use by several threads, and memory that runs out.
void check_groups();
void check_concurrency();
void check_shortage();
