#include <algorithm>
#include <utility>

#include "hamming/engine.h"
#include "hamming/parallel.h"
#include "hamming/tile.h"

namespace agmh {
namespace {

constexpr int64_t kMaxBlock = 64;

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

template <class Visit>
void visit(const Task& task, const Labels& labels, Range queries, Visit&& visit_item) {
  scan_tiles(task, queries, {0, task.size()}, [&](int64_t query, int64_t first, const int16_t* distances, int count) {
    for_each_within(distances, count, static_cast<int16_t>(task.bits),
                    [&](int i) { visit_item(query, distances[i], labels.relevant(query, task.row_of(first + i))); });
  });
}

}  // namespace

void stable_ranking(const Task& task, const Labels& labels, int64_t depth, const std::vector<int64_t>& cutoffs,
                    double* precision_sum, int64_t* relevant) {
  // Sums of doubles depend on their order, so a query is never split between threads.
  Plan plan = make_plan(task, kMaxBlock);
  if (plan.parts > 1) plan = {1, plan.parts, 1};
  const int64_t columns = static_cast<int64_t>(cutoffs.size());
  parallel_for(plan.outer, plan.blocks(task.queries.count), [&](int64_t index) {
    const Range queries = plan.queries(index, task.queries.count);
    std::vector<Ranks> ranks(static_cast<size_t>(queries.size()), Ranks(task.bits));
    const auto of = [&](int64_t query) -> Ranks& { return ranks[static_cast<size_t>(query - queries.begin)]; };
    visit(task, labels, queries, [&](int64_t q, int16_t distance, bool hit) { of(q).count(distance, hit); });
    for (Ranks& query : ranks) query.accumulate();
    std::fill(precision_sum + queries.begin, precision_sum + queries.end, 0.0);
    std::fill(relevant + queries.begin * columns, relevant + queries.end * columns, 0);
    visit(task, labels, queries, [&](int64_t q, int16_t distance, bool hit) {
      const int64_t rank = of(q).next(distance);
      if (!hit) return;
      const int64_t relevant_rank = of(q).next_relevant(distance);
      if (rank <= depth) precision_sum[q] += static_cast<double>(relevant_rank) / static_cast<double>(rank);
      const auto column = std::lower_bound(cutoffs.begin(), cutoffs.end(), rank) - cutoffs.begin();
      if (column < columns) ++relevant[q * columns + column];
    });
    for (int64_t q = queries.begin; q < queries.end; ++q)
      for (int64_t c = 1; c < columns; ++c) relevant[q * columns + c] += relevant[q * columns + c - 1];
  });
}

}  // namespace agmh
