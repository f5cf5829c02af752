#include <algorithm>
#include <memory>

#include "hamming/counting.h"
#include "hamming/engine.h"
#include "hamming/parallel.h"
#include "hamming/tile.h"

namespace agmh {
namespace {

constexpr int64_t kMaxBlock = 64;
// Scratch of one block of queries.
constexpr int64_t kScratchBytes = int64_t{32} << 20;
// From items / kCountingShare results on, a second scan is cheaper than keeping candidates.
constexpr int64_t kCountingShare = 8;
constexpr int64_t kAlwaysKept = 1024;

// The k nearest of the items seen so far. Items come in ascending position, so one at the k-th distance loses to those
// before it, and the threshold below which an item enters is exact: a histogram of what entered keeps it.
class Nearest {
 public:
  static int64_t capacity(int64_t k) { return k + std::max<int64_t>(k, 1024); }
  static int64_t bytes(int64_t k, int limit) { return capacity(k) * 10 + (limit + 1) * 8; }

  Nearest(int64_t k, int limit)
      : k_(k),
        threshold_(limit + 1),
        positions_(std::make_unique_for_overwrite<int64_t[]>(static_cast<size_t>(capacity(k)))),
        distances_(std::make_unique_for_overwrite<int16_t[]>(static_cast<size_t>(capacity(k)))),
        entered_(static_cast<size_t>(limit) + 1) {}

  // The largest distance that still enters; -1 when none does.
  int16_t limit() const { return static_cast<int16_t>(threshold_ - 1); }

  void add(int16_t distance, int64_t position) {
    positions_[size_] = position;
    distances_[size_] = distance;
    ++size_;
    ++entered_[static_cast<size_t>(distance)];
    ++below_;
    while (below_ >= k_) below_ -= entered_[static_cast<size_t>(--threshold_)];
    if (size_ == capacity(k_)) compact();
  }

  int64_t size() const { return size_; }
  int64_t position(int64_t i) const { return positions_[i]; }
  int16_t distance(int64_t i) const { return distances_[i]; }

 private:
  // Keep what can still be a result: all below the threshold, and the first at the threshold up to k.
  void compact() {
    int64_t kept = 0, at_threshold = k_ - below_;
    for (int64_t i = 0; i < size_; ++i) {
      if (distances_[i] > threshold_ || (distances_[i] == threshold_ && at_threshold-- <= 0)) continue;
      positions_[kept] = positions_[i];
      distances_[kept] = distances_[i];
      ++kept;
    }
    size_ = kept;
  }

  int64_t k_;
  int threshold_;
  int64_t below_ = 0;
  int64_t size_ = 0;
  std::unique_ptr<int64_t[]> positions_;
  std::unique_ptr<int16_t[]> distances_;
  std::vector<int64_t> entered_;
};

// One query's results from the parts of the items, by a stable counting sort; parts come in ascending position.
void merge(const Task& task, const Nearest* parts, int count, int64_t k, int limit, int32_t* distances, int64_t* ids) {
  std::vector<int64_t> places(static_cast<size_t>(limit) + 1);
  for (int part = 0; part < count; ++part)
    for (int64_t i = 0; i < parts[part].size(); ++i) ++places[static_cast<size_t>(parts[part].distance(i))];
  const int64_t found = std::min(k, counts_to_offsets(places.data(), 1, limit + 1, 0));
  for (int part = 0; part < count; ++part) {
    for (int64_t i = 0; i < parts[part].size(); ++i) {
      const int64_t place = places[static_cast<size_t>(parts[part].distance(i))]++;
      if (place >= k) continue;
      distances[place] = parts[part].distance(i);
      ids[place] = task.id_of(parts[part].position(i));
    }
  }
  std::fill(distances + found, distances + k, kNoDistance);
  std::fill(ids + found, ids + k, -1);
}

void topk_by_threshold(const Task& task, int64_t k, int64_t kept, int limit, int32_t* distances, int64_t* ids) {
  const int64_t per_query = Nearest::bytes(kept, limit);
  const Plan plan = make_plan(task, std::clamp<int64_t>(kScratchBytes / per_query, 1, kMaxBlock));
  parallel_for(plan.outer, plan.blocks(task.queries.count), [&](int64_t index) {
    const Range queries = plan.queries(index, task.queries.count);
    std::vector<Nearest> nearest;  // (queries, parts)
    nearest.reserve(static_cast<size_t>(queries.size() * plan.parts));
    for (int64_t i = 0; i < queries.size() * plan.parts; ++i) nearest.emplace_back(kept, limit);
    parallel_for(plan.parts, plan.parts, [&](int64_t part) {
      scan_tiles(task, queries, part_of(task.size(), plan.parts, part),
                 [&](int64_t query, int64_t first, const int16_t* tile, int count) {
                   Nearest& best = nearest[static_cast<size_t>((query - queries.begin) * plan.parts + part)];
                   for_each_within(tile, count, best.limit(), [&](int i) {
                     if (tile[i] <= best.limit()) best.add(tile[i], first + i);
                   });
                 });
    });
    parallel_for(plan.parts, queries.size(), [&](int64_t q) {
      const int64_t row = (queries.begin + q) * k;
      merge(task, nearest.data() + q * plan.parts, plan.parts, k, limit, distances + row, ids + row);
    });
  });
}

void topk_by_counting(const Task& task, int64_t k, int limit, int32_t* distances, int64_t* ids) {
  const int bins = limit + 1;
  const Plan plan = make_plan(task, kMaxBlock);
  parallel_for(plan.outer, plan.blocks(task.queries.count), [&](int64_t index) {
    const Range queries = plan.queries(index, task.queries.count);
    const size_t count = static_cast<size_t>(queries.size());
    std::vector<int64_t> counts(count * static_cast<size_t>(plan.parts) * static_cast<size_t>(bins));
    count_block(task, plan, queries, limit, counts.data());
    std::vector<int16_t> limits(count);
    std::vector<int64_t> bases(count);
    for (size_t q = 0; q < count; ++q) {
      int64_t* of_query = counts.data() + q * static_cast<size_t>(plan.parts) * static_cast<size_t>(bins);
      const int64_t found = std::min(k, counts_to_offsets(of_query, plan.parts, bins, 0));
      // The k-th distance: the last at which the first part's items start within the k results.
      limits[q] = static_cast<int16_t>(std::lower_bound(of_query, of_query + bins, k) - of_query - 1);
      bases[q] = (queries.begin + static_cast<int64_t>(q)) * k;
      std::fill(distances + bases[q] + found, distances + bases[q] + k, kNoDistance);
      std::fill(ids + bases[q] + found, ids + bases[q] + k, -1);
    }
    fill_block(task, plan, queries, limits, bins, counts.data(), bases, k, distances, ids);
  });
}

}  // namespace

void topk(const Task& task, int64_t k, int max_distance, int32_t* distances, int64_t* ids) {
  const int limit = std::clamp(max_distance, 0, task.bits);
  const int64_t kept = std::clamp<int64_t>(k, 1, std::max<int64_t>(1, task.size()));
  const bool large =
      kept > std::max(task.size() / kCountingShare, kAlwaysKept) || Nearest::bytes(kept, limit) > kScratchBytes;
  if (large)
    topk_by_counting(task, k, limit, distances, ids);
  else
    topk_by_threshold(task, k, kept, limit, distances, ids);
}

}  // namespace agmh
