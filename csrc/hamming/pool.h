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

// At least `bytes` of memory, aligned as operator new aligns, with anything in it; throws std::bad_alloc. Blocks that
// are given back are kept, up to kKeptBytes of them in the whole process.
Block take_block(size_t bytes);
inline constexpr size_t kKeptBytes = size_t{64} << 20;

}  // namespace agmh
