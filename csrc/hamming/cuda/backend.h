// Which searches have tensor cores sift. All that is known of it is here, so that a measurement changes one number.
#pragma once

#include <cstdint>
#include <limits>

#include "hamming/cuda/engine.h"

namespace agmh::cuda {

// The products that an architecture sifts with, and from how many queries on that pays, by the 32-bit words of a code.
struct Crossover {
  int architecture;
  Backend sieve;
  int64_t one_word, two_words, four_words, eight_words, others;
};

// Never, until it is measured: bench/test_hamming_gpu.py times all back ends.
constexpr int64_t kNever = std::numeric_limits<int64_t>::max();
constexpr Crossover kCrossovers[] = {
    {80, Backend::kBmma, kNever, kNever, kNever, kNever, kNever},
    {86, Backend::kBmma, kNever, kNever, kNever, kNever, kNever},
    {89, Backend::kBmma, kNever, kNever, kNever, kNever, kNever},
    {90, Backend::kBmma, kNever, kNever, kNever, kNever, kNever},
    {100, Backend::kImma, kNever, kNever, kNever, kNever, kNever},
};

// Later architectures have no such instruction: it would be a subroutine.
constexpr bool has_bmma(int architecture) { return architecture >= 80 && architecture <= 90; }
constexpr bool has_imma(int architecture) { return architecture >= 80; }

inline int64_t queries_from(const Crossover& known, int words) {
  switch (words) {
    case 1:
      return known.one_word;
    case 2:
      return known.two_words;
    case 4:
      return known.four_words;
    case 8:
      return known.eight_words;
    default:
      return known.others;
  }
}

// A mask hides what a sieve finds, so that there it has to be asked for.
inline Backend backend_for(const DeviceTask& task, const Device& device) {
  if (device.backend != Backend::kAutomatic) return device.backend;
  for (const Crossover& known : kCrossovers)
    if (known.architecture == device.architecture && task.mask == nullptr &&
        task.query_count >= queries_from(known, task.words))
      return known.sieve;
  return Backend::kPopc;
}

}  // namespace agmh::cuda
