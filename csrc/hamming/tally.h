// How many items are at each distance, for a block of queries: by bit planes where that pays, else item by item.
#pragma once

#include <memory>

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

 private:
  struct Classes;

  void add_one_by_one(Range queries, Range items, int64_t* counts) const;
  void add_by_planes(Range queries, Range items, int64_t* counts) const;

  const Task& task_;
  const Labels* labels_;
  bool by_planes_;
  std::unique_ptr<const Classes> classes_;
};

}  // namespace agmh
