#include <algorithm>

#include "hamming/engine.h"
#include "hamming/parallel.h"
#include "hamming/tally.h"

namespace agmh {
namespace {

constexpr int64_t kMaxBlock = 128;

}  // namespace

void histogram(const Task& task, const Labels* labels, int64_t* out) {
  const Plan plan = make_plan(task, kMaxBlock);
  const Tallier tallier(task, labels, plan.block);
  const int64_t row = tallier.row();
  parallel_for(plan.outer, plan.blocks(task.queries.count), [&](int64_t index) {
    const Range queries = plan.queries(index, task.queries.count);
    const int64_t size = queries.size() * row;
    int64_t* block = out + queries.begin * row;
    std::fill(block, block + size, 0);
    // The first part counts into the output, the others beside it.
    std::vector<int64_t> others(static_cast<size_t>(size * (plan.parts - 1)));
    parallel_for(plan.parts, plan.parts, [&](int64_t part) {
      int64_t* counts = part == 0 ? block : others.data() + (part - 1) * size;
      tallier.add(queries, part_of(task.size(), plan.parts, part), counts);
    });
    for (int64_t part = 1; part < plan.parts; ++part)
      for (int64_t i = 0; i < size; ++i) block[i] += others[static_cast<size_t>((part - 1) * size + i)];
  });
}

}  // namespace agmh
