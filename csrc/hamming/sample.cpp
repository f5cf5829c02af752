#include "hamming/sample.h"

#include <algorithm>
#include <cmath>
#include <memory>

#include "hamming/nearest.h"

namespace agmh {
namespace {

// One item of kShare is looked at, at most kMost, at least kFew: so many cost little more than fewer.
constexpr int64_t kShare = 64, kMost = 16384, kFew = 512;
// Fewer items than this are searched without a guess.
constexpr int64_t kLeast = 64 * kShare;

// The distance of each query's k-th nearest, at most `limit`, by counting every distance.
std::vector<int16_t> counted_limits(const Task& task, Range queries, int64_t k, int limit) {
  std::vector<int16_t> limits(static_cast<size_t>(queries.size()), static_cast<int16_t>(limit));
  // Masked items are farther than any.
  std::vector<int32_t> counts(static_cast<size_t>(queries.size() * (task.bits + 2)));
  scan_tiles(task, queries, {0, task.size()}, [&](int64_t query, int64_t, const int16_t* distances, int count) {
    int32_t* const of_query = counts.data() + (query - queries.begin) * (task.bits + 2);
    for (int i = 0; i < count; ++i) ++of_query[std::min<int>(distances[i], task.bits + 1)];
  });
  for (int64_t q = 0; q < queries.size(); ++q) {
    const int32_t* const of_query = counts.data() + q * (task.bits + 2);
    int64_t within = 0;
    for (int distance = 0; distance < limit; ++distance) {
      within += of_query[distance];
      if (within < k) continue;
      limits[static_cast<size_t>(q)] = static_cast<int16_t>(distance);
      break;
    }
  }
  return limits;
}

}  // namespace

std::vector<int64_t> sample_positions(int64_t size) {
  std::vector<int64_t> positions(static_cast<size_t>(size < kLeast ? 0 : std::clamp(size / kShare, kFew, kMost)));
  // One in each of equal shares, at a place that no period of the data meets; what is left over at the end is not seen.
  const int64_t count = static_cast<int64_t>(positions.size());
  const uint64_t share = count == 0 ? 0 : static_cast<uint64_t>(size / count);
  uint64_t state = 0, begin = 0;
  for (int64_t& position : positions) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    // The upper 24 bits scale a share of less than 2^40 items without a division.
    position = static_cast<int64_t>(begin + ((state >> 40) * share >> 24));
    begin += share;
  }
  return positions;
}

std::vector<int16_t> guess_limits(const Task& task, Range queries, int64_t k, int limit) {
  std::vector<int16_t> limits(static_cast<size_t>(queries.size()), static_cast<int16_t>(limit));
  const std::vector<int64_t> positions = sample_positions(task.size());
  const int64_t size = task.size(), count = static_cast<int64_t>(positions.size());
  if (count == 0) return limits;
  // Of the k nearest `expected` are in the sample, give or take their root: what holds three roots more is safe, and if
  // it is all k nothing can be missing.
  const double expected = static_cast<double>(k) * static_cast<double>(count) / static_cast<double>(size);
  const int64_t needed = std::min(k, static_cast<int64_t>(expected + 3 * std::sqrt(expected)) + 2);
  if (needed > count / 4) return limits;

  std::vector<int64_t> rows(positions.size());
  for (size_t i = 0; i < rows.size(); ++i) rows[i] = task.row_of(positions[i]);
  Task sample = task;
  sample.selection = rows.data();
  sample.selected = count;
  std::vector<uint8_t> mask;
  if (task.mask != nullptr) {
    // Rows of the block only, and from its first query on.
    mask.reserve(static_cast<size_t>(queries.size() * count));
    for (int64_t q = queries.begin; q < queries.end; ++q)
      for (const int64_t position : positions) mask.push_back(task.mask[q * task.mask_stride + position]);
    sample.mask = mask.data() - queries.begin * count;
    sample.mask_stride = count;
  }
  if (count <= kFew) return counted_limits(sample, queries, needed, limit);
  // The sample itself is searched within a guess from some of it.
  const std::vector<int16_t> within = guess_limits(sample, queries, needed, limit);
  const int64_t capacity = Nearest::capacity(needed);
  const auto keys = std::make_unique_for_overwrite<Key[]>(static_cast<size_t>(queries.size() * capacity));
  std::vector<Nearest> nearest;
  nearest.reserve(limits.size());
  for (int64_t q = 0; q < queries.size(); ++q)
    nearest.emplace_back(needed, within[static_cast<size_t>(q)], keys.get() + q * capacity);
  DistanceCounts counts(limit);
  const auto of = [&](int64_t query) -> Nearest& { return nearest[static_cast<size_t>(query - queries.begin)]; };
  scan_hits(
      sample, queries, {0, count}, [&](int64_t query) { return of(query).limit(); },
      [&](int64_t query, const Hits& hits) { of(query).add(hits, counts); });
  for (size_t q = 0; q < limits.size(); ++q)
    if (nearest[q].size() >= needed) limits[q] = nearest[q].farthest(counts);
  return limits;
}

}  // namespace agmh
