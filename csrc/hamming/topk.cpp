#include <algorithm>
#include <memory>
#include <utility>

#include "hamming/engine.h"
#include "hamming/nearest.h"
#include "hamming/parallel.h"
#include "hamming/pool.h"
#include "hamming/sample.h"
#include "hamming/tally.h"

namespace agmh {
namespace {

// Queries that are searched together: enough that what a tile costs by itself is little for each.
constexpr int64_t kMaxBlock = 256;
constexpr int64_t kMaxCountingBlock = 64;
// Scratch of one block of queries.
constexpr int64_t kScratchBytes = int64_t{32} << 20;
// From items / kCountingShare results on, a second scan is cheaper than keeping candidates.
constexpr int64_t kCountingShare = 8;
constexpr int64_t kAlwaysKept = 1024;
// Results of a block's queries together up to which no limit is guessed.
constexpr int64_t kUnguessed = 2048;
// Hits that are worth a thread to sort them.
constexpr int64_t kHitsPerThread = 32768;

// Of one query.
constexpr int64_t scratch_bytes(int64_t k) { return Nearest::capacity(k) * static_cast<int64_t>(sizeof(Key)); }

struct Outputs {
  int64_t k;
  int32_t* distances;
  int64_t* ids;
};

// What a block's queries begin with: what a sample says, unless so few results are wanted that reading one costs more
// than the hits it saves; bit planes find those of thousands of items before any limit falls.
std::vector<int16_t> starting_limits(const Task& task, Range queries, int64_t kept, int limit) {
  if (queries.size() * kept <= kUnguessed && !PlaneScan::pays(task.bits, queries.size()))
    return std::vector<int16_t>(static_cast<size_t>(queries.size()), static_cast<int16_t>(limit));
  return guess_limits(task, queries, kept, limit);
}

// One query's results from the parts of the items, by a stable counting sort; parts come in ascending position. Returns
// how many items the parts hold.
int64_t merge(const Task& task, int64_t query, const Nearest* parts, int count, int limit, const Outputs& out) {
  int32_t* const distances = out.distances + query * out.k;
  int64_t* const ids = out.ids + query * out.k;
  std::vector<DistanceCounts> places(static_cast<size_t>(count), DistanceCounts(limit));
  for (int part = 0; part < count; ++part)
    places[static_cast<size_t>(part)].add(parts[part].keys(), parts[part].size());
  int64_t total = 0;
  for (int distance = 0; distance <= limit; ++distance) {
    const int64_t start = std::min(out.k, total);
    for (DistanceCounts& part : places)
      for (int run = 0; run < DistanceCounts::kRuns; ++run) total += std::exchange(part.run(run)[distance], total);
    std::fill(distances + start, distances + std::min(out.k, total), distance);
  }
  const Task from = task;  // by value, as far as the compiler knows no store below can change it
  int64_t nowhere = 0;
  for (int part = 0; part < count; ++part)
    DistanceCounts::walk(parts[part].keys(), parts[part].size(),
                         [=, &from, &nowhere, next = places[static_cast<size_t>(part)].run(0),
                          bins = places[static_cast<size_t>(part)].stride(), k = out.k](int run, Key key) {
                           const int64_t place = next[run * bins + distance_of(key)]++;
                           // Which of the farthest are too many is not to be foretold: no branch.
                           int64_t* const to = place < k ? ids + place : &nowhere;
                           *to = from.id_of(position_of(key));
                         });
  const int64_t found = std::min(out.k, total);
  fill_missing(found, out.k, distances, ids);
  return total;
}

// The k nearest of each query of a block within its limit; returns the queries that have fewer than `kept` there.
std::vector<int64_t> search_block(const Task& task, const Plan& plan, Range queries, int64_t kept,
                                  const std::vector<int16_t>& limits, const Outputs& out) {
  const int64_t capacity = Nearest::capacity(kept), lists = queries.size() * plan.parts;
  const int largest = *std::max_element(limits.begin(), limits.end());
  const Block memory = take_block(static_cast<size_t>(lists * capacity) * sizeof(Key));
  Key* const keys = reinterpret_cast<Key*>(memory.get());
  std::vector<Nearest> nearest;  // (queries, parts)
  nearest.reserve(static_cast<size_t>(lists));
  for (int64_t i = 0; i < lists; ++i)
    nearest.emplace_back(kept, limits[static_cast<size_t>(i / plan.parts)], keys + i * capacity);
  parallel_for(plan.parts, plan.parts, [&](int64_t part) {
    DistanceCounts counts(largest);
    const auto of = [&](int64_t query) -> Nearest& {
      return nearest[static_cast<size_t>((query - queries.begin) * plan.parts + part)];
    };
    scan_hits(
        task, queries, part_of(task.size(), plan.parts, part), [&](int64_t query) { return of(query).limit(); },
        [&](int64_t query, const Hits& hits) { of(query).add(hits, counts); });
  });
  int64_t hits = 0;
  for (const Nearest& list : nearest) hits += list.size();
  std::vector<int64_t> totals(static_cast<size_t>(queries.size()));
  parallel_for(hits < kHitsPerThread ? 1 : plan.parts, queries.size(), [&](int64_t q) {
    const Nearest* parts = nearest.data() + q * plan.parts;
    totals[static_cast<size_t>(q)] = merge(task, queries.begin + q, parts, plan.parts, largest, out);
  });
  std::vector<int64_t> lacking;
  for (int64_t q = 0; q < queries.size(); ++q)
    if (totals[static_cast<size_t>(q)] < kept) lacking.push_back(queries.begin + q);
  return lacking;
}

void topk_by_threshold(const Task& task, int64_t kept, int limit, const Outputs& out) {
  const Plan plan = make_hits_plan(task, std::clamp<int64_t>(kScratchBytes / scratch_bytes(kept), 1, kMaxBlock));
  parallel_for(plan.outer, plan.blocks(task.queries.count), [&](int64_t index) {
    const Range queries = plan.queries(index, task.queries.count);
    const std::vector<int16_t> limits = starting_limits(task, queries, kept, limit);
    // A guess that was too low is made good without one.
    for (const int64_t query : search_block(task, plan, queries, kept, limits, out))
      if (limits[static_cast<size_t>(query - queries.begin)] < limit)
        search_block(task, plan, {query, query + 1}, kept, {static_cast<int16_t>(limit)}, out);
  });
}

// Writes the ids of a query's items within `limit` to the places that `next` has for their distances.
void place_items(const Task& task, int64_t query, Range items, int16_t limit, int64_t* next, const Outputs& out) {
  const KernelSet& set = kernels();
  const bool every = limit >= task.bits && task.mask == nullptr;
  int64_t* const ids = out.ids + query * out.k;
  const int64_t k = out.k;
  uint16_t index[kMaxTile + kIndexSlack];
  scan_tiles(task, {query, query + 1}, items, [&](int64_t, int64_t first, const int16_t* distances, int count) {
    int64_t* const to = next;
    const auto place = [=, &task](int i) {
      const int64_t at = to[distances[i]]++;
      if (at < k) ids[at] = task.id_of(first + i);
    };
    if (every) {
      for (int i = 0; i < count; ++i) place(i);
    } else {
      const int hits = set.within(distances, count, limit, index);
      for (int i = 0; i < hits; ++i) place(index[i]);
    }
  });
}

// Each item goes straight to its place, which the numbers of items at smaller distances and in earlier parts give. One
// query at a time: the places it writes to, one for each distance, stay in the first cache.
void topk_by_counting(const Task& task, int limit, const Outputs& out) {
  const int bins = task.bits + 1;
  const Plan plan = make_plan(task, kMaxCountingBlock);
  const Tallier tallier(task, nullptr, plan.block);
  parallel_for(plan.outer, plan.blocks(task.queries.count), [&](int64_t index) {
    const Range queries = plan.queries(index, task.queries.count);
    std::vector<int64_t> places(static_cast<size_t>(queries.size() * plan.parts * bins));  // (parts, queries, bins)
    const auto places_of = [&](int64_t part, int64_t query) {
      return places.data() + (part * queries.size() + query - queries.begin) * bins;
    };
    parallel_for(plan.parts, plan.parts, [&](int64_t part) {
      tallier.add(queries, part_of(task.size(), plan.parts, part), places_of(part, queries.begin));
    });
    std::vector<int16_t> last(static_cast<size_t>(queries.size()));  // the k-th distance
    for (int64_t query = queries.begin; query < queries.end; ++query) {
      int32_t* distances = out.distances + query * out.k;
      int64_t found = 0;
      for (int d = 0; d <= limit && found < out.k; ++d) {
        const int64_t start = found;
        for (int64_t part = 0; part < plan.parts; ++part) found += std::exchange(places_of(part, query)[d], found);
        std::fill(distances + start, distances + std::min(found, out.k), d);
        last[static_cast<size_t>(query - queries.begin)] = static_cast<int16_t>(d);
      }
      fill_missing(std::min(found, out.k), out.k, distances, out.ids + query * out.k);
    }
    parallel_for(plan.parts, plan.parts, [&](int64_t part) {
      for (int64_t query = queries.begin; query < queries.end; ++query)
        place_items(task, query, part_of(task.size(), plan.parts, part),
                    last[static_cast<size_t>(query - queries.begin)], places_of(part, query), out);
    });
  });
}

}  // namespace

void topk(const Task& task, int64_t k, int max_distance, int32_t* distances, int64_t* ids) {
  const int limit = std::clamp(max_distance, 0, task.bits);
  const int64_t kept = std::clamp<int64_t>(k, 1, std::max<int64_t>(1, task.size()));
  const bool large = kept > std::max(task.size() / kCountingShare, kAlwaysKept) || scratch_bytes(kept) > kScratchBytes;
  if (large)
    topk_by_counting(task, limit, {k, distances, ids});
  else
    topk_by_threshold(task, kept, limit, {k, distances, ids});
}

}  // namespace agmh
