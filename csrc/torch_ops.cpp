// agmh_fast._C: torch ops on the libtorch stable ABI, so that one build serves every torch from the target version on.
// Codes are packed uint8 rows (N, ceil(bits / 8)). agmh_fast/ops/hamming.py checks values; here only what keeps memory
// safe is checked, since the ops can be called by anyone.
#include <Python.h>

#include <optional>
#include <tuple>
#include <vector>

#include "hamming/engine.h"
#include "hamming/pool.h"
#include "torch_codes.h"

namespace {

using agmh::check_codes, agmh::data, agmh::ItemMask, agmh::RelevanceLabels;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Adjoining bytes in each row; the rows themselves may lie apart.
Tensor with_adjoining_bytes(const Tensor& codes) {
  if (codes.size(1) <= 1 || codes.stride(1) == 1) return codes;
  Tensor copy = torch::stable::new_empty(codes, {codes.size(0), codes.size(1)});
  torch::stable::copy_(copy, codes);
  return copy;
}

agmh::Codes as_codes(const Tensor& codes, int64_t bits) {
  return {static_cast<const uint8_t*>(codes.data_ptr()), codes.size(0), codes.stride(0),
          agmh::packed_bytes(static_cast<int>(bits))};
}

// Keeps the tensors alive that its task points into.
struct Search {
  Tensor queries, items;
  agmh::Task task;

  Search(const Tensor& q, const Tensor& x, int64_t bits, int64_t threads) : queries(q), items(x) {
    check_codes("q", q, bits);
    check_codes("x", x, bits);
    queries = with_adjoining_bytes(q);
    items = with_adjoining_bytes(x);
    task.bits = static_cast<int>(bits);
    task.queries = as_codes(queries, bits);
    task.items = as_codes(items, bits);
    task.threads = agmh::threads_within_reason(threads);
  }
  void leave_out(const std::optional<Tensor>& mask) {
    const ItemMask kept(mask, task.queries.count, task.items.count);
    task.mask = kept.data;
    task.mask_stride = kept.stride;
  }
};

// An uninitialised tensor for results. The memory of large ones is used again when they are gone.
template <class T>
Tensor results(const char* op, const Tensor& like, std::initializer_list<int64_t> sizes) {
  const int64_t bytes = agmh::bytes_of(sizes, sizeof(T));
  if (bytes < static_cast<int64_t>(agmh::kHugeBytes)) return agmh::allocate<T>(op, like, sizes);
  agmh::Block block;
  try {
    block = agmh::take_block(static_cast<size_t>(bytes));
  } catch (const std::bad_alloc&) {
    return agmh::allocate<T>(op, like, sizes);  // which says what was asked for
  }
  const agmh::Release release = block.get_deleter();
  std::vector<int64_t> strides(sizes.size(), 1);
  for (size_t axis = sizes.size() - 1; axis > 0; --axis) strides[axis - 1] = strides[axis] * sizes.begin()[axis];
  const Tensor out =
      torch::stable::from_blob(block.get(), {sizes.begin(), sizes.size()}, {strides.data(), strides.size()},
                               like.device(), torch::headeronly::CppTypeToScalarType<T>::value,
                               [release](void* memory) { release(static_cast<uint8_t*>(memory)); });
  (void)block.release();
  return out;
}

template <class T>
Tensor distances_as(const Search& search, int64_t rows, int64_t columns) {
  const Tensor out = results<T>("hamming_distance", search.queries, {rows, columns});
  agmh::distance(search.task, data<T>(out));
  return out;
}

Tensor distance_cpu(const Tensor& q, const Tensor& x, int64_t bits, int64_t itemsize, int64_t threads) {
  const Search search(q, x, bits, threads);
  switch (agmh::distance_type(bits, itemsize)) {
    case ScalarType::Byte:
      return distances_as<uint8_t>(search, q.size(0), x.size(0));
    case ScalarType::UInt16:
      return distances_as<uint16_t>(search, q.size(0), x.size(0));
    default:
      return distances_as<int32_t>(search, q.size(0), x.size(0));
  }
}

std::tuple<Tensor, Tensor> topk_cpu(const Tensor& q, const Tensor& x, int64_t bits, int64_t k, int64_t max_distance,
                                    const std::optional<Tensor>& mask, int64_t threads) {
  Search search(q, x, bits, threads);
  search.leave_out(mask);
  STD_TORCH_CHECK(k >= 1, "k must be at least 1, got ", k);
  STD_TORCH_CHECK(max_distance >= 0, "max_distance must be at least 0, got ", max_distance);
  const Tensor distances = results<int32_t>("hamming_topk", q, {q.size(0), k});
  const Tensor ids = results<int64_t>("hamming_topk", q, {q.size(0), k});
  agmh::topk(search.task, k, static_cast<int>(std::min(max_distance, bits)), data<int32_t>(distances),
             data<int64_t>(ids));
  return {distances, ids};
}

std::tuple<Tensor, Tensor, Tensor> range_cpu(const Tensor& q, const Tensor& x, int64_t bits, int64_t radius,
                                             const std::optional<Tensor>& mask, int64_t threads) {
  Search search(q, x, bits, threads);
  search.leave_out(mask);
  STD_TORCH_CHECK(radius >= 0, "radius must be at least 0, got ", radius);
  const Tensor lims = agmh::allocate<int64_t>("hamming_range", q, {q.size(0) + 1});
  agmh::RangeCounts counts =
      agmh::range_count(search.task, static_cast<int>(std::min<int64_t>(radius, bits)), data<int64_t>(lims));
  const int64_t found = data<int64_t>(lims)[q.size(0)];
  const Tensor distances = results<int32_t>("hamming_range", q, {found});
  const Tensor ids = results<int64_t>("hamming_range", q, {found});
  agmh::range_fill(search.task, std::move(counts), data<int64_t>(lims), data<int32_t>(distances), data<int64_t>(ids));
  return {lims, distances, ids};
}

Tensor histogram_cpu(const Tensor& q, const Tensor& x, int64_t bits, const std::optional<Tensor>& labels_q,
                     const std::optional<Tensor>& labels_x, int64_t threads) {
  const Search search(q, x, bits, threads);
  STD_TORCH_CHECK(labels_q.has_value() == labels_x.has_value(), "give both labels or none");
  if (!labels_q.has_value()) {
    const Tensor out = agmh::allocate<int64_t>("hamming_histogram", q, {q.size(0), bits + 1});
    agmh::histogram(search.task, nullptr, data<int64_t>(out));
    return out;
  }
  const RelevanceLabels labels(*labels_q, *labels_x, q.size(0), x.size(0));
  const Tensor out = agmh::allocate<int64_t>("hamming_histogram", q, {q.size(0), bits + 1, 2});
  agmh::histogram(search.task, &labels.labels, data<int64_t>(out));
  return out;
}

std::tuple<Tensor, Tensor, Tensor> stable_ranking_cpu(const Tensor& q, const Tensor& x, int64_t bits,
                                                      const Tensor& labels_q, const Tensor& labels_x, int64_t depth,
                                                      std::vector<int64_t> cutoffs, int64_t threads) {
  const Search search(q, x, bits, threads);
  const RelevanceLabels labels(labels_q, labels_x, q.size(0), x.size(0));
  STD_TORCH_CHECK(std::is_sorted(cutoffs.begin(), cutoffs.end()), "cutoffs must be ascending");
  const Tensor precision_sum = torch::stable::new_empty(q, {q.size(0)}, ScalarType::Double);
  const Tensor relevant =
      torch::stable::new_empty(q, {q.size(0), static_cast<int64_t>(cutoffs.size())}, ScalarType::Long);
  const Tensor counts = torch::stable::new_empty(q, {q.size(0), bits + 1, 2}, ScalarType::Long);
  agmh::stable_ranking(search.task, labels.labels, depth, cutoffs, data<double>(precision_sum), data<int64_t>(relevant),
                       data<int64_t>(counts));
  return {precision_sum, relevant, counts};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> tie_scores_cpu(const Tensor& counts, int64_t rule,
                                                          std::vector<int64_t> cutoffs, int64_t threads) {
  STD_TORCH_CHECK(
      counts.scalar_type() == ScalarType::Long && counts.dim() == 3 && counts.size(2) == 2 && counts.is_contiguous(),
      "counts must be a contiguous int64 tensor, (queries, bins, 2)");
  STD_TORCH_CHECK(std::is_sorted(cutoffs.begin(), cutoffs.end()), "cutoffs must be ascending");
  STD_TORCH_CHECK(rule >= 0 && rule <= 3 && (rule < 3 || cutoffs.empty()),
                  "rule must be 0, 1, 2, or 3 without cutoffs, got ", rule);
  const int64_t queries = counts.size(0), bins = counts.size(1);
  const auto make = [&](std::initializer_list<int64_t> sizes) {
    return torch::stable::new_empty(counts, sizes, ScalarType::Double);
  };
  const Tensor sums = make({queries}), hits = make({queries, static_cast<int64_t>(cutoffs.size())}),
               relevant = make({queries}), curves = make({2, bins});
  agmh::tie_scores(data<int64_t>(counts), queries, bins, static_cast<agmh::TieRule>(rule), cutoffs,
                   agmh::threads_within_reason(threads), data<double>(sums), data<double>(hits), data<double>(relevant),
                   data<double>(curves));
  return {sums, hits, relevant, curves};
}

}  // namespace

STABLE_TORCH_LIBRARY(agmh_fast, library) {
  library.def("hamming_distance(Tensor q, Tensor x, int bits, int itemsize, int threads) -> Tensor");
  library.def(
      "hamming_topk(Tensor q, Tensor x, int bits, int k, int max_distance, Tensor? mask, int threads) -> (Tensor, "
      "Tensor)");
  library.def(
      "hamming_range(Tensor q, Tensor x, int bits, int radius, Tensor? mask, int threads) -> (Tensor, Tensor, Tensor)");
  library.def(
      "hamming_histogram(Tensor q, Tensor x, int bits, Tensor? labels_q, Tensor? labels_x, int threads) -> Tensor");
  library.def(
      "hamming_stable_ranking(Tensor q, Tensor x, int bits, Tensor labels_q, Tensor labels_x, int depth, int[] "
      "cutoffs, "
      "int threads) -> (Tensor, Tensor, Tensor)");
  library.def("tie_scores(Tensor counts, int rule, int[] cutoffs, int threads) -> (Tensor, Tensor, Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(agmh_fast, CPU, library) {
  library.impl("hamming_distance", TORCH_BOX(&distance_cpu));
  library.impl("hamming_topk", TORCH_BOX(&topk_cpu));
  library.impl("hamming_range", TORCH_BOX(&range_cpu));
  library.impl("hamming_histogram", TORCH_BOX(&histogram_cpu));
  library.impl("hamming_stable_ranking", TORCH_BOX(&stable_ranking_cpu));
  library.impl("tie_scores", TORCH_BOX(&tie_scores_cpu));
}

extern "C" __attribute__((visibility("default"))) PyObject* PyInit__C() {
  static PyModuleDef module{PyModuleDef_HEAD_INIT, "_C", nullptr, -1, nullptr, nullptr, nullptr, nullptr, nullptr};
  return PyModule_Create(&module);
}
