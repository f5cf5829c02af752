#include <algorithm>

#include "hamming/cuda/tile.cuh"

namespace agmh::cuda {
namespace {

using Count = unsigned long long;

// What is asked of a ranking, and where it goes.
struct Ranking {
  Labels labels;
  int64_t depth;
  int columns;
  int64_t cutoffs[kMaxCutoffs];
  const Count* counts;  // (queries, bits + 1, 2): all items, relevant items
  double* precision_sum;
  int64_t* relevant;  // (queries, columns)
};

// What a warp has in shared memory: how many items, and relevant items, come before the next one at each distance, the
// hits within each cutoff, its query.
struct WarpMemory {
  Count* ranks;
  Count* hits;
  uint32_t* code;
};

constexpr size_t warp_bytes(int bits, int columns, int query_words) {
  return sizeof(Count) * (2 * static_cast<size_t>(bits + 1) + static_cast<size_t>(columns)) +
         sizeof(uint32_t) * static_cast<size_t>(ceil_div(query_words, 2) * 2);
}

// Turns the counts of a query into ranks, and loads its code.
template <int kWords>
__device__ __forceinline__ void start_ranking(const DeviceTask& task, const Ranking& ranking, int64_t query,
                                              const WarpMemory& memory) {
  const int bins = task.bits + 1, width = query_words<kWords>(task.words);
  const Count* counts = ranking.counts + query * 2 * bins;
  Count all = 0, relevant = 0;
  for (int first = 0; first < bins; first += 32) {
    const int d = first + lane_of_thread();
    const Count all_before = sum_before(d < bins ? counts[2 * d] : 0, all);
    const Count relevant_before = sum_before(d < bins ? counts[2 * d + 1] : 0, relevant);
    if (d >= bins) continue;
    memory.ranks[2 * d] = all_before;
    memory.ranks[2 * d + 1] = relevant_before;
  }
  for (int c = lane_of_thread(); c < ranking.columns; c += 32) memory.hits[c] = 0;
  for (int w = lane_of_thread(); w < width; w += 32)
    memory.code[w] = w < task.words ? task.queries[query * task.words + w] : 0;
  __syncwarp();
}

// Called by a whole warp for 32 adjoining items, one a lane: those that exist take ranks in their order, and what the
// relevant ones add is added in their order, so that the sum is that of one thread.
__device__ __forceinline__ void rank_items(const Ranking& ranking, const WarpMemory& memory, int distance, bool exists,
                                           bool is_relevant, double& sum) {
  const unsigned relevant = __ballot_sync(kAllLanes, is_relevant);
  const unsigned peers = __match_any_sync(kAllLanes, exists ? distance : -1);
  Count rank = 0, relevant_rank = 0;
  if (exists) {
    rank = memory.ranks[2 * distance];
    relevant_rank = memory.ranks[2 * distance + 1];
  }
  __syncwarp();
  if (exists && (peers & lanes_before()) == 0) {
    memory.ranks[2 * distance] = rank + static_cast<Count>(__popc(peers));
    memory.ranks[2 * distance + 1] = relevant_rank + static_cast<Count>(__popc(peers & relevant));
  }
  __syncwarp();
  if (relevant == 0) return;
  const int64_t place = static_cast<int64_t>(rank) + __popc(peers & lanes_before()) + 1;
  const int64_t relevant_place = static_cast<int64_t>(relevant_rank) + __popc(peers & relevant & lanes_before()) + 1;
  const bool counts = is_relevant && place <= ranking.depth;
  const double precision = counts ? static_cast<double>(relevant_place) / static_cast<double>(place) : 0.0;
#pragma unroll 1
  for (unsigned left = relevant; left != 0; left &= left - 1)
    sum += __shfl_sync(kAllLanes, precision, __ffs(static_cast<int>(left)) - 1);
#pragma unroll 1
  for (int c = 0; c < ranking.columns; ++c) {
    const unsigned within = __ballot_sync(kAllLanes, is_relevant && place <= ranking.cutoffs[c]);
    if (lane_of_thread() == c % 32) memory.hits[c] += static_cast<Count>(__popc(within));
  }
}

// A warp takes a query at a time and all items in their order.
template <int kWords>
__global__ void __launch_bounds__(kThreads, 2) ranking_kernel(DeviceTask task, Ranking ranking, size_t bytes) {
  constexpr int kItems = Unit<kWords>::kItems;
  char* const memory = dynamic_shared<char>() + static_cast<size_t>(warp_of_thread()) * bytes;
  Count* const ranks = reinterpret_cast<Count*>(memory);
  Count* const hits = ranks + 2 * (task.bits + 1);
  const WarpMemory own = {ranks, hits, reinterpret_cast<uint32_t*>(hits + ranking.columns)};
  const int warps = static_cast<int>(blockDim.x / 32), start = -task.bits - 1;
  const int64_t units = ceil_div<int64_t>(task.item_count, kItems);
  for (int64_t query = static_cast<int64_t>(blockIdx.x) * warps + warp_of_thread(); query < task.query_count;
       query += static_cast<int64_t>(gridDim.x) * warps) {
    start_ranking<kWords>(task, ranking, query, own);
    double sum = 0;
    for (int64_t unit = 0; unit < units; ++unit)
      pass_queries<kWords, 1>(task, own.code, &start, 1, unit * kItems,
                              [&](int, const int (&excess)[Unit<kWords>::kCodes]) {
#pragma unroll
                                for (int c = 0; c < Unit<kWords>::kCodes; ++c) {
                                  const int64_t item = unit * kItems + 32 * c + lane_of_thread();
                                  const bool exists = item < task.item_count && allowed(task, query, item);
                                  const bool counts = exists && relevant(ranking.labels, query, item);
                                  rank_items(ranking, own, excess[c] - start, exists, counts, sum);
                                }
                              });
    if (lane_of_thread() == 0) ranking.precision_sum[query] = sum;
    for (int c = lane_of_thread(); c < ranking.columns; c += 32)
      ranking.relevant[query * ranking.columns + c] = static_cast<int64_t>(own.hits[c]);
    __syncwarp();  // the next query takes the memory
  }
}

template <int kWords>
void launch_ranking(Launcher& launch, const DeviceTask& task, const Ranking& ranking, const Device& device) {
  const size_t bytes = warp_bytes(task.bits, ranking.columns, query_words<kWords>(task.words));
  const int64_t warps = smaller<int64_t>(kWarps, device.shared_bytes / static_cast<int64_t>(bytes));
  if (warps == 0) return launch.note(cudaErrorInvalidConfiguration);
  const int64_t blocks = smaller(ceil_div<int64_t>(task.query_count, warps), 16 * int64_t{device.processors});
  launch(ranking_kernel<kWords>, dim3(static_cast<unsigned>(blocks)), static_cast<unsigned>(32 * warps),
         bytes * static_cast<size_t>(warps), task, ranking, bytes);
}

}  // namespace

int stable_ranking(const DeviceTask& task, const Labels& labels, int64_t depth, const int64_t* cutoffs, int columns,
                   const Device& device, double* precision_sum, int64_t* relevant, int64_t* counts, void* stream) {
  if (columns > kMaxCutoffs) return static_cast<int>(cudaErrorInvalidValue);
  const int error = histogram(task, &labels, device, counts, stream);
  if (error != 0 || task.query_count == 0) return error;
  Ranking ranking = {labels, depth, columns, {}, reinterpret_cast<const Count*>(counts), precision_sum, relevant};
  std::copy_n(cutoffs, columns, ranking.cutoffs);
  Launcher launch(stream);
  with_width(task.words, [&](auto words) { launch_ranking<decltype(words)::value>(launch, task, ranking, device); });
  return launch.error();
}

}  // namespace agmh::cuda
