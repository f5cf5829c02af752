// The discrete step and the hashing loss as torch ops on the libtorch stable ABI. agmh_fast/ops/hashing.py checks
// values; here only what keeps memory safe is checked, since the op can be called by anyone.
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wunused-parameter"
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>
#pragma GCC diagnostic pop

#include <algorithm>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include "hashing/discrete_step.h"
#include "hashing/loss.h"
#include "torch_tensors.h"

namespace {

using agmh::dense;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

const int64_t* rows_of(const char* name, const Tensor& tensor, int64_t count, int64_t low, int64_t high) {
  const auto* rows = dense<int64_t>(name, tensor, ScalarType::Long, {count});
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
      .targets = dense<double>("targets", targets, ScalarType::Double, {targets.size(0), bits}),
      .groups = rows_of("groups", groups, count, 0, targets.size(0)),
      .sampled = rows_of("sampled", sampled, count, -1, m),
      .embeddings = dense<double>("embeddings", embeddings, ScalarType::Double, {m, bits}),
      .gram = dense<double>("gram", gram, ScalarType::Double, {bits, bits}),
      .codes = dense<float>("codes", codes, ScalarType::Float, {count, bits}),
      .updated = static_cast<float*>(updated.data_ptr()),
      .count = count,
      .bits = bits,
      .gamma = gamma,
      .threads = agmh::threads_within_reason(threads),
  });
  return updated;
}

template <class Real>
std::vector<double> widened(const Tensor& tensor) {
  const int64_t rows = tensor.size(0), columns = tensor.size(1), down = tensor.stride(0), across = tensor.stride(1);
  const auto* from = static_cast<const Real*>(tensor.data_ptr());
  std::vector<double> values(static_cast<size_t>(rows * columns));
  for (int64_t row = 0; row < rows; ++row)
    for (int64_t column = 0; column < columns; ++column)
      values[static_cast<size_t>(row * columns + column)] = static_cast<double>(from[row * down + column * across]);
  return values;
}

std::vector<double> in_double(const Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float:
      return widened<float>(tensor);
    case ScalarType::Double:
      return widened<double>(tensor);
    case ScalarType::BFloat16:
      return widened<torch::headeronly::BFloat16>(tensor);
    case ScalarType::Half:
      return widened<torch::headeronly::Half>(tensor);
    default:
      STD_TORCH_CHECK(false, "embedding must be float32, float64, bfloat16 or float16");
  }
}

// As indexing does, an item that does not exist is an IndexError.
void check_items(const int64_t* items, int64_t batch, int64_t count, const int64_t* groups, int64_t num_groups) {
  for (int64_t i = 0; i < batch; ++i) {
    if (items[i] < 0 || items[i] >= count)
      throw std::out_of_range("items must be positions from 0 to " + std::to_string(count - 1) + ", got " +
                              std::to_string(items[i]));
    const int64_t group = groups[items[i]];
    STD_TORCH_CHECK(0 <= group && group < num_groups, "groups must lie from 0 to ", num_groups - 1);
  }
}

template <class Real>
std::tuple<Tensor, Tensor, Tensor, Tensor> loss_in(ScalarType type, const Tensor& embedding,
                                                   const agmh::HashingLoss& loss) {
  const auto scalar = [&](Real value) {
    Tensor tensor = torch::stable::new_empty(embedding, {}, type);
    *static_cast<Real*>(tensor.data_ptr()) = value;
    return tensor;
  };
  Tensor gradients = torch::stable::new_empty(embedding, {3, loss.batch, loss.bits}, type);
  const agmh::Losses losses = agmh::hashing_loss(loss, static_cast<Real*>(gradients.data_ptr()));
  const auto pairwise = static_cast<Real>(losses.pairwise), quantization = static_cast<Real>(losses.quantization);
  return {scalar(pairwise + quantization), scalar(pairwise), scalar(quantization), gradients};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> hashing_loss(const Tensor& embedding, const Tensor& items,
                                                        const Tensor& groups, const Tensor& targets,
                                                        const Tensor& square_sums, const Tensor& gram,
                                                        const Tensor& codes, double gamma, int64_t threads) {
  STD_TORCH_CHECK(embedding.dim() == 2 && codes.dim() == 2 && targets.dim() == 2 && embedding.size(0) > 0,
                  "embedding, codes, targets must be 2-D, embedding with a row or more");
  const int64_t batch = embedding.size(0), bits = embedding.size(1), count = codes.size(0), all = targets.size(0);
  const std::vector<double> u = in_double(embedding);
  const agmh::HashingLoss loss{
      .embedding = u.data(),
      .items = dense<int64_t>("items", items, ScalarType::Long, {batch}),
      .groups = dense<int64_t>("groups", groups, ScalarType::Long, {count}),
      .targets = dense<double>("targets", targets, ScalarType::Double, {all, bits}),
      .square_sums = dense<double>("square_sums", square_sums, ScalarType::Double, {all}),
      .gram = dense<double>("gram", gram, ScalarType::Double, {bits, bits}),
      .codes = dense<float>("codes", codes, ScalarType::Float, {count, bits}),
      .batch = batch,
      .bits = bits,
      .count = count,
      .gamma = gamma,
      .threads = agmh::threads_within_reason(threads),
  };
  check_items(loss.items, batch, count, loss.groups, all);
  if (embedding.scalar_type() == ScalarType::Double) return loss_in<double>(ScalarType::Double, embedding, loss);
  return loss_in<float>(ScalarType::Float, embedding, loss);
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(agmh_fast, library) {
  library.def(
      "discrete_step(Tensor codes, Tensor targets, Tensor groups, Tensor sampled, Tensor embeddings, Tensor gram, "
      "float gamma, int threads) -> Tensor");
  library.def(
      "hashing_loss(Tensor embedding, Tensor items, Tensor groups, Tensor targets, Tensor square_sums, Tensor gram, "
      "Tensor codes, float gamma, int threads) -> (Tensor, Tensor, Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(agmh_fast, CPU, library) {
  library.impl("discrete_step", TORCH_BOX(&discrete_step));
  library.impl("hashing_loss", TORCH_BOX(&hashing_loss));
}
