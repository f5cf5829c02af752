// Packed codes and labels as torch tensors: what the ops of both devices check.
#pragma once

#include <exception>
#include <limits>
#include <optional>

#include "hamming/engine.h"
#include "torch_tensors.h"

namespace agmh {

template <class T>
T* data(const torch::stable::Tensor& tensor) {
  return static_cast<T*>(tensor.data_ptr());
}

// Bytes of a tensor of these sizes; the most there can be where it has more.
inline int64_t bytes_of(std::initializer_list<int64_t> sizes, int64_t element_bytes) {
  int64_t bytes = element_bytes;
  for (const int64_t size : sizes)
    if (__builtin_mul_overflow(bytes, size, &bytes)) return std::numeric_limits<int64_t>::max();
  return bytes;
}

// An uninitialised tensor on the device of `like`; where there is no room for it the error says how much was asked for.
inline torch::stable::Tensor allocate(const char* op, const torch::stable::Tensor& like,
                                      std::initializer_list<int64_t> sizes, torch::headeronly::ScalarType type,
                                      int64_t element_bytes) {
  try {
    return torch::stable::new_empty(like, sizes, type);
  } catch (const std::exception&) {
    STD_TORCH_CHECK(false, op, ": out of memory, ", bytes_of(sizes, element_bytes), " bytes were asked for");
  }
}

template <class T>
torch::stable::Tensor allocate(const char* op, const torch::stable::Tensor& like,
                               std::initializer_list<int64_t> sizes) {
  return allocate(op, like, sizes, torch::headeronly::CppTypeToScalarType<T>::value, sizeof(T));
}

inline void check_codes(const char* name, const torch::stable::Tensor& codes, int64_t bits) {
  STD_TORCH_CHECK(bits >= 1 && bits <= kMaxBits, "bits must be from 1 to 4096, got ", bits);
  STD_TORCH_CHECK(codes.scalar_type() == torch::headeronly::ScalarType::Byte && codes.dim() == 2, name,
                  " must be a 2-D uint8 tensor");
  STD_TORCH_CHECK(codes.size(1) >= packed_bytes(static_cast<int>(bits)) && codes.size(1) <= (bits + 63) / 64 * 8, name,
                  " must have ceil(bits / 8) columns, or zeros beyond up to a whole word, got ", codes.size(1));
}

// Which items each query may find: bool, (items,) for all queries or (queries, items), entries of a row adjoining.
struct ItemMask {
  const uint8_t* data = nullptr;
  int64_t stride = 0;

  ItemMask(const std::optional<torch::stable::Tensor>& mask, int64_t queries, int64_t items) {
    if (!mask.has_value()) return;
    const int64_t axis = mask->dim() - 1;
    const bool shaped = (axis == 0 || (axis == 1 && mask->size(0) == queries)) && mask->size(axis) == items;
    const bool adjoin = mask->numel() <= 1 || items <= 1 || mask->stride(axis) == 1;
    STD_TORCH_CHECK(mask->scalar_type() == torch::headeronly::ScalarType::Bool && shaped && adjoin,
                    "mask must be bool, (items,) or (queries, items), with adjoining entries");
    data = agmh::data<uint8_t>(*mask);
    if (axis == 1) stride = mask->stride(0);
  }
};

// Of a matrix of distances whose elements have so many bytes.
inline torch::headeronly::ScalarType distance_type(int64_t bits, int64_t itemsize) {
  STD_TORCH_CHECK(itemsize == 2 || itemsize == 4 || (itemsize == 1 && bits <= 255),
                  "itemsize must be 1 (up to 255 bits), 2 or 4, got ", itemsize, " for ", bits, " bits");
  using Type = torch::headeronly::ScalarType;
  return itemsize == 1 ? Type::Byte : itemsize == 2 ? Type::UInt16 : Type::Int;
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
