// A guess at a query's k-th distance from some of the items, so that few others pass for hits.
#pragma once

#include <cstdint>
#include <vector>

#include "hamming/tile.h"

namespace agmh {

// The positions looked at among `size`, ascending; none where a guess is not worth it.
std::vector<int64_t> sample_positions(int64_t size);

// For each query a distance, at most `limit`, that probably has k items within it and not many more.
std::vector<int16_t> guess_limits(const Task& task, Range queries, int64_t k, int limit);

}  // namespace agmh
