// Checked access to torch tensors on the libtorch stable ABI: what keeps memory safe, since an op can be called by
// anyone.
#pragma once

#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wunused-parameter"
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#pragma GCC diagnostic pop

#include <algorithm>
#include <cstdint>
#include <initializer_list>
#include <string>

namespace agmh {

// The elements of a contiguous tensor of this type and of these sizes; an error that names it otherwise.
template <class T>
T* dense(const char* name, const torch::stable::Tensor& tensor, torch::headeronly::ScalarType type,
         std::initializer_list<int64_t> sizes) {
  bool fits =
      tensor.scalar_type() == type && tensor.is_contiguous() && tensor.dim() == static_cast<int64_t>(sizes.size());
  int64_t axis = 0;
  for (const int64_t size : sizes) fits = fits && tensor.size(axis++) == size;
  if (!fits) {
    std::string shape;
    for (const int64_t size : sizes) shape += (shape.empty() ? "" : ", ") + std::to_string(size);
    STD_TORCH_CHECK(false, name, " must be contiguous, (", shape, ") and of the type the schema says");
  }
  return static_cast<T*>(tensor.data_ptr());
}

// The threads that were asked for, within reason.
inline int threads_within_reason(int64_t threads) { return static_cast<int>(std::clamp<int64_t>(threads, 1, 4096)); }

}  // namespace agmh
