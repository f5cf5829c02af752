// The Hamming engine on GPUs, callable from code that has no CUDA header. Pointers are to device memory, streams are
// cudaStream_t. Functions launch kernels and return at once, with a cudaError_t that is 0 for success; nothing but
// fetch() waits for the device, and nothing is allocated. What is launched depends on sizes alone, never on data.
// Results are those of hamming/engine.h, bit for bit.
#pragma once

#include <cstdint>

#include "hamming/engine.h"

namespace agmh::cuda {

// Distances of all pairs of `queries` codes and `items` codes of `words` 64-bit words each, rows adjoining and 8-byte
// aligned: out is (queries, items) of uint8_t, uint16_t or int32_t, as its element's 1, 2 or 4 bytes say.
int distance(const void* query_rows, const void* item_rows, int64_t queries, int64_t items, int words, int itemsize,
             void* out, void* stream);

// 32-bit words of a row in a DeviceTask.
inline int row_words(int bits) { return bits <= 32 ? 1 : (bits + 63) / 64 * 2; }
// What such rows are aligned to.
constexpr int kRowAlignment = 16;

// What is searched for and in what.
struct DeviceTask {
  int bits = 0;
  int words = 0;  // row_words(bits): rows adjoin and are zero-padded to it
  const uint32_t* queries = nullptr;
  int64_t query_count = 0;
  const uint32_t* items = nullptr;
  int64_t item_count = 0;
  // One byte an item and query, 0 leaves the item out: mask[query * mask_stride + item]. Stride 0: one for all.
  const uint8_t* mask = nullptr;
  int64_t mask_stride = 0;
};

// How a scan that appends looks for what is near: by population counts, or by tensor cores that sift first, with
// products of bits or of signs.
enum class Backend { kAutomatic, kPopc, kBmma, kImma };

// What plans depend on besides the task.
struct Device {
  int processors = 1;                   // multiprocessors to fill
  int64_t shared_bytes = 48 << 10;      // the most dynamic shared memory that a block may have
  int64_t scratch_bytes = 256ll << 20;  // queries are taken in batches that need no more, or one at a time
  int architecture = 0;                 // compute capability: 90 for 9.0
  Backend backend = Backend::kAutomatic;
};
int current_device(Device& device);

// Has the device use the back end of this name, "popc", "bmma" or "imma". Returns nullptr, or why it cannot.
const char* use_backend(const char* name, Device& device);

// The k nearest items within max_distance >= 0 by (distance, position): (queries, k) distances and ids, padded with
// kNoDistance and −1. `scratch`: topk_scratch() bytes, aligned to 16, in use until the stream has come past.
int64_t topk_scratch(const DeviceTask& task, int64_t k, int max_distance, const Device& device);
int topk(const DeviceTask& task, int64_t k, int max_distance, const Device& device, void* scratch, int32_t* distances,
         int64_t* ids, void* stream);

// All items within `radius`, inclusive, by (distance, position), in two steps with the same scratch. The first fills
// lims (queries + 1): results of query q go to [lims[q], lims[q + 1]). The second, once, writes lims[queries] results.
int64_t range_scratch(const DeviceTask& task, int radius, const Device& device);
int range_count(const DeviceTask& task, int radius, const Device& device, void* scratch, int64_t* lims, void* stream);
int range_fill(const DeviceTask& task, int radius, const Device& device, void* scratch, const int64_t* lims,
               int32_t* distances, int64_t* ids, void* stream);

// Items at each distance: (queries, bits + 1), or with labels (queries, bits + 1, 2): all items, relevant items.
int histogram(const DeviceTask& task, const Labels* labels, const Device& device, int64_t* out, void* stream);

// Ranks by (distance, position): what hamming/engine.h says of stable_ranking(), with `columns` cutoffs in the host's
// memory, at most kMaxCutoffs. `counts` becomes histogram() with these labels.
constexpr int kMaxCutoffs = 128;
int stable_ranking(const DeviceTask& task, const Labels& labels, int64_t depth, const int64_t* cutoffs, int columns,
                   const Device& device, double* precision_sum, int64_t* relevant, int64_t* counts, void* stream);

// Waits for the stream, then reads a number from the device.
int fetch(int64_t& value, const int64_t* from, void* stream);

const char* error_text(int error);

}  // namespace agmh::cuda
