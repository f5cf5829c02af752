// Peak response on a CPU, docs/math.md §2 and §3: what is left of F -> M and its gradient once the weights are
// composed. README.md has the formulas, the passes over memory and the layouts.
#pragma once

#include <cstdint>
#include <functional>

namespace agmh {

// Channels and slots are padded to whole panels: kPanel is a multiple of two vectors of every instruction set.
constexpr int64_t kPanel = 32;
constexpr int64_t padded(int64_t count) { return (count + kPanel - 1) / kPanel * kPanel; }

// Runs its argument on each of a team of threads, the caller's among them, and returns when all are done.
using Team = std::function<void(const std::function<void()>&)>;

struct PeakShape {
  int64_t images;       // B
  int64_t descriptors;  // D
  int64_t channels;     // C of one descriptor
  int64_t slots;        // K
  int64_t positions;    // n
};

// Features (B, D, C, n) by strides in elements, float32 or bfloat16.
struct FeatureView {
  void* data;
  bool bfloat16;
  int64_t image, descriptor, channel, position;
};

// Softmax of z = W_z F over positions, normalised over slots; padded slots are zero.
struct Attend {
  PeakShape shape;
  FeatureView features;
  const float* weight;  // (D, K, C): W_z
  float* attention;     // out (B, D, n, padded K): a
  float* slot_sum;      // out (B, D, n): 1e-9 + Σ_slots s
  double* mean;         // out (D, K): μ over the images' positions, or null where no moments are asked for
  double* covariance;   // out (D, K, K): Σ, biased
};
void attend(const Attend& task, const Team& team);

// max(0, max_c P'_c·a + shift_c + F_c) and the first such c; NaN where a response is NaN.
struct Peak {
  PeakShape shape;
  FeatureView features;
  const float* attention;   // (B, D, n, padded K)
  const float* projection;  // (D, C, K): P'
  const float* shift;       // (D, C)
  float* peaks;             // out (B, D, n)
  int32_t* channel;         // out (B, D, n)
};
void peak(const Peak& task, const Team& team);

// S_c = Σ g a and dβ_c = Σ g over the positions whose peak is channel c.
struct ChannelSums {
  PeakShape shape;
  const float* grad;  // (B, D, n): g, zero where the peak is zero
  const int32_t* channel;
  const float* attention;
  float* sums;    // out (D, C, K)
  float* counts;  // out (D, C)
};
void channel_sums(const ChannelSums& task, const Team& team);

// dz = w − s Σ_positions w with w = a (da − Σ_slots a da), da = g P'_{c*} − a Rᵀ − v; dF = W_zᵀ dz + g at c*; dW_z.
struct Spread {
  PeakShape shape;
  FeatureView features;
  const float* grad;
  const int32_t* channel;
  const float* attention;
  const float* slot_sum;
  const float* weight;      // (D, K, C)
  const float* projection;  // (D, C, K): P'
  const float* feedback;    // (D, K, K): R, or null where the statistics were given
  const float* offset;      // (D, K): v, or null
  FeatureView dfeatures;    // out
  float* dweight;           // out (D, K, C)
};
void spread(const Spread& task, const Team& team);

}  // namespace agmh
