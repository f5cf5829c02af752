#include "attention/peak_response.h"

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "attention/kernel_table.h"

namespace agmh {

namespace {

// The best that this CPU runs, or less where AGMH_FAST_ISA asks for it, as the Hamming engine does.
const KernelTable& best_table() {
#if defined(__x86_64__)
  const char* named = std::getenv("AGMH_FAST_ISA");
  const std::string limit = named == nullptr ? "" : named;
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
                      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
  if (avx512 && limit != "avx2" && limit != "popcnt" && limit != "generic") return avx512::kTable;
  if (avx2 && limit != "popcnt" && limit != "generic") return avx2::kTable;
#endif
  return generic::kTable;
}

}  // namespace

const KernelTable& kernel_table() {
  static const KernelTable& table = best_table();
  return table;
}

namespace {

// Sums over images are formed in this many parts, whatever the number of threads, and the parts added in order. A part
// of the weights' gradient is as large as the weights.
constexpr int64_t kParts = 8;
constexpr int64_t kWeightParts = 3;

std::unique_ptr<float[]> floats(int64_t count) {
  return std::make_unique_for_overwrite<float[]>(static_cast<size_t>(count));
}

// body(task, scratch) for every task in [0, count); each thread has `scratch_size` floats for itself.
template <class Body>
void for_each(const Team& team, int64_t count, int64_t scratch_size, const Body& body) {
  std::atomic<int64_t> next{0};
  team([&] {
    std::unique_ptr<float[]> scratch;
    for (int64_t task = next++; task < count; task = next++) {
      if (!scratch) scratch = floats(scratch_size);
      body(task, scratch.get());
    }
  });
}

// The panels of D matrices, each depth × columns with the given strides, as the right side of products.
std::unique_ptr<float[]> pack(const PeakShape& shape, const float* from, int64_t depth, int64_t columns, int64_t step,
                              int64_t column, const Team& team) {
  const int64_t size = depth * padded(columns);
  auto panels = floats(shape.descriptors * size);
  for_each(team, shape.descriptors, 1, [&](int64_t d, float*) {
    kernel_table().pack(from + d * depth * columns, depth, columns, step, column, panels.get() + d * size);
  });
  return panels;
}

// A matrix (rows, columns) with rows padded to whole panels: the one that was given where it has that form already.
class Padded {
 public:
  Padded(int64_t rows, int64_t columns, const float* from, float padding) : data_(from) {
    const int64_t width = padded(columns);
    if (from == nullptr || width == columns) return;
    own_ = floats(rows * width);
    for (int64_t i = 0; i < rows; ++i) {
      std::copy(from + i * columns, from + (i + 1) * columns, own_.get() + i * width);
      std::fill(own_.get() + i * width + columns, own_.get() + (i + 1) * width, padding);
    }
    data_ = own_.get();
  }

  const float* get() const { return data_; }

 private:
  const float* data_;
  std::unique_ptr<float[]> own_;
};

Tile tile_of(const FeatureView& x, const PeakShape& shape, int64_t image, int64_t descriptor) {
  const int64_t at = image * x.image + descriptor * x.descriptor;
  return {static_cast<char*>(x.data) + at * (x.bfloat16 ? 2 : 4),
          x.bfloat16,
          shape.channels,
          shape.positions,
          x.channel,
          x.position};
}

// First image of part `part` of `parts` of the batch.
int64_t first_image(const PeakShape& shape, int64_t part, int64_t parts) { return part * shape.images / parts; }

}  // namespace

void attend(const Attend& task, const Team& team) {
  const auto [images, D, C, K, n] = task.shape;
  const int64_t Kp = padded(K), tile = scratch_size(task.shape);
  const bool moments = task.mean != nullptr;
  const auto weight = pack(task.shape, task.weight, C, K, 1, C, team);
  const auto sums = floats(moments ? D * kParts * Kp : 1), products = floats(moments ? D * kParts * Kp * Kp : 1);
  const KernelTable& kernels = kernel_table();
  for_each(team, D * kParts, tile + n * Kp, [&, D = D, K = K, n = n, C = C](int64_t i, float* scratch) {
    const int64_t d = i % D, part = i / D, slot = d * kParts + part;
    float *sum = sums.get() + slot * Kp, *product = products.get() + slot * Kp * Kp;
    if (moments) {
      std::fill(sum, sum + Kp, 0.0f);
      std::fill(product, product + Kp * Kp, 0.0f);
    }
    for (int64_t b = first_image(task.shape, part, kParts); b < first_image(task.shape, part + 1, kParts); ++b) {
      float* a = task.attention + (b * D + d) * n * Kp;
      kernels.attend(tile_of(task.features, task.shape, b, d), weight.get() + d * C * Kp, K, a,
                     task.slot_sum + (b * D + d) * n, scratch);
      if (moments) kernels.add_moments(a, n, K, sum, product, scratch + tile);
    }
  });
  if (!moments) return;
  const double count = static_cast<double>(images * n);
  for_each(team, D, 1, [&, K = K](int64_t d, float*) {
    std::vector<double> mean(static_cast<size_t>(K), 0.0);
    for (int64_t part = 0; part < kParts; ++part)
      for (int64_t k = 0; k < K; ++k) mean[k] += static_cast<double>(sums[(d * kParts + part) * Kp + k]);
    for (int64_t k = 0; k < K; ++k) {
      mean[k] /= count;
      task.mean[d * K + k] = mean[k] + static_cast<double>(1.0f / static_cast<float>(K));
    }
    for (int64_t i = 0; i < K; ++i)
      for (int64_t j = i; j < K; ++j) {
        double sum = 0;
        for (int64_t part = 0; part < kParts; ++part)
          sum += static_cast<double>(products[((d * kParts + part) * Kp + i) * Kp + j]);
        const double covariance = sum / count - mean[i] * mean[j];
        task.covariance[(d * K + i) * K + j] = task.covariance[(d * K + j) * K + i] = covariance;
      }
  });
}

void peak(const Peak& task, const Team& team) {
  const auto [images, D, C, K, n] = task.shape;
  const int64_t Kp = padded(K), Cp = padded(C);
  const auto projection = pack(task.shape, task.projection, K, C, 1, K, team);
  const Padded shift(D, C, task.shift, -std::numeric_limits<float>::infinity());
  const KernelTable& kernels = kernel_table();
  for_each(team, images * D, scratch_size(task.shape), [&, D = D, K = K, n = n](int64_t i, float* scratch) {
    const int64_t d = i % D;
    kernels.peak(tile_of(task.features, task.shape, i / D, d), task.attention + i * n * Kp,
                 projection.get() + d * K * Cp, shift.get() + d * Cp, K, task.peaks + i * n, task.channel + i * n,
                 scratch);
  });
}

void channel_sums(const ChannelSums& task, const Team& team) {
  const auto [images, D, C, K, n] = task.shape;
  const int64_t Kp = padded(K), share = (C + kParts - 1) / kParts;
  // A task owns some channels of a descriptor and looks for their positions: the order of a sum never varies.
  for_each(team, D * kParts, 1, [&, images = images, D = D, C = C, K = K, n = n](int64_t i, float*) {
    const int64_t d = i % D, first = i / D * share, last = std::min(C, first + share);
    if (first >= last) return;
    float *sums = task.sums + d * C * K, *counts = task.counts + d * C;
    std::fill(sums + first * K, sums + last * K, 0.0f);
    std::fill(counts + first, counts + last, 0.0f);
    for (int64_t b = 0; b < images; ++b)
      for (int64_t p = (b * D + d) * n; p < (b * D + d + 1) * n; ++p) {
        const int64_t c = task.channel[p];
        const float g = task.grad[p];
        if (c < first || c >= last || g == 0.0f) continue;
        counts[c] += g;
        const float* a = task.attention + p * Kp;
        float* sum = sums + c * K;
        for (int64_t k = 0; k < K; ++k) sum[k] += g * a[k];
      }
  });
}

void spread(const Spread& task, const Team& team) {
  const auto [images, D, C, K, n] = task.shape;
  const int64_t Kp = padded(K), Cp = padded(C);
  const bool trained = task.feedback != nullptr;
  const auto weight = pack(task.shape, task.weight, K, C, C, 1, team);
  const Padded projection(D * C, K, task.projection, 0.0f);
  const auto feedback = trained ? pack(task.shape, task.feedback, K, K, 1, K, team) : nullptr;
  const Padded offset(D, K, task.offset, 0.0f);
  const auto dweight = floats(D * kWeightParts * C * Kp);
  const KernelTable& kernels = kernel_table();
  const int64_t size = scratch_size(task.shape) + (n + 1) * Kp;
  for_each(team, D * kWeightParts, size, [&, D = D, C = C, K = K, n = n](int64_t i, float* scratch) {
    const int64_t d = i % D, part = i / D;
    float* sum = dweight.get() + (d * kWeightParts + part) * C * Kp;
    std::fill(sum, sum + C * Kp, 0.0f);
    for (int64_t b = first_image(task.shape, part, kWeightParts); b < first_image(task.shape, part + 1, kWeightParts);
         ++b) {
      const int64_t at = (b * D + d) * n;
      kernels.spread(tile_of(task.features, task.shape, b, d), task.grad + at, task.channel + at,
                     task.attention + at * Kp, task.slot_sum + at, projection.get() + d * C * Kp,
                     trained ? feedback.get() + d * K * Kp : nullptr, trained ? offset.get() + d * Kp : nullptr,
                     weight.get() + d * K * Cp, K, tile_of(task.dfeatures, task.shape, b, d), sum, scratch,
                     scratch + (n + 1) * Kp);
    }
  });
  for_each(team, D, 1, [&, C = C, K = K](int64_t d, float*) {
    const float* parts = dweight.get() + d * kWeightParts * C * Kp;
    for (int64_t k = 0; k < K; ++k)
      for (int64_t c = 0; c < C; ++c) {
        float sum = 0;
        for (int64_t part = 0; part < kWeightParts; ++part) sum += parts[(part * C + c) * Kp + k];
        task.dweight[(d * K + k) * C + c] = sum;
      }
  });
}

}  // namespace agmh
