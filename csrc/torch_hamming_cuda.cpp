// The Hamming ops on CUDA tensors: memory from torch's allocator, kernels on the current stream. Only a range search
// waits for the device, to learn how much it found.
#ifdef AGMH_FAST_CUDA

#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wunused-parameter"
#include <torch/csrc/stable/accelerator.h>
#pragma GCC diagnostic pop

#include <algorithm>
#include <cstdlib>
#include <optional>
#include <tuple>
#include <vector>

#include "hamming/cuda/engine.h"
#include "torch_codes.h"

namespace {

using agmh::data;
using torch::stable::Tensor;

// The tensor itself where its rows have `bytes` bytes, adjoin and are aligned, else a zero-padded copy.
Tensor padded_rows(const char* op, const Tensor& codes, int64_t bytes, uintptr_t alignment) {
  const bool aligned = reinterpret_cast<uintptr_t>(codes.data_ptr()) % alignment == 0;
  if (codes.size(1) == bytes && codes.is_contiguous() && aligned) return codes;
  Tensor padded = agmh::allocate<uint8_t>(op, codes, {codes.size(0), bytes});
  torch::stable::zero_(padded);
  const int64_t width = std::min(codes.size(1), bytes);
  Tensor source = codes, filled = torch::stable::narrow(padded, 1, 0, width);
  torch::stable::copy_(filled, torch::stable::narrow(source, 1, 0, width));
  return padded;
}

// What helps against an error of the CUDA runtime, by its number there.
const char* remedy(int error) {
  switch (error) {
    case 35:   // cudaErrorInsufficientDriver
    case 222:  // cudaErrorUnsupportedPtxVersion
      return "; the driver is too old for the CUDA toolkit that agmh_fast was built with: update it";
    case 98:   // cudaErrorInvalidDeviceFunction
    case 209:  // cudaErrorNoKernelImageForDevice
      return "; agmh_fast was not built for this GPU: build it with TORCH_CUDA_ARCH_LIST set to its compute capability";
    default:
      return "";
  }
}

void check(const char* op, int error) {
  STD_TORCH_CHECK(error == 0, op, ": ", agmh::cuda::error_text(error), remedy(error));
}

void check_pair(const Tensor& q, const Tensor& x, int64_t bits) {
  agmh::check_codes("q", q, bits);
  agmh::check_codes("x", x, bits);
  STD_TORCH_CHECK(q.is_cuda() && x.is_cuda() && q.get_device_index() == x.get_device_index(),
                  "q and x must be on the same device");
}

void* current_stream(const Tensor& tensor) {
  void* stream = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(tensor.get_device_index(), &stream));
  return stream;
}

// A search on the queries' device. Keeps the tensors alive that its task points into.
struct Search {
  const char* op;
  torch::stable::accelerator::DeviceGuard guard;
  Tensor queries, items;
  agmh::cuda::DeviceTask task;
  agmh::cuda::Device device;
  void* stream;

  Search(const char* name, const Tensor& q, const Tensor& x, int64_t bits)
      : op(name), guard(q.get_device_index()), queries(q), items(x), stream(current_stream(q)) {
    task.bits = static_cast<int>(bits);
    task.words = agmh::cuda::row_words(task.bits);
    queries = padded_rows(op, q, 4 * task.words, agmh::cuda::kRowAlignment);
    items = padded_rows(op, x, 4 * task.words, agmh::cuda::kRowAlignment);
    task.queries = data<uint32_t>(queries);
    task.query_count = q.size(0);
    task.items = data<uint32_t>(items);
    task.item_count = x.size(0);
    check(op, agmh::cuda::current_device(device));
  }
  void leave_out(const std::optional<Tensor>& mask) {
    STD_TORCH_CHECK(!mask.has_value() || (mask->is_cuda() && mask->get_device_index() == queries.get_device_index()),
                    "mask must be on the device of the codes");
    const agmh::ItemMask kept(mask, task.query_count, task.item_count);
    task.mask = kept.data;
    task.mask_stride = kept.stride;
  }
  // What the environment variable AGMH_FAST_CUDA_ISA names is used, or raises.
  void choose_backend() {
    const char* name = std::getenv("AGMH_FAST_CUDA_ISA");
    if (name == nullptr || *name == '\0') return;
    const char* obstacle = agmh::cuda::use_backend(name, device);
    STD_TORCH_CHECK(obstacle == nullptr, op, ": AGMH_FAST_CUDA_ISA=", name, ": ", obstacle);
  }
  Tensor bytes(int64_t count) const { return agmh::allocate<uint8_t>(op, queries, {count}); }
};

Tensor distance_cuda(const Tensor& q, const Tensor& x, int64_t bits, int64_t itemsize, int64_t) {
  check_pair(q, x, bits);
  const torch::stable::accelerator::DeviceGuard guard(q.get_device_index());
  const int words = static_cast<int>((bits + 63) / 64);
  constexpr const char* kOp = "hamming_distance";
  const Tensor queries = padded_rows(kOp, q, words * 8, 8), items = padded_rows(kOp, x, words * 8, 8);
  const Tensor out = agmh::allocate(kOp, q, {q.size(0), x.size(0)}, agmh::distance_type(bits, itemsize), itemsize);
  check(kOp, agmh::cuda::distance(queries.data_ptr(), items.data_ptr(), q.size(0), x.size(0), words,
                                  static_cast<int>(itemsize), out.data_ptr(), current_stream(q)));
  return out;
}

std::tuple<Tensor, Tensor> topk_cuda(const Tensor& q, const Tensor& x, int64_t bits, int64_t k, int64_t max_distance,
                                     const std::optional<Tensor>& mask, int64_t) {
  check_pair(q, x, bits);
  STD_TORCH_CHECK(k >= 1, "k must be at least 1, got ", k);
  STD_TORCH_CHECK(max_distance >= 0, "max_distance must be at least 0, got ", max_distance);
  const int within = static_cast<int>(std::min(max_distance, bits));
  Search search("hamming_topk", q, x, bits);
  search.leave_out(mask);
  search.choose_backend();
  const Tensor distances = agmh::allocate<int32_t>("hamming_topk", q, {q.size(0), k});
  const Tensor ids = agmh::allocate<int64_t>("hamming_topk", q, {q.size(0), k});
  const Tensor scratch = search.bytes(agmh::cuda::topk_scratch(search.task, k, within, search.device));
  check("hamming_topk", agmh::cuda::topk(search.task, k, within, search.device, scratch.data_ptr(),
                                         data<int32_t>(distances), data<int64_t>(ids), search.stream));
  return {distances, ids};
}

std::tuple<Tensor, Tensor, Tensor> range_cuda(const Tensor& q, const Tensor& x, int64_t bits, int64_t radius,
                                              const std::optional<Tensor>& mask, int64_t) {
  check_pair(q, x, bits);
  STD_TORCH_CHECK(radius >= 0, "radius must be at least 0, got ", radius);
  const int within = static_cast<int>(std::min(radius, bits));
  Search search("hamming_range", q, x, bits);
  search.leave_out(mask);
  const Tensor lims = agmh::allocate<int64_t>("hamming_range", q, {q.size(0) + 1});
  const Tensor scratch = search.bytes(agmh::cuda::range_scratch(search.task, within, search.device));
  check("hamming_range", agmh::cuda::range_count(search.task, within, search.device, scratch.data_ptr(),
                                                 data<int64_t>(lims), search.stream));
  int64_t found = 0;
  check("hamming_range", agmh::cuda::fetch(found, data<int64_t>(lims) + q.size(0), search.stream));
  const Tensor distances = agmh::allocate<int32_t>("hamming_range", q, {found});
  const Tensor ids = agmh::allocate<int64_t>("hamming_range", q, {found});
  check("hamming_range",
        agmh::cuda::range_fill(search.task, within, search.device, scratch.data_ptr(), data<int64_t>(lims),
                               data<int32_t>(distances), data<int64_t>(ids), search.stream));
  return {lims, distances, ids};
}

void check_device(const agmh::RelevanceLabels& labels, const Tensor& codes) {
  for (const Tensor& tensor : {labels.queries, labels.items})
    STD_TORCH_CHECK(tensor.is_cuda() && tensor.get_device_index() == codes.get_device_index(),
                    "labels must be on the device of the codes");
}

Tensor histogram_cuda(const Tensor& q, const Tensor& x, int64_t bits, const std::optional<Tensor>& labels_q,
                      const std::optional<Tensor>& labels_x, int64_t) {
  check_pair(q, x, bits);
  STD_TORCH_CHECK(labels_q.has_value() == labels_x.has_value(), "give both labels or none");
  std::optional<agmh::RelevanceLabels> labels;
  if (labels_q.has_value()) {
    labels.emplace(*labels_q, *labels_x, q.size(0), x.size(0));
    check_device(*labels, q);
  }
  const Search search("hamming_histogram", q, x, bits);
  const Tensor out = labels ? agmh::allocate<int64_t>(search.op, q, {q.size(0), bits + 1, 2})
                            : agmh::allocate<int64_t>(search.op, q, {q.size(0), bits + 1});
  check("hamming_histogram", agmh::cuda::histogram(search.task, labels ? &labels->labels : nullptr, search.device,
                                                   data<int64_t>(out), search.stream));
  return out;
}

std::tuple<Tensor, Tensor, Tensor> stable_ranking_cuda(const Tensor& q, const Tensor& x, int64_t bits,
                                                       const Tensor& labels_q, const Tensor& labels_x, int64_t depth,
                                                       std::vector<int64_t> cutoffs, int64_t) {
  check_pair(q, x, bits);
  const agmh::RelevanceLabels labels(labels_q, labels_x, q.size(0), x.size(0));
  check_device(labels, q);
  STD_TORCH_CHECK(std::is_sorted(cutoffs.begin(), cutoffs.end()), "cutoffs must be ascending");
  STD_TORCH_CHECK(cutoffs.size() <= agmh::cuda::kMaxCutoffs, "at most ", agmh::cuda::kMaxCutoffs, " cutoffs, got ",
                  cutoffs.size());
  const int columns = static_cast<int>(cutoffs.size());
  const Search search("hamming_stable_ranking", q, x, bits);
  const Tensor precision_sum = agmh::allocate<double>(search.op, q, {q.size(0)});
  const Tensor relevant = agmh::allocate<int64_t>(search.op, q, {q.size(0), columns});
  const Tensor counts = agmh::allocate<int64_t>(search.op, q, {q.size(0), bits + 1, 2});
  check("hamming_stable_ranking",
        agmh::cuda::stable_ranking(search.task, labels.labels, depth, cutoffs.data(), columns, search.device,
                                   data<double>(precision_sum), data<int64_t>(relevant), data<int64_t>(counts),
                                   search.stream));
  return {precision_sum, relevant, counts};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(agmh_fast, CUDA, library) {
  library.impl("hamming_distance", TORCH_BOX(&distance_cuda));
  library.impl("hamming_topk", TORCH_BOX(&topk_cuda));
  library.impl("hamming_range", TORCH_BOX(&range_cuda));
  library.impl("hamming_histogram", TORCH_BOX(&histogram_cuda));
  library.impl("hamming_stable_ranking", TORCH_BOX(&stable_ranking_cuda));
}

#endif
