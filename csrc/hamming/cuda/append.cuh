// Few of many items: each query keeps the keys of its k nearest so far, and appends those of items that may be nearer.
#pragma once

#include <cstdint>

#include "hamming/cuda/launch.cuh"
#include "hamming/cuda/plan.h"

namespace agmh::cuda {

// distance · 2⁴⁸ + position. All keys of a query differ, so that its k smallest are the same in any order of visits.
using Key = unsigned long long;
constexpr int kPositionBits = 48;
constexpr Key kPositionMask = (Key{1} << kPositionBits) - 1;

// The largest key of an item at this distance.
__host__ __device__ constexpr Key last_key_at(int distance) {
  return static_cast<Key>(distance) << kPositionBits | kPositionMask;
}
__host__ __device__ constexpr int distance_of_key(Key key) { return static_cast<int>(key >> kPositionBits); }

// What each query of a batch has.
struct Candidates {
  Key* bound = nullptr;           // no key beyond it is in the result
  Key* count = nullptr;           // of keys; those beyond `capacity` are lost, and the query is to be counted
  Key* keys = nullptr;            // (batch, capacity)
  unsigned char* full = nullptr;  // whether that happened before the last keep_nearest()
  int capacity = 0;
};

// Scans the places [first, last) of the walk. But for kPopc tensor cores first look which queries have anything near.
void append(Launcher& launch, const DeviceTask& task, const Walk& walk, int64_t first, int64_t last, Backend backend,
            const Candidates& found, const Device& device);

// Sorts what was appended, keeps k keys and lowers the bounds.
void keep_nearest(Launcher& launch, int64_t queries, int64_t k, const Candidates& found);

}  // namespace agmh::cuda
