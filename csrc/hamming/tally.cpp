#include "hamming/tally.h"

#include <cstring>

#include "hamming/planes.h"

namespace agmh {
namespace {

constexpr int kItems = kTallyTiles * kPlaneItems;
constexpr int64_t kWords = kItems / 64;
// Up to this share of relevant pairs looking at each is about as fast as a plane of them, whose counts cost the same
// however few they are.
constexpr double kFewRelevant = 1.0 / 8;
// Where they are more, a plane for each class takes too long to lay out for every tile from here on.
constexpr int64_t kMaxClasses = 1024;

void set_bit(uint64_t* bits, int64_t i) { bits[i / 64] |= uint64_t{1} << (i % 64); }

}  // namespace

// A block of queries and what is counted of it.
class Tallier::PlaneBlock {
 public:
  PlaneBlock(const Tallier& tallier, Range queries, Range items)
      : task_(tallier.task_),
        queries_(queries),
        items_(items),
        relevance_(tallier.relevance_.get()),
        few_(tallier.few_relevant_),
        reader_(task_, queries, kItems),
        filter_(kernels().planes, task_.bits, reader_.query(queries.begin), static_cast<int>(queries.size())),
        bins_((task_.bits + 8) / 8 * 8),
        of_query_((filter_.levels() + 1) * kPlaneWords),
        of_tile_(queries.size() * of_query_),
        all_(static_cast<size_t>(queries.size() * bins_)),
        relevant_(relevance_ != nullptr ? all_.size() : 0) {
    // Planes of the distances (tiles, queries, levels + 1), then items that exist, those relevant to a query, and those
    // of each class.
    const int64_t classes = relevance_ != nullptr && !few_ ? relevance_->classes() : 0;
    const int64_t words = kTallyTiles * of_tile_ + (2 + classes) * kWords;
    memory_ = std::make_unique_for_overwrite<uint8_t[]>(static_cast<size_t>(words) * sizeof(uint64_t) + 64);
    planes_ = reinterpret_cast<uint64_t*>(aligned(memory_.get()));
    exist_ = planes_ + kTallyTiles * of_tile_;
    chosen_ = exist_ + kWords;
    members_ = chosen_ + kWords;
    if (relevance_ == nullptr) return;
    const auto from = [&](Relevance::Positions found) {
      return Relevance::Positions{std::lower_bound(found.begin, found.end, items.begin), found.end};
    };
    if (few_) {
      rooms_.resize(static_cast<size_t>(queries.size()));
      for (int64_t q = queries.begin; q < queries.end; ++q)
        left_.push_back(from(relevance_->of_query(q, rooms_[static_cast<size_t>(q - queries.begin)])));
    } else {
      for (int64_t c = 0; c < classes; ++c) left_.push_back(from(relevance_->of_class(c)));
    }
  }

  void count(const Found& found) {
    for (int64_t first = items_.begin; first < items_.end; first += kItems) {
      const int count = static_cast<int>(std::min<int64_t>(kItems, items_.end - first));
      tiles_ = (count + kPlaneItems - 1) / kPlaneItems;
      rows_ = reader_.tile(first, count);
      first_ = first;
      end_ = first + count;
      lay_out(count);
      for (int64_t q = queries_.begin; q < queries_.end; ++q) {
        if (relevance_ != nullptr && few_) {
          count_with_each(q, found);
        } else {
          tally(q, exist_, all_);
          if (relevance_ != nullptr) count_chosen(q);
        }
      }
    }
  }

  void add_to(int64_t* counts) const {
    const int64_t bins = task_.bits + 1;
    for (int64_t q = 0; q < queries_.size(); ++q)
      for (int64_t d = 0; d < bins; ++d) {
        const auto from = static_cast<size_t>(q * bins_ + d);
        if (relevance_ == nullptr) {
          counts[q * bins + d] += all_[from];
        } else {
          counts[2 * (q * bins + d)] += all_[from];
          counts[2 * (q * bins + d) + 1] += relevant_[from];
        }
      }
  }

 private:
  // Planes of the tiles that are looked at.
  void lay_out(int count) {
    const int row_bytes = padded_bytes(task_.bits);
    for (int t = 0; t < tiles_; ++t)
      filter_.planes(rows_ + int64_t{t} * kPlaneItems * row_bytes, std::min(kPlaneItems, count - t * kPlaneItems),
                     planes_ + t * of_tile_);
    std::memset(exist_, 0, kWords * sizeof(uint64_t));
    for (int i = 0; i < count; ++i) set_bit(exist_, i);
    if (relevance_ == nullptr || few_) return;
    std::memset(members_, 0, left_.size() * kWords * sizeof(uint64_t));
    for (size_t c = 0; c < left_.size(); ++c)
      for (; left_[c].begin != left_[c].end && *left_[c].begin < end_; ++left_[c].begin)
        set_bit(members_ + static_cast<int64_t>(c) * kWords, *left_[c].begin - first_);
  }

  Tally of(int64_t query, const uint64_t* items, std::vector<int64_t>& counts) const {
    return {.planes = planes_ + (query - queries_.begin) * of_query_,
            .tile_stride = of_tile_,
            .tiles = tiles_,
            .levels = filter_.levels(),
            .bits = task_.bits,
            .items = items,
            .counts = counts.data() + (query - queries_.begin) * bins_};
  }

  void tally(int64_t query, const uint64_t* items, std::vector<int64_t>& counts) const {
    kernels().planes.tally(of(query, items, counts));
  }

  void count_chosen(int64_t query) {
    std::memset(chosen_, 0, kWords * sizeof(uint64_t));
    relevance_->visit_classes(query, [&](int64_t c) {
      for (int64_t w = 0; w < kWords; ++w) chosen_[w] |= members_[c * kWords + w];
    });
    tally(query, chosen_, relevant_);
  }

  // All by planes, and the relevant ones by their distances.
  void count_with_each(int64_t query, const Found& found) {
    Relevance::Positions& left = left_[static_cast<size_t>(query - queries_.begin)];
    int count = 0;
    for (; left.begin != left.end && *left.begin < end_; ++left.begin)
      index_[count++] = static_cast<uint16_t>(*left.begin - first_);
    kernels().distances_at(reader_.query(query), rows_, padded_bytes(task_.bits), index_, count, distances_);
    int64_t* relevant = relevant_.data() + (query - queries_.begin) * bins_;
    for (int i = 0; i < count; ++i) ++relevant[distances_[i]];
    Tally task = of(query, exist_, all_);
    if (found) {
      task.asked = count;
      task.index = index_;
      task.distances = distances_;
      task.before = before_;
    }
    kernels().planes.tally(task);
    if (found) found(query, distances_, before_, count);
  }

  const Task& task_;
  const Range queries_, items_;
  const Relevance* relevance_;
  const bool few_;
  TileReader reader_;
  PlaneFilter filter_;
  const int64_t bins_;                // counts of a query, a whole number of vectors
  const int64_t of_query_, of_tile_;  // words of planes
  std::vector<int64_t> all_, relevant_;
  std::vector<std::vector<int64_t>> rooms_;
  std::vector<Relevance::Positions> left_;  // of each query, or of each class: those not looked at yet
  std::unique_ptr<uint8_t[]> memory_;
  uint64_t *planes_, *exist_, *chosen_, *members_;
  // The tiles that are looked at.
  int tiles_ = 0;
  const uint8_t* rows_ = nullptr;
  int64_t first_ = 0, end_ = 0;
  uint16_t index_[kItems];
  int16_t distances_[kItems];
  int64_t before_[kItems];
};

Tallier::Tallier(const Task& task, const Labels* labels, int64_t block) : task_(task), labels_(labels) {
  // Going item by item takes some eight times as long as a distance.
  const int64_t enough = kernels().planes.enough_queries(task.bits) / 8;
  by_planes_ = task.mask == nullptr && task.bits <= kMaxTallyBits && block >= enough;
  if (!by_planes_ || labels == nullptr) return;
  relevance_ = std::make_unique<const Relevance>(task, *labels);
  few_relevant_ = relevance_->share() <= kFewRelevant;
  by_planes_ = few_relevant_ || relevance_->classes() <= kMaxClasses;
}

Tallier::~Tallier() = default;

void Tallier::add(Range queries, Range items, int64_t* counts) const {
  by_planes_ ? add_and_find(queries, items, counts, {}) : add_one_by_one(queries, items, counts);
}

void Tallier::add_and_find(Range queries, Range items, int64_t* counts, const Found& found) const {
  const auto block = std::make_unique<PlaneBlock>(*this, queries, items);
  block->count(found);
  block->add_to(counts);
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

}  // namespace agmh
