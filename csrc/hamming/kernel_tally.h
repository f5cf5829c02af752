// Counts of every distance, from planes; a part of kernel_set.h.

namespace agmh::AGMH_ISA {
namespace {

// What is counted at a time: a plane of a tile where its bits are counted in one go, else each of its words.
#ifdef AGMH_TERNARY
using Part = Vec;
constexpr int kTileParts = 1;
AGMH_INLINE bool any(const Part& x) { return _mm512_test_epi64_mask(x, x) != 0; }
AGMH_INLINE Part ones_of(const Part& x) { return _mm512_popcnt_epi64(x); }
AGMH_INLINE int64_t sum_of(const Part& counts) { return _mm512_reduce_add_epi64(counts); }
#else
using Part = uint64_t;
constexpr int kTileParts = kPlaneWords;
AGMH_INLINE bool any(Part x) { return x != 0; }
AGMH_INLINE Part ones_of(Part x) { return static_cast<Part>(std::popcount(x)); }
AGMH_INLINE int64_t sum_of(Part counts) { return static_cast<int64_t>(counts); }
#endif
constexpr int kParts = kTallyTiles * kTileParts;
constexpr int kPartItems = kPlaneItems / kTileParts;

AGMH_INLINE const Part* parts_of(const uint64_t* words) { return reinterpret_cast<const Part*>(words); }

// The part of a plane that holds the items before one of them.
AGMH_INLINE Part before_item(int item) {
#ifdef AGMH_TERNARY
  const __mmask8 own = static_cast<__mmask8>(1 << item / 64);
  const Vec earlier = _mm512_maskz_set1_epi64(static_cast<__mmask8>(own - 1), -1);
  return _mm512_mask_set1_epi64(earlier, own, static_cast<int64_t>((uint64_t{1} << item % 64) - 1));
#else
  return (uint64_t{1} << item) - 1;
#endif
}

#ifdef AGMH_TERNARY
// Lanes of a and b added in twos.
AGMH_INLINE Vec folded(const Vec& a, const Vec& b) {
  return _mm512_add_epi64(_mm512_shuffle_i64x2(a, b, 0x88), _mm512_shuffle_i64x2(a, b, 0xdd));
}
#endif

// counts[v] += the sum of all[v].
AGMH_INLINE void add_sums(const Part (&all)[8], int64_t* counts) {
#ifdef AGMH_TERNARY
  Vec pairs[4], fours[2];
  for (int i = 0; i < 4; ++i)
    pairs[i] = _mm512_add_epi64(_mm512_unpacklo_epi64(all[2 * i], all[2 * i + 1]),
                                _mm512_unpackhi_epi64(all[2 * i], all[2 * i + 1]));
  for (int i = 0; i < 2; ++i) fours[i] = folded(pairs[2 * i], pairs[2 * i + 1]);
  _mm512_storeu_si512(counts, _mm512_add_epi64(_mm512_loadu_si512(counts), folded(fours[0], fours[1])));
#else
  for (int value = 0; value < 8; ++value) counts[value] += static_cast<int64_t>(all[value]);
#endif
}

// Items by their distance, as an AND of two planes: one says its three low bits, the other the rest.
struct ByDistance {
  Part low[kParts][8];
  Part high[kMaxTallyBits / 8 + 1][kParts];

  AGMH_INLINE Part at(int distance, int part) const { return high[distance / 8][part] & low[part][distance % 8]; }

  AGMH_INLINE void split(const Tally& task, int part) {
    constexpr int kStep = kPlaneWords / (kPlaneItems / kPartItems);  // words of a part
    const int64_t tile = part / kTileParts, word = part % kTileParts * kStep;
    const uint64_t* planes = task.planes + tile * task.tile_stride + word;
    const auto plane = [&](int l) { return *parts_of(planes + int64_t{l} * kPlaneWords); };
    const Part items = *parts_of(task.items + tile * kPlaneWords + word);
    const Part x = plane(0), y = plane(1), z = plane(2);
    const Part neither = ~x & ~y & items, first = x & ~y & items, second = ~x & y & items, both = x & y & items;
    const Part even[4] = {neither, first, second, both};
    for (int value = 0; value < 4; ++value) {
      low[part][value] = even[value] & ~z;
      low[part][value + 4] = even[value] & z;
    }
    const int last = task.bits / 8;
    high[0][part] = ~(x & ~x);
    for (int l = 3, known = 1; l < task.levels; ++l, known *= 2) {
      const Part set = plane(l);
      for (int block = 0; block < known && block <= last; ++block) {
        if (block + known <= last) high[block + known][part] = high[block][part] & set;
        high[block][part] &= ~set;
      }
    }
  }
};

void tally(const Tally& task) {
  const int parts = task.tiles * kTileParts;
  ByDistance items;
  for (int part = 0; part < parts; ++part) items.split(task, part);

  for (int i = 0; i < task.asked; ++i) {
    const int item = task.index[i], distance = task.distances[i], own = item / kPartItems;
    Part equal = ones_of(items.at(distance, own) & before_item(item % kPartItems));
    for (int part = 0; part < own; ++part) equal += ones_of(items.at(distance, part));
    task.before[i] = task.counts[distance] + sum_of(equal);
  }

  for (int block = 0; block <= task.bits / 8; ++block) {
    const Part* high = items.high[block];
    Part occupied = high[0];
    for (int part = 1; part < parts; ++part) occupied |= high[part];
    // Most distances lie close together.
    if (!any(occupied)) continue;
    Part all[8] = {};
    for (int part = 0; part < parts; ++part)
      for (int value = 0; value < 8; ++value) all[value] += ones_of(high[part] & items.low[part][value]);
    add_sums(all, task.counts + 8 * block);
  }
}

}  // namespace
}  // namespace agmh::AGMH_ISA
