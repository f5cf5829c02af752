// The innermost loops, compiled once for each instruction set and chosen when the program runs.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "hamming/planes.h"

namespace agmh {

// out[i] = number of bits in which `query` and row i differ. Rows are padded and adjoining; `words` is the number of
// 64-bit words of a row (unused where a row has fewer than 8 bytes).
using DistanceKernel = void (*)(const uint8_t* query, const uint8_t* rows, int count, int words, int16_t* out);

// Rows that are compared at a time, at most.
inline constexpr int kMaxTile = 1024;

// What functions that write a list of indices or of keys may write beyond its end.
inline constexpr int kIndexSlack = 64;

// An item near a query, its distance and position in one word, so that words are ordered as results are: 16 and 48
// bits.
using Key = uint64_t;
inline constexpr int kPositionBits = 48;

inline Key key_of(int distance, int64_t position) {
  return static_cast<Key>(distance) << kPositionBits | static_cast<Key>(position);
}
inline int16_t distance_of(Key key) { return static_cast<int16_t>(key >> kPositionBits); }
inline int64_t position_of(Key key) { return static_cast<int64_t>(key & ((Key{1} << kPositionBits) - 1)); }

struct KernelSet {
  const char* name;
  bool (*runs_here)();
  // The kernel for padded rows of `row_bytes` bytes.
  DistanceKernel (*distances)(int row_bytes);
  // out[i] = the same for rows of up to 255 bits. count <= kMaxTile.
  void (*distance_bytes)(const uint8_t* query, const uint8_t* rows, int count, int row_bytes, uint8_t* out);
  // The ascending i < count with distances[i] <= limit; returns how many there are.
  int (*within)(const int16_t* distances, int count, int16_t limit, uint16_t* index);
  // Keys, ascending by position, of the rows that differ from `query` in no more than `limit` bits, the first of them
  // at position `first`; returns how many there are. count <= kMaxTile.
  int (*near)(const uint8_t* query, const uint8_t* rows, int count, int row_bytes, int16_t limit, int64_t first,
              Key* keys);
  // The ascending i < count with bytes[i] != 0; returns how many there are.
  int (*nonzero)(const uint8_t* bytes, int count, uint16_t* index);
  // The places, ascending, of all bits that are set in the hits of some tiles, (tiles, kPlaneWords) with `tile_stride`
  // words from tile to tile: place 64 (kPlaneWords t + w) + b for bit b of word w of tile t. Words that have none are
  // not set in `occupied`, bit kPlaneWords t + w. Returns how many there are.
  int (*set_bits)(const uint64_t* words, int64_t tile_stride, uint64_t occupied, uint16_t* index);
  // out[i] = distance of `query` to row index[i].
  void (*distances_at)(const uint8_t* query, const uint8_t* rows, int row_bytes, const uint16_t* index, int count,
                       int16_t* out);
  // out[i] = that distance and position first + index[i].
  void (*keys_at)(const uint8_t* query, const uint8_t* rows, int row_bytes, const uint16_t* index, int count,
                  int64_t first, Key* out);
  PlaneKernels planes;
};

// The set in use: the fastest that this processor runs, or the one that the environment variable AGMH_FAST_ISA names
// (read once).
const KernelSet& kernels();

// Instruction sets that this build has and this processor runs, slowest first.
std::vector<std::string> available_isas();

// The name of the set in use.
std::string isa();

// Use another from now on, in the whole process; throws InputError if it is not available.
void use_isa(const std::string& name);

namespace generic {
extern const KernelSet kSet;
}
#if defined(__aarch64__) && defined(__ARM_NEON)
#define AGMH_ARM_SETS
namespace neon {
extern const KernelSet kSet;
}
#elif defined(__x86_64__) && defined(__GNUC__)
#define AGMH_X86_SETS
namespace popcnt {
extern const KernelSet kSet;
}
namespace avx2 {
extern const KernelSet kSet;
}
namespace avx512 {
extern const KernelSet kSet;
}
namespace avx512vbmi2 {
extern const KernelSet kSet;
}
#endif

}  // namespace agmh
