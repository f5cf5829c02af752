#include "hamming/cuda/count.cuh"
#include "hamming/cuda/tile.cuh"

namespace agmh::cuda {
namespace {

// The listed queries that a block works on, in its shared memory.
struct QueryTile {
  int first;  // in the list
  int count;
  int query[kCountQueries];
  int start[kCountQueries];
};

// Calls work() for each tile of the list that is this block's.
template <int kWords, class Work>
__device__ __forceinline__ void for_each_tile(const DeviceTask& task, const Counting& counting, uint32_t* codes,
                                              QueryTile& tile, Work work) {
  const int listed = *counting.listed, thread = static_cast<int>(threadIdx.x);
  for (int first = static_cast<int>(blockIdx.y) * kCountQueries; first < listed;
       first += static_cast<int>(gridDim.y) * kCountQueries) {
    const int count = smaller(listed - first, kCountQueries);
    __syncthreads();  // the tile before this one is done with
    if (thread == 0) {
      tile.first = first;
      tile.count = count;
    }
    if (thread < kCountQueries) {
      tile.query[thread] = thread < count ? counting.list[first + thread] : 0;
      tile.start[thread] = thread < count ? -distance_of_key(counting.bound[tile.query[thread]]) - 1 : 0;
    }
    load_queries<kWords>(task, codes, kCountQueries, count, [&](int q) { return int64_t{counting.list[first + q]}; });
    __syncthreads();
    work();
  }
}

// The counters of a warp: (query of the tile, distance).
template <class Entry, bool kShared>
struct Counters {
  Entry* near;    // in shared memory, (kCountQueries, bins)
  Count* global;  // of the warp's part
  int bins;
  int64_t parts;

  __device__ Count* far(int q, int distance) const { return global + (int64_t{q} * bins + distance) * parts; }
  __device__ auto* at(int q, int distance) const {
    if constexpr (kShared)
      return near + q * bins + distance;
    else
      return far(q, distance);
  }
  // Calls visit(here, in global memory) for each counter that is in use, the lanes sharing them.
  template <class Visit>
  __device__ void each(const QueryTile& tile, Visit visit) const {
    for (int q = 0; q < tile.count; ++q)
      for (int d = lane_of_thread(); d < -tile.start[q]; d += 32) visit(at(q, d), far(q, d));
  }
};

__device__ __forceinline__ int64_t part_of_warp() {
  return static_cast<int64_t>(blockIdx.x) * kWarps + warp_of_thread();
}

template <class Entry, bool kShared>
__device__ __forceinline__ Counters<Entry, kShared> counters_of_warp(const Counting& counting, const QueryTile& tile,
                                                                     void* shared) {
  const int bins = counting.plan.bins;
  const int64_t parts = counting.plan.parts;
  return {static_cast<Entry*>(shared) + warp_of_thread() * kCountQueries * bins,
          counting.counters + int64_t{tile.first} * bins * parts + part_of_warp(), bins, parts};
}

// Calls visit(q, excess, first item) for the units of the warp's part.
template <int kWords, class Visit>
__device__ __forceinline__ void scan_part(const DeviceTask& task, const CountPlan& plan, const uint32_t* codes,
                                          const QueryTile& tile, int step, Visit visit) {
  constexpr int kItems = Unit<kWords>::kItems;
  const int64_t units = ceil_div<int64_t>(task.item_count, kItems), first_unit = part_of_warp() * plan.part_units;
  const int64_t last_unit = smaller(first_unit + plan.part_units, units);
  for (int64_t unit = first_unit; unit < last_unit; unit += step)
    pass_queries<kWords, 4>(task, codes, tile.start, tile.count, unit * kItems,
                            [&](int q, const int (&excess)[Unit<kWords>::kCodes]) { visit(q, excess, unit * kItems); });
}

template <int kWords, bool kShared>
__global__ void __launch_bounds__(kThreads, 2) count_kernel(DeviceTask task, Counting counting, int step) {
  using Entry = std::conditional_t<kShared, unsigned, Count>;
  uint32_t* codes = dynamic_shared<uint32_t>();
  __shared__ QueryTile tile;
  for_each_tile<kWords>(task, counting, codes, tile, [&] {
    const auto counters =
        counters_of_warp<Entry, kShared>(counting, tile, codes + kCountQueries * query_words<kWords>(task.words));
    counters.each(tile, [](Entry* here, Count*) { *here = 0; });
    __syncwarp();
    scan_part<kWords>(task, counting.plan, codes, tile, step, [&](int q, const auto& excess, int64_t first) {
#pragma unroll
      for (int c = 0; c < Unit<kWords>::kCodes; ++c) {
        const int64_t item = first + 32 * c + lane_of_thread();
        if (excess[c] < 0 && item < task.item_count && allowed(task, tile.query[q], item))
          atomicAdd(counters.at(q, excess[c] - tile.start[q]), 1u);
      }
    });
    __syncwarp();
    if constexpr (kShared) counters.each(tile, [](Entry* here, Count* far) { *far = *here; });
  });
}

// Called by a whole warp, whose items ascend with c and the lane. Lanes with items at the same distance take places
// that follow each other.
template <int kCodes, class Places>
__device__ __forceinline__ void emit_near(const DeviceTask& task, const Places& places, const Results& results, int q,
                                          int64_t query, int start, int64_t first, const int (&excess)[kCodes]) {
#pragma unroll
  for (int c = 0; c < kCodes; ++c) {
    const int64_t item = first + 32 * c + lane_of_thread();
    const int distance = excess[c] - start;
    const bool near = excess[c] < 0 && item < task.item_count && allowed(task, query, item);
    const unsigned lanes = __ballot_sync(kAllLanes, near);
    if (near) {
      const unsigned peers = __match_any_sync(lanes, distance);
      const int leader = __ffs(static_cast<int>(peers)) - 1;
      Count at = 0;
      if (lane_of_thread() == leader) {
        Count* next = places.at(q, distance);
        at = *next;
        *next = at + static_cast<Count>(__popc(peers));
      }
      at = __shfl_sync(lanes, at, leader) + static_cast<Count>(__popc(peers & lanes_before()));
      if (static_cast<int64_t>(at) < results.end(query)) {
        results.distances[at] = distance;
        results.ids[at] = item;
      }
    }
    __syncwarp();  // the next leader reads what this one wrote
  }
}

template <int kWords, bool kShared>
__global__ void __launch_bounds__(kThreads, 2) emit_kernel(DeviceTask task, Counting counting, Results results) {
  uint32_t* codes = dynamic_shared<uint32_t>();
  __shared__ QueryTile tile;
  for_each_tile<kWords>(task, counting, codes, tile, [&] {
    const auto places =
        counters_of_warp<Count, kShared>(counting, tile, codes + kCountQueries * query_words<kWords>(task.words));
    if constexpr (kShared) places.each(tile, [](Count* here, Count* far) { *here = *far; });
    __syncwarp();
    scan_part<kWords>(task, counting.plan, codes, tile, 1, [&](int q, const auto& excess, int64_t first) {
      emit_near(task, places, results, q, tile.query[q], tile.start[q], first, excess);
    });
  });
}

// Replaces `count` values by the sums of those before them, plus `carry`; returns the sum of all. For a whole warp.
__device__ __forceinline__ Count scan(Count* values, int64_t count, Count carry) {
  for (int64_t first = 0; first < count; first += 32) {
    const int64_t i = first + lane_of_thread();
    const Count before = sum_before(i < count ? values[i] : 0, carry);
    if (i < count) values[i] = before;
  }
  return carry;
}

// For each query of the list that is this block's, calls work(query, counters, bins in use, before), where before[d] is
// how many of its items are nearer than d, before[bins] how many there are.
template <class Work>
__device__ __forceinline__ void for_each_listed(const Counting& counting, Work work) {
  Count* before = dynamic_shared<Count>();
  const int64_t parts = counting.plan.parts;
  for (int slot = static_cast<int>(blockIdx.x); slot < *counting.listed; slot += static_cast<int>(gridDim.x)) {
    const int query = counting.list[slot], bins = distance_of_key(counting.bound[query]) + 1;
    Count* counters = counting.counters + static_cast<int64_t>(slot) * counting.plan.bins * parts;
    for (int d = warp_of_thread(); d < bins; d += kWarps) {
      Count sum = 0;
      for (int64_t part = lane_of_thread(); part < parts; part += 32) sum += counters[d * parts + part];
      Count all = 0;
      sum_before(sum, all);
      if (lane_of_thread() == 0) before[d] = all;
    }
    __syncthreads();
    if (warp_of_thread() == 0) {
      const Count all = scan(before, bins, 0);
      if (lane_of_thread() == 0) before[bins] = all;
    }
    __syncthreads();
    work(query, counters, bins, before);
    __syncthreads();
  }
}

// The distance of the k-th nearest, or the last distance where there are fewer. For the whole block.
__device__ __forceinline__ int kth_distance(const Count* before, int bins, int64_t k) {
  __shared__ int found;
  const Count place = static_cast<Count>(k);
  if (threadIdx.x == 0) found = bins - 1;
  __syncthreads();
  for (int d = static_cast<int>(threadIdx.x); d < bins; d += kThreads)
    if (before[d] < place && place <= before[d + 1]) found = d;
  __syncthreads();
  return found;
}

__global__ void __launch_bounds__(kThreads, 4) lower_bounds_kernel(Counting counting, int64_t k) {
  for_each_listed(counting, [&](int query, Count*, int bins, const Count* before) {
    const int kth = kth_distance(before, bins, k);
    if (threadIdx.x == 0) counting.bound[query] = last_key_at(kth);
  });
}

__global__ void __launch_bounds__(kThreads, 4) sum_items_kernel(Counting counting, int64_t* totals) {
  for_each_listed(counting, [&](int query, Count*, int bins, const Count* before) {
    if (threadIdx.x == 0) totals[query] = static_cast<int64_t>(before[bins]);
  });
}

__global__ void __launch_bounds__(kThreads, 4) place_items_kernel(Counting counting, Results results) {
  for_each_listed(counting, [&](int query, Count* counters, int bins, const Count* before) {
    const int64_t begin = results.begin(query), end = results.end(query);
    const int kth = kth_distance(before, bins, end - begin);
    for (int d = warp_of_thread(); d <= kth; d += kWarps)
      scan(counters + d * counting.plan.parts, counting.plan.parts, static_cast<Count>(begin) + before[d]);
    const int64_t found = smaller(static_cast<int64_t>(before[bins]), end - begin);
    for (int64_t i = begin + found + threadIdx.x; i < end; i += kThreads) {
      results.distances[i] = kNoDistance;
      results.ids[i] = -1;
    }
    if (threadIdx.x == 0) counting.bound[query] = last_key_at(kth);
  });
}

__global__ void __launch_bounds__(kThreads)
    start_counting_kernel(int64_t queries, Key bound, bool all, Counting counting) {
  const int64_t query = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (query == 0) *counting.listed = all ? static_cast<int>(queries) : 0;
  if (query >= queries) return;
  counting.bound[query] = bound;
  counting.list[query] = static_cast<int>(query);
}

dim3 scan_grid(const DeviceTask& task, const CountPlan& plan, const Device& device) {
  const int64_t blocks = plan.parts / kWarps, tiles = ceil_div<int64_t>(task.query_count, kCountQueries);
  const int64_t rows = smaller(tiles, ceil_div<int64_t>(8 * device.processors, blocks));
  return dim3(static_cast<unsigned>(blocks), static_cast<unsigned>(rows));
}

// Calls use(whether counters of this size go to shared memory, the shared memory that they need beside the codes).
template <int kWords, class Use>
void with_shared_counters(const DeviceTask& task, const CountPlan& plan, const Device& device, size_t entry, Use use) {
  const size_t codes = sizeof(uint32_t) * kCountQueries * static_cast<size_t>(query_words<kWords>(task.words));
  const size_t counters = entry * kWarps * kCountQueries * static_cast<size_t>(plan.bins);
  const int64_t most = smaller<int64_t>(device.shared_bytes, 72 << 10);  // so that three blocks fit a processor
  if (static_cast<int64_t>(codes + counters) <= most)
    use(std::true_type(), codes + counters);
  else
    use(std::false_type(), codes);
}

template <class Kernel, class... Arguments>
void launch_listed(Launcher& launch, Kernel kernel, const DeviceTask& task, const Counting& counting,
                   const Device& device, Arguments... arguments) {
  const int64_t blocks = smaller<int64_t>(task.query_count, 8 * device.processors);
  launch(kernel, dim3(static_cast<unsigned>(blocks)), kThreads,
         sizeof(Count) * (static_cast<size_t>(counting.plan.bins) + 1), counting, arguments...);
}

}  // namespace

Counting make_counting(const CountPlan& plan, Scratch& scratch) {
  Counting counting;
  counting.plan = plan;
  counting.counters = scratch.take<Count>(plan.batch * plan.bins * plan.parts);
  counting.bound = scratch.take<Key>(plan.batch);
  counting.list = scratch.take<int>(plan.batch);
  counting.listed = scratch.take<int>(1);
  return counting;
}

void start_counting(Launcher& launch, int64_t queries, int farthest, bool all, const Counting& counting) {
  launch(start_counting_kernel, dim3(static_cast<unsigned>(ceil_div<int64_t>(queries, kThreads))), kThreads, 0, queries,
         last_key_at(farthest), all, counting);
}

void count_items(Launcher& launch, const DeviceTask& task, const Counting& counting, const Device& device, int step) {
  with_width(task.words, [&](auto words) {
    constexpr int kWords = decltype(words)::value;
    with_shared_counters<kWords>(task, counting.plan, device, sizeof(unsigned), [&](auto in_shared, size_t shared) {
      launch(count_kernel<kWords, decltype(in_shared)::value>, scan_grid(task, counting.plan, device), kThreads, shared,
             task, counting, step);
    });
  });
}

void emit_items(Launcher& launch, const DeviceTask& task, const Counting& counting, const Results& results,
                const Device& device) {
  with_width(task.words, [&](auto words) {
    constexpr int kWords = decltype(words)::value;
    with_shared_counters<kWords>(task, counting.plan, device, sizeof(Count), [&](auto in_shared, size_t shared) {
      launch(emit_kernel<kWords, decltype(in_shared)::value>, scan_grid(task, counting.plan, device), kThreads, shared,
             task, counting, results);
    });
  });
}

void lower_bounds(Launcher& launch, const DeviceTask& task, const Counting& counting, int64_t k, const Device& device) {
  launch_listed(launch, lower_bounds_kernel, task, counting, device, k);
}

void sum_items(Launcher& launch, const DeviceTask& task, const Counting& counting, int64_t* totals,
               const Device& device) {
  launch_listed(launch, sum_items_kernel, task, counting, device, totals);
}

void place_items(Launcher& launch, const DeviceTask& task, const Counting& counting, const Results& results,
                 const Device& device) {
  launch_listed(launch, place_items_kernel, task, counting, device, results);
}

}  // namespace agmh::cuda
