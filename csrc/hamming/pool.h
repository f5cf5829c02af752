// Large blocks of memory that are used again: pages that the system gives afresh cost more than most searches do.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

namespace agmh {

// Gives a block back, to be used again or freed.
struct Release {
  size_t size = 0;
  void operator()(uint8_t* block) const noexcept;
};
using Block = std::unique_ptr<uint8_t[], Release>;

// At least `bytes` of memory, aligned to a cache line, with anything in it; throws std::bad_alloc. Blocks that are
// given back are kept, up to kKeptBytes of them. The system may take the pages of those from kHugeBytes on whenever it
// is short of memory.
Block take_block(size_t bytes);
inline constexpr size_t kKeptBytes = size_t{512} << 20;
inline constexpr size_t kHugeBytes = size_t{4} << 20;

}  // namespace agmh
