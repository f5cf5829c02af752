// Tensor cores as a sieve: which of a block's queries have anything near in a unit of items. A product of bits counts
// where both are set, so that [a, ¬a] · [¬b, b] is the distance of a and b.
#pragma once

#include "hamming/cuda/tile.cuh"

namespace agmh::cuda {

// Code for architectures without the instruction (backend.h) is without what uses it.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ > 900
#define AGMH_FAST_NO_BMMA
#endif

constexpr int kSiftQueries = 64;  // of a block
constexpr int kSiftTiles = kSiftQueries / 16;

// mma.m16n8k128 with two and one registers, mma.m16n8k256 with four and two: d = c + popcount(a and b) of 16 queries
// and 8 items. Lane 4 g + t has words t and t + 4 of rows g and g + 8 of a and of column g of b, and the sums of these
// two rows at columns 2 t and 2 t + 1.
template <int kOfA, int kOfB>
__device__ __forceinline__ void multiply(int (&d)[4], const uint32_t (&a)[kOfA], const uint32_t (&b)[kOfB],
                                         const int (&c)[4]) {
  static_assert((kOfA == 2 || kOfA == 4) && kOfA == 2 * kOfB);
#ifdef __CUDACC__
  if constexpr (kOfA == 2)
    asm("mma.sync.aligned.m16n8k128.row.col.s32.b1.b1.s32.and.popc {%0,%1,%2,%3}, {%4,%5}, {%6}, {%7,%8,%9,%10};"
        : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(b[0]), "r"(c[0]), "r"(c[1]), "r"(c[2]), "r"(c[3]));
  else
    asm("mma.sync.aligned.m16n8k256.row.col.s32.b1.b1.s32.and.popc "
        "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%10,%11,%12,%13};"
        : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "r"(c[0]), "r"(c[1]), "r"(c[2]), "r"(c[3]));
#else
  cuda_on_cpu::multiply_bits(d, a, b, c);
#endif
}

// How a warp multiplies codes of kWords words of 32 bits; kWords = 0: of any width.
template <int kWords>
struct Sieve {
  static constexpr bool kShort = kWords == 1 || kWords == 2;  // code and complement are words of one k128
  static constexpr int kStep = kShort ? kWords : 4;           // words of a product
  static constexpr int kOfQuery = kShort ? 2 : 4, kOfItem = kOfQuery / 2;
  static constexpr int kColumns = Unit<kWords>::kItems / 8;
  // Columns that are loaded at once. Where queries come from shared memory, these are all that share a fragment.
  static constexpr int kAbreast = kShort ? kColumns : 4;

  // Words of a query in shared memory. Four more than it has, so that the eight of a fragment lie in different banks.
  __host__ __device__ static constexpr int pitch(int words) { return query_words<kWords>(words) + 4; }
};

__device__ __forceinline__ int group_of_lane() { return lane_of_thread() / 4; }
__device__ __forceinline__ int place_in_group() { return lane_of_thread() % 4; }

// The word that a lane has of a step's kStep words, and whether it is the complement's of short codes.
template <int kWords>
__device__ __forceinline__ int word_of_lane() {
  return place_in_group() % Sieve<kWords>::kStep;
}
template <int kWords>
__device__ __forceinline__ bool holds_complement() {
  return place_in_group() / Sieve<kWords>::kStep == 1;
}

// `row` is the word of this lane in row g of the tile.
template <int kWords>
__device__ __forceinline__ void query_fragment(uint32_t (&a)[Sieve<kWords>::kOfQuery], const uint32_t* row, int pitch) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const uint32_t word = row[8 * half * pitch];
    a[half] = word;
    if constexpr (!Sieve<kWords>::kShort) a[half + 2] = ~word;
    if (Sieve<kWords>::kShort && holds_complement<kWords>()) a[half] = ~word;
    if (kWords == 1 && place_in_group() > 1) a[half] = 0;  // half of the product is not needed
  }
}
template <int kWords>
__device__ __forceinline__ void item_fragment(uint32_t (&b)[Sieve<kWords>::kOfItem], uint32_t word) {
  if constexpr (Sieve<kWords>::kShort) {
    b[0] = holds_complement<kWords>() ? word : ~word;
  } else {
    b[0] = ~word;
    b[1] = word;
  }
}

// A block's queries as a lane has them: of short codes it keeps the words.
template <int kWords>
struct SiftedQueries {
  using S = Sieve<kWords>;
  const uint32_t* row;
  int pitch;
  int start[kSiftTiles][4];  // of each sum of a product
  uint32_t code[kSiftTiles][S::kOfQuery];

  // `rows` and `starts` are of kSiftQueries queries, in shared memory; starts as pass_queries() has them. Two sums have
  // the same, and a product wants them in four registers: volatile, so that the compiler does not keep one of them and
  // copy it for each product.
  __device__ __forceinline__ SiftedQueries(const uint32_t* rows, const volatile int* starts, int words)
      : row(rows + group_of_lane() * S::pitch(words) + word_of_lane<kWords>()), pitch(S::pitch(words)) {
#pragma unroll
    for (int tile = 0; tile < kSiftTiles; ++tile)
#pragma unroll
      for (int i = 0; i < 4; ++i) start[tile][i] = starts[16 * tile + 8 * (i / 2) + group_of_lane()];
    if (S::kShort) load(0);
  }
  __device__ __forceinline__ void load(int step) {
#pragma unroll
    for (int tile = 0; tile < kSiftTiles; ++tile)
      query_fragment<kWords>(code[tile], row + 16 * tile * pitch + S::kStep * step, pitch);
  }
};

// start + distance of the queries and of 8 items for each column; `item` is where this lane reads of the first column.
template <int kWords, int kAbreast>
__device__ __forceinline__ void multiply_all(int (&distance)[kAbreast][kSiftTiles][4], SiftedQueries<kWords>& queries,
                                             const uint32_t* item, int words) {
  using S = Sieve<kWords>;
  if constexpr (kWords == 0) {
#pragma unroll
    for (int c = 0; c < kAbreast; ++c)
#pragma unroll
      for (int tile = 0; tile < kSiftTiles; ++tile)
#pragma unroll
        for (int i = 0; i < 4; ++i) distance[c][tile][i] = queries.start[tile][i];
  }
  const int steps = kWords != 0 ? kWords / S::kStep : ceil_div(words, S::kStep);
  for (int step = 0; step < steps; ++step) {
    if (!S::kShort) queries.load(step);
    const bool exists = kWords != 0 || S::kStep * step + word_of_lane<kWords>() < words;
    const uint32_t* here = item + (exists ? S::kStep * step : 0);
    uint32_t word[kAbreast], code[S::kOfItem];
#pragma unroll
    for (int c = 0; c < kAbreast; ++c) word[c] = here[8 * c * words] & (exists ? ~0u : 0);
#pragma unroll
    for (int c = 0; c < kAbreast; ++c) {
      item_fragment<kWords>(code, word[c]);
#pragma unroll
      for (int tile = 0; tile < kSiftTiles; ++tile)
        multiply(distance[c][tile], queries.code[tile], code,
                 kWords != 0 && step == 0 ? queries.start[tile] : distance[c][tile]);
    }
  }
}

// For a whole warp. Bit q of the result, which all lanes get: whether one of a unit of items is within the limit of
// query q. The unit begins at `first`, or earlier, with the last one that is whole: there are as many items.
template <int kWords>
__device__ __forceinline__ unsigned long long sift(const DeviceTask& task, SiftedQueries<kWords>& queries,
                                                   int64_t first) {
  constexpr int kAbreast = Sieve<kWords>::kAbreast;
  const int words = kWords != 0 ? kWords : task.words;
  const int64_t begin = smaller<int64_t>(first, task.item_count - Unit<kWords>::kItems) + group_of_lane();
  const uint32_t* item = task.items + begin * words + word_of_lane<kWords>();
  int near[kSiftTiles][2] = {}, any = 0;
#pragma unroll 1
  for (int column = 0; column < Sieve<kWords>::kColumns; column += kAbreast, item += 8 * kAbreast * words) {
    int distance[kAbreast][kSiftTiles][4];
    multiply_all(distance, queries, item, words);
#pragma unroll
    for (int c = 0; c < kAbreast; ++c)
#pragma unroll
      for (int tile = 0; tile < kSiftTiles; ++tile)
#pragma unroll
        for (int i = 0; i < 4; ++i) near[tile][i / 2] |= distance[c][tile][i];
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
