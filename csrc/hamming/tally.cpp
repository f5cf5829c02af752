#include "hamming/tally.h"

#include <bit>
#include <cstring>
#include <unordered_map>

#include "hamming/planes.h"

namespace agmh {
namespace {

// Up to here counting in planes is faster than item by item; its cost grows with the number of distances.
constexpr int kMaxPlaneBits = 512;
// More classes take too long to lay out for every tile.
constexpr int32_t kMaxClasses = 1024;

}  // namespace

// Labels as lists of small numbers: those of queries, and for each item the ones that some query has.
struct Tallier::Classes {
  std::vector<int64_t> query_starts, item_starts;
  std::vector<int32_t> of_queries, of_items;
  int32_t count = 0;

  Classes(const Labels& labels, int64_t queries, int64_t items) {
    std::unordered_map<int64_t, int32_t> number;
    query_starts.push_back(0);
    for (int64_t q = 0; q < queries; ++q) {
      visit(labels, labels.queries, q, [&](int64_t label) {
        of_queries.push_back(number.emplace(label, static_cast<int32_t>(number.size())).first->second);
      });
      query_starts.push_back(static_cast<int64_t>(of_queries.size()));
    }
    count = static_cast<int32_t>(number.size());
    item_starts.push_back(0);
    for (int64_t i = 0; i < items; ++i) {
      visit(labels, labels.items, i, [&](int64_t label) {
        if (const auto known = number.find(label); known != number.end()) of_items.push_back(known->second);
      });
      item_starts.push_back(static_cast<int64_t>(of_items.size()));
    }
  }

 private:
  template <class Visit>
  static void visit(const Labels& labels, const int64_t* values, int64_t row, const Visit& visit_label) {
    if (labels.words == 0) return visit_label(values[row]);
    for (int w = 0; w < labels.words; ++w)
      for (auto set = static_cast<uint64_t>(values[row * labels.words + w]); set != 0; set &= set - 1)
        visit_label(64 * w + std::countr_zero(set));
  }
};

Tallier::Tallier(const Task& task, const Labels* labels, int64_t block) : task_(task), labels_(labels) {
  // Going item by item takes some eight times as long as a distance.
  const int64_t enough = kernels().planes.enough_queries(task.bits) / 8;
  by_planes_ = task.mask == nullptr && task.bits <= kMaxPlaneBits && block >= enough;
  if (!by_planes_ || labels == nullptr) return;
  classes_ = std::make_unique<const Classes>(*labels, task.queries.count, task.items.count);
  by_planes_ = classes_->count <= kMaxClasses;
}

Tallier::~Tallier() = default;

double Tallier::relevance() const {
  std::vector<double> queries(static_cast<size_t>(classes_->count));
  for (const int32_t c : classes_->of_queries) ++queries[static_cast<size_t>(c)];
  double pairs = 0;
  for (const int32_t c : classes_->of_items) pairs += queries[static_cast<size_t>(c)];
  return pairs /
         (static_cast<double>(task_.queries.count) * static_cast<double>(std::max<int64_t>(1, task_.items.count)));
}

void Tallier::add(Range queries, Range items, int64_t* counts) const {
  by_planes_ ? add_by_planes(queries, items, counts, {}) : add_one_by_one(queries, items, counts);
}

void Tallier::add_one_by_one(Range queries, Range items, int64_t* counts) const {
  const int64_t channels = labels_ != nullptr ? 2 : 1;
  scan_tiles(task_, queries, items, [&](int64_t query, int64_t first, const int16_t* distances, int count) {
    int64_t* of_query = counts + (query - queries.begin) * row();
    for (int i = 0; i < count; ++i) {
      if (distances[i] == kExcluded) continue;
      int64_t* bin = of_query + distances[i] * channels;
      ++bin[0];
      if (labels_ != nullptr && labels_->relevant(query, task_.row_of(first + i))) ++bin[1];
    }
  });
}

// A population count gives how many of 512 items are at one distance.
void Tallier::add_by_planes(Range queries, Range items, int64_t* counts, const Before& before) const {
  constexpr int kTiles = 8, kItems = kTiles * kPlaneItems;
  const Task& task = task_;
  const Classes* classes = classes_.get();
  const int row_bytes = padded_bytes(task.bits), block = static_cast<int>(queries.size());
  TileReader reader(task, queries, kItems);
  PlaneFilter filter(kernels().planes, task.bits, reader.query(queries.begin), block);
  const int64_t of_query = (filter.levels() + 1) * kPlaneWords, of_tile = block * of_query;
  const int64_t members = classes != nullptr ? classes->count : 0;
  // Planes of the distances (tiles, queries, levels + 1), then items that exist, those of each class, and one query's.
  const int64_t words = kTiles * of_tile + (2 + members) * kTiles * kPlaneWords;
  const auto memory = std::make_unique_for_overwrite<uint8_t[]>(static_cast<size_t>(words) * sizeof(uint64_t) + 64);
  auto* planes = reinterpret_cast<uint64_t*>(aligned(memory.get()));
  uint64_t *exist = planes + kTiles * of_tile, *chosen = exist + kTiles * kPlaneWords,
           *member = chosen + kTiles * kPlaneWords;
  const auto set = [](uint64_t* bits, int64_t i) { bits[i / 64] |= uint64_t{1} << (i % 64); };
  for (int64_t first = items.begin; first < items.end; first += kItems) {
    const int count = static_cast<int>(std::min<int64_t>(kItems, items.end - first));
    const int tiles = (count + kPlaneItems - 1) / kPlaneItems;
    const uint8_t* rows = reader.tile(first, count);
    std::memset(exist, 0, static_cast<size_t>((2 + members) * kTiles * kPlaneWords) * sizeof(uint64_t));
    for (int i = 0; i < count; ++i) set(exist, i);
    if (classes != nullptr)
      for (int i = 0; i < count; ++i) {
        const int64_t item = task.row_of(first + i);
        for (int64_t at = classes->item_starts[static_cast<size_t>(item)];
             at < classes->item_starts[static_cast<size_t>(item) + 1]; ++at)
          set(member + classes->of_items[static_cast<size_t>(at)] * kTiles * kPlaneWords, i);
      }
    for (int t = 0; t < tiles; ++t)
      filter.planes(rows + int64_t{t} * kPlaneItems * row_bytes, std::min(kPlaneItems, count - t * kPlaneItems),
                    planes + t * of_tile);
    for (int q = 0; q < block; ++q) {
      if (classes != nullptr) {
        std::memset(chosen, 0, kTiles * kPlaneWords * sizeof(uint64_t));
        const auto query = static_cast<size_t>(queries.begin + q);
        for (int64_t at = classes->query_starts[query]; at < classes->query_starts[query + 1]; ++at) {
          const uint64_t* of_class = member + classes->of_queries[static_cast<size_t>(at)] * kTiles * kPlaneWords;
          for (int w = 0; w < kTiles * kPlaneWords; ++w) chosen[w] |= of_class[w];
        }
      }
      const Tally tally{.planes = planes + q * of_query,
                        .tile_stride = of_tile,
                        .tiles = tiles,
                        .levels = filter.levels(),
                        .bits = task.bits,
                        .items = exist,
                        .chosen = classes != nullptr ? chosen : nullptr,
                        .counts = counts + q * row()};
      if (before) before(queries.begin + q, tally);
      kernels().planes.tally(tally);
    }
  }
}

}  // namespace agmh
