// What the checks of the CUDA engine are made of: codes as a GPU gets them, orders of the data, masks.
#pragma once

#include <cstring>
#include <numeric>
#include <vector>

#include "../csrc/check_cases.h"
#include "hamming/cuda/engine.h"

// Rows as a DeviceTask has them, in memory of just their size.
inline std::vector<uint32_t> device_rows(const Rows& rows) {
  const size_t words = static_cast<size_t>(agmh::cuda::row_words(rows.bits)), count = static_cast<size_t>(rows.count);
  std::vector<uint32_t> padded(words * count);
  for (size_t i = 0; i < count; ++i)
    std::memcpy(&padded[i * words], rows.codes().row(static_cast<int64_t>(i)),
                static_cast<size_t>(agmh::packed_bytes(rows.bits)));
  return padded;
}

// Item i is at distance distances[i] from a code of zeros.
inline Rows rows_at(int bits, const std::vector<int>& distances) {
  Rows rows(bits, static_cast<int64_t>(distances.size()), 0, 1);
  std::fill(rows.bytes.begin(), rows.bytes.end(), uint8_t{0});
  for (size_t i = 0; i < distances.size(); ++i)
    for (int bit = 0; bit < distances[i]; ++bit) {
      uint8_t& byte = rows.bytes[i * static_cast<size_t>(rows.stride) + static_cast<size_t>(bit / 8)];
      byte = static_cast<uint8_t>(byte | 128 >> bit % 8);
    }
  return rows;
}
inline Rows zeros(int bits, int64_t count) { return rows_at(bits, std::vector<int>(static_cast<size_t>(count))); }

// One search, for both engines.
struct Search {
  const Rows& queries;
  const Rows& items;
  std::vector<uint32_t> query_words = device_rows(queries), item_words = device_rows(items);
  std::vector<uint8_t> mask{};
  int64_t mask_stride = 0;
  agmh::cuda::Device device = {2, 227 << 10, 256 << 20};

  agmh::Task task() const {
    agmh::Task task;
    task.bits = items.bits;
    task.queries = queries.codes();
    task.items = items.codes();
    task.mask = mask.empty() ? nullptr : mask.data();
    task.mask_stride = mask_stride;
    return task;
  }
  agmh::cuda::DeviceTask device_task() const {
    agmh::cuda::DeviceTask task;
    task.bits = items.bits;
    task.words = agmh::cuda::row_words(items.bits);
    task.queries = query_words.data();
    task.query_count = queries.count;
    task.items = item_words.data();
    task.item_count = items.count;
    task.mask = mask.empty() ? nullptr : mask.data();
    task.mask_stride = mask_stride;
    return task;
  }
  // One item in `every` stays; a row for all or one for each query.
  void draw_mask(bool each_query, int every) {
    mask_stride = each_query ? items.count : 0;
    mask.resize(static_cast<size_t>(items.count * (each_query ? queries.count : 1)));
    for (uint8_t& entry : mask) entry = draw(0, every - 1) == 0;
  }
};

// A device that forces counters out of shared memory, buffers to be small and queries into batches.
inline constexpr agmh::cuda::Device kSmallDevice = {1, 2048, 96 << 10};

void check_plan();
void check_topk(bool brief);
void check_sifted_topk(bool brief);
void check_range(bool brief);
void check_histogram(bool brief);
void check_ranking(bool brief);
