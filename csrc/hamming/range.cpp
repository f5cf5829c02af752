#include <algorithm>
#include <utility>

#include "hamming/engine.h"
#include "hamming/hits.h"
#include "hamming/parallel.h"

namespace agmh {
namespace {

constexpr int64_t kMaxBlock = 256;

// counts[part, distance] of one query, turned into the place of each part's first item at each distance. Returns the
// number of items counted.
int64_t counts_to_offsets(int64_t* counts, int parts, int bins) {
  int64_t place = 0;
  for (int distance = 0; distance < bins; ++distance)
    for (int part = 0; part < parts; ++part) place += std::exchange(counts[int64_t{part} * bins + distance], place);
  return place;
}

// Calls visit(query, hits, slots) with a block's items within the radius, in order; slots[distance] belongs to the
// query and the part of the items, in `slots` (queries, parts, radius + 1).
template <class Visit>
void visit_block(const Task& task, const Plan& plan, Range queries, int radius, int64_t* slots, const Visit& visit) {
  parallel_for(plan.parts, plan.parts, [&](int64_t part) {
    scan_hits(
        task, queries, part_of(task.size(), plan.parts, part), [&](int64_t) { return static_cast<int16_t>(radius); },
        [&](int64_t query, const Hits& hits) {
          visit(query, hits, slots + ((query - queries.begin) * plan.parts + part) * (radius + 1));
        });
  });
}

}  // namespace

// A first scan counts the items at each distance, the counts become output positions, and a second scan writes each
// item where it belongs: no buffer, no sort.
RangeCounts range_count(const Task& task, int radius, int64_t* lims) {
  const Plan plan = make_hits_plan(task, kMaxBlock);
  const int64_t count = task.queries.count;
  RangeCounts counts{std::clamp(radius, 0, task.bits), {}};
  const int bins = counts.radius + 1;
  const int64_t per_query = int64_t{plan.parts} * bins;
  counts.offsets.resize(static_cast<size_t>(count * per_query));
  int64_t* offsets = counts.offsets.data();
  lims[0] = 0;
  parallel_for(plan.outer, plan.blocks(count), [&](int64_t index) {
    const Range queries = plan.queries(index, count);
    visit_block(task, plan, queries, counts.radius, offsets + queries.begin * per_query,
                [](int64_t, const Hits& hits, int64_t* slots) {
                  for (int i = 0; i < hits.count; ++i) ++slots[distance_of(hits.keys[i])];
                });
    for (int64_t q = queries.begin; q < queries.end; ++q)
      lims[q + 1] = counts_to_offsets(offsets + q * per_query, plan.parts, bins);
  });
  for (int64_t q = 0; q < count; ++q) lims[q + 1] += lims[q];
  return counts;
}

void range_fill(const Task& task, RangeCounts counts, const int64_t* lims, int32_t* distances, int64_t* ids) {
  const Plan plan = make_hits_plan(task, kMaxBlock);
  const int64_t per_query = int64_t{plan.parts} * (counts.radius + 1);
  parallel_for(plan.outer, plan.blocks(task.queries.count), [&](int64_t index) {
    const Range queries = plan.queries(index, task.queries.count);
    visit_block(task, plan, queries, counts.radius, counts.offsets.data() + queries.begin * per_query,
                [&](int64_t query, const Hits& hits, int64_t* slots) {
                  for (int i = 0; i < hits.count; ++i) {
                    const Key key = hits.keys[i];
                    const int64_t place = lims[query] + slots[distance_of(key)]++;
                    distances[place] = distance_of(key);
                    ids[place] = task.id_of(position_of(key));
                  }
                });
  });
}

}  // namespace agmh
