#include "hamming/engine.h"
#include "hamming/parallel.h"
#include "hamming/tile.h"

namespace agmh {
namespace {

// Calls scan(queries, items) for blocks of queries and parts of the items, by as many threads as that is worth.
template <class Scan>
void for_each_block(const Task& task, const Scan& scan) {
  const Plan plan = make_plan(task, 64);
  parallel_for(plan.outer, plan.blocks(task.queries.count), [&](int64_t index) {
    const Range queries = plan.queries(index, task.queries.count);
    parallel_for(plan.parts, plan.parts, [&](int64_t part) { scan(queries, part_of(task.size(), plan.parts, part)); });
  });
}

template <class Out>
void widened(const Task& task, Out* out) {
  for_each_block(task, [&](Range queries, Range items) {
    scan_tiles(task, queries, items, [&](int64_t query, int64_t first, const int16_t* distances, int count) {
      std::copy(distances, distances + count, out + query * task.size() + first);
    });
  });
}

}  // namespace

void distance(const Task& task, uint8_t* out) {
  const int row_bytes = padded_bytes(task.bits);
  const auto kernel = kernels().distance_bytes;
  for_each_block(task, [&](Range queries, Range items) {
    scan_rows(task, queries, items,
              [&](int64_t query, const uint8_t* code, int64_t first, const uint8_t* rows, int count) {
                kernel(code, rows, count, row_bytes, out + query * task.size() + first);
              });
  });
}

void distance(const Task& task, uint16_t* out) { widened(task, out); }
void distance(const Task& task, int32_t* out) { widened(task, out); }

void distance_loop(const Task& task) {
  for_each_block(task, [&](Range queries, Range items) {
    scan_tiles(task, queries, items, [](int64_t, int64_t, const int16_t*, int) {});
  });
}

}  // namespace agmh
