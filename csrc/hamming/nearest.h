// The k nearest of the hits seen so far, for one query.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "hamming/hits.h"

namespace agmh {

// Counts of the distances of keys, in order. The same few distances come again and again, and a counter can be raised
// only once in several cycles: so the keys are cut into kRuns runs, each with counters of its own, that are walked in
// step.
class DistanceCounts {
 public:
  static constexpr int kRuns = 4;

  explicit DistanceCounts(int limit) : bins_(limit + 1), counts_(static_cast<size_t>(kRuns * bins_)) {}

  // Counters of a run; those of the next one are stride() further.
  int64_t* run(int index) { return counts_.data() + index * bins_; }
  int64_t stride() const { return bins_; }
  void clear() { std::fill(counts_.begin(), counts_.end(), 0); }

  // Calls visit(run, key) for every key, those of a run in order.
  template <class Visit>
  static void walk(const Key* keys, int64_t size, const Visit& visit) {
    const int64_t part = size / kRuns;
    for (int64_t i = 0; i < part; ++i)
      for (int run = 0; run < kRuns; ++run) visit(run, keys[run * part + i]);
    for (int64_t i = kRuns * part; i < size; ++i) visit(kRuns - 1, keys[i]);
  }

  void add(const Key* keys, int64_t size) {
    walk(keys, size,
         [counts = run(0), bins = bins_](int index, Key key) { ++counts[index * bins + distance_of(key)]; });
  }

 private:
  int64_t bins_;
  std::vector<int64_t> counts_;  // (runs, bins)
};

// Hits come in ascending position and enter a buffer. When it is full the k nearest stay, the k-th distance becomes the
// limit, and from there on only nearer ones are wanted: one at that distance loses to those before it. So a hit costs
// no more than a store, and that limit need not be known at every moment. A cache line each: the parts of a query are
// neighbours, and each belongs to a thread.
class alignas(64) Nearest {
 public:
  static constexpr int64_t capacity(int64_t k) { return k + std::max<int64_t>(k, 128); }

  // `keys` has room for capacity(k).
  Nearest(int64_t k, int limit, Key* keys) : k_(k), limit_(static_cast<int16_t>(limit)), keys_(keys) {}

  // The largest distance that may still enter; -1 when none does.
  int16_t limit() const { return limit_; }

  // `counts` is scratch, all zero before and after.
  void add(const Hits& hits, DistanceCounts& counts) {
    for (int done = 0; done < hits.count;) {
      const int taken = static_cast<int>(std::min<int64_t>(hits.count - done, capacity(k_) - size_));
      std::copy_n(hits.keys + done, taken, keys_ + size_);
      size_ += taken;
      done += taken;
      if (size_ == capacity(k_)) compact(counts);
    }
  }

  // The k-th distance; there are at least k hits.
  int16_t farthest(DistanceCounts& counts) {
    compact(counts);
    return static_cast<int16_t>(limit_ + 1);
  }

  int64_t size() const { return size_; }
  const Key* keys() const { return keys_; }

 private:
  void compact(DistanceCounts& counts);

  int64_t k_;
  int64_t size_ = 0;
  int16_t limit_;
  Key* keys_;
};

}  // namespace agmh
