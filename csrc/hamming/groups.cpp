#include "hamming/groups.h"

#include <algorithm>
#include <bit>
#include <limits>
#include <numeric>
#include <string_view>
#include <unordered_map>

#include "hamming/kernels.h"
#include "hamming/parallel.h"
#include "hamming/tile.h"

namespace agmh {
namespace {

constexpr int kTableBits = 16;
// Items for each distinct code from which on groups are worth it, and items that are asked before all are.
constexpr int64_t kItemsPerCode = 16;
constexpr int64_t kTrial = 4096;
// Queries that a thread takes at a time.
constexpr int64_t kBlock = 32;
// Fewer are answered before another thread has started.
constexpr int64_t kQueriesPerThread = 1024;

// The code of a padded row of up to 16 bits, as a number below 2^bits.
unsigned value_of(const uint8_t* row, int bits) {
  return bits <= 8 ? row[0] >> (8 - bits) : row[0] | static_cast<unsigned>(row[1] >> (16 - bits)) << 8;
}

}  // namespace

// Collects one query's results, distance by distance.
struct Groups::Search {
  Search(const Task& of, int64_t results, int64_t grouped, int largest)
      : task(of), k(results), items(grouped), limit(largest) {}

  const Task& task;
  int64_t k, items;
  int limit;
  int32_t* distances = nullptr;
  int64_t* ids = nullptr;
  int64_t found = 0;
  std::vector<List> lists;  // of the distance at hand
  std::vector<uint32_t> merged, spare;
  std::vector<int16_t> all;  // distances of all distinct codes
  std::vector<int64_t> counts;
  std::vector<uint32_t> near;

  // Takes the items of `lists`, all at `distance`.
  void take(int distance) {
    int64_t total = 0;
    for (const List& list : lists) total += list.count;
    const int64_t wanted = std::min(total, k - found);
    const uint32_t* positions = lists.size() == 1 ? lists[0].first : smallest(total, wanted);
    for (int64_t i = 0; i < wanted; ++i, ++found) {
      distances[found] = distance;
      ids[found] = task.id_of(positions[i]);
    }
    lists.clear();
  }

  // The `wanted` smallest positions in the lists, ascending.
  const uint32_t* smallest(int64_t total, int64_t wanted) {
    merged.clear();
    if (total <= 2 * wanted + 64) {
      for (const List& list : lists) merged.insert(merged.end(), list.first, list.first + list.count);
    } else {
      // Those below a bound that should have enough of them, raised until it has.
      for (double share = 1.1 * static_cast<double>(wanted) + 16;; share *= 1.5) {
        const double bound = share / static_cast<double>(total) * static_cast<double>(items);
        const auto below = static_cast<uint32_t>(std::min(bound, static_cast<double>(items)));
        merged.clear();
        for (const List& list : lists) {
          const uint32_t* last = list.first + std::min(list.count, wanted);
          merged.insert(merged.end(), list.first, std::lower_bound(list.first, last, below));
        }
        if (static_cast<int64_t>(merged.size()) >= wanted) break;
      }
    }
    sort();
    return merged.data();
  }

  // By counting ten bits at a time; few are better compared.
  void sort() {
    if (merged.size() < 128) {
      std::sort(merged.begin(), merged.end());
      return;
    }
    spare.resize(merged.size());
    for (int shift = 0; (items - 1) >> shift != 0; shift += 10) {
      uint32_t places[1025] = {};
      for (const uint32_t x : merged) ++places[(x >> shift & 1023) + 1];
      std::partial_sum(places, places + 1025, places);
      for (const uint32_t x : merged) spare[places[x >> shift & 1023]++] = x;
      merged.swap(spare);
    }
  }
};

std::unique_ptr<const Groups> Groups::of(const Codes& items, int bits) {
  if (items.count == 0 || items.count > std::numeric_limits<uint32_t>::max()) return nullptr;
  std::unique_ptr<Groups> groups(new Groups);
  groups->bits_ = bits;
  std::vector<uint32_t> group(static_cast<size_t>(items.count));  // of each item
  size_t lists = 0;
  if (bits <= kTableBits) {
    lists = size_t{1} << bits;
    if (items.count < static_cast<int64_t>(lists)) return nullptr;
    for (int64_t i = 0; i < items.count; ++i) group[static_cast<size_t>(i)] = value_of(items.row(i), bits);
    groups->flips_.resize(lists);
    std::iota(groups->flips_.begin(), groups->flips_.end(), uint16_t{0});
    std::stable_sort(groups->flips_.begin(), groups->flips_.end(),
                     [](uint16_t a, uint16_t b) { return std::popcount(a) < std::popcount(b); });
  } else {
    const auto row = [&](int64_t i) {
      return std::string_view(reinterpret_cast<const char*>(items.row(i)), static_cast<size_t>(items.width));
    };
    std::unordered_map<std::string_view, uint32_t> known;
    // Some items spread over all say whether it is worth looking at the rest.
    const int64_t trial = std::min(items.count, kTrial);
    for (int64_t i = 0; i < trial; ++i) known.emplace(row(part_of(items.count, trial, i).begin), 0);
    if (static_cast<int64_t>(known.size()) > trial / 2) return nullptr;
    known.clear();
    for (int64_t i = 0; i < items.count; ++i) {
      const auto [place, is_new] = known.emplace(row(i), static_cast<uint32_t>(lists));
      group[static_cast<size_t>(i)] = place->second;
      if (!is_new) continue;
      if (static_cast<int64_t>(++lists) * kItemsPerCode > items.count) return nullptr;
      groups->codes_.insert(groups->codes_.end(), items.row(i), items.row(i) + items.width);
    }
  }
  groups->offsets_.assign(lists + 1, 0);
  for (const uint32_t g : group) ++groups->offsets_[g + 1];
  std::partial_sum(groups->offsets_.begin(), groups->offsets_.end(), groups->offsets_.begin());
  std::vector<uint32_t> places(groups->offsets_.begin(), groups->offsets_.end() - 1);
  groups->positions_.resize(group.size());
  for (size_t i = 0; i < group.size(); ++i) groups->positions_[places[group[i]]++] = static_cast<uint32_t>(i);
  return groups;
}

// Values that differ from the query's in one bit, in two, and so on, until k items are found.
void Groups::by_table(unsigned query, Search& search) const {
  size_t next = 0;
  for (int distance = 0; distance <= search.limit && search.found < search.k && next < flips_.size(); ++distance) {
    for (; next < flips_.size() && std::popcount(flips_[next]) == distance; ++next)
      if (const List found = list(query ^ flips_[next]); found.count > 0) search.lists.push_back(found);
    search.take(distance);
  }
}

// Distances of all distinct codes, and then the lists of the nearest.
void Groups::by_distances(const uint8_t* query, Search& search) const {
  const int row_bytes = padded_bytes(bits_), lists = static_cast<int>(offsets_.size()) - 1;
  search.all.resize(static_cast<size_t>(lists));
  kernels().distances(row_bytes)(query, codes_.data(), lists, row_bytes / 8, search.all.data());
  search.counts.assign(static_cast<size_t>(bits_) + 1, 0);
  for (size_t code = 0; code < search.all.size(); ++code)
    search.counts[static_cast<size_t>(search.all[code])] += list(code).count;
  int last = 0;  // the k-th distance
  for (int64_t within = search.counts[0]; within < search.k && last < search.limit;)
    within += search.counts[static_cast<size_t>(++last)];
  search.near.clear();
  for (size_t code = 0; code < search.all.size(); ++code)
    if (search.all[code] <= last) search.near.push_back(static_cast<uint32_t>(code));
  std::stable_sort(search.near.begin(), search.near.end(),
                   [&](uint32_t a, uint32_t b) { return search.all[a] < search.all[b]; });
  for (size_t i = 0; i < search.near.size();) {
    const int16_t distance = search.all[search.near[i]];
    for (; i < search.near.size() && search.all[search.near[i]] == distance; ++i)
      search.lists.push_back(list(search.near[i]));
    search.take(distance);
  }
}

void Groups::topk(const Task& task, int64_t k, int max_distance, int32_t* distances, int64_t* ids) const {
  const int64_t queries = task.queries.count;
  const int threads = static_cast<int>(std::clamp<int64_t>(queries / kQueriesPerThread, 1, task.threads));
  parallel_for(threads, (queries + kBlock - 1) / kBlock, [&](int64_t block) {
    const Range own{block * kBlock, std::min(queries, (block + 1) * kBlock)};
    TileReader reader(task, own, 0);
    Search search(task, std::min(k, size()), size(), std::clamp(max_distance, 0, bits_));
    if (!flips_.empty()) {
      // Memory that the queries of the block will wait for, asked for at once.
      for (int64_t q = own.begin; q < own.end; ++q)
        __builtin_prefetch(offsets_.data() + value_of(reader.query(q), bits_));
      for (int64_t q = own.begin; q < own.end; ++q)
        __builtin_prefetch(positions_.data() + offsets_[value_of(reader.query(q), bits_)]);
    }
    for (int64_t q = own.begin; q < own.end; ++q) {
      search.found = 0;
      search.distances = distances + q * k;
      search.ids = ids + q * k;
      flips_.empty() ? by_distances(reader.query(q), search) : by_table(value_of(reader.query(q), bits_), search);
      fill_missing(search.found, k, search.distances, search.ids);
    }
  });
}

}  // namespace agmh
