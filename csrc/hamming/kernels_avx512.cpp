// 512-bit vectors with popcounts.
#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cstdint>
#include <cstring>

#include "hamming/kernels.h"

#if defined(__clang__)
#pragma clang attribute push(                                                                      \
    __attribute__((target("popcnt,bmi,avx2,avx512f,avx512bw,avx512vl,avx512dq,avx512vpopcntdq"))), \
    apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("popcnt,bmi,avx2,avx512f,avx512bw,avx512vl,avx512dq,avx512vpopcntdq")
// GCC 12 takes the undefined operand of its own intrinsics for a mistake.
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif

#define AGMH_ISA avx512
#define AGMH_VECTOR_BYTES 64
#define AGMH_TERNARY
#define AGMH_RUNS_HERE                                                                                             \
  __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") && \
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vpopcntdq") && __builtin_cpu_supports("bmi")
#define AGMH_PLANE_QUERIES 88, 56, 72
#include "hamming/kernel_set.h"

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif
