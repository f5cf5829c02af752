// Items grouped by their code: for short codes, of which there are fewer than items, and for databases in which the
// same codes come again and again. A query meets every distinct code once, and finds the items of a distance by their
// lists.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "hamming/engine.h"

namespace agmh {

class Groups {
 public:
  // The groups of padded, adjoining rows; null where distinct codes are so many that a scan is as good.
  static std::unique_ptr<const Groups> of(const Codes& items, int bits);

  // Items that were grouped.
  int64_t size() const { return static_cast<int64_t>(positions_.size()); }

  // As agmh::topk for a task whose items are the ones that were grouped, without mask or selection.
  void topk(const Task& task, int64_t k, int max_distance, int32_t* distances, int64_t* ids) const;

 private:
  // The ascending positions of the items with one code.
  struct List {
    const uint32_t* first;
    int64_t count;
  };
  // One query's search at work.
  struct Search;

  Groups() = default;
  List list(size_t code) const { return {positions_.data() + offsets_[code], offsets_[code + 1] - offsets_[code]}; }
  void by_table(unsigned query, Search& search) const;
  void by_distances(const uint8_t* query, Search& search) const;

  int bits_ = 0;
  // Distinct codes, padded rows, or none: then a list belongs to each value that a code can have.
  std::vector<uint8_t> codes_;
  std::vector<uint32_t> offsets_;    // (lists + 1): where each list starts in positions_
  std::vector<uint32_t> positions_;  // (items)
  std::vector<uint16_t> flips_;      // table only: all values in order of the number of their ones
};

}  // namespace agmh
