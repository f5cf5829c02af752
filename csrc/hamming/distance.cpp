#include "hamming/engine.h"
#include "hamming/parallel.h"
#include "hamming/tile.h"

namespace agmh {
namespace {

template <class Out>
void write_distances(const Task& task, Out* out) {
  const Plan plan = make_plan(task, 64);
  const int64_t size = task.size();
  parallel_for(plan.outer, plan.blocks(task.queries.count), [&](int64_t index) {
    const Range queries = plan.queries(index, task.queries.count);
    parallel_for(plan.parts, plan.parts, [&](int64_t part) {
      scan_tiles(task, queries, part_of(size, plan.parts, part),
                 [&](int64_t query, int64_t first, const int16_t* distances, int count) {
                   Out* to = out + query * size + first;
                   for (int i = 0; i < count; ++i) to[i] = static_cast<Out>(distances[i]);
                 });
    });
  });
}

}  // namespace

void distance(const Task& task, uint8_t* out) { write_distances(task, out); }
void distance(const Task& task, uint16_t* out) { write_distances(task, out); }

}  // namespace agmh
