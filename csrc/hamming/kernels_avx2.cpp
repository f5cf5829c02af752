// 256-bit vectors.
#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cstdint>
#include <cstring>

#include "hamming/kernels.h"

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("popcnt,bmi,avx2"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("popcnt,bmi,avx2")
// GCC 12 takes the undefined operand of its own intrinsics for a mistake.
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif

#define AGMH_ISA avx2
#define AGMH_VECTOR_BYTES 32
#define AGMH_RUNS_HERE \
  __builtin_cpu_supports("avx2") && __builtin_cpu_supports("bmi") && __builtin_cpu_supports("popcnt")
#define AGMH_PLANE_QUERIES 12, 14, 18
#include "hamming/kernel_set.h"

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif
