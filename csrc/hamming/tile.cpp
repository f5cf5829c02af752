#include "hamming/tile.h"

namespace agmh {
namespace {

// Word comparisons that are worth a thread: some 100 microseconds against the 20 to 50 that starting one costs.
constexpr double kWorkPerThread = 1 << 18;

void copy_padded(const Codes& codes, int64_t row, int row_bytes, uint8_t* to) {
  const int bytes = std::min(codes.width, row_bytes);
  std::memcpy(to, codes.row(row), static_cast<size_t>(bytes));
  std::memset(to + bytes, 0, static_cast<size_t>(row_bytes - bytes));
}

}  // namespace

Plan make_plan(const Task& task, int64_t max_block) {
  const int64_t queries = task.queries.count, items = task.size();
  const int row_bytes = padded_bytes(task.bits), words = std::max(1, row_bytes / 8);
  const double work = static_cast<double>(queries) * static_cast<double>(items) * words;
  const int threads = static_cast<int>(std::clamp(work / kWorkPerThread, 1.0, static_cast<double>(task.threads)));
  Plan plan;
  if (threads > 1 && queries < 4 * static_cast<int64_t>(threads)) {
    plan.block = std::min(queries, max_block);
    plan.parts = static_cast<int>(std::clamp<int64_t>(items / tile_items(row_bytes), 1, threads));
  } else {
    // Four blocks a thread even out the load, but a tile is worth loading only for several queries.
    const int64_t even = threads == 1 ? queries : std::max<int64_t>(queries / (4 * static_cast<int64_t>(threads)), 8);
    plan.block = std::clamp<int64_t>(even, 1, max_block);
    plan.outer = threads;
  }
  return plan;
}

TileReader::TileReader(const Task& task, Range queries)
    : task_(task), row_bytes_(padded_bytes(task.bits)), first_query_(queries.begin) {
  queries_.resize(static_cast<size_t>(queries.size() * row_bytes_));
  for (int64_t q = queries.begin; q < queries.end; ++q)
    copy_padded(task.queries, q, row_bytes_, queries_.data() + (q - queries.begin) * row_bytes_);
  if (task.selected >= 0 || !task.items.padded(task.bits))
    tile_.resize(static_cast<size_t>(tile_items(row_bytes_)) * static_cast<size_t>(row_bytes_));
}

const uint8_t* TileReader::tile(int64_t first, int count) {
  if (tile_.empty()) return task_.items.row(first);
  uint8_t* to = tile_.data();
  for (int64_t position = first; position < first + count; ++position, to += row_bytes_)
    copy_padded(task_.items, task_.row_of(position), row_bytes_, to);
  return tile_.data();
}

}  // namespace agmh
