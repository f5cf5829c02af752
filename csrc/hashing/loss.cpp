#include "hashing/loss.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "hamming/parallel.h"
#include "hashing/vectors.h"

namespace agmh {
namespace {

// Multiply-adds below which starting a thread costs more than it saves.
constexpr int64_t kWorkATask = 1 << 20;

// y = Γ x for x and y (L, kLanes); Γ is symmetric.
AGMH_VECTORS void multiply(const double* gram, int64_t bits, const double* x, double* y) {
  // Declared here, where the instruction set is known: outside, GCC would keep such a vector in memory.
  using Vector __attribute__((vector_size(kLanes / 2 * sizeof(double)))) = double;
  using Unaligned __attribute__((aligned(sizeof(double)), may_alias)) = Vector;
  const Unaligned* factors = reinterpret_cast<const Unaligned*>(x);
  Unaligned* sums = reinterpret_cast<Unaligned*>(y);
  for (int64_t l = 0; l < bits; l += 4) {
    // Rows past the last are the last once more.
    const int64_t a = l, b = std::min(l + 1, bits - 1), c = std::min(l + 2, bits - 1), d = std::min(l + 3, bits - 1);
    Vector a0{}, a1{}, b0{}, b1{}, c0{}, c1{}, d0{}, d1{};
    for (int64_t k = 0; k < bits; ++k) {
      const Vector low = factors[2 * k], high = factors[2 * k + 1];
      a0 += gram[a * bits + k] * low;
      a1 += gram[a * bits + k] * high;
      b0 += gram[b * bits + k] * low;
      b1 += gram[b * bits + k] * high;
      c0 += gram[c * bits + k] * low;
      c1 += gram[c * bits + k] * high;
      d0 += gram[d * bits + k] * low;
      d1 += gram[d * bits + k] * high;
    }
    sums[2 * a] = a0, sums[2 * a + 1] = a1;
    sums[2 * b] = b0, sums[2 * b + 1] = b1;
    sums[2 * c] = c0, sums[2 * c + 1] = c1;
    sums[2 * d] = d0, sums[2 * d + 1] = d1;
  }
}

// One image from y = Γ u, whose elements lie kLanes apart: its share of the losses before their common factor.
template <class Real>
Losses finish(const HashingLoss& loss, int64_t image, const double* y, double scale, Real* gradients) {
  const int64_t bits = loss.bits, item = loss.items[image], group = loss.groups[item];
  const double* u = loss.embedding + image * bits;
  const double* target = loss.targets + group * bits;
  const float* code = loss.codes + item * bits;
  Real* total = gradients + image * bits;
  Real* pairwise = total + loss.batch * bits;
  Real* quantization = pairwise + loss.batch * bits;
  const double length = static_cast<double>(bits), pull = 2 * scale * loss.gamma;
  double mixed = 0, distance = 0;
  for (int64_t l = 0; l < bits; ++l) {
    const double aim = 2 * length * target[l], apart = u[l] - static_cast<double>(code[l]);
    const double push = scale * (2 * y[l * kLanes] - aim);
    mixed += (y[l * kLanes] - aim) * u[l];
    distance += apart * apart;
    total[l] = static_cast<Real>(push + pull * apart);
    pairwise[l] = static_cast<Real>(push);
    quantization[l] = static_cast<Real>(pull * apart);
  }
  return {length * length * loss.square_sums[group] + mixed, distance};
}

}  // namespace

template <class Real>
Losses hashing_loss(const HashingLoss& loss, Real* gradients) {
  const int64_t bits = loss.bits, blocks = (loss.batch + kLanes - 1) / kLanes;
  const double scale = 12.0 / (static_cast<double>(bits) * static_cast<double>(loss.batch * loss.count));
  std::vector<Losses> shares(static_cast<size_t>(loss.batch));
  const auto block = [&](int64_t index) {
    const int64_t first = index * kLanes, lanes = std::min(kLanes, loss.batch - first);
    std::vector<double> x(static_cast<size_t>(bits * kLanes)), y(x.size());
    for (int64_t lane = 0; lane < lanes; ++lane)
      for (int64_t l = 0; l < bits; ++l)
        x[static_cast<size_t>(l * kLanes + lane)] = loss.embedding[(first + lane) * bits + l];
    multiply(loss.gram, bits, x.data(), y.data());
    for (int64_t lane = 0; lane < lanes; ++lane)
      shares[static_cast<size_t>(first + lane)] = finish(loss, first + lane, y.data() + lane, scale, gradients);
  };
  const int64_t tasks = std::max<int64_t>(1, loss.batch * bits * bits / kWorkATask);
  parallel_for(static_cast<int>(std::min<int64_t>(loss.threads, tasks)), blocks, block);
  Losses sum{0, 0};
  for (const Losses& share : shares) {
    sum.pairwise += share.pairwise;
    sum.quantization += share.quantization;
  }
  return {sum.pairwise * scale, sum.quantization * scale * loss.gamma};
}

template Losses hashing_loss<float>(const HashingLoss&, float*);
template Losses hashing_loss<double>(const HashingLoss&, double*);

}  // namespace agmh
