// 512-bit vectors with popcounts of every size, compression of bytes, and bit matrices.
#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cstdint>
#include <cstring>

#include "hamming/kernels.h"

#if defined(__clang__)
#pragma clang attribute push(                                                                                             \
    __attribute__((target(                                                                                                \
        "popcnt,bmi,avx2,avx512f,avx512bw,avx512vl,avx512dq,avx512vpopcntdq,avx512bitalg,avx512vbmi,avx512vbmi2,gfni"))), \
    apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target( \
    "popcnt,bmi,avx2,avx512f,avx512bw,avx512vl,avx512dq,avx512vpopcntdq,avx512bitalg,avx512vbmi,avx512vbmi2,gfni")
// GCC 12 takes the undefined operand of its own intrinsics for a mistake.
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif

#define AGMH_ISA avx512vbmi2
#define AGMH_VECTOR_BYTES 64
#define AGMH_TERNARY
#define AGMH_COMPRESS
#define AGMH_RUNS_HERE                                                                                          \
  avx512::kSet.runs_here() && __builtin_cpu_supports("avx512bitalg") && __builtin_cpu_supports("avx512vbmi") && \
      __builtin_cpu_supports("avx512vbmi2") && __builtin_cpu_supports("gfni")
#define AGMH_PLANE_QUERIES 56, 28, 56
#include "hamming/kernel_set.h"

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif
