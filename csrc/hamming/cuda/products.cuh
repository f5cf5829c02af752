// Products of 16 queries and 8 items on tensor cores, by a whole warp. Lane 4 g + t has words t and t + 4 of rows g and
// g + 8 of `a` and of column g of `b`, and of d and c the entries of these two rows at columns 2 t and 2 t + 1.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace agmh::cuda {

// Code for later architectures is without what uses products of bits: backend.h.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ > 900
constexpr bool kHasBmma = false;
#else
constexpr bool kHasBmma = true;
#endif

// d = c + popcount(a and b), of four words (mma.m16n8k128).
__device__ __forceinline__ void multiply_bits(int (&d)[4], const uint32_t (&a)[2], const uint32_t (&b)[1],
                                              const int (&c)[4]) {
#ifdef __CUDACC__
  asm("mma.sync.aligned.m16n8k128.row.col.s32.b1.b1.s32.and.popc {%0,%1,%2,%3}, {%4,%5}, {%6}, {%7,%8,%9,%10};"
      : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(b[0]), "r"(c[0]), "r"(c[1]), "r"(c[2]), "r"(c[3]));
#else
  cuda_on_cpu::multiply<cuda_on_cpu::Bits>(d, a, b, c);
#endif
}

// The same of eight words (mma.m16n8k256).
__device__ __forceinline__ void multiply_bits(int (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                                              const int (&c)[4]) {
#ifdef __CUDACC__
  asm("mma.sync.aligned.m16n8k256.row.col.s32.b1.b1.s32.and.popc {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%10,%11,%12,%13};"
      : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "r"(c[0]), "r"(c[1]), "r"(c[2]), "r"(c[3]));
#else
  cuda_on_cpu::multiply<cuda_on_cpu::Bits>(d, a, b, c);
#endif
}

// d = c + Σ a · b of signed bytes, four in a word (mma.m16n8k32).
__device__ __forceinline__ void multiply_bytes(int (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                                               const int (&c)[4]) {
#ifdef __CUDACC__
  asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%10,%11,%12,%13};"
      : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "r"(c[0]), "r"(c[1]), "r"(c[2]), "r"(c[3]));
#else
  cuda_on_cpu::multiply<cuda_on_cpu::Bytes>(d, a, b, c);
#endif
}

}  // namespace agmh::cuda
