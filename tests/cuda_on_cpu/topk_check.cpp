// The k nearest on a GPU against the CPU engine.
#include <cuda_runtime.h>

#include "device_cases.h"
#include "hamming/cuda/plan.h"

namespace {

using agmh::cuda::Backend;

// Compares the CPU engine with each back end of the other; returns how many kernels were launched.
int64_t compare(Search search, int64_t k, int max_distance = agmh::kMaxBits) {
  const int64_t q = search.queries.count, launches = cuda_on_cpu::launches;
  auto expected_distances = garbage<int32_t>(q * k);
  auto expected_ids = garbage<int64_t>(q * k);
  agmh::topk(search.task(), k, max_distance, expected_distances.data(), expected_ids.data());
  const auto task = search.device_task();
  for (const Backend backend : {Backend::kPopc, Backend::kBmma, Backend::kImma}) {
    search.device.backend = backend;
    const auto plan = agmh::cuda::plan_topk(task, k, max_distance, search.device);
    if (backend != Backend::kPopc && (plan.capacity == 0 || plan.sift_from >= plan.walk.places)) continue;
    auto distances = garbage<int32_t>(q * k);
    auto ids = garbage<int64_t>(q * k);
    auto scratch = garbage<char>(agmh::cuda::topk_scratch(task, k, max_distance, search.device));
    CHECK(agmh::cuda::topk(task, k, max_distance, search.device, scratch.data(), distances.data(), ids.data(),
                           nullptr) == 0);
    CHECK(distances == expected_distances);
    CHECK(ids == expected_ids);
  }
  return cuda_on_cpu::launches - launches;
}

void check_random_shapes(bool brief) {
  for (const int bits : {1, 12, 32, 33, 48, 64, 96, 128, 192, 256, 320, 768, 1000, 4096})
    for (int round = 0; round < (brief || bits > 1000 ? 1 : bits > 256 ? 2 : 6); ++round) {
      const bool small = draw(0, 1) == 0;
      // Wide codes have many counters, which take long here.
      const Rows items(bits, draw(0, bits > 256 ? 600 : 1500), 0, small ? 5 : 300);
      const Rows queries(bits, draw(0, bits > 256 ? 2 : 12), 0, 7);
      Search search{queries, items};
      if (small) search.device = kSmallDevice;
      if (draw(0, 2) == 0) search.draw_mask(draw(0, 1) == 0, static_cast<int>(draw(1, 5)));
      const int64_t k = std::vector<int64_t>{1, 10, 60, items.count / 2 + 1, items.count + 2}[draw(0, 4)];
      compare(search, k, draw(0, 2) == 0 ? static_cast<int>(draw(0, bits)) : agmh::kMaxBits);
    }
}

// Every count of queries around the edges of tiles, of items around those of units, of results around both.
void check_edges() {
  const Rows many(64, 66, 0, 40), ten(64, 1000, 0, 20);
  for (const int64_t q : {1, 3, 4, 8, 9, 31, 32, 33, 66}) {
    Rows queries = many;
    queries.count = q;
    compare({queries, ten}, 5);
    compare({queries, ten}, 400);
  }
  const Rows query(128, 2, 0, 2);
  for (const int64_t n : {1, 63, 64, 65, 127, 128, 129, 511, 512, 513}) {
    const Rows items(128, n, 0, 3);
    for (const int64_t k : {int64_t{1}, n / 4 + 1, n - 1, n, n + 1})
      if (k > 0) compare({query, items}, k);
  }
}

// Distances that fall, rise, are equal or come in runs, with results that end within ties and at the ends of units.
void check_orders() {
  const int64_t n = 3000;
  std::vector<int> rising(n), falling(n), equal(n, 20), runs(n);
  for (int i = 0; i < n; ++i) {
    rising[static_cast<size_t>(i)] = i * 64 / static_cast<int>(n);
    falling[static_cast<size_t>(i)] = 63 - i * 64 / static_cast<int>(n);
    runs[static_cast<size_t>(i)] = i / 128 % 3;
  }
  const Rows query = zeros(64, 1);
  for (const auto& distances : {rising, falling, equal, runs}) {
    const Rows items = rows_at(64, distances);
    for (const int64_t k : {1, 2, 5, 47, 64, 65, 128, 129, 256, 257, 750, 751, 2999, 3000})
      for (const bool small : {false, true}) {
        Search search{query, items};
        if (small) search.device = kSmallDevice;
        compare(search, k);
      }
  }
}

// For each unit but the first, a query at distance 0 from its first item and from the last item of the unit before.
// Where the unit is scanned first, its first item becomes the bound, and the one before is next to it.
void check_bound_at_the_start_of_a_unit() {
  const int64_t units = 40, n = units * 128;
  const Rows queries(64, units - 1, 0, 1000000), far(64, n, 0, 1000000);
  Rows items = far;
  for (int64_t u = 1; u < units; ++u)
    for (const int64_t item : {128 * u - 1, 128 * u})
      std::copy_n(queries.bytes.begin() + (u - 1) * 8, 8, items.bytes.begin() + item * 8);
  for (const int64_t k : {1, 2}) {
    Search search{queries, items};
    compare(search, k);
    search.device.shared_bytes = 2048;
    compare(search, k);
  }
}

// Items that come nearer along the walk, so that a query's buffer overflows and its items are counted, beside queries
// that fare better.
void check_overflow() {
  const int64_t n = 128 * 64;
  Rows queries = zeros(64, 20);
  for (int64_t q = 0; q < 20; q += 2) queries.bytes[static_cast<size_t>(8 * q)] = static_cast<uint8_t>(q);
  Search sizes{queries, queries};
  sizes.device.shared_bytes = 2048;
  std::vector<int> distances(n);
  const auto walk = agmh::cuda::plan_walk(64);
  for (int64_t place = 0; place < walk.places; ++place)
    for (int64_t i = 0; i < 128; ++i)
      distances[static_cast<size_t>(walk.unit_at(place) * 128 + i)] = static_cast<int>(63 - place);
  const Rows items = rows_at(64, distances);
  std::vector<int> shuffled = distances;
  std::shuffle(shuffled.begin(), shuffled.end(), generator);
  const Rows other = rows_at(64, shuffled);
  for (const int64_t k : {1, 40, 64}) {
    Search search{queries, items}, easy{queries, other};
    search.device = easy.device = {2, 2048, 256 << 20};
    // What is launched does not depend on the data.
    CHECK(compare(search, k) == compare(easy, k));
  }
}

// A mask for each query, and scratch for a few queries at a time.
void check_masks_of_batches() {
  const Rows items(192, 700, 0, 40), queries(192, 20, 0, 7);
  Search search{queries, items};
  search.device = kSmallDevice;
  search.draw_mask(true, 3);
  for (const int64_t k : {5, 400}) {
    CHECK(agmh::cuda::plan_topk(search.device_task(), k, 192, search.device).counting.batch < queries.count);
    compare(search, k);
  }
}

// Ends of chunks of the walk: as many units as it has places, one fewer, one more.
void check_chunks() {
  const Rows queries(64, 3, 0, 3);
  for (const int64_t units : {1, 2, 3, 4, 7, 8, 9, 16, 17, 32, 33})
    for (const int64_t beyond : {-1, 0, 1}) {
      const Rows items(64, units * 128 + beyond, 0, 300);
      for (const int64_t k : {1, 3, 40, 64}) {
        Search search{queries, items};
        search.device.shared_bytes = 2048;
        compare(search, k);
      }
    }
}

// Small buffers, so that most of the walk is sifted. Each query has near items where a sieve may miss them: the first
// and the last item of a unit, of all, and of the last unit, which is not whole.
void check_sieve(bool brief) {
  for (const int bits : brief ? std::vector<int>{64, 640} : std::vector<int>{16, 64, 128, 192, 256, 640}) {
    const int64_t unit = 32 * agmh::cuda::lane_items(agmh::cuda::row_words(bits)), n = 12 * unit + 7;
    for (const int64_t q : bits == 64 && !brief ? std::vector<int64_t>{1, 16, 63, 64, 65} : std::vector<int64_t>{65}) {
      const Rows queries(bits, q, 0, 3000);
      Rows items(bits, n, 0, 3000);
      for (int64_t i = 0; i < q; ++i)
        for (const int64_t item : {n - 1, 12 * unit, (i + 1) % 12 * unit, (i + 1) % 12 * unit - 1})
          if (item >= 0)
            std::copy_n(queries.bytes.begin() + i * queries.stride, queries.stride,
                        items.bytes.begin() + item * items.stride);
      Search search{queries, items};
      search.device.shared_bytes = 2048;
      for (const int64_t k : brief ? std::vector<int64_t>{3} : std::vector<int64_t>{1, 3}) {
        search.device.backend = Backend::kBmma;
        const auto plan = agmh::cuda::plan_topk(search.device_task(), k, bits, search.device);
        CHECK(plan.capacity > 0 && plan.sift_from < plan.walk.places / 2);
        compare(search, k);
      }
      if (brief) continue;
      compare(search, 3, bits / 3);
      search.draw_mask(true, 2);
      compare(search, 3);
    }
  }
}

}  // namespace

void check_topk(bool brief) {
  check_random_shapes(brief);
  check_overflow();
  check_masks_of_batches();
  if (brief) return;
  check_edges();
  check_orders();
  check_chunks();
  check_bound_at_the_start_of_a_unit();
}

void check_sifted_topk(bool brief) { check_sieve(brief); }
