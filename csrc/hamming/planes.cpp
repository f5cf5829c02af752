#include "hamming/planes.h"

#include <algorithm>
#include <bit>

#include "hamming/layout.h"

namespace agmh {
namespace {

int bit_of(const uint8_t* row, int position) { return position < 0 ? 0 : row[position / 8] >> (position % 8) & 1; }

}  // namespace

PlanePlan plane_plan(int bits) {
  // Counts go up to 2^levels − 1 >= bits; widths up to 64 bits share a few plans.
  if (bits <= 12) return {4, 4, 1};
  if (bits <= 15) return {5, 4, 1};
  if (bits <= 24) return {8, 5, 1};
  if (bits <= 31) return {11, 5, 1};
  if (bits <= 48) return {16, 6, 1};
  if (bits <= 63) return {21, 6, 1};
  if (bits <= 64) return {22, 7, 1};
  return {43, std::max(8, static_cast<int>(std::bit_width(static_cast<unsigned>(bits)))), (bits + 127) / 128};
}

void plane_positions(int bits, int chunk, const PlanePlan& plan, int16_t* positions) {
  const int first = chunk * plan.chunk_bits(), whole = bits / 8 * 8;
  for (int i = 0; i < 3 * plan.triples; ++i) {
    const int bit = first + i;
    const bool there = bit < bits && i < plan.chunk_bits();
    // A row's last byte fills from its high bit down.
    positions[i] = static_cast<int16_t>(!there ? -1 : bit < whole ? bit : whole + 7 - bit % 8);
  }
}

PlaneFilter::PlaneFilter(const PlaneKernels& kernels, int bits, const uint8_t* queries, int count)
    : kernels_(kernels), row_bytes_(padded_bytes(bits)), queries_(count), plan_(plane_plan(bits)) {
  const size_t row = static_cast<size_t>(2 * plan_.triples);
  offsets_.resize(static_cast<size_t>(plan_.chunks) * static_cast<size_t>(count) * row);
  positions_.resize(static_cast<size_t>(plan_.chunks * 3 * plan_.triples));
  uint16_t* to = offsets_.data();
  for (int chunk = 0; chunk < plan_.chunks; ++chunk) {
    int16_t* const positions = positions_.data() + chunk * 3 * plan_.triples;
    plane_positions(bits, chunk, plan_, positions);
    for (int q = 0; q < count; ++q)
      for (int t = 0; t < plan_.triples; ++t) {
        const int16_t* at = positions + 3 * t;
        const uint8_t* code = queries + static_cast<int64_t>(q) * row_bytes_;
        const int value = bit_of(code, at[0]) | bit_of(code, at[1]) << 1 | bit_of(code, at[2]) << 2;
        const int odd = std::popcount(static_cast<unsigned>(value)) & 1;
        *to++ = static_cast<uint16_t>(kPlaneBytes * (kTriplePlanes * t + odd));
        *to++ = static_cast<uint16_t>(kPlaneBytes * (kTriplePlanes * t + 2 + value));
      }
  }
  const int64_t table = kPlaneBytes * kTriplePlanes * plan_.triples;
  const int64_t state = plan_.chunks > 1 ? int64_t{kPlaneBytes} * count * (plan_.levels + 1) : 0;
  scratch_ = std::make_unique_for_overwrite<uint8_t[]>(static_cast<size_t>(64 + table + state));
  table_ = aligned(scratch_.get());
  state_ = reinterpret_cast<uint64_t*>(table_ + table);
}

void PlaneFilter::chunk(int index, const uint8_t* rows, int count, PlaneCount task) {
  const int64_t row = 2 * plan_.triples;
  kernels_.build(rows, count, row_bytes_, index, positions_.data() + index * 3 * plan_.triples, plan_, table_);
  task.table = table_;
  task.offsets = offsets_.data() + index * queries_ * row;
  task.stride = row;
  task.queries = queries_;
  task.first = index == 0;
  kernels_.count(plan_, task);
}

void PlaneFilter::find(const uint8_t* rows, int count, const int16_t* limits, uint64_t* hits, uint8_t* occupied,
                       int64_t occupied_stride) {
  for (int index = 0; index < plan_.chunks; ++index)
    chunk(index, rows, count,
          {.limits = limits,
           .last = index == plan_.chunks - 1,
           .state = state_,
           .hits = hits,
           .occupied = occupied,
           .occupied_stride = occupied_stride});
}

void PlaneFilter::planes(const uint8_t* rows, int count, uint64_t* out) {
  // Counted from zero, and never turned into hits.
  const std::vector<int16_t> all(static_cast<size_t>(queries_), static_cast<int16_t>((1 << plan_.levels) - 1));
  for (int index = 0; index < plan_.chunks; ++index)
    chunk(index, rows, count, {.limits = all.data(), .last = false, .state = out});
}

}  // namespace agmh
