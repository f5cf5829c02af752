// Bit-plane counting: which of 512 codes are near a query, for many queries at once. README.md says how.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

namespace agmh {

inline constexpr int kPlaneItems = 512;
inline constexpr int kPlaneWords = kPlaneItems / 64;
inline constexpr int kPlaneBytes = kPlaneItems / 8;
// Planes of three bits in a table: the sum's low bit for even and odd queries, its high bit for the 8 values of the
// query's three bits.
inline constexpr int kTriplePlanes = 10;

// How the bits of a width are cut: chunks of `triples` groups of three bits, counted in `levels` planes.
struct PlanePlan {
  int triples = 0;
  int levels = 0;
  int chunks = 0;

  int chunk_bits() const { return triples > 22 ? 128 : 64; }
};
PlanePlan plane_plan(int bits);

// One chunk of one tile against a block of queries.
struct PlaneCount {
  const uint8_t* table = nullptr;     // what `build` made of the chunk
  const uint16_t* offsets = nullptr;  // (queries, stride): where in the table a query finds its planes
  int64_t stride = 0;
  int queries = 0;
  const int16_t* limits = nullptr;   // largest distance that is a hit; below 0: nothing is
  bool first = false, last = false;  // of the chunks
  uint64_t* state = nullptr;         // (queries, levels + 1, kPlaneWords) between chunks
  uint64_t* hits = nullptr;          // out, (queries, kPlaneWords): bit i is set where item i is a hit
  uint8_t* occupied = nullptr;  // out, (queries, occupied_stride): bit w is set where word w of the hits is not zero
  int64_t occupied_stride = 0;
};

// Tiles that are tallied at a time, and the bits up to which they are: the cost grows with the number of distances.
inline constexpr int kTallyTiles = 8;
inline constexpr int kMaxTallyBits = 512;

// Some tiles against one query, whose distances are given as planes: bit i of plane l is bit l of item i's distance.
struct Tally {
  const uint64_t* planes;  // (tiles, levels, kPlaneWords), tiles tile_stride words apart
  int64_t tile_stride;
  int tiles, levels, bits;
  const uint64_t* items;  // (tiles, kPlaneWords): the items that are counted
  int64_t* counts;        // one a distance, bits + 1 rounded up to a multiple of 8: added to
  // Of some of these items, whose distances are known: before[i] becomes what was counted at the distance of item
  // index[i] before it, earlier tallies included.
  int asked = 0;
  const uint16_t* index = nullptr;
  const int16_t* distances = nullptr;
  int64_t* before = nullptr;
};

struct PlaneKernels {
  // Table of the bits of chunk `chunk` of `count` <= kPlaneItems padded, adjoining rows; plane_positions() gave
  // `positions`.
  void (*build)(const uint8_t* rows, int count, int row_bytes, int chunk, const int16_t* positions,
                const PlanePlan& plan, uint8_t* table);
  void (*count)(const PlanePlan& plan, const PlaneCount& task);
  void (*tally)(const Tally& task);
  // Queries from which on this is faster than distances one by one: up to 32, up to 256 and more bits.
  int64_t short_queries, queries, wide_queries;

  int64_t enough_queries(int bits) const { return bits <= 32 ? short_queries : bits <= 256 ? queries : wide_queries; }
};

// The bits that the triples of a chunk are made of: positions in a padded row, read as little-endian words, or -1.
void plane_positions(int bits, int chunk, const PlanePlan& plan, int16_t* positions);

// A block of queries, ready to be compared with tiles.
class PlaneFilter {
 public:
  // `queries`: padded rows, adjoining.
  PlaneFilter(const PlaneKernels& kernels, int bits, const uint8_t* queries, int count);

  // Hits of `count` <= kPlaneItems padded, adjoining rows, as in PlaneCount. Items beyond `count` may pass for hits.
  void find(const uint8_t* rows, int count, const int16_t* limits, uint64_t* hits, uint8_t* occupied,
            int64_t occupied_stride);

  // Distances to `count` rows as planes: (queries, levels + 1, kPlaneWords), the last plane zero; 64-byte aligned.
  void planes(const uint8_t* rows, int count, uint64_t* out);

  int levels() const { return plan_.levels; }

 private:
  // One chunk of a tile; the rest of `task` is the caller's.
  void chunk(int index, const uint8_t* rows, int count, PlaneCount task);

  const PlaneKernels& kernels_;
  int row_bytes_;
  int queries_;
  PlanePlan plan_;
  std::vector<int16_t> positions_;  // (chunks, 3 · triples)
  std::vector<uint16_t> offsets_;   // (chunks, queries, 2 · triples)
  std::unique_ptr<uint8_t[]> scratch_;
  uint8_t* table_;
  uint64_t* state_;
};

}  // namespace agmh
