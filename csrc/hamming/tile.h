// The one loop that all results come from: tiles of items, and for each tile all queries of a block, so that a tile is
// read from memory once a block. What becomes of the distances is the epilogue's business.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "hamming/engine.h"
#include "hamming/kernels.h"

namespace agmh {

struct Range {
  int64_t begin = 0;
  int64_t end = 0;
  int64_t size() const { return end - begin; }
};

// The distance of a masked item: above any threshold.
inline constexpr int16_t kExcluded = std::numeric_limits<int16_t>::max();

// Items a tile: half an L1 cache of codes, at most kMaxTile.
constexpr int tile_items(int row_bytes) { return std::clamp(16384 / row_bytes, 32, kMaxTile); }

// Part `index` of `parts` of [0, size), in order.
inline Range part_of(int64_t size, int64_t parts, int64_t index) {
  const int64_t whole = size / parts, rest = size % parts;
  const int64_t begin = whole * index + std::min(rest, index);
  return {begin, begin + whole + (index < rest ? 1 : 0)};
}

// How a task is cut: blocks of queries, handed to `outer` threads; or each block by all threads, one a part of the
// items. One of the two is 1.
struct Plan {
  int64_t block = 1;
  int outer = 1;
  int parts = 1;

  int64_t blocks(int64_t queries) const { return (queries + block - 1) / block; }
  Range queries(int64_t index, int64_t count) const { return {index * block, std::min(count, (index + 1) * block)}; }
};
Plan make_plan(const Task& task, int64_t max_block);
// For scan_hits, which takes to larger blocks.
Plan make_hits_plan(const Task& task, int64_t max_block);

// Tiles of up to `items` padded rows and the padded queries of a block; rows that lie padded already are not copied.
class TileReader {
 public:
  TileReader(const Task& task, Range queries, int items);
  const uint8_t* query(int64_t query) const { return queries_.data() + (query - first_query_) * row_bytes_; }
  const uint8_t* tile(int64_t first, int count);
  // Where the rows from `first` on lie, if a whole tile of them lies there before `end`; else null.
  const uint8_t* ahead(int64_t first, int64_t end) const {
    return tile_.empty() && first + items_ <= end ? task_.items.row(first) : nullptr;
  }

 private:
  const Task& task_;
  int items_;
  int row_bytes_;
  int64_t first_query_;
  std::vector<uint8_t> queries_;
  std::vector<uint8_t> tile_;
};

// Calls visit(query, code, first, rows, count) for each tile of `items` and each query, tiles in ascending order:
// `rows` are the `count` padded rows from position `first` on, `code` is the query's. Masks are the caller's business.
template <class Visit>
void scan_rows(const Task& task, Range queries, Range items, const Visit& visit) {
  const int row_bytes = padded_bytes(task.bits), step = tile_items(row_bytes);
  TileReader reader(task, queries, step);
  // Each query's share of the next tile's bytes: fetched from memory while this tile is worked on.
  const int64_t share = (int64_t{step} * row_bytes + queries.size() - 1) / queries.size();
  for (int64_t first = items.begin; first < items.end; first += step) {
    const int count = static_cast<int>(std::min<int64_t>(step, items.end - first));
    const uint8_t* tile = reader.tile(first, count);
    const uint8_t* next = reader.ahead(first + step, items.end);
    for (int64_t query = queries.begin; query < queries.end; ++query) {
      if (next != nullptr) {
        for (int64_t byte = 0; byte < share; byte += 64) __builtin_prefetch(next + byte);
        next += share;
      }
      visit(query, reader.query(query), first, tile, count);
    }
  }
}

// Calls epilogue(query, first, distances, count) likewise: distances[i] belongs to position first + i and is kExcluded
// where the mask leaves that item out.
template <class Epilogue>
void scan_tiles(const Task& task, Range queries, Range items, const Epilogue& epilogue) {
  const int row_bytes = padded_bytes(task.bits);
  const DistanceKernel kernel = kernels().distances(row_bytes);
  alignas(64) int16_t distances[kMaxTile];
  scan_rows(task, queries, items,
            [&](int64_t query, const uint8_t* code, int64_t first, const uint8_t* rows, int count) {
              kernel(code, rows, count, row_bytes / 8, distances);
              if (task.mask != nullptr) {
                const uint8_t* mask = task.mask + query * task.mask_stride + first;
                for (int i = 0; i < count; ++i) distances[i] = mask[i] != 0 ? distances[i] : kExcluded;
              }
              epilogue(query, first, static_cast<const int16_t*>(distances), count);
            });
}

}  // namespace agmh
