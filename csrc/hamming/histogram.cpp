#include <algorithm>

#include "hamming/engine.h"
#include "hamming/parallel.h"
#include "hamming/tile.h"

namespace agmh {
namespace {

constexpr int64_t kMaxBlock = 64;

// Adds one part of the items to the counts of a block of queries: counts[query - first][distance][channel].
void count_part(const Task& task, const Labels* labels, Range queries, Range items, int64_t* counts) {
  const int64_t channels = labels != nullptr ? 2 : 1, row = (task.bits + 1) * channels;
  scan_tiles(task, queries, items, [&](int64_t query, int64_t first, const int16_t* distances, int count) {
    int64_t* of_query = counts + (query - queries.begin) * row;
    for_each_within(distances, count, static_cast<int16_t>(task.bits), [&](int i) {
      int64_t* bin = of_query + distances[i] * channels;
      ++bin[0];
      if (labels != nullptr && labels->relevant(query, task.row_of(first + i))) ++bin[1];
    });
  });
}

}  // namespace

void histogram(const Task& task, const Labels* labels, int64_t* out) {
  const Plan plan = make_plan(task, kMaxBlock);
  const int64_t row = (task.bits + 1) * (labels != nullptr ? 2 : 1);
  parallel_for(plan.outer, plan.blocks(task.queries.count), [&](int64_t index) {
    const Range queries = plan.queries(index, task.queries.count);
    const int64_t size = queries.size() * row;
    int64_t* block = out + queries.begin * row;
    std::fill(block, block + size, 0);
    // The first part counts into the output, the others beside it.
    std::vector<int64_t> others(static_cast<size_t>(size * (plan.parts - 1)));
    parallel_for(plan.parts, plan.parts, [&](int64_t part) {
      int64_t* counts = part == 0 ? block : others.data() + (part - 1) * size;
      count_part(task, labels, queries, part_of(task.size(), plan.parts, part), counts);
    });
    for (int64_t part = 1; part < plan.parts; ++part)
      for (int64_t i = 0; i < size; ++i) block[i] += others[static_cast<size_t>((part - 1) * size + i)];
  });
}

}  // namespace agmh
