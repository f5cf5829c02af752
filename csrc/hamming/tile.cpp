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

// Rows of widths that the compiler knows: a few loads and stores each.
template <int Width, int Bytes>
void copy_rows(const Task& task, int64_t first, int count, uint8_t* to) {
  for (int64_t position = first; position < first + count; ++position, to += Bytes) {
    std::memset(to, 0, Bytes);
    std::memcpy(to, task.items.row(task.row_of(position)), Width);
  }
}

using CopyRows = void (*)(const Task& task, int64_t first, int count, uint8_t* to);

// For rows of `width` bytes that are padded to row_bytes; null for wider ones.
CopyRows copy_of(int width, int row_bytes) {
  constexpr CopyRows kPacked[] = {copy_rows<1, 2>, copy_rows<2, 2>, copy_rows<3, 4>, copy_rows<4, 4>,
                                  copy_rows<5, 8>, copy_rows<6, 8>, copy_rows<7, 8>, copy_rows<8, 8>};
  if (width == 16 && row_bytes == 16) return copy_rows<16, 16>;
  if (width < 1 || width > 8 || padded_bytes(8 * width) != row_bytes) return nullptr;
  return kPacked[width - 1];
}

// Threads that the work of a task is worth.
int worthwhile_threads(const Task& task) {
  const int words = std::max(1, padded_bytes(task.bits) / 8);
  const double work = static_cast<double>(task.queries.count) * static_cast<double>(task.size()) * words;
  return static_cast<int>(std::clamp(work / kWorkPerThread, 1.0, static_cast<double>(task.threads)));
}

// Blocks of up to max_block queries, each by all threads, one a part of the items.
Plan split_items(const Task& task, int64_t max_block, int threads) {
  const int64_t tiles = task.size() / tile_items(padded_bytes(task.bits));
  return {std::clamp<int64_t>(task.queries.count, 1, max_block), 1,
          static_cast<int>(std::clamp<int64_t>(tiles, 1, threads))};
}

}  // namespace

Plan make_plan(const Task& task, int64_t max_block) {
  const int64_t queries = task.queries.count;
  const int threads = worthwhile_threads(task);
  if (threads > 1 && queries < 4 * static_cast<int64_t>(threads)) return split_items(task, max_block, threads);
  // Four blocks a thread even out the load, but a tile is worth loading only for several queries.
  const int64_t even = threads == 1 ? queries : std::max<int64_t>(queries / (4 * static_cast<int64_t>(threads)), 8);
  return {std::clamp<int64_t>(even, 1, max_block), threads, 1};
}

Plan make_hits_plan(const Task& task, int64_t max_block) {
  const int64_t queries = task.queries.count;
  const int threads = worthwhile_threads(task);
  // What bit planes cost by themselves is little for 64 queries.
  if (threads == 1 || queries < 64 * static_cast<int64_t>(threads)) return split_items(task, max_block, threads);
  // As many blocks for every thread, none much smaller than another.
  const int64_t least = (queries + max_block - 1) / max_block, blocks = (least + threads - 1) / threads * threads;
  return {(queries + blocks - 1) / blocks, threads, 1};
}

TileReader::TileReader(const Task& task, Range queries, int items)
    : task_(task), items_(items), row_bytes_(padded_bytes(task.bits)), first_query_(queries.begin) {
  queries_.resize(static_cast<size_t>(queries.size() * row_bytes_));
  for (int64_t q = queries.begin; q < queries.end; ++q)
    copy_padded(task.queries, q, row_bytes_, queries_.data() + (q - queries.begin) * row_bytes_);
  if (task.selected >= 0 || !task.items.padded(task.bits))
    tile_.resize(static_cast<size_t>(items) * static_cast<size_t>(row_bytes_));
}

const uint8_t* TileReader::tile(int64_t first, int count) {
  if (tile_.empty()) return task_.items.row(first);
  uint8_t* to = tile_.data();
  if (const CopyRows copy = copy_of(task_.items.width, row_bytes_))
    copy(task_, first, count, to);
  else
    for (int64_t position = first; position < first + count; ++position, to += row_bytes_)
      copy_padded(task_.items, task_.row_of(position), row_bytes_, to);
  return tile_.data();
}

}  // namespace agmh
