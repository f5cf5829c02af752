#include "hamming/cuda/engine.h"
#include "hamming/cuda/launch.cuh"

namespace agmh::cuda {
namespace {

constexpr int kItems = 128;  // items of a block, one a thread
constexpr int kQueries = 8;  // queries of a block, their distances in registers
constexpr int kWords = 8;    // words of a code staged in shared memory at a time

// Loads and stores of neighbouring threads touch neighbouring words; the row of a thread is read from shared memory,
// where an odd pitch keeps the threads of a warp on different banks.
template <class Out>
__global__ void __launch_bounds__(kItems) distance_kernel(const uint64_t* query_rows, const uint64_t* item_rows,
                                                          int64_t queries, int64_t items, int words, Out* out) {
  __shared__ uint64_t tile[kItems][kWords + 1];
  __shared__ uint64_t query[kQueries][kWords];
  const int thread = static_cast<int>(threadIdx.x);
  const int64_t first_item = static_cast<int64_t>(blockIdx.x) * kItems;
  const int rows = static_cast<int>(items - first_item < kItems ? items - first_item : kItems);
  for (int64_t first_query = static_cast<int64_t>(blockIdx.y) * kQueries; first_query < queries;
       first_query += static_cast<int64_t>(gridDim.y) * kQueries) {
    const int query_count = static_cast<int>(queries - first_query < kQueries ? queries - first_query : kQueries);
    int distance[kQueries] = {};
    for (int word = 0; word < words; word += kWords) {
      const int staged = words - word < kWords ? words - word : kWords;
      __syncthreads();
      for (int i = thread; i < rows * staged; i += kItems)
        tile[i / staged][i % staged] = item_rows[(first_item + i / staged) * words + word + i % staged];
      for (int i = thread; i < query_count * staged; i += kItems)
        query[i / staged][i % staged] = query_rows[(first_query + i / staged) * words + word + i % staged];
      __syncthreads();
      if (thread >= rows) continue;
      for (int w = 0; w < staged; ++w) {
        const uint64_t code = tile[thread][w];
#pragma unroll
        for (int q = 0; q < kQueries; ++q)
          if (q < query_count) distance[q] += __popcll(code ^ query[q][w]);
      }
    }
    if (thread >= rows) continue;
#pragma unroll
    for (int q = 0; q < kQueries; ++q)
      if (q < query_count) out[(first_query + q) * items + first_item + thread] = static_cast<Out>(distance[q]);
  }
}

template <class Out>
int launch_as(const void* query_rows, const void* item_rows, int64_t queries, int64_t items, int words, void* out,
              void* stream) {
  const int64_t item_blocks = ceil_div<int64_t>(items, kItems), query_blocks = ceil_div<int64_t>(queries, kQueries);
  if (item_blocks == 0 || query_blocks == 0) return static_cast<int>(cudaSuccess);
  if (item_blocks > 0x7fffffff) return static_cast<int>(cudaErrorInvalidConfiguration);
  const dim3 grid(static_cast<unsigned>(item_blocks),
                  static_cast<unsigned>(query_blocks < 65535 ? query_blocks : 65535));
  Launcher launch(stream);
  launch(distance_kernel<Out>, grid, kItems, 0, static_cast<const uint64_t*>(query_rows),
         static_cast<const uint64_t*>(item_rows), queries, items, words, static_cast<Out*>(out));
  return launch.error();
}

}  // namespace

int distance(const void* query_rows, const void* item_rows, int64_t queries, int64_t items, int words, int itemsize,
             void* out, void* stream) {
  const auto launch = itemsize == 1 ? launch_as<uint8_t> : itemsize == 2 ? launch_as<uint16_t> : launch_as<int32_t>;
  return launch(query_rows, item_rows, queries, items, words, out, stream);
}

}  // namespace agmh::cuda
