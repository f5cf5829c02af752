// Which items are relevant to which queries, by the labels that they share.
#pragma once

#include <cstdint>
#include <vector>

#include "hamming/engine.h"

namespace agmh {

// Labels as lists of small numbers, one for each label that some query has.
class Relevance {
 public:
  Relevance(const Task& task, const Labels& labels);

  int64_t classes() const { return classes_; }

  // The share of pairs that may be relevant; pairs that share several labels count as often.
  double share() const;

  // Calls visit(class) for each class of a query.
  template <class Visit>
  void visit_classes(int64_t query, const Visit& visit) const {
    for (int64_t at = starts_[static_cast<size_t>(query)]; at < starts_[static_cast<size_t>(query) + 1]; ++at)
      visit(of_queries_[static_cast<size_t>(at)]);
  }

  // Ascending positions of the items of a class, or of a query's relevant items, which may be put into `room`.
  struct Positions {
    const int64_t *begin, *end;
  };
  Positions of_class(int64_t index) const;
  Positions of_query(int64_t query, std::vector<int64_t>& room) const;

 private:
  int64_t classes_ = 0;
  double pairs_of_all_;
  std::vector<int64_t> starts_, of_queries_;       // classes of each query
  std::vector<int64_t> class_starts_, positions_;  // positions of each class
};

}  // namespace agmh
