// AVX2: 12 sums, two operands and a broadcast fill 15 of 16 registers.
#if defined(__x86_64__)
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <limits>
#include <utility>

#include "attention/kernel_table.h"

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma")
#endif

#define AGMH_ISA avx2
#define AGMH_LANES 8
#define AGMH_ROWS 6
#include "attention/kernels.h"

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif
