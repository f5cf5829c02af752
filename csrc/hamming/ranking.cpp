#include <algorithm>
#include <utility>

#include "hamming/engine.h"
#include "hamming/parallel.h"
#include "hamming/tally.h"

namespace agmh {
namespace {

constexpr int64_t kMaxBlock = 128;

// Turns counts into how many come before, in place: (distances, 2).
void accumulate(int64_t* counts, int64_t distances) {
  int64_t all = 0, relevant = 0;
  for (int64_t d = 0; d < distances; ++d) {
    all += std::exchange(counts[2 * d], all);
    relevant += std::exchange(counts[2 * d + 1], relevant);
  }
}

// What a query's relevant items add up to, given one after the other in order of positions.
struct Score {
  int64_t depth;
  const std::vector<int64_t>& cutoffs;
  double precision_sum = 0;
  int64_t* relevant;  // one for each cutoff

  // Ranks, from 1, among all items and among the relevant ones.
  void add(int64_t place, int64_t relevant_place) {
    if (place <= depth) precision_sum += static_cast<double>(relevant_place) / static_cast<double>(place);
    for (size_t c = 0; c < cutoffs.size(); ++c) relevant[c] += place <= cutoffs[c] ? 1 : 0;
  }
};

// One scan: an item's rank is the number of items at smaller distances, known at its end, plus those before it at its
// own. `counts` becomes the histogram of the block, finish(query, score) takes what a query comes to.
template <class Start, class Finish>
void rank_by_planes(const Task& task, const Tallier& tallier, Range queries, int64_t* counts, const Start& start,
                    const Finish& finish) {
  // A relevant item is one word: how many items before it share its distance, and the distance above that.
  constexpr int kShift = 48;
  std::vector<std::vector<int64_t>> relevant(static_cast<size_t>(queries.size()));
  tallier.add_and_find(queries, {0, task.size()}, counts,
                       [&](int64_t query, const int16_t* distances, const int64_t* before, int count) {
                         std::vector<int64_t>& items = relevant[static_cast<size_t>(query - queries.begin)];
                         for (int i = 0; i < count; ++i) items.push_back(int64_t{distances[i]} << kShift | before[i]);
                       });
  std::vector<int64_t> below;
  for (int64_t query = queries.begin; query < queries.end; ++query) {
    const int64_t* of_query = counts + (query - queries.begin) * tallier.row();
    below.assign(of_query, of_query + tallier.row());
    accumulate(below.data(), task.bits + 1);
    Score score = start(query);
    for (const int64_t item : relevant[static_cast<size_t>(query - queries.begin)]) {
      int64_t* at = below.data() + 2 * (item >> kShift);
      score.add(at[0] + (item & ((int64_t{1} << kShift) - 1)) + 1, ++at[1]);
    }
    finish(query, score);
  }
}

// Two scans: the first counts, the second gives out ranks.
template <class Start, class Finish>
void rank_one_by_one(const Task& task, const Tallier& tallier, const Labels& labels, Range queries, int64_t* counts,
                     const Start& start, const Finish& finish) {
  tallier.add(queries, {0, task.size()}, counts);
  std::vector<int64_t> ranks(counts, counts + queries.size() * tallier.row());
  std::vector<Score> scores;
  for (int64_t query = queries.begin; query < queries.end; ++query) {
    accumulate(ranks.data() + (query - queries.begin) * tallier.row(), task.bits + 1);
    scores.push_back(start(query));
  }
  scan_tiles(task, queries, {0, task.size()}, [&](int64_t query, int64_t first, const int16_t* distances, int count) {
    int64_t* of_query = ranks.data() + (query - queries.begin) * tallier.row();
    for (int i = 0; i < count; ++i) {
      if (distances[i] == kExcluded) continue;
      int64_t* at = of_query + 2 * distances[i];
      const int64_t place = ++at[0];
      if (labels.relevant(query, task.row_of(first + i)))
        scores[static_cast<size_t>(query - queries.begin)].add(place, ++at[1]);
    }
  });
  for (int64_t query = queries.begin; query < queries.end; ++query)
    finish(query, scores[static_cast<size_t>(query - queries.begin)]);
}

}  // namespace

void stable_ranking(const Task& task, const Labels& labels, int64_t depth, const std::vector<int64_t>& cutoffs,
                    double* precision_sum, int64_t* relevant, int64_t* counts) {
  // Sums of doubles depend on their order, so a query is never split between threads.
  Plan plan = make_plan(task, kMaxBlock);
  if (plan.parts > 1) plan = {1, plan.parts, 1};
  const Tallier tallier(task, &labels, plan.block);
  const int64_t columns = static_cast<int64_t>(cutoffs.size()), row = tallier.row();
  const auto start = [&](int64_t query) {
    int64_t* of_query = relevant + query * columns;
    std::fill(of_query, of_query + columns, 0);
    return Score{.depth = depth, .cutoffs = cutoffs, .relevant = of_query};
  };
  const auto finish = [&](int64_t query, const Score& score) { precision_sum[query] = score.precision_sum; };
  parallel_for(plan.outer, plan.blocks(task.queries.count), [&](int64_t index) {
    const Range queries = plan.queries(index, task.queries.count);
    std::vector<int64_t> own(counts == nullptr ? static_cast<size_t>(queries.size() * row) : 0);
    int64_t* of_block = counts == nullptr ? own.data() : counts + queries.begin * row;
    std::fill(of_block, of_block + queries.size() * row, 0);
    if (tallier.by_planes() && tallier.few_relevant())
      rank_by_planes(task, tallier, queries, of_block, start, finish);
    else
      rank_one_by_one(task, tallier, labels, queries, of_block, start, finish);
  });
}

}  // namespace agmh
