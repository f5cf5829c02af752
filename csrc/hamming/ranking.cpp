#include <algorithm>
#include <bit>
#include <functional>
#include <utility>

#include "hamming/engine.h"
#include "hamming/parallel.h"
#include "hamming/tally.h"

namespace agmh {
namespace {

// What one query has seen, by distance: all items and relevant items; first as counts, then as ranks.
class Ranks {
 public:
  explicit Ranks(int bits) : all_(static_cast<size_t>(bits) + 1), relevant_(all_.size()) {}

  void count(int16_t distance, bool relevant) {
    ++all_[static_cast<size_t>(distance)];
    relevant_[static_cast<size_t>(distance)] += relevant ? 1 : 0;
  }

  // From here on each slot holds the last rank given out before its distance.
  void accumulate() {
    int64_t all = 0, relevant = 0;
    for (size_t d = 0; d < all_.size(); ++d) {
      all += std::exchange(all_[d], all);
      relevant += std::exchange(relevant_[d], relevant);
    }
  }

  // Ranks are given out in scan order, which is the order of positions within a distance.
  int64_t next(int16_t distance) { return ++all_[static_cast<size_t>(distance)]; }
  int64_t next_relevant(int16_t distance) { return ++relevant_[static_cast<size_t>(distance)]; }

 private:
  std::vector<int64_t> all_;
  std::vector<int64_t> relevant_;
};

// rank(query, place, relevant_place) for a relevant item, places from 1.
using Rank = std::function<void(int64_t, int64_t, int64_t)>;

template <class Visit>
void visit(const Task& task, const Labels& labels, Range queries, Visit&& visit_item) {
  scan_tiles(task, queries, {0, task.size()}, [&](int64_t query, int64_t first, const int16_t* distances, int count) {
    for (int i = 0; i < count; ++i)
      if (distances[i] != kExcluded) visit_item(query, distances[i], labels.relevant(query, task.row_of(first + i)));
  });
}

// A query's relevant items, in scan order: their distance, and how many before them share it.
struct Relevant {
  int distance;
  int64_t all, relevant;
};

// Up to this share of relevant pairs the relevant items of a block are kept until the scan has counted all.
constexpr double kMaxRelevance = 1.0 / 16;
constexpr int64_t kMaxPlaneBlock = 128;

// One scan: an item's rank is the number of items at smaller distances, known at its end, plus those before it at its
// own.
void rank_by_planes(const Task& task, const Tallier& tallier, Range queries, const Rank& rank) {
  std::vector<std::vector<Relevant>> relevant(static_cast<size_t>(queries.size()));
  std::vector<int64_t> counts(static_cast<size_t>(queries.size() * tallier.row()));
  const PlaneKernels& planes = kernels().planes;
  tallier.add_by_planes(queries, {0, task.size()}, counts.data(), [&](int64_t query, const Tally& tally) {
    for (int word = 0; word < tally.tiles * kPlaneWords; ++word)
      for (uint64_t left = tally.chosen[word]; left != 0; left &= left - 1) {
        const Equals equals = planes.equals_before(tally, 64 * word + std::countr_zero(left));
        const int64_t* sofar = tally.counts + 2 * equals.distance;
        relevant[static_cast<size_t>(query - queries.begin)].push_back(
            {equals.distance, sofar[0] + equals.all, sofar[1] + equals.chosen});
      }
  });
  for (int64_t query = queries.begin; query < queries.end; ++query) {
    int64_t* below = counts.data() + (query - queries.begin) * tallier.row();
    int64_t all = 0, chosen = 0;
    for (int d = 0; d <= task.bits; ++d) {
      all += std::exchange(below[2 * d], all);
      chosen += std::exchange(below[2 * d + 1], chosen);
    }
    for (const Relevant& item : relevant[static_cast<size_t>(query - queries.begin)])
      rank(query, below[2 * item.distance] + item.all + 1, below[2 * item.distance + 1] + item.relevant + 1);
  }
}

// Two scans: the first counts, the second gives out ranks.
void rank_one_by_one(const Task& task, const Labels& labels, Range queries, const Rank& rank) {
  std::vector<Ranks> ranks(static_cast<size_t>(queries.size()), Ranks(task.bits));
  const auto of = [&](int64_t query) -> Ranks& { return ranks[static_cast<size_t>(query - queries.begin)]; };
  visit(task, labels, queries, [&](int64_t q, int16_t distance, bool hit) { of(q).count(distance, hit); });
  for (Ranks& query : ranks) query.accumulate();
  visit(task, labels, queries, [&](int64_t q, int16_t distance, bool hit) {
    const int64_t place = of(q).next(distance);
    if (hit) rank(q, place, of(q).next_relevant(distance));
  });
}

}  // namespace

void stable_ranking(const Task& task, const Labels& labels, int64_t depth, const std::vector<int64_t>& cutoffs,
                    double* precision_sum, int64_t* relevant) {
  // Sums of doubles depend on their order, so a query is never split between threads.
  Plan plan = make_plan(task, kMaxPlaneBlock);
  if (plan.parts > 1) plan = {1, plan.parts, 1};
  const Tallier tallier(task, &labels, plan.block);
  const bool by_planes = tallier.by_planes() && tallier.relevance() <= kMaxRelevance;
  const int64_t columns = static_cast<int64_t>(cutoffs.size());
  // A relevant item's rank among all, and among the relevant ones.
  const Rank rank = [&](int64_t query, int64_t place, int64_t relevant_place) {
    if (place <= depth) precision_sum[query] += static_cast<double>(relevant_place) / static_cast<double>(place);
    const auto column = std::lower_bound(cutoffs.begin(), cutoffs.end(), place) - cutoffs.begin();
    if (column < columns) ++relevant[query * columns + column];
  };
  parallel_for(plan.outer, plan.blocks(task.queries.count), [&](int64_t index) {
    const Range queries = plan.queries(index, task.queries.count);
    std::fill(precision_sum + queries.begin, precision_sum + queries.end, 0.0);
    std::fill(relevant + queries.begin * columns, relevant + queries.end * columns, 0);
    by_planes ? rank_by_planes(task, tallier, queries, rank) : rank_one_by_one(task, labels, queries, rank);
    for (int64_t q = queries.begin; q < queries.end; ++q)
      for (int64_t c = 1; c < columns; ++c) relevant[q * columns + c] += relevant[q * columns + c - 1];
  });
}

}  // namespace agmh
