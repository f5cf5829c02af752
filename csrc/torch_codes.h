// Packed codes and labels as torch tensors: what the ops of both devices check.
#pragma once

#include "hamming/engine.h"
#include "torch_tensors.h"

namespace agmh {

template <class T>
T* data(const torch::stable::Tensor& tensor) {
  return static_cast<T*>(tensor.data_ptr());
}

inline void check_codes(const char* name, const torch::stable::Tensor& codes, int64_t bits) {
  STD_TORCH_CHECK(bits >= 1 && bits <= kMaxBits, "bits must be from 1 to 4096, got ", bits);
  STD_TORCH_CHECK(codes.scalar_type() == torch::headeronly::ScalarType::Byte && codes.dim() == 2, name,
                  " must be a 2-D uint8 tensor");
  STD_TORCH_CHECK(codes.size(1) == packed_bytes(static_cast<int>(bits)), name,
                  " must have ceil(bits / 8) columns, got ", codes.size(1));
}

// Of a matrix of distances.
inline torch::headeronly::ScalarType distance_type(int64_t bits) {
  return bits <= 255 ? torch::headeronly::ScalarType::Byte : torch::headeronly::ScalarType::UInt16;
}

struct RelevanceLabels {
  torch::stable::Tensor queries, items;
  Labels labels;

  RelevanceLabels(const torch::stable::Tensor& of_queries, const torch::stable::Tensor& of_items, int64_t query_count,
                  int64_t item_count)
      : queries(of_queries), items(of_items) {
    const auto fits = [](const torch::stable::Tensor& tensor, int64_t rows) {
      return tensor.scalar_type() == torch::headeronly::ScalarType::Long && (tensor.dim() == 1 || tensor.dim() == 2) &&
             tensor.size(0) == rows && tensor.is_contiguous();
    };
    STD_TORCH_CHECK(fits(queries, query_count) && fits(items, item_count) && queries.dim() == items.dim() &&
                        (queries.dim() == 1 || queries.size(1) == items.size(1)),
                    "labels must be contiguous int64 tensors, (rows,) or (rows, words), one row a code");
    labels = {data<int64_t>(queries), data<int64_t>(items), queries.dim() == 2 ? static_cast<int>(queries.size(1)) : 0};
    STD_TORCH_CHECK(queries.dim() == 1 || labels.words > 0, "label sets must have at least one word");
  }
};

}  // namespace agmh
