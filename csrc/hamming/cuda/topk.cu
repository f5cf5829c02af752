#include "hamming/cuda/append.cuh"
#include "hamming/cuda/count.cuh"

namespace agmh::cuda {
namespace {

// Writes what the queries hold, sorted; those that lost keys are listed to be counted.
__global__ void __launch_bounds__(kThreads, 4) finish_kernel(Candidates found, Results results, Counting counting) {
  const int64_t query = blockIdx.x;
  if (found.full[query] != 0) {
    if (threadIdx.x == 0) counting.list[atomicAdd(counting.listed, 1)] = static_cast<int>(query);
    return;
  }
  const int64_t count = static_cast<int64_t>(found.count[query]), begin = results.begin(query);
  for (int64_t i = threadIdx.x; i < results.k; i += kThreads) {
    const bool exists = i < count;
    const Key key = exists ? found.keys[query * found.capacity + i] : 0;
    results.distances[begin + i] = exists ? distance_of_key(key) : kNoDistance;
    results.ids[begin + i] = exists ? static_cast<int64_t>(key & kPositionMask) : -1;
  }
}

// One scan of the items, in chunks that grow as the bounds fall.
void append_batch(Launcher& launch, const DeviceTask& task, const TopkPlan& plan, const Device& device,
                  const Candidates& found, const Results& results, const Counting& counting) {
  launch.clear(found.count, sizeof(Key) * static_cast<size_t>(task.query_count));
  launch.clear(found.full, static_cast<size_t>(task.query_count));
  const int64_t places = plan.walk.places;
  int64_t last = std::clamp<int64_t>(plan.capacity / (32 * lane_items(task.words)), 1, places);
  for (int64_t first = 0; first < places; first = last, last = std::min(last * plan.growth, places)) {
    const Backend backend = first >= plan.sift_from ? plan.backend : Backend::kPopc;
    append(launch, task, plan.walk, first, last, backend, found, device);
    keep_nearest(launch, task.query_count, results.k, found);
  }
  launch(finish_kernel, dim3(static_cast<unsigned>(task.query_count)), kThreads, 0, found, results, counting);
}

void topk_batch(Launcher& launch, const DeviceTask& task, const TopkPlan& plan, const Device& device, void* memory,
                const Results& results) {
  const int64_t batch = plan.counting.batch;
  Scratch scratch(memory);
  Candidates found;
  found.capacity = plan.capacity;
  found.keys = scratch.take<Key>(batch * plan.capacity);
  found.count = scratch.take<Key>(batch);
  const Counting counting = make_counting(plan.counting, scratch);
  found.full = scratch.take<unsigned char>(batch);
  found.bound = counting.bound;
  const bool appends = plan.capacity > 0;
  start_counting(launch, task.query_count, plan.counting.bins - 1, !appends, counting);
  if (appends) {
    append_batch(launch, task, plan, device, found, results, counting);
  } else if (task.item_count / kSampleStep >= 2 * results.k) {
    count_items(launch, task, counting, device, kSampleStep);
    lower_bounds(launch, task, counting, results.k, device);
  }
  count_items(launch, task, counting, device);
  place_items(launch, task, counting, results, device);
  emit_items(launch, task, counting, results, device);
}

}  // namespace

int64_t topk_scratch(const DeviceTask& task, int64_t k, int max_distance, const Device& device) {
  return plan_topk(task, k, max_distance, device).scratch();
}

int topk(const DeviceTask& task, int64_t k, int max_distance, const Device& device, void* scratch, int32_t* distances,
         int64_t* ids, void* stream) {
  const TopkPlan plan = plan_topk(task, k, max_distance, device);
  const int64_t batch = plan.counting.batch;
  Launcher launch(stream);
  for (int64_t first = 0; first < task.query_count; first += batch)
    topk_batch(launch, queries_of(task, first, batch), plan, device, scratch,
               {nullptr, k, distances + first * k, ids + first * k});
  return launch.error();
}

}  // namespace agmh::cuda
