// Range search and histograms on a GPU against the CPU engine.
#include "device_cases.h"

namespace {

void compare_range(const Search& search, int radius) {
  const int64_t q = search.queries.count;
  auto lims = garbage<int64_t>(q + 1), expected_lims = lims;
  agmh::RangeCounts counts = agmh::range_count(search.task(), radius, expected_lims.data());
  const int64_t found = expected_lims.back();
  auto distances = garbage<int32_t>(found), expected_distances = distances;
  auto ids = garbage<int64_t>(found), expected_ids = ids;
  agmh::range_fill(search.task(), std::move(counts), expected_lims.data(), expected_distances.data(),
                   expected_ids.data());
  const auto task = search.device_task();
  auto scratch = garbage<char>(agmh::cuda::range_scratch(task, radius, search.device));
  CHECK(agmh::cuda::range_count(task, radius, search.device, scratch.data(), lims.data(), nullptr) == 0);
  CHECK(lims == expected_lims);
  int64_t last = 0;
  CHECK(agmh::cuda::fetch(last, &lims.back(), nullptr) == 0 && last == found);
  CHECK(agmh::cuda::range_fill(task, radius, search.device, scratch.data(), lims.data(), distances.data(), ids.data(),
                               nullptr) == 0);
  CHECK(distances == expected_distances);
  CHECK(ids == expected_ids);
}

void compare_histogram(const Search& search, const agmh::Labels* labels) {
  const int64_t size = search.queries.count * (search.items.bits + 1) * (labels != nullptr ? 2 : 1);
  auto counts = garbage<int64_t>(size), expected = counts;
  agmh::histogram(search.task(), labels, expected.data());
  CHECK(agmh::cuda::histogram(search.device_task(), labels, search.device, counts.data(), nullptr) == 0);
  CHECK(counts == expected);
}

std::vector<int64_t> draw_labels(int64_t count, int64_t most) {
  std::vector<int64_t> labels(static_cast<size_t>(count));
  for (int64_t& label : labels) label = draw(0, most);
  return labels;
}

template <class Visit>
void each_search(bool brief, Visit visit) {
  for (const int bits : {1, 12, 32, 48, 64, 128, 192, 256, 1000, 4096})
    for (int round = 0; round < (brief ? 1 : bits > 256 ? 2 : 4); ++round) {  // wide codes take long
      const bool small = round % 2 == 1;
      const Rows items(bits, round == 3 ? draw(0, 1) : draw(0, bits > 256 ? 500 : 1200), 0, 30);
      const Rows queries(bits, draw(0, bits > 256 ? 2 : 20), 0, 7);
      Search search{queries, items};
      if (small) search.device = kSmallDevice;
      if (draw(0, 1) == 0) search.draw_mask(draw(0, 1) == 0, 3);
      visit(search);
    }
}

}  // namespace

void check_range(bool brief) {
  each_search(brief, [&](const Search& search) {
    const int bits = search.items.bits, middle = static_cast<int>(bits > 256 ? bits / 2 : draw(0, bits));
    for (const int radius : bits > 256 ? std::vector{middle} : std::vector{0, middle, bits})
      compare_range(search, radius);
  });
  const Rows queries(48, 700, 0, 300), items(48, 300, 0, 100);  // more queries than threads add up
  Search search{queries, items};
  if (!brief) compare_range(search, 20);
}

void check_histogram(bool brief) {
  each_search(brief, [](const Search& search) {
    compare_histogram(search, nullptr);
    for (const int words : {0, 1, 3}) {
      const int64_t width = std::max(words, 1), most = words == 0 ? 3 : int64_t{1} << 40;
      const auto of_queries = draw_labels(search.queries.count * width, most);
      const auto of_items = draw_labels(search.items.count * width, most);
      const agmh::Labels labels = {of_queries.data(), of_items.data(), words};
      compare_histogram(search, &labels);
    }
  });
}
