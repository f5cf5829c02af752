// The items within a query's limit. Few are, so that finding them is worth more than every distance: for many queries
// bit planes find them and only their distances are computed; for few queries distances are computed and compared.
#pragma once

#include <memory>
#include <vector>

#include "hamming/planes.h"
#include "hamming/tile.h"

namespace agmh {

// Some items of one query, by ascending position.
struct Hits {
  const Key* keys = nullptr;
  int count = 0;
};

// Leaves out what the query's mask does; those that stay come first, and how many they are is returned.
inline int keep_unmasked(const Task& task, int64_t query, int count, Key* keys) {
  const uint8_t* mask = task.mask + query * task.mask_stride;
  int kept = 0;
  for (int i = 0; i < count; ++i) {
    keys[kept] = keys[i];
    kept += mask[position_of(keys[i])] != 0;
  }
  return kept;
}

// Finds hits by bit planes, up to kPlaneTiles tiles at a time.
class PlaneScan {
 public:
  // Whether that is the faster way for a block of queries.
  static bool pays(int bits, int64_t queries);

  PlaneScan(const Task& task, Range queries);

  // Items that one call of find() can take.
  int step() const { return step_; }
  // The largest distance of a hit for each query of the block, to be set before find().
  int16_t* limits() { return limits_.data(); }

  // Reads `count` items from position `first` on and finds every query's hits.
  void find(int64_t first, int count);

  // Those of `query`; valid until the next call.
  Hits hits(int64_t query);

 private:
  static constexpr int kTiles = 8;  // a byte of `occupied_` each

  const Task& task_;
  Range queries_;
  const KernelSet& kernels_;
  int row_bytes_;
  int step_;
  TileReader reader_;
  PlaneFilter filter_;
  std::vector<int16_t> limits_;
  std::vector<uint8_t> occupied_;  // (queries, kTiles)
  std::unique_ptr<uint8_t[]> memory_;
  uint64_t* words_;  // (tiles, queries, kPlaneWords)
  std::vector<uint16_t> index_;
  std::vector<Key> keys_;
  const uint8_t* rows_ = nullptr;
  int64_t first_ = 0;
  int count_ = 0;
};

// Calls epilogue(query, hits) with the items within limit(query), for each query in ascending order of position.
// limit(query) may fall on the way; what it was a few tiles ago may be used.
template <class Limit, class Epilogue>
void scan_hits(const Task& task, Range queries, Range items, const Limit& limit, const Epilogue& epilogue) {
  if (!PlaneScan::pays(task.bits, queries.size())) {
    Key keys[kMaxTile + kIndexSlack];
    const int row_bytes = padded_bytes(task.bits);
    const auto near = kernels().near;
    scan_rows(task, queries, items,
              [&](int64_t query, const uint8_t* code, int64_t first, const uint8_t* rows, int count) {
                int found = near(code, rows, count, row_bytes, limit(query), first, keys);
                if (task.mask != nullptr) found = keep_unmasked(task, query, found, keys);
                if (found > 0) epilogue(query, Hits{keys, found});
              });
    return;
  }
  PlaneScan scan(task, queries);
  for (int64_t first = items.begin; first < items.end; first += scan.step()) {
    for (int64_t q = 0; q < queries.size(); ++q) scan.limits()[q] = limit(queries.begin + q);
    scan.find(first, static_cast<int>(std::min<int64_t>(scan.step(), items.end - first)));
    for (int64_t query = queries.begin; query < queries.end; ++query)
      if (const Hits hits = scan.hits(query); hits.count > 0) epilogue(query, hits);
  }
}

}  // namespace agmh
