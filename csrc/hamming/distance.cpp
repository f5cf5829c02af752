#include "hamming/engine.h"
#include "hamming/parallel.h"
#include "hamming/tile.h"

namespace agmh {
namespace {

template <class Epilogue>
void for_each_tile(const Task& task, const Epilogue& epilogue) {
  const Plan plan = make_plan(task, 64);
  parallel_for(plan.outer, plan.blocks(task.queries.count), [&](int64_t index) {
    const Range queries = plan.queries(index, task.queries.count);
    parallel_for(plan.parts, plan.parts,
                 [&](int64_t part) { scan_tiles(task, queries, part_of(task.size(), plan.parts, part), epilogue); });
  });
}

template <class Out>
void write_distances(const Task& task, Out* out) {
  const int64_t size = task.size();
  for_each_tile(task, [&](int64_t query, int64_t first, const int16_t* distances, int count) {
    Out* to = out + query * size + first;
    for (int i = 0; i < count; ++i) to[i] = static_cast<Out>(distances[i]);
  });
}

}  // namespace

void distance(const Task& task, uint8_t* out) { write_distances(task, out); }
void distance(const Task& task, uint16_t* out) { write_distances(task, out); }

void distance_loop(const Task& task) {
  for_each_tile(task, [](int64_t, int64_t, const int16_t*, int) {});
}

}  // namespace agmh
