#include "hamming/kernels.h"

#include <array>
#include <atomic>
#include <bit>
#include <cstdlib>
#include <cstring>

#include "hamming/layout.h"

#if defined(__GNUC__)
#define AGMH_INLINE inline __attribute__((always_inline))
#else
#define AGMH_INLINE inline
#endif

namespace agmh {
namespace {

template <class Word>
AGMH_INLINE Word load(const uint8_t* from) {
  Word word;
  std::memcpy(&word, from, sizeof word);
  return word;
}

// Rows of one word. The query is a scalar, so that compilers turn the loop into vectors of rows.
template <class Word>
AGMH_INLINE void one_word(const uint8_t* query, const uint8_t* rows, int count, int16_t* out) {
  const Word q = load<Word>(query);
  for (int i = 0; i < count; ++i) {
    const Word x = load<Word>(rows + static_cast<int64_t>(i) * static_cast<int64_t>(sizeof(Word)));
    out[i] = static_cast<int16_t>(std::popcount(static_cast<Word>(q ^ x)));
  }
}

template <int Words>
AGMH_INLINE void few_words(const uint8_t* query, const uint8_t* rows, int count, int16_t* out) {
  uint64_t q[Words];
  std::memcpy(q, query, sizeof q);
  for (int i = 0; i < count; ++i, rows += sizeof q) {
    int distance = 0;
    for (int w = 0; w < Words; ++w) distance += std::popcount(q[w] ^ load<uint64_t>(rows + 8 * w));
    out[i] = static_cast<int16_t>(distance);
  }
}

AGMH_INLINE void many_words(const uint8_t* query, const uint8_t* rows, int count, int words, int16_t* out) {
  for (int i = 0; i < count; ++i, rows += 8 * static_cast<int64_t>(words)) {
    int64_t distance = 0;
    for (int w = 0; w < words; ++w)
      distance += std::popcount(load<uint64_t>(query + 8 * w) ^ load<uint64_t>(rows + 8 * w));
    out[i] = static_cast<int16_t>(distance);
  }
}

struct KernelSet {
  const char* name;
  bool (*runs_here)();
  DistanceKernel bytes2, bytes4, words1, words2, words3, words4, words;
};

bool always() { return true; }

// One set of kernels in its own namespace; TARGET is what the compiler may use in it, so that no flag of the whole
// build decides which processors can run the library.
#define AGMH_KERNEL(NAME, TARGET, CALL)                                                                              \
  TARGET void NAME(const uint8_t* query, const uint8_t* rows, int count, [[maybe_unused]] int words, int16_t* out) { \
    CALL;                                                                                                            \
  }
#define AGMH_KERNEL_SET(ISA, TARGET, RUNS_HERE)                                                      \
  namespace isa_##ISA {                                                                              \
    AGMH_KERNEL(bytes2, TARGET, one_word<uint16_t>(query, rows, count, out))                         \
    AGMH_KERNEL(bytes4, TARGET, one_word<uint32_t>(query, rows, count, out))                         \
    AGMH_KERNEL(words1, TARGET, one_word<uint64_t>(query, rows, count, out))                         \
    AGMH_KERNEL(words2, TARGET, few_words<2>(query, rows, count, out))                               \
    AGMH_KERNEL(words3, TARGET, few_words<3>(query, rows, count, out))                               \
    AGMH_KERNEL(words4, TARGET, few_words<4>(query, rows, count, out))                               \
    AGMH_KERNEL(many, TARGET, many_words(query, rows, count, words, out))                            \
    constexpr KernelSet kSet{#ISA, RUNS_HERE, bytes2, bytes4, words1, words2, words3, words4, many}; \
  }

AGMH_KERNEL_SET(generic, , always)

#if defined(__x86_64__) && defined(__GNUC__)
#define AGMH_X86_SETS
bool has_popcnt() { return __builtin_cpu_supports("popcnt") != 0; }
bool has_avx512() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vpopcntdq");
}
AGMH_KERNEL_SET(popcnt, __attribute__((target("popcnt"))), has_popcnt)
AGMH_KERNEL_SET(avx512, __attribute__((target("popcnt,avx512f,avx512bw,avx512vl,avx512vpopcntdq"))), has_avx512)
#endif

constexpr std::array kSets{
    &isa_generic::kSet,
#ifdef AGMH_X86_SETS
    &isa_popcnt::kSet,
    &isa_avx512::kSet,
#endif
};

const KernelSet* find(const std::string& name) {
  for (const KernelSet* set : kSets)
    if (set->name == name && set->runs_here()) return set;
  std::string known;
  for (const std::string& available : available_isas()) known += (known.empty() ? "" : ", ") + available;
  throw InputError("instruction set '" + name + "' is not available here; choose from " + known);
}

const KernelSet* initial() {
  if (const char* forced = std::getenv("AGMH_FAST_ISA"); forced != nullptr && *forced != '\0') return find(forced);
  return find(available_isas().back());
}

std::atomic<const KernelSet*>& current() {
  static std::atomic<const KernelSet*> set{initial()};
  return set;
}

}  // namespace

DistanceKernel distance_kernel(int row_bytes) {
  const KernelSet& set = *current().load(std::memory_order_relaxed);
  switch (row_bytes) {
    case 2:
      return set.bytes2;
    case 4:
      return set.bytes4;
    case 8:
      return set.words1;
    case 16:
      return set.words2;
    case 24:
      return set.words3;
    case 32:
      return set.words4;
    default:
      return set.words;
  }
}

std::vector<std::string> available_isas() {
  std::vector<std::string> names;
  for (const KernelSet* set : kSets)
    if (set->runs_here()) names.emplace_back(set->name);
  return names;
}

std::string isa() { return current().load(std::memory_order_relaxed)->name; }

void use_isa(const std::string& name) { current().store(find(name), std::memory_order_relaxed); }

}  // namespace agmh
