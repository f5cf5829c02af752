// Stable rankings on a GPU against the CPU engine, sums of doubles bit for bit.
#include "device_cases.h"

namespace {

void compare(const Search& search, const agmh::Labels& labels, int64_t depth, const std::vector<int64_t>& cutoffs) {
  const int64_t q = search.queries.count, columns = static_cast<int64_t>(cutoffs.size());
  auto sums = garbage<double>(q), expected_sums = sums;
  auto relevant = garbage<int64_t>(q * columns), expected_relevant = relevant;
  auto counts = garbage<int64_t>(q * (search.items.bits + 1) * 2), expected_counts = counts;
  agmh::stable_ranking(search.task(), labels, depth, cutoffs, expected_sums.data(), expected_relevant.data(),
                       expected_counts.data());
  CHECK(agmh::cuda::stable_ranking(search.device_task(), labels, depth, cutoffs.data(), static_cast<int>(columns),
                                   search.device, sums.data(), relevant.data(), counts.data(), nullptr) == 0);
  CHECK(sums == expected_sums);
  CHECK(relevant == expected_relevant);
  CHECK(counts == expected_counts);
}

// Labels in `words` words of sets, or plain ones, of few classes.
std::vector<int64_t> draw_labels(int64_t count, int words) {
  std::vector<int64_t> labels(static_cast<size_t>(count * std::max(words, 1)));
  for (int64_t& label : labels) label = words == 0 ? draw(0, 3) : int64_t{1} << draw(0, 62);
  return labels;
}

}  // namespace

void check_ranking(bool brief) {
  for (const int bits : {1, 12, 48, 64, 128, 192, 256, 4096})
    for (int round = 0; round < (brief ? 1 : 3); ++round) {
      const Rows items(bits, round == 2 ? draw(0, 1) : draw(1, bits > 256 ? 200 : 700), 0, 30);
      const Rows queries(bits, draw(0, bits > 256 ? 3 : 20), 0, 7);
      Search search{queries, items};
      search.device = {1, 99 << 10, 1 << 20};
      if (round == 1) search.draw_mask(draw(0, 1) == 0, 3);
      for (const int words : {0, 2}) {
        const auto of_queries = draw_labels(queries.count, words), of_items = draw_labels(items.count, words);
        const agmh::Labels labels = {of_queries.data(), of_items.data(), words};
        const int64_t n = items.count;
        for (const int64_t depth : {int64_t{1}, n / 3 + 1, n + 1})
          compare(search, labels, depth, {1, 5, n / 2 + 5, n + 5});
      }
      const auto none = draw_labels(queries.count, 0),
                 of_items = std::vector<int64_t>(static_cast<size_t>(items.count), 9);
      compare(search, {none.data(), of_items.data(), 0}, items.count, {});
      const auto all = std::vector<int64_t>(static_cast<size_t>(queries.count), 9);
      compare(search, {all.data(), of_items.data(), 0}, items.count, std::vector<int64_t>(40, 3));
    }
  // More counters than a block of this device can have.
  const Rows wide(4096, 1, 0, 1);
  const Search search{wide, wide};
  const int64_t label = 0;
  double sum = 0;
  int64_t relevant = 0;
  std::vector<int64_t> counts(2 * 4097);
  CHECK(agmh::cuda::stable_ranking(search.device_task(), {&label, &label, 0}, 1, &label, 1, {1, 48 << 10, 1 << 20},
                                   &sum, &relevant, counts.data(), nullptr) != 0);
}
