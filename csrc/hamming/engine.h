// Exact Hamming search over packed codes: distance matrix, k nearest, range, histogram, ranking of relevant items.
//
// Every result is ordered by (distance, position) and is the same for any number of threads and any split of the work.
// All functions read codes in place, write every element of their outputs, need scratch that does not grow with
// queries * items, and throw std::bad_alloc or nothing; arguments are checked by the callers.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <vector>

#include "hamming/layout.h"

namespace agmh {

// The distance reported where fewer than k items exist; their id is -1.
inline constexpr int32_t kNoDistance = std::numeric_limits<int32_t>::max();

// Says so for the last of a query's k results, of which there are `found`.
inline void fill_missing(int64_t found, int64_t k, int32_t* distances, int64_t* ids) {
  std::fill(distances + found, distances + k, kNoDistance);
  std::fill(ids + found, ids + k, -1);
}

// What is searched for and in what. A position counts the scanned items: the rows of `items`, or, with a selection, the
// rows that it names in ascending order.
struct Task {
  int bits = 0;
  Codes queries;
  Codes items;
  const int64_t* selection = nullptr;
  int64_t selected = -1;  // -1: no selection
  // One byte an item and query, 0 leaves the item out: mask[query * mask_stride + position]. Stride 0: one for all.
  const uint8_t* mask = nullptr;
  int64_t mask_stride = 0;
  // Id of each row of `items`, ascending; without it ids count on from first_id, and none is read from memory.
  const int64_t* ids = nullptr;
  int64_t first_id = 0;
  int threads = 1;

  int64_t size() const { return selected >= 0 ? selected : items.count; }
  int64_t row_of(int64_t position) const { return selected >= 0 ? selection[position] : position; }
  int64_t id_of(int64_t position) const { return ids != nullptr ? ids[row_of(position)] : first_id + row_of(position); }
  // Leaves out the first rows; not with a selection or a mask.
  void drop(int64_t rows) {
    items.data += rows * items.stride;
    items.count -= rows;
    first_id += rows;
    if (ids != nullptr) ids += rows;
  }
};

// Relevance of items to queries: equal labels, or, with `words` > 0, a label set in common (bit sets of `words` words).
struct Labels {
  const int64_t* queries = nullptr;
  const int64_t* items = nullptr;
  int words = 0;

  bool relevant(int64_t query, int64_t item) const {
    if (words == 0) return queries[query] == items[item];
    int64_t shared = 0;
    for (int w = 0; w < words; ++w) shared |= queries[query * words + w] & items[item * words + w];
    return shared != 0;
  }
};

// (queries, size) matrix; uint8_t needs bits <= 255. No mask.
void distance(const Task& task, uint8_t* out);
void distance(const Task& task, uint16_t* out);
void distance(const Task& task, int32_t* out);

// Computes every distance and keeps none beyond the tile it belongs to: what comparing codes one by one costs by
// itself, for benches to measure results against.
void distance_loop(const Task& task);

// The k nearest items within max_distance: (queries, k) distances and ids, padded with kNoDistance and -1.
void topk(const Task& task, int64_t k, int max_distance, int32_t* distances, int64_t* ids);

// All items within `radius` (inclusive), in two steps. The first fills lims (queries + 1): results of query q go to
// [lims[q], lims[q + 1]). The second, for the same task, takes what the first returned and writes lims[queries]
// distances and ids.
struct RangeCounts {
  int radius = 0;
  std::vector<int64_t> offsets;  // for each query and part of the items, where its items at each distance start
};
RangeCounts range_count(const Task& task, int radius, int64_t* lims);
void range_fill(const Task& task, RangeCounts counts, const int64_t* lims, int32_t* distances, int64_t* ids);

// Items at each distance: (queries, bits + 1), or with labels (queries, bits + 1, 2): all items, relevant items.
void histogram(const Task& task, const Labels* labels, int64_t* out);

// With items ranked by (distance, position), rank 1 first: precision_sum[q] is the sum of precision at the rank of each
// relevant item with rank <= depth; relevant[q, c] is the number of relevant items with rank <= cutoffs[c] (ascending).
// `counts`, where wanted, becomes what histogram() gives with these labels.
void stable_ranking(const Task& task, const Labels& labels, int64_t depth, const std::vector<int64_t>& cutoffs,
                    double* precision_sum, int64_t* relevant, int64_t* counts = nullptr);

// What metrics need of histograms with labels, counts (queries, bins, 2), and no order of ties but a rule: the sum of
// precision at each relevant item, and the relevant items among the first cutoffs[c] <= items, as their mean over all
// orders inside the groups of equal distance, or as the largest or smallest value. Beside them a query's relevant
// items, and for each distance the sums over queries of precision and recall within it (2, bins).
// With kGiven the order is known and scored elsewhere: sums are 0 and there are no cutoffs.
enum class TieRule { kExpected, kOptimistic, kPessimistic, kGiven };
void tie_scores(const int64_t* counts, int64_t queries, int64_t bins, TieRule rule, const std::vector<int64_t>& cutoffs,
                int threads, double* precision_sum, double* hits, double* relevant, double* curves);

}  // namespace agmh
