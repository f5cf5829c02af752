// Barriers and what the lanes of a warp do together. Of these only the barriers order memory.
#pragma once

#include <cstring>

#include "block.h"

namespace cuda_on_cpu {

template <class T>
Payload as_payload(const T& value) {
  static_assert(sizeof(T) <= sizeof(Payload));
  Payload payload;
  std::memcpy(payload.words, &value, sizeof(T));
  return payload;
}

template <class T>
T from_payload(const Payload& payload) {
  T value;
  std::memcpy(&value, payload.words, sizeof(T));
  return value;
}

// Calls visit(lane, its value) for each lane of the mask.
template <class T, class Visit>
void each_lane(const char* what, unsigned mask, const T& mine, const Place& place, Visit visit) {
  const Payload* brought = Block::current().wait_for_warp(what, mask, as_payload(mine), place);
  for (int lane = 0; lane < 32; ++lane)
    if (mask >> lane & 1) visit(lane, from_payload<T>(brought[lane]));
}

// The value of lane `source`; the caller's own where source < 0.
template <class T>
T shuffle(const char* what, unsigned mask, const T& mine, int source, const Place& place) {
  const Payload* brought = Block::current().wait_for_warp(what, mask, as_payload(mine), place);
  if (source < 0) return mine;
  if ((mask >> source & 1) == 0) stop(what, place, "it reads a lane that is not in its mask");
  return from_payload<T>(brought[source]);
}

inline int lane() { return Block::current().lane(); }

template <class T, class Join>
T reduce(const char* what, unsigned mask, const T& mine, const Place& place, Join join) {
  T all{};
  bool first = true;
  each_lane(what, mask, mine, place, [&](int, T value) {
    all = first ? value : join(all, value);
    first = false;
  });
  return all;
}

// What a product does with two words: counts the bits that both have, or multiplies their signed bytes.
struct Bits {
  static int multiply(uint32_t a, uint32_t b) { return std::popcount(a & b); }
};
struct Bytes {
  static int multiply(uint32_t a, uint32_t b) {
    int sum = 0;
    for (int shift = 0; shift < 32; shift += 8)
      sum += static_cast<int8_t>(a >> shift) * static_cast<int8_t>(b >> shift);
    return sum;
  }
};

// mma.m16n8k128 (two and one registers) and mma.m16n8k256 (four and two) of .b1 with .and.popc, mma.m16n8k32 of .s8, as
// the PTX manual lays out their fragments: lane 4 g + t has words t and t + 4 of rows g and g + 8 of `a` and of column
// g of `b`, and the entries of these rows at columns 2 t and 2 t + 1.
template <class Kind, int kOfA, int kOfB>
void multiply(int (&d)[4], const uint32_t (&a)[kOfA], const uint32_t (&b)[kOfB], const int (&c)[4],
              const Place& place = Place::current()) {
  struct Fragments {
    uint32_t a[kOfA], b[kOfB];
  } mine;
  std::copy_n(a, kOfA, mine.a);
  std::copy_n(b, kOfB, mine.b);
  const Payload* brought = Block::current().wait_for_warp("mma", ~0u, as_payload(mine), place);
  const int group = lane() / 4, in_group = lane() % 4;
  int sum[4];
  std::copy_n(c, 4, sum);
  for (int part = 0; part < 4; ++part) {
    const auto of_rows = from_payload<Fragments>(brought[group * 4 + part]);
    for (int column = 0; column < 2; ++column) {
      const auto of_column = from_payload<Fragments>(brought[(2 * in_group + column) * 4 + part]);
      for (int i = 0; i < kOfA; ++i) sum[2 * (i % 2) + column] += Kind::multiply(of_rows.a[i], of_column.b[i / 2]);
    }
  }
  std::copy_n(sum, 4, d);
}

}  // namespace cuda_on_cpu

#define CUDA_ON_CPU_HERE cuda_on_cpu::Place place = cuda_on_cpu::Place::current()

inline void __syncthreads(CUDA_ON_CPU_HERE) { cuda_on_cpu::Block::current().wait_for_block("__syncthreads", 0, place); }
inline int __syncthreads_count(int predicate, CUDA_ON_CPU_HERE) {
  return cuda_on_cpu::Block::current().wait_for_block("__syncthreads_count", predicate, place).nonzero;
}
inline int __syncthreads_or(int predicate, CUDA_ON_CPU_HERE) {
  return cuda_on_cpu::Block::current().wait_for_block("__syncthreads_or", predicate, place).nonzero != 0;
}
inline int __syncthreads_and(int predicate, CUDA_ON_CPU_HERE) {
  const auto votes = cuda_on_cpu::Block::current().wait_for_block("__syncthreads_and", predicate, place);
  return votes.nonzero == votes.all;
}
inline void __syncwarp(unsigned mask = ~0u, CUDA_ON_CPU_HERE) {
  cuda_on_cpu::Block::current().wait_for_warp("__syncwarp", mask, {}, place, true);
}

template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32, CUDA_ON_CPU_HERE) {
  const int segment = cuda_on_cpu::lane() & ~(width - 1);
  return cuda_on_cpu::shuffle("__shfl_sync", mask, value, segment | (source & (width - 1)), place);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int bits, int width = 32, CUDA_ON_CPU_HERE) {
  const int lane = cuda_on_cpu::lane(), source = lane ^ bits;
  const bool later = (source & ~(width - 1)) > (lane & ~(width - 1));
  return cuda_on_cpu::shuffle("__shfl_xor_sync", mask, value, later ? -1 : source, place);
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, int by, int width = 32, CUDA_ON_CPU_HERE) {
  const int lane = cuda_on_cpu::lane();
  return cuda_on_cpu::shuffle("__shfl_up_sync", mask, value, (lane & (width - 1)) < by ? -1 : lane - by, place);
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, int by, int width = 32, CUDA_ON_CPU_HERE) {
  const int lane = cuda_on_cpu::lane();
  return cuda_on_cpu::shuffle("__shfl_down_sync", mask, value, (lane & (width - 1)) + by >= width ? -1 : lane + by,
                              place);
}

inline unsigned __ballot_sync(unsigned mask, int predicate, CUDA_ON_CPU_HERE) {
  unsigned votes = 0;
  cuda_on_cpu::each_lane("__ballot_sync", mask, predicate, place,
                         [&](int lane, int value) { votes |= static_cast<unsigned>(value != 0) << lane; });
  return votes;
}
inline int __any_sync(unsigned mask, int predicate, CUDA_ON_CPU_HERE) {
  return __ballot_sync(mask, predicate, place) != 0;
}
inline int __all_sync(unsigned mask, int predicate, CUDA_ON_CPU_HERE) {
  return __ballot_sync(mask, predicate, place) == mask;
}
template <class T>
unsigned __match_any_sync(unsigned mask, T value, CUDA_ON_CPU_HERE) {
  unsigned equal = 0;
  cuda_on_cpu::each_lane("__match_any_sync", mask, value, place,
                         [&](int lane, T other) { equal |= static_cast<unsigned>(other == value) << lane; });
  return equal;
}
template <class T>
T __reduce_add_sync(unsigned mask, T value, CUDA_ON_CPU_HERE) {
  return cuda_on_cpu::reduce("__reduce_add_sync", mask, value, place, [](T a, T b) { return static_cast<T>(a + b); });
}
template <class T>
T __reduce_min_sync(unsigned mask, T value, CUDA_ON_CPU_HERE) {
  return cuda_on_cpu::reduce("__reduce_min_sync", mask, value, place, [](T a, T b) { return b < a ? b : a; });
}
template <class T>
T __reduce_max_sync(unsigned mask, T value, CUDA_ON_CPU_HERE) {
  return cuda_on_cpu::reduce("__reduce_max_sync", mask, value, place, [](T a, T b) { return a < b ? b : a; });
}
template <class T>
T __reduce_or_sync(unsigned mask, T value, CUDA_ON_CPU_HERE) {
  return cuda_on_cpu::reduce("__reduce_or_sync", mask, value, place, [](T a, T b) { return static_cast<T>(a | b); });
}
