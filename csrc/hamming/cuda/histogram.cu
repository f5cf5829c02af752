#include "hamming/cuda/append.cuh"
#include "hamming/cuda/tile.cuh"

namespace agmh::cuda {
namespace {

using Count = unsigned long long;

// `out` (queries, bins, 1 or 2) starts as zeros. A block counts its share of the units, in shared memory if it can.
template <int kWords, bool kShared, bool kLabels>
__global__ void __launch_bounds__(kThreads, 2)
    histogram_kernel(DeviceTask task, Labels labels, int64_t units, int64_t share, Count* out) {
  constexpr int kKinds = kLabels ? 2 : 1, kItems = Unit<kWords>::kItems;
  uint32_t* codes = dynamic_shared<uint32_t>();
  unsigned* near = codes + kCountQueries * query_words<kWords>(task.words);
  __shared__ int start[kCountQueries];
  const int thread = static_cast<int>(threadIdx.x), row = (task.bits + 1) * kKinds;
  const int64_t first_unit = static_cast<int64_t>(blockIdx.x) * share, last_unit = smaller(first_unit + share, units);
  for (int64_t first_query = static_cast<int64_t>(blockIdx.y) * kCountQueries; first_query < task.query_count;
       first_query += static_cast<int64_t>(gridDim.y) * kCountQueries) {
    const int count = static_cast<int>(smaller<int64_t>(task.query_count - first_query, kCountQueries));
    __syncthreads();  // the tile before this one is done with
    if (thread < kCountQueries) start[thread] = thread < count ? -task.bits - 1 : 0;
    load_queries<kWords>(task, codes, kCountQueries, count, [&](int q) { return first_query + q; });
    if constexpr (kShared)
      for (int i = thread; i < count * row; i += kThreads) near[i] = 0;
    __syncthreads();
    Count* const far = out + first_query * row;
    for (int64_t unit = first_unit + warp_of_thread(); unit < last_unit; unit += kWarps)
      pass_queries<kWords, 4>(
          task, codes, start, count, unit * kItems, [&](int q, const int (&excess)[Unit<kWords>::kCodes]) {
#pragma unroll
            for (int c = 0; c < Unit<kWords>::kCodes; ++c) {
              const int64_t item = unit * kItems + 32 * c + lane_of_thread();
              if (excess[c] >= 0 || item >= task.item_count || !allowed(task, first_query + q, item)) continue;
              const int at = q * row + (excess[c] - start[q]) * kKinds;
              if constexpr (kShared)
                atomicAdd(near + at, 1u);
              else
                atomicAdd(far + at, Count{1});
              if constexpr (kLabels) {
                if (!relevant(labels, first_query + q, item)) continue;
                if constexpr (kShared)
                  atomicAdd(near + at + 1, 1u);
                else
                  atomicAdd(far + at + 1, Count{1});
              }
            }
          });
    __syncthreads();
    if constexpr (kShared)
      for (int i = thread; i < count * row; i += kThreads)
        if (near[i] != 0) atomicAdd(far + i, Count{near[i]});
  }
}

template <int kWords, bool kLabels>
void launch_histogram(Launcher& launch, const DeviceTask& task, const Labels& labels, const Device& device,
                      Count* out) {
  const int64_t units = units_of(task), tiles = ceil_div<int64_t>(task.query_count, kCountQueries);
  const int64_t fill = ceil_div<int64_t>(4 * device.processors, tiles);
  // 32 bits count the items of a block.
  const int64_t blocks = smaller(ceil_div<int64_t>(units, kWarps), fill) + (task.item_count >> 31);
  const int64_t share = ceil_div(units, blocks);
  const size_t codes = sizeof(uint32_t) * kCountQueries * static_cast<size_t>(query_words<kWords>(task.words));
  const size_t counters = sizeof(unsigned) * kCountQueries * static_cast<size_t>(task.bits + 1) * (kLabels ? 2 : 1);
  const dim3 grid(static_cast<unsigned>(blocks), static_cast<unsigned>(smaller<int64_t>(tiles, 65535)));
  if (static_cast<int64_t>(codes + counters) <= device.shared_bytes)
    launch(histogram_kernel<kWords, true, kLabels>, grid, kThreads, codes + counters, task, labels, units, share, out);
  else
    launch(histogram_kernel<kWords, false, kLabels>, grid, kThreads, codes, task, labels, units, share, out);
}

}  // namespace

int histogram(const DeviceTask& task, const Labels* labels, const Device& device, int64_t* out, void* stream) {
  Launcher launch(stream);
  const int64_t counters = task.query_count * (task.bits + 1) * (labels != nullptr ? 2 : 1);
  launch.clear(out, sizeof(Count) * static_cast<size_t>(counters));
  if (task.query_count == 0 || task.item_count == 0) return launch.error();
  with_width(task.words, [&](auto words) {
    constexpr int kWords = decltype(words)::value;
    Count* const counts = reinterpret_cast<Count*>(out);
    if (labels != nullptr)
      launch_histogram<kWords, true>(launch, task, *labels, device, counts);
    else
      launch_histogram<kWords, false>(launch, task, Labels(), device, counts);
  });
  return launch.error();
}

}  // namespace agmh::cuda
