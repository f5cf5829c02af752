#include "hamming/hits.h"

#include <cstring>

namespace agmh {
namespace {

// Bytes of rows that a round of tiles may take.
constexpr int kRoundBytes = 128 << 10;

}  // namespace

bool PlaneScan::pays(int bits, int64_t queries) { return queries >= kernels().planes.enough_queries(bits); }

PlaneScan::PlaneScan(const Task& task, Range queries)
    : task_(task),
      queries_(queries),
      kernels_(kernels()),
      row_bytes_(padded_bytes(task.bits)),
      step_(kPlaneItems * std::clamp(kRoundBytes / (kPlaneItems * row_bytes_), 1, kTiles)),
      reader_(task, queries, step_),
      filter_(kernels_.planes, task.bits, reader_.query(queries.begin), static_cast<int>(queries.size())),
      limits_(static_cast<size_t>(queries.size())),
      occupied_(static_cast<size_t>(queries.size() * kTiles)),
      memory_(std::make_unique_for_overwrite<uint8_t[]>(static_cast<size_t>(step_ / 8 * queries.size() + 64))),
      words_(reinterpret_cast<uint64_t*>(aligned(memory_.get()))),
      index_(static_cast<size_t>(step_ + kIndexSlack)),
      keys_(static_cast<size_t>(step_)) {}

void PlaneScan::find(int64_t first, int count) {
  rows_ = reader_.tile(first, count);
  first_ = first;
  count_ = count;
  // Tiles that the last call had and this one has not.
  if (count < step_) std::fill(occupied_.begin(), occupied_.end(), uint8_t{0});
  for (int tile = 0; tile * kPlaneItems < count; ++tile) {
    const int done = tile * kPlaneItems;
    filter_.find(rows_ + static_cast<int64_t>(done) * row_bytes_, std::min(kPlaneItems, count - done), limits_.data(),
                 words_ + tile * queries_.size() * kPlaneWords, occupied_.data() + tile, kTiles);
  }
}

Hits PlaneScan::hits(int64_t query) {
  const int64_t own = query - queries_.begin;
  uint64_t left = 0;  // bit 8 t + w: word w of tile t has hits
  std::memcpy(&left, occupied_.data() + own * kTiles, kTiles);
  int found = kernels_.set_bits(words_ + own * kPlaneWords, queries_.size() * kPlaneWords, left, index_.data());
  // Rows that do not exist count as zeros.
  while (found > 0 && index_[static_cast<size_t>(found - 1)] >= count_) --found;
  kernels_.keys_at(reader_.query(query), rows_, row_bytes_, index_.data(), found, first_, keys_.data());
  if (task_.mask != nullptr) found = keep_unmasked(task_, query, found, keys_.data());
  return {keys_.data(), found};
}

}  // namespace agmh
