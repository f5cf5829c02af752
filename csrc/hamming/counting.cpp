#include "hamming/counting.h"

#include "hamming/hits.h"
#include "hamming/parallel.h"

namespace agmh {

int64_t counts_to_offsets(int64_t* counts, int parts, int bins, int64_t start) {
  int64_t place = start;
  for (int distance = 0; distance < bins; ++distance) {
    for (int part = 0; part < parts; ++part) {
      int64_t& slot = counts[static_cast<int64_t>(part) * bins + distance];
      const int64_t items = slot;
      slot = place;
      place += items;
    }
  }
  return place - start;
}

void count_block(const Task& task, const Plan& plan, Range queries, int limit, int64_t* counts) {
  const int64_t bins = limit + 1;
  parallel_for(plan.parts, plan.parts, [&](int64_t part) {
    scan_hits(
        task, queries, part_of(task.size(), plan.parts, part), [&](int64_t) { return static_cast<int16_t>(limit); },
        [&](int64_t query, const Hits& hits) {
          int64_t* of_query = counts + ((query - queries.begin) * plan.parts + part) * bins;
          for (int i = 0; i < hits.count; ++i) ++of_query[hits.distances[i]];
        });
  });
}

void fill_block(const Task& task, const Plan& plan, Range queries, const std::vector<int16_t>& limits, int bins,
                int64_t* offsets, const std::vector<int64_t>& bases, int64_t room, int32_t* distances, int64_t* ids) {
  parallel_for(plan.parts, plan.parts, [&](int64_t part) {
    scan_hits(
        task, queries, part_of(task.size(), plan.parts, part),
        [&](int64_t query) { return limits[static_cast<size_t>(query - queries.begin)]; },
        [&](int64_t query, const Hits& hits) {
          const size_t local = static_cast<size_t>(query - queries.begin);
          int64_t* places = offsets + (static_cast<int64_t>(local) * plan.parts + part) * bins;
          for (int i = 0; i < hits.count; ++i) {
            const int64_t place = places[hits.distances[i]]++;
            if (place >= room) continue;
            distances[bases[local] + place] = hits.distances[i];
            ids[bases[local] + place] = task.id_of(hits.first + hits.index[i]);
          }
        });
  });
}

}  // namespace agmh
