// Any number of items, without buffers: items are counted by distance and part of the items, prefix sums turn counts
// into places, and a second scan writes each item to its place.
#pragma once

#include <cstdint>

#include "hamming/cuda/append.cuh"

namespace agmh::cuda {

using Count = unsigned long long;

struct Counting {
  CountPlan plan;
  int* list = nullptr;        // the queries that are counted for
  int* listed = nullptr;      // and how many there are
  Key* bound = nullptr;       // of each query of the batch
  Count* counters = nullptr;  // (listed, bins, parts): items; after place_items() where the next one goes
};

// Where the results of each query of a batch go.
struct Results {
  const int64_t* lims = nullptr;  // query q has [lims[q], lims[q + 1]); without it [q · k, (q + 1) · k)
  int64_t k = 0;
  int32_t* distances = nullptr;
  int64_t* ids = nullptr;

  __device__ int64_t begin(int64_t query) const { return lims != nullptr ? lims[query] : query * k; }
  __device__ int64_t end(int64_t query) const { return begin(query + 1); }
};

// The counting of a batch of `plan`, with memory from `scratch`.
Counting make_counting(const CountPlan& plan, Scratch& scratch);

// Bounds all queries of the batch by this distance, and lists all of them or none.
void start_counting(Launcher& launch, int64_t queries, int farthest, bool all, const Counting& counting);

// Counts the items within each listed query's bound, one unit of each part in `step`.
void count_items(Launcher& launch, const DeviceTask& task, const Counting& counting, const Device& device,
                 int step = 1);

// Lowers the bounds to the k-th distance of what was counted; of any of the items, it bounds that of all.
void lower_bounds(Launcher& launch, const DeviceTask& task, const Counting& counting, int64_t k, const Device& device);

// totals[q]: how many items were counted for query q.
void sum_items(Launcher& launch, const DeviceTask& task, const Counting& counting, int64_t* totals,
               const Device& device);

// Turns counts into places, and says where results are missing.
void place_items(Launcher& launch, const DeviceTask& task, const Counting& counting, const Results& results,
                 const Device& device);

// Writes each counted item to its place, if its query's results reach so far.
void emit_items(Launcher& launch, const DeviceTask& task, const Counting& counting, const Results& results,
                const Device& device);

}  // namespace agmh::cuda
