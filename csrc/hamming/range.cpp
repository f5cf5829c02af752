#include <algorithm>

#include "hamming/counting.h"
#include "hamming/engine.h"
#include "hamming/parallel.h"
#include "hamming/tile.h"

namespace agmh {
namespace {

constexpr int64_t kMaxBlock = 256;

}  // namespace

RangeCounts range_count(const Task& task, int radius, int64_t* lims) {
  const Plan plan = make_hits_plan(task, kMaxBlock);
  const int64_t count = task.queries.count;
  RangeCounts counts{std::clamp(radius, 0, task.bits), {}};
  const int64_t bins = counts.radius + 1, per_query = plan.parts * bins;
  counts.offsets.resize(static_cast<size_t>(count * per_query));
  int64_t* offsets = counts.offsets.data();
  lims[0] = 0;
  parallel_for(plan.outer, plan.blocks(count), [&](int64_t index) {
    const Range queries = plan.queries(index, count);
    count_block(task, plan, queries, counts.radius, offsets + queries.begin * per_query);
    for (int64_t q = queries.begin; q < queries.end; ++q)
      lims[q + 1] = counts_to_offsets(offsets + q * per_query, plan.parts, static_cast<int>(bins), 0);
  });
  for (int64_t q = 0; q < count; ++q) lims[q + 1] += lims[q];
  return counts;
}

void range_fill(const Task& task, RangeCounts counts, const int64_t* lims, int32_t* distances, int64_t* ids) {
  const Plan plan = make_hits_plan(task, kMaxBlock);
  const int bins = counts.radius + 1;
  parallel_for(plan.outer, plan.blocks(task.queries.count), [&](int64_t index) {
    const Range queries = plan.queries(index, task.queries.count);
    const std::vector<int16_t> limits(static_cast<size_t>(queries.size()), static_cast<int16_t>(counts.radius));
    const std::vector<int64_t> bases(lims + queries.begin, lims + queries.end);
    fill_block(task, plan, queries, limits, bins, counts.offsets.data() + queries.begin * plan.parts * bins, bases,
               std::numeric_limits<int64_t>::max(), distances, ids);
  });
}

}  // namespace agmh
