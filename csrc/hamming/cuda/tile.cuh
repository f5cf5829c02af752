// The loop that all searches share: a warp holds a unit of items in registers and passes the queries of its block,
// which lie in shared memory, by them. What happens with the distances is up to the caller.
#pragma once

#include <type_traits>

#include "hamming/cuda/engine.h"
#include "hamming/cuda/launch.cuh"
#include "hamming/cuda/plan.h"

namespace agmh::cuda {

constexpr unsigned kAllLanes = ~0u;

// How a warp holds codes of kWords words of 32 bits; kWords = 0: of any width, a slab of words at a time.
template <int kWords>
struct Unit {
  static constexpr int kSlab = kWords == 0 ? 8 : kWords;
  static constexpr int kCodes = lane_items(kWords);  // of a lane
  static constexpr int kItems = 32 * kCodes;
};

__device__ __forceinline__ int lane_of_thread() { return static_cast<int>(threadIdx.x % 32); }
__device__ __forceinline__ int warp_of_thread() { return static_cast<int>(threadIdx.x / 32); }
__device__ __forceinline__ unsigned lanes_before() { return (1u << lane_of_thread()) - 1; }

// A full adder of 32 columns at once. Spelled out, since the compiler would merge it with the xor before it and need
// more instructions.
__device__ __forceinline__ void add(uint32_t& carry, uint32_t& sum, uint32_t a, uint32_t b, uint32_t c) {
#ifdef __CUDACC__
  asm("lop3.b32 %0, %1, %2, %3, 0xE8;" : "=r"(carry) : "r"(a), "r"(b), "r"(c));
  asm("lop3.b32 %0, %1, %2, %3, 0x96;" : "=r"(sum) : "r"(a), "r"(b), "r"(c));
#else
  carry = (a & b) | (a & c) | (b & c);
  sum = a ^ b ^ c;
#endif
}

// start + the number of differing bits. Population counts issue at a quarter of the rate of logic, so that an adder
// (two instructions) which saves one pays.
template <int kCount>
__device__ __forceinline__ int distance_of(const uint32_t (&a)[kCount], const uint32_t (&b)[kCount], int start) {
  uint32_t x[kCount];
#pragma unroll
  for (int i = 0; i < kCount; ++i) x[i] = a[i] ^ b[i];
  if constexpr (kCount == 4) {
    uint32_t twos, ones;
    add(twos, ones, x[0], x[1], x[2]);
    return start + __popc(ones) + __popc(x[3]) + 2 * __popc(twos);
  } else if constexpr (kCount == 8) {
    uint32_t carry[3], sum[2], ones, twos, fours;
    add(carry[0], sum[0], x[0], x[1], x[2]);
    add(carry[1], sum[1], x[3], x[4], x[5]);
    add(carry[2], ones, sum[0], sum[1], x[6]);
    add(fours, twos, carry[0], carry[1], carry[2]);
    return start + __popc(ones) + __popc(x[7]) + 2 * __popc(twos) + 4 * __popc(fours);
  } else {
#pragma unroll
    for (int i = 0; i < kCount; ++i) start += __popc(x[i]);
    return start;
  }
}

// Words of a row from `word` on, zeros behind its end. Rows of more than one word have an even number of them.
template <int kWords>
__device__ __forceinline__ void load_code(uint32_t (&code)[Unit<kWords>::kSlab], const uint32_t* row, int words,
                                          int word) {
  if constexpr (kWords == 1) {
    code[0] = row[0];
  } else if constexpr (kWords >= 4) {
#pragma unroll
    for (int i = 0; i < kWords; i += 4) {
      const uint4 four = *reinterpret_cast<const uint4*>(row + i);
      code[i] = four.x;
      code[i + 1] = four.y;
      code[i + 2] = four.z;
      code[i + 3] = four.w;
    }
  } else {
#pragma unroll
    for (int i = 0; i < Unit<kWords>::kSlab; i += 2) {
      uint2 pair = {0, 0};
      if (kWords == 2 || word + i < words) pair = *reinterpret_cast<const uint2*>(row + word + i);
      code[i] = pair.x;
      code[i + 1] = pair.y;
    }
  }
}

// Words that a query takes in shared memory: whole slabs.
template <int kWords>
__host__ __device__ constexpr int query_words(int words) {
  return kWords != 0 ? kWords : ceil_div(words, Unit<0>::kSlab) * Unit<0>::kSlab;
}

// Copies `count` queries to shared memory, the i-th being row row_of(i), and zeroes the rest of `rows`. Each takes
// `pitch` words there, of which those beyond query_words() stay as they are.
template <int kWords, class RowOf>
__device__ __forceinline__ void load_queries(const DeviceTask& task, uint32_t* shared, int pitch, int rows, int count,
                                             RowOf row_of) {
  const int width = query_words<kWords>(task.words);
  for (int i = static_cast<int>(threadIdx.x); i < rows * width; i += kThreads) {
    const int query = i / width, word = i % width;
    shared[query * pitch + word] =
        query < count && word < task.words ? task.queries[row_of(query) * task.words + word] : 0;
  }
}
template <int kWords, class RowOf>
__device__ __forceinline__ void load_queries(const DeviceTask& task, uint32_t* shared, int rows, int count,
                                             RowOf row_of) {
  load_queries<kWords>(task, shared, query_words<kWords>(task.words), rows, count, row_of);
}

// Passes `count` queries, kQueries at a time, by the unit of items that begins at `first`. start[q] is −(limit + 1) of
// query q, or 0 for none, up to the next multiple of kQueries: start + distance is negative within the limit. Where
// some lane finds one so, the whole warp calls visit(q, start + distance of the lane's items); items past the end are
// to be left out there. Item c of a lane is first + 32 c + lane.
template <int kWords, int kQueries, class Visit>
__device__ __forceinline__ void pass_queries(const DeviceTask& task, const uint32_t* queries, const int* start,
                                             int count, int64_t first, Visit visit) {
  using U = Unit<kWords>;
  const int words = task.words, slabs = kWords != 0 ? 1 : ceil_div(words, U::kSlab);
  const uint32_t* row[U::kCodes];
  uint32_t code[U::kCodes][U::kSlab];
#pragma unroll
  for (int c = 0; c < U::kCodes; ++c) {
    const int64_t item = first + 32 * c + lane_of_thread();
    row[c] = task.items + (item < task.item_count ? item : task.item_count - 1) * words;
    if constexpr (kWords != 0) load_code<kWords>(code[c], row[c], words, 0);
  }
  for (int q = 0; q < count; q += kQueries) {
    int excess[kQueries][U::kCodes];
#pragma unroll
    for (int j = 0; j < kQueries; ++j)
#pragma unroll
      for (int c = 0; c < U::kCodes; ++c) excess[j][c] = start[q + j];
    for (int slab = 0; slab < slabs; ++slab) {
      if constexpr (kWords == 0) load_code<kWords>(code[0], row[0], words, slab * U::kSlab);
#pragma unroll
      for (int j = 0; j < kQueries; ++j) {
        uint32_t query[U::kSlab];
#pragma unroll
        for (int i = 0; i < U::kSlab; ++i) query[i] = queries[((q + j) * slabs + slab) * U::kSlab + i];
#pragma unroll
        for (int c = 0; c < U::kCodes; ++c) excess[j][c] = distance_of(code[c], query, excess[j][c]);
      }
    }
    int any = 0;
#pragma unroll
    for (int j = 0; j < kQueries; ++j)
#pragma unroll
      for (int c = 0; c < U::kCodes; ++c) any |= excess[j][c];
    if (__any_sync(kAllLanes, any < 0) == 0) continue;
#pragma unroll
    for (int j = 0; j < kQueries; ++j) visit(q + j, excess[j]);
  }
}

// Whether the task's mask lets the query see the item.
__device__ __forceinline__ bool allowed(const DeviceTask& task, int64_t query, int64_t item) {
  return task.mask == nullptr || task.mask[query * task.mask_stride + item] != 0;
}

// Whether an item is relevant to a query.
__device__ __forceinline__ bool relevant(const Labels& labels, int64_t query, int64_t item) {
  if (labels.words == 0) return labels.queries[query] == labels.items[item];
  int64_t common = 0;
#pragma unroll 1  // a kernel has up to 16 copies of this: unrolled, they double its size and take registers
  for (int w = 0; w < labels.words; ++w)
    common |= labels.queries[query * labels.words + w] & labels.items[item * labels.words + w];
  return common != 0;
}

// The sum of `value` over the lanes before this one, plus `carry`, which grows by the sum over all.
__device__ __forceinline__ unsigned long long sum_before(unsigned long long value, unsigned long long& carry) {
  unsigned long long sum = value;
#pragma unroll
  for (int gap = 1; gap < 32; gap *= 2) {
    const unsigned long long other = __shfl_up_sync(kAllLanes, sum, gap);
    if (lane_of_thread() >= gap) sum += other;
  }
  const unsigned long long before = carry + sum - value;
  carry += __shfl_sync(kAllLanes, sum, 31);
  return before;
}

// Calls use(std::integral_constant) with the words that kernels are compiled for, 0 for any other number.
template <class Use>
void with_width(int words, Use use) {
  switch (words) {
    case 1:
      return use(std::integral_constant<int, 1>());
    case 2:
      return use(std::integral_constant<int, 2>());
    case 4:
      return use(std::integral_constant<int, 4>());
    case 8:
      return use(std::integral_constant<int, 8>());
    default:
      return use(std::integral_constant<int, 0>());
  }
}

}  // namespace agmh::cuda
