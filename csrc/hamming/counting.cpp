#include "hamming/counting.h"

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
    scan_tiles(task, queries, part_of(task.size(), plan.parts, part),
               [&](int64_t query, int64_t, const int16_t* distances, int count) {
                 int64_t* of_query = counts + ((query - queries.begin) * plan.parts + part) * bins;
                 for_each_within(distances, count, static_cast<int16_t>(limit),
                                 [&](int i) { ++of_query[distances[i]]; });
               });
  });
}

void fill_block(const Task& task, const Plan& plan, Range queries, const std::vector<int16_t>& limits, int bins,
                int64_t* offsets, const std::vector<int64_t>& bases, int64_t room, int32_t* distances, int64_t* ids) {
  parallel_for(plan.parts, plan.parts, [&](int64_t part) {
    scan_tiles(task, queries, part_of(task.size(), plan.parts, part),
               [&](int64_t query, int64_t first, const int16_t* tile, int count) {
                 const size_t local = static_cast<size_t>(query - queries.begin);
                 int64_t* places = offsets + (static_cast<int64_t>(local) * plan.parts + part) * bins;
                 for_each_within(tile, count, limits[local], [&](int i) {
                   const int64_t place = places[tile[i]]++;
                   if (place >= room) return;
                   distances[bases[local] + place] = tile[i];
                   ids[bases[local] + place] = task.id_of(first + i);
                 });
               });
  });
}

}  // namespace agmh
