#include "hamming/cuda/count.cuh"

namespace agmh::cuda {
namespace {

// lims[1 ..]: totals before, sums up to each after. One block: each thread has adjoining queries.
__global__ void __launch_bounds__(kThreads, 4) add_up_kernel(int64_t* lims, int64_t queries) {
  __shared__ int64_t sums[kThreads];
  const int thread = static_cast<int>(threadIdx.x);
  const int64_t share = ceil_div<int64_t>(queries, kThreads), begin = thread * share + 1;
  const int64_t end = smaller(begin + share, queries + 1);
  int64_t sum = 0;
  for (int64_t q = begin; q < end; ++q) sum += lims[q];
  sums[thread] = sum;
  __syncthreads();
  sum = 0;
  for (int t = 0; t < thread; ++t) sum += sums[t];
  for (int64_t q = begin; q < end; ++q) {
    sum += lims[q];
    lims[q] = sum;
  }
  if (thread == 0) lims[0] = 0;
}

}  // namespace

int64_t range_scratch(const DeviceTask& task, int radius, const Device& device) {
  return scratch_of(plan_counting(task, radius, 0, device), 0);
}

int range_count(const DeviceTask& task, int radius, const Device& device, void* memory, int64_t* lims, void* stream) {
  Scratch scratch(memory);
  const Counting counting = make_counting(plan_counting(task, radius, 0, device), scratch);
  Launcher launch(stream);
  for (int64_t first = 0; first < task.query_count; first += counting.plan.batch) {
    const DeviceTask part = queries_of(task, first, counting.plan.batch);
    start_counting(launch, part.query_count, counting.plan.bins - 1, true, counting);
    count_items(launch, part, counting, device);
    sum_items(launch, part, counting, lims + 1 + first, device);
  }
  launch(add_up_kernel, dim3(1), kThreads, 0, lims, task.query_count);
  return launch.error();
}

int range_fill(const DeviceTask& task, int radius, const Device& device, void* memory, const int64_t* lims,
               int32_t* distances, int64_t* ids, void* stream) {
  Scratch scratch(memory);
  const Counting counting = make_counting(plan_counting(task, radius, 0, device), scratch);
  const bool counted = task.query_count <= counting.plan.batch;  // scratch holds the counts of all
  Launcher launch(stream);
  for (int64_t first = 0; first < task.query_count; first += counting.plan.batch) {
    const DeviceTask part = queries_of(task, first, counting.plan.batch);
    const Results results = {lims + first, 0, distances, ids};
    if (!counted) {
      start_counting(launch, part.query_count, counting.plan.bins - 1, true, counting);
      count_items(launch, part, counting, device);
    }
    place_items(launch, part, counting, results, device);
    emit_items(launch, part, counting, results, device);
  }
  return launch.error();
}

}  // namespace agmh::cuda
