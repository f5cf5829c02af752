// The four functions of the peak response against the formulas in double, on odd shapes, layouts and types, with one
// thread and with three, which must agree bit by bit. Built with the sanitizers by test_attention.py and run for each
// instruction set; outputs start as NaN, so an element never written shows.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <random>
#include <thread>
#include <vector>

#include "attention/peak_response.h"

namespace {

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
std::mt19937 generator(1);

std::vector<float> normal(int64_t count, float scale) {
  std::normal_distribution<float> draw(0, scale);
  std::vector<float> values(static_cast<size_t>(count));
  for (float& x : values) x = draw(generator);
  return values;
}

void run_on(int threads, const std::function<void()>& work) {
  std::vector<std::thread> team;
  for (int i = 1; i < threads; ++i) team.emplace_back(work);
  work();
  for (std::thread& thread : team) thread.join();
}

struct Layout {
  const char* name;
  bool last, gaps, bfloat16;
};

// Features (B, D, C, n) in some layout; values are bfloat16 numbers, so that every type holds them exactly.
struct Features {
  std::vector<float> values;  // (B, D, C, n)
  std::vector<char> memory;
  agmh::FeatureView view;

  Features(const agmh::PeakShape& s, const Layout& layout, std::vector<float> given) : values(std::move(given)) {
    const int64_t rows = s.descriptors * s.channels, gap = layout.gaps ? 2 : 1;
    const int64_t channel = layout.last ? gap : s.positions * gap, position = layout.last ? rows * gap : gap;
    view = {nullptr, layout.bfloat16, rows * s.positions * gap, s.channels * channel, channel, position};
    // Exactly as much as the last element needs: one byte further is out of bounds.
    const int64_t last = (s.images - 1) * view.image + (rows - 1) * channel + (s.positions - 1) * position;
    memory.resize(static_cast<size_t>((last + 1) * size()));
    view.data = memory.data();
    each(s, [&](int64_t i, int64_t at) {
      uint32_t bits;
      std::memcpy(&bits, &values[static_cast<size_t>(i)], 4);
      bits &= 0xffff0000;
      std::memcpy(&values[static_cast<size_t>(i)], &bits, 4);
      if (layout.bfloat16) bits >>= 16;
      std::memcpy(memory.data() + at * size(), &bits, static_cast<size_t>(size()));
    });
  }

  int64_t size() const { return view.bfloat16 ? 2 : 4; }

  template <class Visit>
  void each(const agmh::PeakShape& s, const Visit& visit) const {
    int64_t i = 0;
    for (int64_t b = 0; b < s.images; ++b)
      for (int64_t d = 0; d < s.descriptors; ++d)
        for (int64_t c = 0; c < s.channels; ++c)
          for (int64_t p = 0; p < s.positions; ++p)
            visit(i++, b * view.image + d * view.descriptor + c * view.channel + p * view.position);
  }

  std::vector<float> read(const agmh::PeakShape& s) const {
    std::vector<float> out(values.size());
    each(s, [&](int64_t i, int64_t at) {
      uint32_t bits = 0;
      std::memcpy(&bits, memory.data() + at * size(), static_cast<size_t>(size()));
      if (view.bfloat16) bits <<= 16;
      std::memcpy(&out[static_cast<size_t>(i)], &bits, 4);
    });
    return out;
  }
};

// ‖a − b‖ / ‖b‖, and the end of the run where that is not below the budget.
template <class A, class B>
void close(const char* what, const std::vector<A>& actual, const std::vector<B>& expected, double budget) {
  double off = 0, size = 0;
  for (size_t i = 0; i < expected.size(); ++i) {
    const double a = static_cast<double>(actual[i]), e = static_cast<double>(expected[i]);
    off += (a - e) * (a - e);
    size += e * e;
  }
  if (std::sqrt(off) <= budget * std::sqrt(size)) return;
  std::printf("FAILED %s: error %g of %g\n", what, std::sqrt(off), std::sqrt(size));
  std::exit(1);
}

template <class T>
void same(const char* what, const std::vector<T>& a, const std::vector<T>& b) {
  if (a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0) return;
  std::printf("FAILED %s differs with the number of threads\n", what);
  std::exit(1);
}

size_t z(int64_t i) { return static_cast<size_t>(i); }

struct Results {
  std::vector<float> attention, slot_sum, peaks, sums, counts, dfeatures, dweight;
  std::vector<double> mean, covariance;
  std::vector<int32_t> channel;
};

struct Problem {
  agmh::PeakShape s;
  Features x;
  std::vector<float> weight, projection, shift, grad, feedback, offset;
};

Results solve(const Problem& problem, const Layout& layout, bool trained, int threads) {
  const auto [B, D, C, K, n] = problem.s;
  const int64_t Kp = agmh::padded(K), T = B * D * n;
  const agmh::Team team = [&](const std::function<void()>& work) { run_on(threads, work); };
  const auto blank = [](int64_t count) { return std::vector<float>(z(count), kNan); };
  Results r{blank(T * Kp),
            blank(T),
            blank(T),
            blank(D * C * K),
            blank(D * C),
            {},
            blank(D * K * C),
            {},
            {},
            std::vector<int32_t>(z(T), -1)};
  r.mean.assign(z(D * K), kNan);
  r.covariance.assign(z(D * K * K), kNan);
  agmh::attend({problem.s, problem.x.view, problem.weight.data(), r.attention.data(), r.slot_sum.data(),
                trained ? r.mean.data() : nullptr, trained ? r.covariance.data() : nullptr},
               team);
  agmh::peak({problem.s, problem.x.view, r.attention.data(), problem.projection.data(), problem.shift.data(),
              r.peaks.data(), r.channel.data()},
             team);
  agmh::channel_sums(
      {problem.s, problem.grad.data(), r.channel.data(), r.attention.data(), r.sums.data(), r.counts.data()}, team);
  Features dx(problem.s, layout, std::vector<float>(problem.x.values.size(), kNan));
  agmh::spread({problem.s, problem.x.view, problem.grad.data(), r.channel.data(), r.attention.data(), r.slot_sum.data(),
                problem.weight.data(), problem.projection.data(), trained ? problem.feedback.data() : nullptr,
                trained ? problem.offset.data() : nullptr, dx.view, r.dweight.data()},
               team);
  r.dfeatures = dx.read(problem.s);
  return r;
}

void check(const Problem& q, const Results& r, bool trained, double rounding) {
  const auto [B, D, C, K, n] = q.s;
  const int64_t Kp = agmh::padded(K);
  std::vector<double> a(z(B * D * n * Kp)), sum(z(B * D * n)), mean(z(D * K)), cov(z(D * K * K));
  std::vector<double> S(z(D * C * K)), counts(z(D * C)), dF(q.x.values.size()), dW(z(D * K * C)), peaks(sum.size());
  for (int64_t b = 0; b < B; ++b)
    for (int64_t d = 0; d < D; ++d) {
      const int64_t at = (b * D + d) * n;
      const auto f = [&](int64_t c, int64_t p) {
        return static_cast<double>(q.x.values[z(((b * D + d) * C + c) * n + p)]);
      };
      const auto A = [&](int64_t p, int64_t k) -> double& { return a[z((at + p) * Kp + k)]; };
      const auto w = [&](int64_t k, int64_t c) { return static_cast<double>(q.weight[z((d * K + k) * C + c)]); };
      const auto P = [&](int64_t c, int64_t k) { return static_cast<double>(q.projection[z((d * C + c) * K + k)]); };
      for (int64_t k = 0; k < K; ++k) {
        double top = -1e300, total = 0;
        for (int64_t p = 0; p < n; ++p) {
          for (int64_t c = 0; c < C; ++c) A(p, k) += w(k, c) * f(c, p);
          top = std::max(top, A(p, k));
        }
        for (int64_t p = 0; p < n; ++p) total += A(p, k) = std::exp(A(p, k) - top);
        for (int64_t p = 0; p < n; ++p) A(p, k) /= total;
      }
      std::vector<double> u(z(K));
      std::vector<double> dz(z(n * K));
      for (int64_t p = 0; p < n; ++p) {
        sum[z(at + p)] = 1e-9;
        for (int64_t k = 0; k < K; ++k) sum[z(at + p)] += A(p, k);
        for (int64_t k = 0; k < K; ++k) A(p, k) /= sum[z(at + p)];
        // The gradient goes to the channel that was found: rounding may choose another where two are all but equal.
        const int64_t found = r.channel[z(at + p)];
        if (found < 0 || found >= C) close("channel", std::vector<float>{1}, std::vector<float>{0}, 0);
        double top = 0, own = 0;
        for (int64_t c = 0; c < C; ++c) {
          double y = static_cast<double>(q.shift[z(d * C + c)]) + f(c, p);
          for (int64_t k = 0; k < K; ++k) y += P(c, k) * A(p, k);
          top = std::max(top, y);
          if (c == found) own = std::max(y, 0.0);
        }
        peaks[z(at + p)] = top;
        if (std::abs(top - own) > 1e-4 * (1 + top))
          close("channel", std::vector<double>{own}, std::vector<double>{top}, 0);
        const double g = static_cast<double>(q.grad[z(at + p)]);
        counts[z(d * C + found)] += g;
        std::vector<double> da(z(K));
        double dot = 0;
        for (int64_t k = 0; k < K; ++k) {
          S[z((d * C + found) * K + k)] += g * A(p, k);
          da[z(k)] = g * P(found, k);
          for (int64_t j = 0; trained && j < K; ++j)
            da[z(k)] -= A(p, j) * static_cast<double>(q.feedback[z((d * K + k) * K + j)]);
          if (trained) da[z(k)] -= static_cast<double>(q.offset[z(d * K + k)]);
          dot += da[z(k)] * A(p, k);
        }
        for (int64_t k = 0; k < K; ++k) u[z(k)] += dz[z(p * K + k)] = A(p, k) * (da[z(k)] - dot);
        dF[z(((b * D + d) * C + found) * n + p)] += g;
      }
      for (int64_t p = 0; p < n; ++p)
        for (int64_t k = 0; k < K; ++k) {
          const double value = dz[z(p * K + k)] - A(p, k) * sum[z(at + p)] * u[z(k)];
          for (int64_t c = 0; c < C; ++c) {
            dF[z(((b * D + d) * C + c) * n + p)] += value * w(k, c);
            dW[z((d * K + k) * C + c)] += value * f(c, p);
          }
        }
    }
  const double T = static_cast<double>(B * n);
  for (int64_t d = 0; d < D; ++d)
    for (int64_t t = 0; t < B * n; ++t)
      for (int64_t k = 0; k < K; ++k) mean[z(d * K + k)] += a[z(((t / n * D + d) * n + t % n) * Kp + k)] / T;
  for (int64_t d = 0; d < D; ++d)
    for (int64_t t = 0; t < B * n; ++t)
      for (int64_t i = 0; i < K; ++i)
        for (int64_t j = 0; j < K; ++j) {
          const double *row = &a[z(((t / n * D + d) * n + t % n) * Kp)], *m = &mean[z(d * K)];
          cov[z((d * K + i) * K + j)] += (row[i] - m[i]) * (row[j] - m[j]) / T;
        }
  close("attention", r.attention, a, 1e-5);
  close("slot_sum", r.slot_sum, sum, 1e-5);
  close("peaks", r.peaks, peaks, 1e-5);
  close("sums", r.sums, S, 1e-5);
  close("counts", r.counts, counts, 1e-5);
  close("dfeatures", r.dfeatures, dF, 1e-4 + rounding);
  close("dweight", r.dweight, dW, 1e-4);
  if (!trained) return;
  close("mean", r.mean, mean, 1e-6);
  close("covariance", r.covariance, cov, 1e-4);
}

void check(const agmh::PeakShape& s, const Layout& layout, bool trained) {
  const auto [B, D, C, K, n] = s;
  const float scale = 1.5f / std::sqrt(static_cast<float>(C));
  Problem q{s,
            Features(s, layout, normal(B * D * C * n, 1)),
            normal(D * K * C, scale),
            normal(D * C * K, 1),
            normal(D * C, 0.5f),
            normal(B * D * n, 1),
            normal(D * K * K, 0.1f),
            normal(D * K, 0.1f)};
  const Results one = solve(q, layout, trained, 1), three = solve(q, layout, trained, 3);
  check(q, one, trained, layout.bfloat16 ? 1.0 / 256 : 0);
  same("attention", one.attention, three.attention);
  same("peaks", one.peaks, three.peaks);
  same("channel", one.channel, three.channel);
  same("sums", one.sums, three.sums);
  same("dfeatures", one.dfeatures, three.dfeatures);
  same("dweight", one.dweight, three.dweight);
  if (trained) same("covariance", one.covariance, three.covariance);
}

void nan_and_ties() {
  const agmh::PeakShape s{1, 1, 40, 3, 20};
  const Layout plain{"plain", false, false, false};
  std::vector<float> values(40 * 20, 1.0f);
  values[7 * 20 + 3] = values[30 * 20 + 3] = 5.0f;  // equal peaks of position 3: the first counts
  Problem q{s,
            Features(s, plain, values),
            std::vector<float>(3 * 40, 0.1f),
            std::vector<float>(40 * 3, 0.0f),
            std::vector<float>(40, 0.0f),
            normal(20, 1),
            {},
            {}};
  const Results r = solve(q, plain, false, 1);
  if (r.channel[3] != 7 || r.channel[4] != 0 || r.peaks[3] != 5.0f) close("ties", r.peaks, q.grad, 0);
  q.shift[20] = kNan;
  for (const float peak : solve(q, plain, false, 1).peaks)
    if (peak == peak) close("a NaN response is hidden", r.peaks, q.grad, 0);
}

}  // namespace

int main() {
  const Layout layouts[] = {{"contiguous", false, false, false},
                            {"channels_last", true, false, false},
                            {"gaps", false, true, false},
                            {"bfloat16", false, false, true},
                            {"bfloat16 channels_last", true, false, true}};
  const agmh::PeakShape shapes[] = {{1, 1, 1, 1, 1},    {3, 2, 20, 7, 6},   {2, 1, 33, 100, 49},
                                    {9, 2, 64, 32, 21}, {1, 3, 96, 5, 195}, {17, 1, 17, 33, 14}};
  for (const agmh::PeakShape& shape : shapes)
    for (const Layout& layout : layouts) {
      check(shape, layout, true);
      check(shape, layout, false);
    }
  nan_and_ties();
  std::puts("all as expected");
}
