#include "hamming/kernels.h"

#include <array>
#include <atomic>
#include <cstdlib>

#include "hamming/layout.h"

namespace agmh {
namespace {

constexpr std::array kSets{
    &generic::kSet,
#ifdef AGMH_X86_SETS
    &popcnt::kSet,  &avx2::kSet, &avx512::kSet, &avx512vbmi2::kSet,
#endif
#ifdef AGMH_ARM_SETS
    &neon::kSet,
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

const KernelSet& kernels() { return *current().load(std::memory_order_relaxed); }

std::vector<std::string> available_isas() {
  std::vector<std::string> names;
  for (const KernelSet* set : kSets)
    if (set->runs_here()) names.emplace_back(set->name);
  return names;
}

std::string isa() { return kernels().name; }

void use_isa(const std::string& name) { current().store(find(name), std::memory_order_relaxed); }

}  // namespace agmh
