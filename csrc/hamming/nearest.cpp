#include "hamming/nearest.h"

namespace agmh {

void Nearest::compact(DistanceCounts& counts) {
  counts.add(keys_, size_);
  int64_t below = 0, at = 0;
  int last = 0;  // the k-th distance
  for (;; below += at, ++last) {
    at = 0;
    for (int run = 0; run < DistanceCounts::kRuns; ++run) at += counts.run(run)[last];
    if (below + at >= k_) break;
  }
  counts.clear();
  int64_t kept = 0, room = k_ - below;
  for (int64_t i = 0; i < size_; ++i) {
    const Key key = keys_[i];
    const int distance = distance_of(key);
    keys_[kept] = key;
    const bool at_last = distance == last && room > 0;
    room -= at_last;
    kept += distance < last || at_last;
  }
  size_ = kept;
  limit_ = static_cast<int16_t>(last - 1);
}

}  // namespace agmh
