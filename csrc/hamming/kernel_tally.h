// Counts of every distance, from planes; a part of kernel_set.h.

namespace agmh::AGMH_ISA {
namespace {

#ifdef AGMH_TERNARY
AGMH_INLINE int64_t sum_of(const Vec& x) { return _mm512_reduce_add_epi64(x); }

void tally(const Tally& task) {
  constexpr int kTiles = 8;
  // Of each tile the items whose distance ends in each value of its three low bits.
  Vec low[kTiles][8];
  for (int first = 0; first < task.tiles; first += kTiles) {
    const int tiles = task.tiles - first < kTiles ? task.tiles - first : kTiles;
    const uint64_t* planes = task.planes + first * task.tile_stride;
    for (int t = 0; t < tiles; ++t) {
      const Vec* at = vectors(planes + t * task.tile_stride);
      const Vec items = vectors(task.items)[first + t];
      for (int value = 0; value < 8; ++value)
        low[t][value] =
            ((value & 1 ? at[0] : ~at[0]) & (value & 2 ? at[1] : ~at[1])) & ((value & 4 ? at[2] : ~at[2]) & items);
    }
    for (int base = 0; base <= task.bits; base += 8) {
      Vec all[8], chosen[8];
      for (int value = 0; value < 8; ++value) all[value] = chosen[value] = _mm512_setzero_si512();
      for (int t = 0; t < tiles; ++t) {
        const Vec* at = vectors(planes + t * task.tile_stride);
        Vec high = filled(true);
        for (int l = 3; l < task.levels; ++l) high &= base >> l & 1 ? at[l] : ~at[l];
        // Most distances lie close together.
        if (_mm512_test_epi64_mask(high, high) == 0) continue;
        for (int value = 0; value < 8; ++value)
          all[value] = _mm512_add_epi64(all[value], _mm512_popcnt_epi64(high & low[t][value]));
        if (task.chosen == nullptr) continue;
        high &= vectors(task.chosen)[first + t];
        for (int value = 0; value < 8; ++value)
          chosen[value] = _mm512_add_epi64(chosen[value], _mm512_popcnt_epi64(high & low[t][value]));
      }
      for (int value = 0; value < 8 && base + value <= task.bits; ++value) {
        int64_t* to = task.counts + (base + value) * (task.chosen == nullptr ? 1 : 2);
        to[0] += sum_of(all[value]);
        if (task.chosen != nullptr) to[1] += sum_of(chosen[value]);
      }
    }
  }
}
#else
void tally(const Tally& task) {
  const int64_t channels = task.chosen == nullptr ? 1 : 2;
  for (int64_t word = 0; word < int64_t{task.tiles} * kPlaneWords; ++word) {
    const uint64_t* at = task.planes + word / kPlaneWords * task.tile_stride + word % kPlaneWords;
    uint64_t low[8];
    for (int value = 0; value < 8; ++value) {
      low[value] = task.items[word];
      for (int l = 0; l < 3; ++l) low[value] &= value >> l & 1 ? at[l * kPlaneWords] : ~at[l * kPlaneWords];
    }
    for (int base = 0; base <= task.bits; base += 8) {
      uint64_t high = ~uint64_t{0};
      for (int l = 3; l < task.levels; ++l) high &= base >> l & 1 ? at[l * kPlaneWords] : ~at[l * kPlaneWords];
      if (high == 0) continue;
      for (int value = 0; value < 8 && base + value <= task.bits; ++value) {
        int64_t* to = task.counts + (base + value) * channels;
        to[0] += std::popcount(high & low[value]);
        if (channels == 2) to[1] += std::popcount(high & low[value] & task.chosen[word]);
      }
    }
  }
}
#endif

Equals equals_before(const Tally& task, int item) {
  const int last = item / kPlaneItems, word = item % kPlaneItems / 64;
  const uint64_t* own = task.planes + last * task.tile_stride + word;
  Equals found{0, 0, 0};
  for (int l = 0; l < task.levels; ++l)
    found.distance |= static_cast<int>(own[l * kPlaneWords] >> (item % 64) & 1) << l;
  alignas(64) uint64_t earlier[kPlaneWords];  // of the item's own tile
  for (int w = 0; w < kPlaneWords; ++w)
    earlier[w] = w < word ? ~uint64_t{0} : w == word ? (uint64_t{1} << (item % 64)) - 1 : 0;
#ifdef AGMH_TERNARY
  Vec all = filled(false), chosen = all;
  for (int t = 0; t <= last; ++t) {
    const Vec* at = vectors(task.planes + t * task.tile_stride);
    Vec equal = vectors(task.items)[t];
    if (t == last) equal &= *vectors(earlier);
    for (int l = 0; l < task.levels; ++l) equal &= found.distance >> l & 1 ? at[l] : ~at[l];
    all = _mm512_add_epi64(all, _mm512_popcnt_epi64(equal));
    chosen = _mm512_add_epi64(chosen, _mm512_popcnt_epi64(equal & vectors(task.chosen)[t]));
  }
  found.all = sum_of(all);
  found.chosen = sum_of(chosen);
#else
  for (int64_t w = 0; w <= int64_t{last} * kPlaneWords + word; ++w) {
    const uint64_t* at = task.planes + w / kPlaneWords * task.tile_stride + w % kPlaneWords;
    uint64_t equal = task.items[w];
    if (w / kPlaneWords == last) equal &= earlier[w % kPlaneWords];
    for (int l = 0; l < task.levels; ++l) equal &= found.distance >> l & 1 ? at[l * kPlaneWords] : ~at[l * kPlaneWords];
    found.all += std::popcount(equal);
    found.chosen += std::popcount(equal & task.chosen[w]);
  }
#endif
  return found;
}

}  // namespace
}  // namespace agmh::AGMH_ISA
