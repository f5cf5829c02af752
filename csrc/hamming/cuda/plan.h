// How a search is cut up. It depends on sizes and on the device alone, so that the sequence of launches is fixed.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>

#include "hamming/cuda/backend.h"
#include "hamming/cuda/engine.h"

namespace agmh::cuda {

constexpr int kThreads = 256, kWarps = kThreads / 32;
constexpr int kAppendQueries = 32;  // queries of a block that appends
constexpr int kCountQueries = 8;    // of a block that counts; each of its warps has a part of the items
constexpr int kSampleStep = 16;     // a first bound comes from one unit in so many

// A unit is what a warp takes at a time: items of a lane, by the words of a code.
constexpr int lane_items(int words) { return words == 1 || words == 2 ? 4 : words == 4 ? 2 : 1; }
inline int64_t units_of(const DeviceTask& task) {
  const int64_t items = 32 * lane_items(task.words);
  return (task.item_count + items - 1) / items;
}

// An order of the units in which every run of places is spread evenly over them, by the golden section: a chunk of the
// walk is as good as a random sample of the items, in whatever order these are.
struct Walk {
  int64_t units = 0;
  int64_t places = 1;  // a power of two, at least `units`; places of units that do not exist are passed over
  int64_t stride = 1;  // odd

  __host__ __device__ int64_t unit_at(int64_t place) const { return place * stride & (places - 1); }
};

inline Walk plan_walk(int64_t units) {
  Walk walk;
  walk.units = units;
  while (walk.places < units) walk.places *= 2;
  walk.stride = static_cast<int64_t>(static_cast<double>(walk.places) * 0.6180339887498949) | 1;
  return walk;
}

struct CountPlan {
  int64_t batch = 1;  // queries searched for at once
  int bins = 1;       // distances that are counted
  int64_t parts = 0;  // of the items, one a warp
  int64_t part_units = 0;
};

inline void plan_parts(CountPlan& plan, const DeviceTask& task, const Device& device) {
  const int64_t tiles = (plan.batch + kCountQueries - 1) / kCountQueries;
  const int64_t fill = (4 * device.processors + tiles - 1) / tiles;
  // Fewer parts where counters would outnumber a quarter of the items, or where those of one block's queries would
  // take more than half of the scratch.
  const int64_t worth = task.item_count / (4 * int64_t{plan.bins} * kWarps);
  const int64_t room = device.scratch_bytes / (2 * 8 * int64_t{plan.bins} * kCountQueries * kWarps);
  // 32 bits count the items of a part.
  const int64_t least = (task.item_count >> 31) / kWarps + 1;
  plan.parts = kWarps * std::max(least, std::min({fill, worth, room}));
  plan.part_units = (units_of(task) + plan.parts - 1) / plan.parts;
}

// Bytes of scratch: for each query of a batch its counters, its `other_bytes`, and 24 of bookkeeping.
inline int64_t scratch_of(const CountPlan& plan, int64_t other_bytes) {
  return plan.batch * (8 * int64_t{plan.bins} * plan.parts + other_bytes + 24) + 16;
}

inline CountPlan plan_counting(const DeviceTask& task, int farthest, int64_t other_bytes, const Device& device) {
  CountPlan plan;
  plan.bins = std::min(farthest, task.bits) + 1;
  plan.batch = std::clamp<int64_t>(task.query_count, 1, 65535 * kCountQueries);
  plan_parts(plan, task, device);
  while (plan.batch > 1 && scratch_of(plan, other_bytes) > device.scratch_bytes) {
    plan.batch = (plan.batch + 1) / 2;
    plan_parts(plan, task, device);
  }
  return plan;
}

// Hands out parts of a search's scratch, 8-byte elements first.
class Scratch {
 public:
  explicit Scratch(void* memory) : next_(static_cast<char*>(memory)) {}
  template <class T>
  T* take(int64_t count) {
    T* const taken = reinterpret_cast<T*>(next_);
    next_ += static_cast<int64_t>(sizeof(T)) * count;
    return taken;
  }

 private:
  char* next_;
};

// The task of `count` of its queries from `first` on, or of as many as there are.
inline DeviceTask queries_of(DeviceTask task, int64_t first, int64_t count) {
  task.query_count = std::min(task.query_count - first, count);
  task.queries += first * task.words;
  if (task.mask_stride != 0) task.mask += first * task.mask_stride;
  return task;
}

struct TopkPlan {
  CountPlan counting;
  Walk walk;
  int capacity = 0;    // keys that a query may hold; 0: everything is counted
  int64_t growth = 2;  // a chunk of the walk ends at so many times the place where it begins
  Backend backend = Backend::kPopc;
  int64_t sift_from = kNever;  // chunks from this place of the walk on are sifted

  int64_t scratch() const { return scratch_of(counting, 8 * int64_t{capacity}); }
};

inline TopkPlan plan_topk(const DeviceTask& task, int64_t k, int max_distance, const Device& device) {
  TopkPlan plan;
  plan.walk = plan_walk(units_of(task));
  const int64_t most = std::min<int64_t>(16384, device.shared_bytes / 8);
  int64_t capacity = 256;
  while (2 * capacity <= most && capacity < std::max<int64_t>(4096, 4 * std::min(k, most))) capacity *= 2;
  if (k <= capacity / 4 && k <= task.item_count / 4) plan.capacity = static_cast<int>(capacity);
  // A chunk is expected to add (growth − 1) · k keys to the k that are held, which leaves half of the room to chance.
  plan.growth = std::clamp<int64_t>(capacity / (2 * std::min(k, capacity)), 2, 32);
  plan.backend = backend_for(task, device);
  if (plan.backend != Backend::kPopc) {
    // After p places k / p items of a unit are expected to be near. A sieve pays while that is rare, and small steps
    // keep it so.
    plan.sift_from = 2 * k;
    plan.growth = std::min<int64_t>(plan.growth, 4);
  }
  plan.counting = plan_counting(task, max_distance, 8 * int64_t{plan.capacity}, device);
  return plan;
}

}  // namespace agmh::cuda
