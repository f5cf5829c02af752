// Tensor cores as a sieve: which of a block's queries have anything near in a unit of items. Of bits and of signs alike
// a product is a sum that starts at −(limit + 1) and ends below 0 within the limit:
//
//     [a, ¬a] · [¬b, b]     = distance(a, b)                        1 where both bits are set
//     Σ (1 − 2 aᵢ) bᵢ       = distance(a, b) − popcount(a)          bytes of ±1 times bytes of 0 and 1
#pragma once

#include "hamming/cuda/products.cuh"
#include "hamming/cuda/tile.cuh"

namespace agmh::cuda {

constexpr int kSiftQueries = 64;  // of a block
constexpr int kSiftTiles = kSiftQueries / 16;

// Words of a query in shared memory. Four more than it has, so that the eight of a fragment lie in different banks.
template <int kWords>
__host__ __device__ constexpr int sift_pitch(int words) {
  return query_words<kWords>(words) + 4;
}

// How a warp multiplies codes of kWords words of 32 bits; kWords = 0: of any width.
template <bool kSigns, int kWords>
struct Sieve {
  static constexpr bool kShort = kWords == 1 || kWords == 2;
  // Words of a code in a product: 32 bytes; or a k256 of code and complement, or for short codes a k128.
  static constexpr int kStep = kSigns ? 1 : kShort ? kWords : 4;
  static constexpr int kOfQuery = kShort && !kSigns ? 2 : 4, kOfItem = kOfQuery / 2;
  // Steps whose fragments of queries a lane has: all of short codes, which it keeps, or one.
  static constexpr int kKept = kShort ? kWords / kStep : 1;
  static constexpr int kColumns = Unit<kWords>::kItems / 8;
  // Columns under way at once: items are loaded for so many, and fragments of queries that are not kept. As many as
  // registers allow.
  static constexpr int kAbreast = !kShort ? 4 : !kSigns ? kColumns : kWords == 1 ? 8 : 2;
  // Whether the first step is known where the code is made, so that it can start where sums do.
  static constexpr bool kUnrolled = kShort || (kWords != 0 && !kSigns);
};

__device__ __forceinline__ int group_of_lane() { return lane_of_thread() / 4; }
__device__ __forceinline__ int place_in_group() { return lane_of_thread() % 4; }

// The word that a lane has of a step's, and whether it is that of the complement, where both are words of one k128.
template <class S>
__device__ __forceinline__ int word_of_lane() {
  return place_in_group() % S::kStep;
}
template <class S>
__device__ __forceinline__ bool holds_complement() {
  return place_in_group() / S::kStep == 1;
}

// Four of a word's bits as bytes. The order of bits within a product is free: lanes and registers take different ones.
__device__ __forceinline__ uint32_t bytes_of(uint32_t word, int which) {
  return word >> 2 * place_in_group() >> which & 0x01010101u;
}

// A half of the rows' fragment, from this lane's word.
template <bool kSigns, int kWords>
__device__ __forceinline__ void query_fragment(uint32_t (&a)[Sieve<kSigns, kWords>::kOfQuery], uint32_t word,
                                               int half) {
  using S = Sieve<kSigns, kWords>;
  if constexpr (kSigns) {
    for (int i = 0; i < 2; ++i) a[half + 2 * i] = bytes_of(word, i) * 255 | 0x01010101u;
  } else if constexpr (S::kShort) {
    a[half] = holds_complement<S>() ? ~word : word;
    if (place_in_group() >= 2 * kWords) a[half] = 0;  // of one word there is half a product
  } else {
    a[half] = word;
    a[half + 2] = ~word;
  }
}
template <bool kSigns, int kWords>
__device__ __forceinline__ void item_fragment(uint32_t (&b)[Sieve<kSigns, kWords>::kOfItem], uint32_t word) {
  using S = Sieve<kSigns, kWords>;
  if constexpr (kSigns) {
    for (int i = 0; i < 2; ++i) b[i] = bytes_of(word, i);
  } else if constexpr (S::kShort) {
    b[0] = holds_complement<S>() ? word : ~word;
  } else {
    b[0] = ~word;
    b[1] = word;
  }
}

// A block's queries as a lane has them.
template <bool kSigns, int kWords>
struct SiftedQueries {
  using S = Sieve<kSigns, kWords>;
  const uint32_t* row;
  int pitch;
  int start[kSiftTiles][4];  // of each sum of a product
  uint32_t code[kSiftTiles][S::kKept][S::kOfQuery];

  // `rows` and `starts` are of kSiftQueries queries, in shared memory; starts as pass_queries() has them. Two sums have
  // the same, and a product wants them in four registers: volatile, so that the compiler does not keep one of them and
  // copy it for each product.
  __device__ __forceinline__ SiftedQueries(const uint32_t* rows, const volatile int* starts, int words)
      : row(rows + group_of_lane() * sift_pitch<kWords>(words) + word_of_lane<S>()), pitch(sift_pitch<kWords>(words)) {
#pragma unroll
    for (int tile = 0; tile < kSiftTiles; ++tile)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int query = 16 * tile + 8 * half + group_of_lane();
        int counted = 0;
        if (kSigns)
          for (int word = 0; word < words; ++word) counted += __popc(rows[query * pitch + word]);
        for (int i = 2 * half; i < 2 * half + 2; ++i) start[tile][i] = starts[query] + counted;
      }
    if (S::kShort)
#pragma unroll
      for (int step = 0; step < S::kKept; ++step) load(step, step);
  }
  __device__ __forceinline__ void load(int step, int kept) {
#pragma unroll
    for (int tile = 0; tile < kSiftTiles; ++tile)
#pragma unroll
      for (int half = 0; half < 2; ++half)
        query_fragment<kSigns, kWords>(code[tile][kept], row[(16 * tile + 8 * half) * pitch + S::kStep * step], half);
  }
};

// The sums of the queries and of 8 items for each column; `item` is where this lane reads of the first column.
template <bool kSigns, int kWords, int kAbreast>
__device__ __forceinline__ void multiply_all(int (&sum)[kAbreast][kSiftTiles][4],
                                             SiftedQueries<kSigns, kWords>& queries, const uint32_t* item, int words) {
  using S = Sieve<kSigns, kWords>;
  if constexpr (!S::kUnrolled) {
#pragma unroll
    for (int c = 0; c < kAbreast; ++c)
#pragma unroll
      for (int tile = 0; tile < kSiftTiles; ++tile)
#pragma unroll
        for (int i = 0; i < 4; ++i) sum[c][tile][i] = queries.start[tile][i];
  }
  const int steps = ceil_div(words, S::kStep);
#pragma unroll(S::kUnrolled ? 2 : 1)
  for (int step = 0; step < steps; ++step) {
    const int kept = S::kShort ? step : 0;
    if (!S::kShort) queries.load(step, 0);
    const bool exists = kWords != 0 || S::kStep * step + word_of_lane<S>() < words;
    const uint32_t* here = item + (exists ? S::kStep * step : 0);
    uint32_t word[kAbreast], code[S::kOfItem];
#pragma unroll
    for (int c = 0; c < kAbreast; ++c) word[c] = here[8 * c * words] & (exists ? ~0u : 0);
#pragma unroll
    for (int c = 0; c < kAbreast; ++c) {
      item_fragment<kSigns, kWords>(code, word[c]);
#pragma unroll
      for (int tile = 0; tile < kSiftTiles; ++tile) {
        const int (&before)[4] = S::kUnrolled && step == 0 ? queries.start[tile] : sum[c][tile];
        if constexpr (kSigns)
          multiply_bytes(sum[c][tile], queries.code[tile][kept], code, before);
        else
          multiply_bits(sum[c][tile], queries.code[tile][kept], code, before);
      }
    }
  }
}

// For a whole warp. Bit q of the result, which all lanes get: whether one of a unit of items is within the limit of
// query q. The unit begins at `first`, or earlier, with the last one that is whole: there are as many items.
template <bool kSigns, int kWords>
__device__ __forceinline__ unsigned long long sift(const DeviceTask& task, SiftedQueries<kSigns, kWords>& queries,
                                                   int64_t first) {
  using S = Sieve<kSigns, kWords>;
  const int words = kWords != 0 ? kWords : task.words;
  const int64_t begin = smaller<int64_t>(first, task.item_count - Unit<kWords>::kItems) + group_of_lane();
  const uint32_t* item = task.items + begin * words + word_of_lane<S>();
  int near[kSiftTiles][2] = {}, any = 0;
#pragma unroll 1
  for (int column = 0; column < S::kColumns; column += S::kAbreast, item += 8 * S::kAbreast * words) {
    int sum[S::kAbreast][kSiftTiles][4];
    multiply_all(sum, queries, item, words);
#pragma unroll
    for (int c = 0; c < S::kAbreast; ++c)
#pragma unroll
      for (int tile = 0; tile < kSiftTiles; ++tile)
#pragma unroll
        for (int i = 0; i < 4; ++i) near[tile][i / 2] |= sum[c][tile][i];
  }
#pragma unroll
  for (int tile = 0; tile < kSiftTiles; ++tile) any |= near[tile][0] | near[tile][1];
  if (__any_sync(kAllLanes, any < 0) == 0) return 0;
  unsigned found[2] = {};
#pragma unroll
  for (int tile = 0; tile < kSiftTiles; ++tile)
#pragma unroll
    for (int half = 0; half < 2; ++half)
      found[tile / 2] |= static_cast<unsigned>(near[tile][half] < 0) << (16 * (tile % 2) + 8 * half + group_of_lane());
  const unsigned long long high = __reduce_or_sync(kAllLanes, found[1]);
  return high << 32 | __reduce_or_sync(kAllLanes, found[0]);
}

}  // namespace agmh::cuda
