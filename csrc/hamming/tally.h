// How many items are at each distance, for a block of queries: by bit planes where that pays, else item by item.
#pragma once

#include <functional>
#include <memory>

#include "hamming/relevance.h"
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

  // Whether bit planes are used, and whether relevant items are so few that they are looked at one by one all the same.
  bool by_planes() const { return by_planes_; }
  bool few_relevant() const { return few_relevant_; }

  // Where both are so: as add(), and calls found(query, distances, before, count) for a query's relevant items, in
  // order of positions and some at a time. `before` is how many items before each of them share its distance.
  using Found = std::function<void(int64_t query, const int16_t* distances, const int64_t* before, int count)>;
  void add_and_find(Range queries, Range items, int64_t* counts, const Found& found) const;

 private:
  class PlaneBlock;

  void add_one_by_one(Range queries, Range items, int64_t* counts) const;

  const Task& task_;
  const Labels* labels_;
  bool by_planes_;
  bool few_relevant_ = false;
  std::unique_ptr<const Relevance> relevance_;
};

}  // namespace agmh
