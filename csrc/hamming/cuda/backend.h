// Which searches have tensor cores sift. All that is known of it is here, so that a measurement changes one number.
#pragma once

#include <algorithm>
#include <cstdint>
#include <iterator>
#include <limits>

#include "hamming/cuda/engine.h"

namespace agmh::cuda {

// From so many queries on sifting pays, by the 32-bit words of a code.
struct Crossover {
  int architecture;
  int64_t one_word, two_words, four_words, eight_words, others;
};

// Never, until it is measured: bench/test_hamming_gpu.py times both back ends.
constexpr int64_t kNever = std::numeric_limits<int64_t>::max();
constexpr Crossover kCrossovers[] = {
    {80, kNever, kNever, kNever, kNever, kNever},
    {86, kNever, kNever, kNever, kNever, kNever},
    {89, kNever, kNever, kNever, kNever, kNever},
    {90, kNever, kNever, kNever, kNever, kNever},
};

// Later architectures have no such instruction: it would be a subroutine.
constexpr bool has_bmma(int architecture) { return architecture >= 80 && architecture <= 90; }

inline int64_t crossover(int architecture, int words) {
  const auto known = std::find_if(std::begin(kCrossovers), std::end(kCrossovers),
                                  [&](const Crossover& each) { return each.architecture == architecture; });
  if (known == std::end(kCrossovers)) return kNever;
  switch (words) {
    case 1:
      return known->one_word;
    case 2:
      return known->two_words;
    case 4:
      return known->four_words;
    case 8:
      return known->eight_words;
    default:
      return known->others;
  }
}

// A mask hides what a sieve finds, so that there it has to be asked for.
inline Backend backend_for(const DeviceTask& task, const Device& device) {
  if (device.backend != Backend::kAutomatic) return device.backend;
  const bool pays = task.mask == nullptr && task.query_count >= crossover(device.architecture, task.words);
  return pays ? Backend::kBmma : Backend::kPopc;
}

}  // namespace agmh::cuda
