// The asymmetric hashing loss of a batch from group sums, with its gradient: docs/math.md §4.
#pragma once

#include <cstdint>

namespace agmh {

// B images, L bits, N database items, G label groups; all arrays are dense and row-major.
struct HashingLoss {
  const double* embedding;    // (B, L): u
  const int64_t* items;       // (B): database position of each image, 0 <= item < N
  const int64_t* groups;      // (N): label group of each item, 0 <= group < G
  const double* targets;      // (G, L): t = Σ_j s_ij b_j of an image i of the group
  const double* square_sums;  // (G): Σ_j s_ij²
  const double* gram;         // (L, L): Γ = Σ_j b_j b_jᵀ
  const float* codes;         // (N, L): b
  int64_t batch;              // B
  int64_t bits;               // L
  int64_t count;              // N
  double gamma;               // weight of the quantization loss
  int threads;
};

struct Losses {
  double pairwise;      // 12/(L·B·N) Σ_i (L² Σ_j s_ij² − 2L u_i·t_i + u_iᵀ Γ u_i)
  double quantization;  // 12γ/(L·B·N) Σ_i ‖u_i − b_i‖²
};

// The losses, and in `gradients` (3, B, L) the gradients in u of their sum, of the first and of the second. Sums have a
// fixed order: any number of threads gives the same. Real: float or double.
template <class Real>
Losses hashing_loss(const HashingLoss& loss, Real* gradients);

}  // namespace agmh
