#include "hashing/discrete_step.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "hamming/parallel.h"
#include "hashing/vectors.h"

namespace agmh {
namespace {

constexpr int64_t kRowsATask = 1024;

// The sweep over one block, whose rows are lanes: score and b are (L, kLanes).
AGMH_VECTORS void sweep(const double* gram, int64_t bits, const double* score, double* b) {
  // Declared here, where the instruction set is known: outside, GCC would keep such a vector in memory.
  using Vector __attribute__((vector_size(kLanes / 2 * sizeof(double)))) = double;
  const Vector one = Vector{} + 1.0;
  for (int64_t l = 0; l < bits; ++l) {
    Vector low{}, high{}, x[2];
    const double* row = gram + l * bits;
    for (int64_t k = 0; k < bits; ++k) {
      std::memcpy(x, b + k * kLanes, sizeof x);
      low += row[k] * x[0];
      high += row[k] * x[1];
    }
    std::memcpy(x, score + l * kLanes, sizeof x);
    x[0] = x[0] >= low ? one : -one;
    x[1] = x[1] >= high ? one : -one;
    std::memcpy(b + l * kLanes, x, sizeof x);
  }
}

// Rows [first, first + lanes), lanes <= kLanes; what the other lanes hold does not matter.
void block(const DiscreteStep& step, int64_t first, int64_t lanes, double* score, double* b) {
  const int64_t bits = step.bits;
  for (int64_t lane = 0; lane < lanes; ++lane) {
    const int64_t item = first + lane;
    const double* target = step.targets + step.groups[item] * bits;
    const float* code = step.codes + item * bits;
    for (int64_t l = 0; l < bits; ++l) {
      score[l * kLanes + lane] = target[l];
      b[l * kLanes + lane] = static_cast<double>(code[l]);
    }
    if (step.sampled[item] < 0) continue;
    const double* own = step.embeddings + step.sampled[item] * bits;
    for (int64_t l = 0; l < bits; ++l) score[l * kLanes + lane] += step.gamma * own[l];
  }
  sweep(step.gram, bits, score, b);
  for (int64_t lane = 0; lane < lanes; ++lane) {
    float* code = step.updated + (first + lane) * bits;
    for (int64_t l = 0; l < bits; ++l) code[l] = static_cast<float>(b[l * kLanes + lane]);
  }
}

}  // namespace

void discrete_step(const DiscreteStep& step) {
  const int64_t tasks = (step.count + kRowsATask - 1) / kRowsATask;
  parallel_for(step.threads, tasks, [&](int64_t task) {
    std::vector<double> score(static_cast<size_t>(step.bits * kLanes)), b(score.size());
    const int64_t end = std::min(step.count, (task + 1) * kRowsATask);
    for (int64_t first = task * kRowsATask; first < end; first += kLanes)
      block(step, first, std::min(kLanes, end - first), score.data(), b.data());
  });
}

}  // namespace agmh
