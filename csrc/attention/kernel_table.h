// The kernels of one instruction set, for one image of one descriptor; kernels.h says what each computes.
#pragma once

#include <cstdint>

#include "attention/peak_response.h"

namespace agmh {

// One image's features of one descriptor: (C, n) by strides in elements.
struct Tile {
  void* data;
  bool bfloat16;
  int64_t channels, positions, channel, position;
};

// Scratch for an image's features holds rows (n, scratch_stride(C)), no power of two apart, or they would share cache
// sets.
constexpr int64_t scratch_stride(int64_t channels) { return padded(channels) + 16; }
constexpr int64_t scratch_size(const PeakShape& shape) { return shape.positions * scratch_stride(shape.channels); }

struct KernelTable {
  void (*pack)(const float* from, int64_t depth, int64_t columns, int64_t step, int64_t column, float* to);
  void (*attend)(const Tile& x, const float* weight, int64_t slots, float* a, float* slot_sum, float* scratch);
  void (*add_moments)(const float* a, int64_t n, int64_t slots, float* sums, float* products, float* h);
  void (*peak)(const Tile& x, const float* a, const float* projection, const float* shift, int64_t slots, float* peaks,
               int32_t* channel, float* scratch);
  void (*spread)(const Tile& x, const float* g, const int32_t* channel, const float* a, const float* slot_sum,
                 const float* projection, const float* feedback, const float* offset, const float* weight,
                 int64_t slots, const Tile& dx, float* dweight, float* dz, float* scratch);
};

// The best table that this CPU can run.
const KernelTable& kernel_table();

namespace generic {
extern const KernelTable kTable;
}
#if defined(__x86_64__)
namespace avx2 {
extern const KernelTable kTable;
}
namespace avx512 {
extern const KernelTable kTable;
}
#endif

}  // namespace agmh
