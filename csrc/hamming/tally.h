// How many items are at each distance, for a block of queries: by bit planes where that pays, else item by item.
#pragma once

#include <functional>
#include <memory>

#include "hamming/planes.h"
#include "hamming/tile.h"

namespace agmh {

class Tallier {
 public:
  // For blocks of about `block` queries of the task. With labels there are two counts a distance: all items, and those
  // that are relevant.
  Tallier(const Task& task, const Labels* labels, int64_t block);
  ~Tallier();

  // Counts of a query: (bits + 1) distances, or (bits + 1, 2).
  int64_t row() const { return (task_.bits + 1) * (labels_ != nullptr ? 2 : 1); }

  // Adds some items to counts[query - queries.begin][distance][channel].
  void add(Range queries, Range items, int64_t* counts) const;

  // Whether bit planes are used, and with labels the share of pairs that may be relevant.
  bool by_planes() const { return by_planes_; }
  double relevance() const;

  // By planes only: as add(), and calls before(query, tally) for some tiles at a time before they are added; their
  // items are chosen where they are relevant.
  using Before = std::function<void(int64_t query, const Tally& tally)>;
  void add_by_planes(Range queries, Range items, int64_t* counts, const Before& before) const;

 private:
  struct Classes;

  void add_one_by_one(Range queries, Range items, int64_t* counts) const;

  const Task& task_;
  const Labels* labels_;
  bool by_planes_;
  std::unique_ptr<const Classes> classes_;
};

}  // namespace agmh
