// The discrete step as a torch op on the libtorch stable ABI. agmh_fast/ops/hashing.py checks values; here only what
// keeps memory safe is checked, since the op can be called by anyone.
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wunused-parameter"
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#pragma GCC diagnostic pop

#include <algorithm>

#include "hashing/discrete_step.h"

namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

template <class T>
T* matrix(const char* name, const Tensor& tensor, ScalarType type, int64_t rows, int64_t columns) {
  const bool fits = tensor.scalar_type() == type && tensor.dim() == 2 && tensor.is_contiguous() &&
                    tensor.size(0) == rows && tensor.size(1) == columns;
  STD_TORCH_CHECK(fits, name, " must be contiguous, (", rows, ", ", columns, ") and of the type the schema says");
  return static_cast<T*>(tensor.data_ptr());
}

const int64_t* rows_of(const char* name, const Tensor& tensor, int64_t count, int64_t low, int64_t high) {
  const bool fits = tensor.scalar_type() == ScalarType::Long && tensor.dim() == 1 && tensor.is_contiguous() &&
                    tensor.size(0) == count;
  STD_TORCH_CHECK(fits, name, " must be a contiguous int64 tensor of ", count, " rows");
  const auto* rows = static_cast<const int64_t*>(tensor.data_ptr());
  const bool inside = std::all_of(rows, rows + count, [&](int64_t row) { return low <= row && row < high; });
  STD_TORCH_CHECK(inside, name, " must lie from ", low, " to ", high - 1);
  return rows;
}

Tensor discrete_step(const Tensor& codes, const Tensor& targets, const Tensor& groups, const Tensor& sampled,
                     const Tensor& embeddings, const Tensor& gram, double gamma, int64_t threads) {
  STD_TORCH_CHECK(codes.dim() == 2 && targets.dim() == 2 && embeddings.dim() == 2,
                  "codes, targets, embeddings must be 2-D");
  const int64_t count = codes.size(0), bits = codes.size(1), m = embeddings.size(0);
  const Tensor updated = torch::stable::new_empty(codes, {count, bits});
  agmh::discrete_step({
      .targets = matrix<double>("targets", targets, ScalarType::Double, targets.size(0), bits),
      .groups = rows_of("groups", groups, count, 0, targets.size(0)),
      .sampled = rows_of("sampled", sampled, count, -1, m),
      .embeddings = matrix<double>("embeddings", embeddings, ScalarType::Double, m, bits),
      .gram = matrix<double>("gram", gram, ScalarType::Double, bits, bits),
      .codes = matrix<float>("codes", codes, ScalarType::Float, count, bits),
      .updated = static_cast<float*>(updated.data_ptr()),
      .count = count,
      .bits = bits,
      .gamma = gamma,
      .threads = static_cast<int>(std::clamp<int64_t>(threads, 1, 4096)),
  });
  return updated;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(agmh_fast, library) {
  library.def(
      "discrete_step(Tensor codes, Tensor targets, Tensor groups, Tensor sampled, Tensor embeddings, Tensor gram, "
      "float gamma, int threads) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(agmh_fast, CPU, library) { library.impl("discrete_step", TORCH_BOX(&discrete_step)); }
