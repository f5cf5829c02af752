// The discrete step of the hashing objective: one sweep of coordinate descent over the bits of every database code.
#pragma once

#include <cstdint>

namespace agmh {

// G label groups, L bits, m sampled items, N database items; all arrays are dense and row-major.
struct DiscreteStep {
  const double* targets;     // (G, L): L Σ_i s_ij u_i for an item j of the group
  const int64_t* groups;     // (N): label group of each item, 0 <= group < G
  const int64_t* sampled;    // (N): the item's row of `embeddings`, or -1
  const double* embeddings;  // (m, L): U
  const double* gram;        // (L, L): Ω = UᵀU with a zero diagonal
  const float* codes;        // (N, L): before the sweep
  float* updated;            // (N, L): after it, -1 or +1
  int64_t count;             // N
  int64_t bits;              // L
  double gamma;              // weight of the quantization loss
  int threads;
};

// b_l <- sign(q_l - b · Ω_l) for l = 0..L-1 in order, q = targets[group] + γ u where the item is sampled; sign(0) = +1.
// Each row is independent of the others and its sums have a fixed order: any number of threads gives the same codes.
void discrete_step(const DiscreteStep& step);

}  // namespace agmh
