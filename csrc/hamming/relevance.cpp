#include "hamming/relevance.h"

#include <algorithm>
#include <bit>
#include <unordered_map>

namespace agmh {
namespace {

template <class Visit>
void visit_labels(const Labels& labels, const int64_t* values, int64_t row, const Visit& visit) {
  if (labels.words == 0) return visit(values[row]);
  for (int w = 0; w < labels.words; ++w)
    for (auto set = static_cast<uint64_t>(values[row * labels.words + w]); set != 0; set &= set - 1)
      visit(64 * w + std::countr_zero(set));
}

}  // namespace

Relevance::Relevance(const Task& task, const Labels& labels)
    : pairs_of_all_(static_cast<double>(task.queries.count) * static_cast<double>(std::max<int64_t>(1, task.size()))) {
  std::unordered_map<int64_t, int64_t> number;
  starts_.push_back(0);
  for (int64_t q = 0; q < task.queries.count; ++q) {
    visit_labels(labels, labels.queries, q, [&](int64_t label) {
      of_queries_.push_back(number.emplace(label, static_cast<int64_t>(number.size())).first->second);
    });
    starts_.push_back(static_cast<int64_t>(of_queries_.size()));
  }
  classes_ = static_cast<int64_t>(number.size());

  // A counting sort of (class, position).
  std::vector<int64_t> of_items, item_starts{0};
  class_starts_.assign(static_cast<size_t>(classes_) + 1, 0);
  for (int64_t position = 0; position < task.size(); ++position) {
    visit_labels(labels, labels.items, task.row_of(position), [&](int64_t label) {
      const auto known = number.find(label);
      if (known == number.end()) return;
      of_items.push_back(known->second);
      ++class_starts_[static_cast<size_t>(known->second) + 1];
    });
    item_starts.push_back(static_cast<int64_t>(of_items.size()));
  }
  for (size_t c = 1; c < class_starts_.size(); ++c) class_starts_[c] += class_starts_[c - 1];
  positions_.resize(of_items.size());
  std::vector<int64_t> next = class_starts_;
  for (int64_t position = 0; position < task.size(); ++position)
    for (int64_t at = item_starts[static_cast<size_t>(position)]; at < item_starts[static_cast<size_t>(position) + 1];
         ++at)
      positions_[static_cast<size_t>(next[static_cast<size_t>(of_items[static_cast<size_t>(at)])]++)] = position;
}

double Relevance::share() const {
  double pairs = 0;
  for (const int64_t c : of_queries_) {
    const Positions items = of_class(c);
    pairs += static_cast<double>(items.end - items.begin);
  }
  return pairs / std::max(1.0, pairs_of_all_);
}

Relevance::Positions Relevance::of_class(int64_t index) const {
  const int64_t* starts = class_starts_.data() + index;
  return {positions_.data() + starts[0], positions_.data() + starts[1]};
}

Relevance::Positions Relevance::of_query(int64_t query, std::vector<int64_t>& room) const {
  room.clear();
  const int64_t begin = starts_[static_cast<size_t>(query)], end = starts_[static_cast<size_t>(query) + 1];
  if (end - begin == 1) return of_class(of_queries_[static_cast<size_t>(begin)]);
  visit_classes(query, [&](int64_t c) {
    const Positions items = of_class(c);
    room.insert(room.end(), items.begin, items.end);
  });
  std::sort(room.begin(), room.end());
  room.erase(std::unique(room.begin(), room.end()), room.end());
  return {room.data(), room.data() + room.size()};
}

}  // namespace agmh
