#include <array>
#include <cmath>

#include "hamming/engine.h"
#include "hamming/parallel.h"

namespace agmh {
namespace {

// Queries whose curves are summed before they are added to those of others, whatever the number of threads.
constexpr int64_t kBlock = 256;

// From here on three terms of the asymptotic series leave less than 2e-17.
constexpr int64_t kSeriesStart = 64;

std::array<double, kSeriesStart + 1> harmonic_numbers() {
  std::array<double, kSeriesStart + 1> numbers{};
  long double sum = 0;
  for (int64_t n = 1; n <= kSeriesStart; ++n) {
    sum += 1.0L / static_cast<long double>(n);
    numbers[static_cast<size_t>(n)] = static_cast<double>(sum);
  }
  return numbers;
}

// H_n - gamma - ln x at x = n + 1/2.
double series(double x) {
  const double u = 1 / (x * x);
  return u * (1.0 / 24 - u * (7.0 / 960 - u * (31.0 / 8064)));
}

// The sum of 1 / (start + i) over i = 1 .. count. The logarithm of a ratio loses no digits where the difference of two
// large harmonic numbers would.
double harmonic_gap(int64_t start, int64_t count) {
  static const std::array<double, kSeriesStart + 1> kHarmonic = harmonic_numbers();
  const int64_t end = start + count;
  double gap = kHarmonic[static_cast<size_t>(std::min(end, kSeriesStart))] -
               kHarmonic[static_cast<size_t>(std::min(start, kSeriesStart))];
  if (end <= kSeriesStart) return gap;
  const double x = static_cast<double>(std::max(start, kSeriesStart)) + 0.5, y = static_cast<double>(end) + 0.5;
  return gap + std::log1p((y - x) / x) + (series(y) - series(x));
}

// Items at one distance from a query.
struct Group {
  int64_t size, relevant, before, relevant_before;

  // Of the precisions at its relevant items; agmh_fast/metrics/average_precision.py says how.
  double precision_sum(TieRule rule) const {
    if (relevant == 0 || rule == TieRule::kGiven) return 0;
    const auto r = static_cast<double>(relevant);
    if (rule == TieRule::kExpected) {
      const auto n = static_cast<double>(size);
      const double gap = harmonic_gap(before, size), others = (r - 1) / std::max(n - 1, 1.0);
      return r / n *
             (static_cast<double>(relevant_before + 1) * gap + others * (n - static_cast<double>(before + 1) * gap));
    }
    const int64_t start = rule == TieRule::kOptimistic ? before : before + size - relevant;
    return r + static_cast<double>(relevant_before - start) * harmonic_gap(start, relevant);
  }

  // Relevant items up to a place of the group.
  double hits(int64_t place, TieRule rule) const {
    const int64_t places = place - before;
    if (rule == TieRule::kExpected)
      return static_cast<double>(relevant_before) +
             static_cast<double>(relevant) * static_cast<double>(places) / static_cast<double>(size);
    return static_cast<double>(relevant_before + (rule == TieRule::kOptimistic
                                                      ? std::min(places, relevant)
                                                      : std::max<int64_t>(places - (size - relevant), 0)));
  }
};

}  // namespace

void tie_scores(const int64_t* counts, int64_t queries, int64_t bins, TieRule rule, const std::vector<int64_t>& cutoffs,
                int threads, double* precision_sum, double* hits, double* relevant, double* curves) {
  const int64_t blocks = (queries + kBlock - 1) / kBlock;
  const size_t columns = cutoffs.size();
  std::vector<double> sums(static_cast<size_t>(blocks * 2 * bins));
  parallel_for(threads, blocks, [&](int64_t block) {
    double *precision = sums.data() + block * 2 * bins, *recall = precision + bins;
    for (int64_t q = block * kBlock; q < std::min(queries, (block + 1) * kBlock); ++q) {
      const int64_t* of_query = counts + q * bins * 2;
      int64_t total = 0;
      for (int64_t d = 0; d < bins; ++d) total += of_query[2 * d + 1];
      const double share = 1 / static_cast<double>(std::max<int64_t>(total, 1));
      Group group{0, 0, 0, 0};
      double sum = 0;
      size_t column = 0;
      for (int64_t d = 0; d < bins; ++d) {
        group.size = of_query[2 * d];
        group.relevant = of_query[2 * d + 1];
        sum += group.precision_sum(rule);
        const int64_t end = group.before + group.size, relevant_end = group.relevant_before + group.relevant;
        for (; column < columns && cutoffs[column] <= end; ++column)
          hits[q * static_cast<int64_t>(columns) + static_cast<int64_t>(column)] = group.hits(cutoffs[column], rule);
        precision[d] += static_cast<double>(relevant_end) / static_cast<double>(std::max<int64_t>(end, 1));
        recall[d] += static_cast<double>(relevant_end) * share;
        group.before = end;
        group.relevant_before = relevant_end;
      }
      // Beyond the last item no more are found.
      for (; column < columns; ++column)
        hits[q * static_cast<int64_t>(columns) + static_cast<int64_t>(column)] = static_cast<double>(total);
      precision_sum[q] = sum;
      relevant[q] = static_cast<double>(total);
    }
  });
  std::fill(curves, curves + 2 * bins, 0.0);
  for (int64_t block = 0; block < blocks; ++block)
    for (int64_t i = 0; i < 2 * bins; ++i) curves[i] += sums[static_cast<size_t>(block * 2 * bins + i)];
}

}  // namespace agmh
