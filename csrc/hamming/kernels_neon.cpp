// 128-bit vectors with a popcount of bytes, which every 64-bit Arm processor has.
#if defined(__aarch64__) && defined(__ARM_NEON)
#include <arm_neon.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cstdint>
#include <cstring>

#include "hamming/kernels.h"

#define AGMH_ISA neon
#define AGMH_VECTOR_BYTES 16
#define AGMH_NEON
#define AGMH_RUNS_HERE true
// From the number of instructions, not yet measured on a processor.
#define AGMH_PLANE_QUERIES 24, 16, 24
#include "hamming/kernel_set.h"
#endif
