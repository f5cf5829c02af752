// Rows side by side in the lanes of vectors, compiled for several instruction sets.
#pragma once

#include <cstdint>

// On x86 the loader takes the best version for the processor.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define AGMH_VECTORS __attribute__((target_clones("default", "fma", "avx512f")))
#else
#define AGMH_VECTORS
#endif

namespace agmh {

// Rows that go together, one a lane; two vectors of them hide the latency of one multiply-add behind another's.
constexpr int64_t kLanes = 16;

}  // namespace agmh
