// Every function of the engine against a few obvious lines, on many shapes, for each instruction set and several thread
// counts. Built with the sanitizers by test_engine.py; outputs start as garbage, so an element never written shows.
#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <new>
#include <numeric>
#include <vector>

#ifdef __GLIBC__
#include <sched.h>
#endif

#include "check_cases.h"
#include "hamming/engine.h"
#include "hamming/kernels.h"
#include "hamming/parallel.h"
#include "hamming/pool.h"
#include "hamming/sample.h"

namespace {

// Memory that begins `alignment` bytes into what malloc gives; just before it stand its size and that alignment.
void* counted(size_t size, size_t alignment) {
  if (spare >= 0 && spare-- == 0) throw std::bad_alloc();
  alignment = std::max(alignment, 2 * sizeof(size_t));
  const size_t whole = (size / alignment + 2) * alignment;
  auto* const memory = whole < size ? nullptr : static_cast<char*>(std::aligned_alloc(alignment, whole));
  if (memory == nullptr) throw std::bad_alloc();
  auto* const block = reinterpret_cast<size_t*>(memory + alignment);
  block[-2] = size;
  block[-1] = alignment;
  const int64_t now = held += static_cast<int64_t>(size);
  int64_t seen = most;
  while (now > seen && !most.compare_exchange_weak(seen, now)) {
  }
  return block;
}

void discount(void* memory) {
  if (memory == nullptr) return;
  const size_t* const block = static_cast<size_t*>(memory);
  held -= static_cast<int64_t>(block[-2]);
  std::free(static_cast<char*>(memory) - block[-1]);
}

}  // namespace

void* operator new(size_t size) { return counted(size, 1); }
void* operator new(size_t size, std::align_val_t alignment) { return counted(size, static_cast<size_t>(alignment)); }
void* operator new(size_t size, const std::nothrow_t&) noexcept {
  try {
    return operator new(size);
  } catch (...) {
    return nullptr;
  }
}
void operator delete(void* memory) noexcept { discount(memory); }
void operator delete(void* memory, size_t) noexcept { discount(memory); }
void operator delete(void* memory, std::align_val_t) noexcept { discount(memory); }
void operator delete(void* memory, size_t, std::align_val_t) noexcept { discount(memory); }

namespace {

struct Hit {
  int distance;
  int64_t id;
  auto operator<=>(const Hit&) const = default;
};

struct Case {
  Rows queries, items;
  agmh::Task task;
  std::vector<uint8_t> mask;
  std::vector<int64_t> selection, ids;

  Case(int bits, int64_t q, int64_t n, int kind, int threads)
      : queries(bits, q, draw(0, 3), 3), items(bits, n, draw(0, 1) * 3, static_cast<int>(draw(1, 9))) {
    task.bits = bits;
    task.queries = queries.codes();
    task.items = items.codes();
    task.threads = threads;
    if (kind == 1 || kind == 2) {
      task.mask_stride = kind == 1 ? 0 : n;
      for (int64_t i = 0; i < (kind == 1 ? n : q * n); ++i) mask.push_back(static_cast<uint8_t>(draw(0, 1)));
      task.mask = mask.data();
    }
    if (kind == 3) {
      for (int64_t i = 0; i < n; ++i)
        if (draw(0, 2) == 0) selection.push_back(i);
      for (int64_t i = 0; i < n; ++i) ids.push_back(10 * i + 5);
      task.selection = selection.data();
      task.selected = static_cast<int64_t>(selection.size());
      task.ids = ids.data();
    }
  }

  int64_t row_of_id(int64_t id) const { return ids.empty() ? id : (id - 5) / 10; }

  // All allowed items of a query, in order.
  std::vector<Hit> ranking(int64_t q, int limit) const {
    std::vector<Hit> hits;
    for (int64_t p = 0; p < task.size(); ++p) {
      if (task.mask != nullptr && task.mask[q * task.mask_stride + p] == 0) continue;
      const int distance = queries.distance(q, items, task.row_of(p));
      if (distance <= limit) hits.push_back({distance, task.id_of(p)});
    }
    std::stable_sort(hits.begin(), hits.end());
    return hits;
  }
};

void check_topk(const Case& c, int64_t k, int limit) {
  const int64_t q = c.queries.count;
  auto distances = garbage<int32_t>(q * k);
  auto ids = garbage<int64_t>(q * k);
  agmh::topk(c.task, k, limit, distances.data(), ids.data());
  for (int64_t i = 0; i < q; ++i) {
    const std::vector<Hit> hits = c.ranking(i, limit);
    for (int64_t j = 0; j < k; ++j) {
      const bool exists = j < static_cast<int64_t>(hits.size());
      CHECK(distances[static_cast<size_t>(i * k + j)] ==
            (exists ? hits[static_cast<size_t>(j)].distance : agmh::kNoDistance));
      CHECK(ids[static_cast<size_t>(i * k + j)] == (exists ? hits[static_cast<size_t>(j)].id : -1));
    }
  }
}

void check_range(const Case& c, int radius) {
  auto lims = garbage<int64_t>(c.queries.count + 1);
  agmh::RangeCounts counts = agmh::range_count(c.task, radius, lims.data());
  auto distances = garbage<int32_t>(lims.back());
  auto ids = garbage<int64_t>(lims.back());
  agmh::range_fill(c.task, std::move(counts), lims.data(), distances.data(), ids.data());
  CHECK(lims[0] == 0);
  for (int64_t i = 0; i < c.queries.count; ++i) {
    const std::vector<Hit> hits = c.ranking(i, radius);
    const int64_t begin = lims[static_cast<size_t>(i)];
    CHECK(lims[static_cast<size_t>(i) + 1] - begin == static_cast<int64_t>(hits.size()));
    for (size_t j = 0; j < hits.size(); ++j) {
      CHECK(distances[static_cast<size_t>(begin) + j] == hits[j].distance);
      CHECK(ids[static_cast<size_t>(begin) + j] == hits[j].id);
    }
  }
}

void check_matrix(const Case& c) {
  const int64_t n = c.task.size();
  auto wide = garbage<uint16_t>(c.queries.count * n);
  auto narrow = garbage<uint8_t>(c.queries.count * n);
  auto whole = garbage<int32_t>(c.queries.count * n);
  agmh::distance(c.task, wide.data());
  agmh::distance(c.task, whole.data());
  if (c.task.bits <= 255) agmh::distance(c.task, narrow.data());
  for (int64_t i = 0; i < c.queries.count; ++i)
    for (int64_t p = 0; p < n; ++p) {
      const int distance = c.queries.distance(i, c.items, c.task.row_of(p));
      CHECK(wide[static_cast<size_t>(i * n + p)] == distance);
      CHECK(whole[static_cast<size_t>(i * n + p)] == distance);
      CHECK(c.task.bits > 255 || narrow[static_cast<size_t>(i * n + p)] == distance);
    }
}

// Labels are one of `classes`, or with words sets of them: of four in each word, so that most sets meet, or of
// `classes` where most do not.
void check_labels(const Case& c, int words, int64_t classes = 3) {
  const int64_t q = c.queries.count, n = c.items.count, bins = c.task.bits + 1;
  const int64_t columns = std::max(words, 1);
  const auto label = [&]() -> int64_t {
    if (words == 0) return draw(1, classes);
    return classes == 3 ? draw(0, 3) : draw(0, 1) << draw(0, std::min<int64_t>(classes, 63)) | draw(0, 1) << draw(0, 5);
  };
  std::vector<int64_t> of_queries, of_items;
  for (int64_t i = 0; i < q * columns; ++i) of_queries.push_back(label());
  for (int64_t i = 0; i < n * columns; ++i) of_items.push_back(label());
  const agmh::Labels labels{of_queries.data(), of_items.data(), words};
  auto counts = garbage<int64_t>(q * bins * 2);
  agmh::histogram(c.task, &labels, counts.data());
  auto plain = garbage<int64_t>(q * bins);
  agmh::histogram(c.task, nullptr, plain.data());
  const std::vector<int64_t> cutoffs{1, 3, n + 7};
  auto relevant = garbage<int64_t>(q * 3);
  auto sums = garbage<double>(q);
  const int64_t depth = draw(1, n + 1);
  auto beside = garbage<int64_t>(q * bins * 2);
  agmh::stable_ranking(c.task, labels, depth, cutoffs, sums.data(), relevant.data(), beside.data());
  CHECK(beside == counts);
  auto again = garbage<double>(q);
  agmh::stable_ranking(c.task, labels, depth, cutoffs, again.data(), relevant.data());
  CHECK(again == sums);
  for (int64_t i = 0; i < q; ++i) {
    std::vector<int64_t> expected(static_cast<size_t>(bins * 2)), within(3);
    double sum = 0;
    int64_t rank = 0, hits = 0;
    for (const Hit& hit : c.ranking(i, c.task.bits)) {
      const bool match = labels.relevant(i, c.row_of_id(hit.id));
      ++expected[static_cast<size_t>(hit.distance) * 2];
      expected[static_cast<size_t>(hit.distance) * 2 + 1] += match;
      ++rank;
      hits += match;
      if (match && rank <= depth) sum += static_cast<double>(hits) / static_cast<double>(rank);
      for (size_t column = 0; column < 3; ++column) within[column] += match && rank <= cutoffs[column];
    }
    CHECK(std::equal(expected.begin(), expected.end(), counts.begin() + i * bins * 2));
    for (int64_t d = 0; d < bins; ++d)
      CHECK(plain[static_cast<size_t>(i * bins + d)] == expected[static_cast<size_t>(2 * d)]);
    CHECK(std::equal(within.begin(), within.end(), relevant.begin() + i * 3));
    // At most `rank` terms of at most 1, summed in another order.
    CHECK(std::abs(sum - sums[static_cast<size_t>(i)]) <= 1e-15 * static_cast<double>(rank * rank));
  }
}

void check_functions() {
  constexpr int kBits[] = {1, 8, 12, 16, 24, 32, 33, 48, 64, 100, 128, 192, 255, 256, 257, 320, 768, 1024, 4096};
  for (const std::string& isa : agmh::available_isas()) {
    agmh::use_isa(isa);
    for (const int bits : kBits) {
      for (const int64_t n : {0, 1, 31, 200, 2500}) {
        const int64_t q = n == 200 ? 40 : draw(0, 3);
        const int kind = static_cast<int>(draw(0, 3));
        const int threads = static_cast<int>(draw(1, 4));
        const Case c(bits, q, n, kind, threads);
        for (const int64_t k : {int64_t{1}, int64_t{10}, std::max<int64_t>(1, n), n + 3})
          check_topk(c, k, static_cast<int>(draw(0, bits)));
        check_range(c, static_cast<int>(draw(0, bits)));
        check_matrix(Case(bits, q, n, 3 * static_cast<int>(draw(0, 1)), threads));
        check_labels(c, static_cast<int>(draw(0, 2)));
      }
    }
  }
}

// Enough queries for bit planes; widths on both sides of every plan's limits, items that fill a tile and some of the
// next.
void check_planes() {
  constexpr int kBits[] = {1,  12, 13, 15,  16,  17,  24,  25,  31,  32,  33,   48,   49,
                           63, 64, 65, 127, 128, 129, 255, 256, 500, 768, 1024, 2047, 4096};
  for (const std::string& isa : agmh::available_isas()) {
    agmh::use_isa(isa);
    for (const int bits : kBits) {
      const int64_t n = draw(500, 620);
      const int kind = static_cast<int>(draw(0, 3));
      const agmh::PlaneKernels& planes = agmh::kernels().planes;
      const int64_t q = (bits <= 64 ? planes.queries : planes.wide_queries) + 1;
      const Case c(bits, q, n, kind, static_cast<int>(draw(1, 2)));
      check_topk(c, draw(1, 20), draw(0, 1) == 0 ? bits : static_cast<int>(draw(0, bits)));
      check_range(c, static_cast<int>(draw(0, bits)));
      const Case labelled(bits, q, bits == 48 || bits == 128 ? 4300 : n, bits % 2 == 1 ? 3 : 0, 1);
      check_labels(labelled, 0, 40);
      check_labels(labelled, 2, draw(0, 1) == 0 ? 3 : 40);
    }
  }
}

// Items enough for guesses at the k-th distance. They are too low where just the items looked at are near.
void check_guesses() {
  const std::vector<int64_t> sampled = agmh::sample_positions(9000);
  CHECK(sampled.size() > 100 && std::is_sorted(sampled.begin(), sampled.end()) && sampled.back() < 9000);
  for (const int64_t q : {2, 50}) {
    for (const bool misled : {false, true}) {
      Case c(48, q, 9000, 0, 2);
      c.items = Rows(48, 9000, 0, 4000);
      for (size_t i = 0; i < sampled.size(); ++i)
        std::copy_n(c.queries.codes().row(0), 6, c.items.bytes.begin() + (misled ? sampled[i] : 50 + int64_t(i)) * 6);
      c.task.items = c.items.codes();
      for (const int64_t k : {1, 10, 200, 1000}) check_topk(c, k, 48);
    }
  }
}

// Large enough that both ways of splitting are taken and candidates are compacted often: distances only fall.
void check_splits() {
  for (const int64_t q : {1, 3, 64}) {
    Rows queries(64, q, 0, 1), items(64, 40000, 0, 2);
    for (int64_t i = 0; i < items.count; ++i) {
      const int ones = static_cast<int>(64 - i * 65 / items.count);
      for (int b = 0; b < 8; ++b) {
        const int set = std::clamp(ones - 8 * b, 0, 8);
        items.bytes[static_cast<size_t>(i * 8 + b)] =
            static_cast<uint8_t>(queries.bytes[static_cast<size_t>(b)] ^ ((1 << set) - 1));
      }
    }
    for (const int64_t k : {int64_t{1}, int64_t{100}, int64_t{1500}, int64_t{20000}, items.count}) {
      std::vector<int32_t> first_distances;
      std::vector<int64_t> first_ids;
      for (const int threads : {1, 2, 3}) {
        agmh::Task task{64, queries.codes(), items.codes()};
        task.threads = threads;
        auto distances = garbage<int32_t>(q * k);
        auto ids = garbage<int64_t>(q * k);
        agmh::topk(task, k, 64, distances.data(), ids.data());
        for (int64_t j = 1; j < k; ++j) {
          const size_t at = static_cast<size_t>(j);
          CHECK((Hit{distances[at - 1], ids[at - 1]} < Hit{distances[at], ids[at]}));
        }
        CHECK(distances[static_cast<size_t>(k - 1)] == queries.distance(0, items, ids[static_cast<size_t>(k - 1)]));
        if (threads == 1) {
          first_distances = distances;
          first_ids = ids;
        }
        CHECK(distances == first_distances && ids == first_ids);
      }
    }
  }
}

// Scratch beside the outputs: a few queries in flight on each thread, whatever their number.
void check_scratch() {
  constexpr int64_t kQueries = 512, kItems = 20000;
  const Rows queries(64, kQueries, 0, 99), items(64, kItems, 0, 999);
  agmh::Task task{64, queries.codes(), items.codes()};
  task.threads = 2;
  std::vector<int32_t> distances(kQueries * 1000);
  std::vector<int64_t> ids(kQueries * 1000), lims(kQueries + 1), bins(kQueries * 65);
  std::vector<uint8_t> matrix(kQueries * kItems);
  const int64_t before = held;
  most = before;
  for (const int64_t k : {10, 1000}) agmh::topk(task, k, 64, distances.data(), ids.data());
  agmh::histogram(task, nullptr, bins.data());
  agmh::distance(task, matrix.data());
  (void)agmh::range_count(task, 20, lims.data());
  // 2 threads, 256 queries each, 2000 candidates of 8 bytes; a distance matrix would be 10 million.
  CHECK(most - before < 2 * 256 * 2000 * 8 + 1'500'000);
}

// Blocks come back to be used again, those that fit; no more is kept than said, and no block is given twice.
void check_pool() {
  constexpr size_t kMega = size_t{1} << 20;
  // Larger than what searches have left.
  agmh::Block first = agmh::take_block(100 * kMega), second = agmh::take_block(100 * kMega);
  CHECK(first.get() != second.get());
  const uint8_t* const used = first.get();
  std::fill_n(first.get(), 100 * kMega, uint8_t{1});
  first.reset();
  agmh::Block small = agmh::take_block(40 * kMega), large = agmh::take_block(120 * kMega);
  agmh::Block again = agmh::take_block(90 * kMega);
  CHECK(small.get() != used && large.get() != used && again.get() == used);
  for (agmh::Block* block : {&second, &small, &large, &again}) block->reset();
  const int64_t kept = held;
  {
    std::vector<agmh::Block> blocks;
    for (int i = 0; i < 100; ++i) blocks.push_back(agmh::take_block(i * kMega / 8));
    agmh::Block huge = agmh::take_block(2 * agmh::kKeptBytes);
  }
  CHECK(held - kept <= static_cast<int64_t>(agmh::kKeptBytes));
  CHECK(agmh::take_block(0) != nullptr);
}

#ifdef __GLIBC__
cpu_set_t allowed() {
  cpu_set_t set;
  CHECK(sched_getaffinity(0, sizeof set, &set) == 0);
  return set;
}
#endif

// Every index once, by threads that may run wherever their maker may, on one processor too; errors come through.
void check_parallel_for() {
  const auto run = [] {
#ifdef __GLIBC__
    const cpu_set_t mine = allowed();
#endif
    for (const int threads : {1, 2, 3, 8}) {
      std::vector<std::atomic<int>> times(1000);
      agmh::parallel_for(threads, 1000, [&](int64_t i) {
        ++times[static_cast<size_t>(i)];
#ifdef __GLIBC__
        const cpu_set_t here = allowed();
        CHECK(CPU_EQUAL(&here, &mine));
#endif
      });
      for (const std::atomic<int>& each : times) CHECK(each == 1);
      bool caught = false;
      try {
        agmh::parallel_for(threads, 1000, [](int64_t i) {
          if (i == 500) throw std::bad_alloc();
        });
      } catch (const std::bad_alloc&) {
        caught = true;
      }
      CHECK(caught);
    }
  };
  run();
#ifdef __GLIBC__
  const cpu_set_t before = allowed();
  cpu_set_t one;
  CPU_ZERO(&one);
  CPU_SET(static_cast<size_t>(sched_getcpu()), &one);
  CHECK(sched_setaffinity(0, sizeof one, &one) == 0);
  run();
  CHECK(sched_setaffinity(0, sizeof before, &before) == 0);
#endif
}

}  // namespace

// With the argument "threads" only what several threads do, which is what the thread sanitizer is slow and good for.
int main(int argc, char**) {
  const bool all = argc == 1;
  if (all) {
    check_scratch();  // first, while no memory is kept
    check_functions();
    check_planes();
  }
  agmh::use_isa(agmh::available_isas().back());
  check_guesses();
  check_groups();
  check_splits();
  check_parallel_for();
  if (all) check_pool();
  check_concurrency();
  if (all) check_shortage();
  for (const std::string& isa : agmh::available_isas()) std::printf("%s ", isa.c_str());
  std::printf("all as expected\n");
  return 0;
}
