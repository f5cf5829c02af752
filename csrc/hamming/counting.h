// Placing items by counting: a first scan counts the items at each distance, the counts become output positions, and a
// second scan writes each item where it belongs. Stable, so the order is (distance, position), and free of any buffer.
#pragma once

#include <vector>

#include "hamming/tile.h"

namespace agmh {

// counts[part, distance] of one query, turned into the place of each part's first item at each distance.
// Returns the number of items counted.
int64_t counts_to_offsets(int64_t* counts, int parts, int bins, int64_t start);

// Adds the items of every query of the block to counts[(query - first) * parts + part][distance], distances <= limit.
void count_block(const Task& task, const Plan& plan, Range queries, int limit, int64_t* counts);

// Writes items with distance <= limits[query - first] whose place, taken from `offsets` as laid out above, is below
// `room`: to distances[bases[query - first] + place] and the same of ids.
void fill_block(const Task& task, const Plan& plan, Range queries, const std::vector<int16_t>& limits, int bins,
                int64_t* offsets, const std::vector<int64_t>& bases, int64_t room, int32_t* distances, int64_t* ids);

}  // namespace agmh
