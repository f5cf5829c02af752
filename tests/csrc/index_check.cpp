// An index under change, on several threads, and where memory runs out; engine_check.cpp calls these.
#include <algorithm>
#include <atomic>
#include <cstring>
#include <new>
#include <thread>
#include <vector>

#include "check_cases.h"
#include "hamming/groups.h"
#include "hamming/index.h"

namespace {

// Calls again and again with one more allocation before one fails, until none does; failures must leave the size.
template <class Call>
void starve(const agmh::Index& index, Call&& call) {
  const int64_t size = index.size();
  for (int64_t allocations = 0;; ++allocations) {
    spare = allocations;
    try {
      call();
    } catch (const std::bad_alloc&) {
    }
    const bool enough = spare >= 0;
    spare = -1;
    if (enough) return;
    CHECK(index.size() == size);
  }
}

}  // namespace

// An index asked often enough to group its items answers as a scan does, whatever is added and removed afterwards.
void check_groups() {
  struct Kind {
    int bits;
    int64_t count;
    int distinct;
  };
  for (const auto& [bits, count, distinct] : {Kind{3, 4096, 8},
                                              {8, 5000, 200},
                                              {12, 6000, 3000},
                                              {16, 70'000, 9000},
                                              {16, 70'000, 60'000},
                                              {48, 9000, 300},
                                              {300, 5000, 9}}) {
    const Rows items(bits, count, 0, distinct), more(bits, 200, 1, 50);
    Rows queries(bits, 40, 0, 40);
    std::copy_n(items.bytes.begin(), items.stride * 10, queries.bytes.begin());
    agmh::Index index(bits);
    std::vector<int64_t> evens(static_cast<size_t>(count));
    for (int64_t i = 0; i < count; ++i) evens[static_cast<size_t>(i)] = 2 * i;
    index.add(items.codes(), evens.data());
    const auto search = [&](int64_t k, int limit) {
      int64_t next_id = 0;
      const auto storage = index.snapshot(&next_id);
      agmh::Task task{bits, queries.codes(), storage->codes()};
      task.ids = storage->ids();
      const int64_t results = queries.count * k;
      auto distances = garbage<int32_t>(results), expected_distances = garbage<int32_t>(results);
      auto ids = garbage<int64_t>(results), expected_ids = garbage<int64_t>(results);
      index.search(queries.codes(), k, limit, {}, 2, distances.data(), ids.data());
      agmh::topk(task, k, limit, expected_distances.data(), expected_ids.data());
      CHECK(distances == expected_distances && ids == expected_ids);
    };
    const auto searches = [&] {
      for (const int64_t k : {int64_t{1}, int64_t{10}, int64_t{600}, count / 2, count + 3}) search(k, bits);
      search(30, static_cast<int>(draw(0, bits)));
    };
    searches();
    CHECK((agmh::Groups::of({items.bytes.data(), count, items.stride, agmh::packed_bytes(bits)}, bits) != nullptr) ||
          agmh::packed_bytes(bits) != agmh::padded_bytes(bits));
    index.add(more.codes(), nullptr);  // behind the grouped ones
    searches();
    const int64_t odd[] = {1, 777, 4001}, gone[] = {2, 778, 4000};
    agmh::Codes few = more.codes();
    few.count = 3;
    index.add(few, odd);  // between them
    searches();
    index.remove(gone, 3);
    searches();
  }
  // Codes that are all different are left to the scan.
  Rows unlike(64, 5000, 0, 1);
  for (int64_t i = 0; i < 5000; ++i) std::memcpy(&unlike.bytes[static_cast<size_t>(8 * i)], &i, 8);
  CHECK(agmh::Groups::of(unlike.codes(), 64) == nullptr);
}

// Memory runs out at every possible place, the start of a thread among them: std::bad_alloc or the result.
void check_shortage() {
  const Rows items(64, 80'000, 0, 99);
  agmh::Index index(64);
  index.add(items.codes(), nullptr);
  agmh::Codes few = items.codes();
  for (const int64_t queries : {64, 7}) {  // split over the queries, over the items
    few.count = queries;
    std::vector<int32_t> expected(static_cast<size_t>(queries * 10)), distances(expected.size());
    std::vector<int64_t> ids(expected.size());
    index.search(few, 10, 64, {}, 1, expected.data(), ids.data());
    starve(index, [&] {
      index.search(few, 10, 64, {}, 3, distances.data(), ids.data());
      CHECK(distances == expected);
    });
    starve(index, [&] { (void)index.range_search(few, 2, {}, 3); });
  }
  const int64_t first[] = {6, 5, 4, 3, 2, 1, 0};
  starve(index, [&] { index.remove(first, 7); });
  CHECK(index.size() == 79'993);
  starve(index, [&] { index.add(few, first); });
  starve(index, [&] { index.add(few, nullptr); });
  CHECK(index.size() == 80'007);
}

// Searches without pause on two threads while a third adds and removes: every result must be a state that was.
void check_concurrency() {
  const Rows items(48, 3000, 0, 50), query(48, 1, 0, 1);
  agmh::Index index(48);
  std::atomic<bool> stop{false};
  std::atomic<int64_t> searches{0};
  const auto search = [&] {
    for (; !stop; ++searches) {
      int32_t distances[8];
      int64_t ids[8];
      index.search(query.codes(), 8, 48, {}, 2, distances, ids);
      for (int j = 0; j < 8; ++j) CHECK(ids[j] < 0 || distances[j] == query.distance(0, items, ids[j]));
      const agmh::RangeResult found = index.range_search(query.codes(), 20, {}, 1);
      int64_t next_id = 0;
      const auto snapshot = index.snapshot(&next_id);
      CHECK(snapshot->count() <= next_id);
      CHECK(std::is_sorted(snapshot->ids(), snapshot->ids() + snapshot->count()));
    }
  };
  std::thread first(search), second(search);
  for (int64_t i = 0; i < items.count; i += 30) {
    for (const int64_t before = searches; searches == before;) std::this_thread::yield();
    agmh::Codes part = items.codes();
    part.data += i * part.stride;
    part.count = 30;
    index.add(part, nullptr);
    if (i % 90 == 0) index.remove(&i, 1);
  }
  stop = true;
  first.join();
  second.join();
  CHECK(index.size() == items.count - 34);
}
