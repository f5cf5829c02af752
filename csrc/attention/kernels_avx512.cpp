// AVX-512: 28 sums, two operands and a broadcast fill 32 registers.
#if defined(__x86_64__)
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <limits>
#include <utility>

#include "attention/kernel_table.h"

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512dq,avx512bw,avx512vl,fma"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512dq,avx512bw,avx512vl,fma")
#endif

#define AGMH_ISA avx512
#define AGMH_LANES 16
#define AGMH_ROWS 14
#include "attention/kernels.h"

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif
