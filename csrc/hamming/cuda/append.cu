#include "hamming/cuda/append.cuh"
#include "hamming/cuda/sieve.cuh"

namespace agmh::cuda {
namespace {

constexpr int kSortThreads = 512;

// Called by a whole warp for its items at `first`. Lanes that have something share one addition to the count.
template <int kCodes>
__device__ __forceinline__ void append_near(const DeviceTask& task, const Candidates& found, int64_t query, Key bound,
                                            int start, int64_t first, const int (&excess)[kCodes]) {
#pragma unroll
  for (int c = 0; c < kCodes; ++c) {
    const int64_t item = first + 32 * c + lane_of_thread();
    const Key key = static_cast<Key>(excess[c] - start) << kPositionBits | static_cast<Key>(item);
    const bool near = excess[c] < 0 && item < task.item_count && key < bound && allowed(task, query, item);
    const unsigned lanes = __ballot_sync(kAllLanes, near);
    if (lanes == 0) continue;
    const int leader = __ffs(static_cast<int>(lanes)) - 1;
    Key at = 0;
    if (lane_of_thread() == leader) at = atomicAdd(found.count + query, static_cast<Key>(__popc(lanes)));
    at = __shfl_sync(kAllLanes, at, leader) + static_cast<Key>(__popc(lanes & lanes_before()));
    if (near && at < static_cast<Key>(found.capacity))
      found.keys[query * found.capacity + static_cast<int64_t>(at)] = key;
  }
}

// The bounds of a block's queries, and where distances start for pass_queries(): at 0 for a query that appends no more.
template <int kQueries>
struct Limits {
  Key bound[kQueries];
  int start[kQueries];

  __device__ __forceinline__ void load(const Candidates& found, int64_t first_query, int count) {
    const int thread = static_cast<int>(threadIdx.x);
    if (thread >= kQueries) return;
    const bool open = thread < count && found.full[first_query + thread] == 0;
    bound[thread] = open ? found.bound[first_query + thread] : 0;
    start[thread] = open ? -distance_of_key(bound[thread]) - 1 : 0;
  }
};

// Calls visit(first item) for the units at the places that are this warp's.
template <int kWords, class Visit>
__device__ __forceinline__ void for_each_unit(const Walk& walk, int64_t first_place, int64_t last_place, Visit visit) {
  for (int64_t place = first_place + static_cast<int64_t>(blockIdx.x) * kWarps + warp_of_thread(); place < last_place;
       place += static_cast<int64_t>(gridDim.x) * kWarps) {
    const int64_t unit = walk.unit_at(place);
    if (unit < walk.units) visit(unit * Unit<kWords>::kItems);
  }
}

template <int kWords, int kQueries>
__global__ void __launch_bounds__(kThreads, 2)
    append_kernel(DeviceTask task, Walk walk, int64_t first_place, int64_t last_place, Candidates found) {
  uint32_t* queries = dynamic_shared<uint32_t>();
  __shared__ Limits<kAppendQueries> limits;
  const int64_t first_query = static_cast<int64_t>(blockIdx.y) * kAppendQueries;
  const int count = static_cast<int>(smaller<int64_t>(task.query_count - first_query, kAppendQueries));
  load_queries<kWords>(task, queries, kAppendQueries, count, [&](int q) { return first_query + q; });
  limits.load(found, first_query, count);
  __syncthreads();
  for_each_unit<kWords>(walk, first_place, last_place, [&](int64_t first) {
    pass_queries<kWords, kQueries>(
        task, queries, limits.start, count, first, [&](int q, const int (&excess)[Unit<kWords>::kCodes]) {
          append_near(task, found, first_query + q, limits.bound[q], limits.start[q], first, excess);
        });
  });
}

// The same, but only queries that have something near pass by a unit, which tensor cores find out.
template <bool kSigns, int kWords>
__global__ void __launch_bounds__(kThreads, 2)
    sift_kernel(DeviceTask task, Walk walk, int64_t first_place, int64_t last_place, Candidates found) {
  if constexpr (!kSigns && !kHasBmma) return;
  uint32_t* queries = dynamic_shared<uint32_t>();
  __shared__ Limits<kSiftQueries> limits;
  const int64_t first_query = static_cast<int64_t>(blockIdx.y) * kSiftQueries;
  const int count = static_cast<int>(smaller<int64_t>(task.query_count - first_query, kSiftQueries));
  const int pitch = sift_pitch<kWords>(task.words);
  load_queries<kWords>(task, queries, pitch, kSiftQueries, count, [&](int q) { return first_query + q; });
  limits.load(found, first_query, count);
  __syncthreads();
  SiftedQueries<kSigns, kWords> sifted(queries, limits.start, task.words);
  for_each_unit<kWords>(walk, first_place, last_place, [&](int64_t first) {
#pragma unroll 1
    for (unsigned long long near = sift(task, sifted, first); near != 0; near &= near - 1) {
      const int q = __ffsll(static_cast<long long>(near)) - 1;
      pass_queries<kWords, 1>(
          task, queries + q * pitch, limits.start + q, 1, first, [&](int, const int (&excess)[Unit<kWords>::kCodes]) {
            append_near(task, found, first_query + q, limits.bound[q], limits.start[q], first, excess);
          });
    }
  });
}

// Bitonic, for a power of two of keys.
__device__ __forceinline__ void sort_keys(Key* keys, unsigned count) {
  for (unsigned size = 2; size <= count; size *= 2)
    for (unsigned gap = size / 2; gap > 0; gap /= 2) {
      for (unsigned i = threadIdx.x; i < count / 2; i += kSortThreads) {
        const unsigned a = 2 * i - (i & (gap - 1)), b = a + gap;
        const Key x = keys[a], y = keys[b];
        if ((x > y) == ((a & size) == 0)) {
          keys[a] = y;
          keys[b] = x;
        }
      }
      __syncthreads();
    }
}

__global__ void __launch_bounds__(kSortThreads, 1) keep_nearest_kernel(int64_t k, Candidates found) {
  Key* keys = dynamic_shared<Key>();
  const int64_t query = blockIdx.x;
  const Key appended = found.count[query];
  if (appended > static_cast<Key>(found.capacity)) {
    if (threadIdx.x == 0) found.full[query] = 1;
    return;
  }
  const unsigned count = static_cast<unsigned>(appended);
  unsigned padded = 2;
  while (padded < count) padded *= 2;
  Key* kept = found.keys + query * found.capacity;
  for (unsigned i = threadIdx.x; i < padded; i += kSortThreads) keys[i] = i < count ? kept[i] : ~Key{0};
  __syncthreads();
  sort_keys(keys, padded);
  const unsigned limit = static_cast<unsigned>(k);
  for (unsigned i = threadIdx.x; i < smaller(count, limit); i += kSortThreads) kept[i] = keys[i];
  if (threadIdx.x == 0 && count >= limit) {
    found.count[query] = limit;
    found.bound[query] = keys[limit - 1];
  }
}

// `queries` of a block, of `width` words each.
template <class Kernel>
void launch_scan(Launcher& launch, Kernel kernel, int queries, int width, const DeviceTask& task, const Walk& walk,
                 int64_t first, int64_t last, const Candidates& found, const Device& device) {
  const int64_t tiles = ceil_div<int64_t>(task.query_count, queries);
  const int64_t blocks =
      smaller(ceil_div<int64_t>(last - first, kWarps), ceil_div<int64_t>(8 * device.processors, tiles));
  const size_t shared = sizeof(uint32_t) * static_cast<size_t>(queries) * static_cast<size_t>(width);
  launch(kernel, dim3(static_cast<unsigned>(blocks), static_cast<unsigned>(tiles)), kThreads, shared, task, walk, first,
         last, found);
}

}  // namespace

void append(Launcher& launch, const DeviceTask& task, const Walk& walk, int64_t first, int64_t last, Backend backend,
            const Candidates& found, const Device& device) {
  with_width(task.words, [&](auto words) {
    constexpr int kWords = decltype(words)::value;
    const auto scan = [&](auto* kernel, int queries, int width) {
      launch_scan(launch, kernel, queries, width, task, walk, first, last, found, device);
    };
    const int width = query_words<kWords>(task.words), pitch = sift_pitch<kWords>(task.words);
    if (backend == Backend::kBmma)
      scan(sift_kernel<false, kWords>, kSiftQueries, pitch);
    else if (backend == Backend::kImma)
      scan(sift_kernel<true, kWords>, kSiftQueries, pitch);
    else if (task.query_count < 4)
      scan(append_kernel<kWords, 1>, kAppendQueries, width);
    else
      scan(append_kernel<kWords, 4>, kAppendQueries, width);
  });
}

void keep_nearest(Launcher& launch, int64_t queries, int64_t k, const Candidates& found) {
  launch(keep_nearest_kernel, dim3(static_cast<unsigned>(queries)), kSortThreads,
         sizeof(Key) * static_cast<size_t>(found.capacity), k, found);
}

}  // namespace agmh::cuda
