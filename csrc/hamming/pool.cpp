#include "hamming/pool.h"

#include <algorithm>
#include <mutex>
#include <vector>

namespace agmh {
namespace {

// Smaller blocks come from memory that the allocator has at hand.
constexpr size_t kLeast = size_t{256} << 10;

struct Kept {
  uint8_t* block;
  size_t size;
};

// Never destroyed: results may be freed when the process ends. Its mutex is only ever tried: a process forked while it
// is held goes without kept blocks.
struct Pool {
  std::mutex mutex;
  std::vector<Kept> blocks;  // the one given back last is last
  size_t total = 0;
};

Pool& pool() {
  static Pool* const pool = new Pool;
  return *pool;
}

}  // namespace

Block take_block(size_t bytes) {
  if (bytes >= kLeast) {
    Pool& kept = pool();
    const std::unique_lock lock(kept.mutex, std::try_to_lock);
    if (lock.owns_lock()) {
      const auto fits = std::find_if(kept.blocks.rbegin(), kept.blocks.rend(),
                                     [&](const Kept& each) { return each.size >= bytes && each.size / 2 <= bytes; });
      if (fits != kept.blocks.rend()) {
        Block block(fits->block, Release{fits->size});
        kept.total -= fits->size;
        kept.blocks.erase(std::next(fits).base());
        return block;
      }
    }
  }
  return Block(new uint8_t[bytes], Release{bytes});
}

void Release::operator()(uint8_t* block) const noexcept {
  if (size >= kLeast && size <= kKeptBytes) {
    Pool& kept = pool();
    const std::unique_lock lock(kept.mutex, std::try_to_lock);
    if (lock.owns_lock()) {
      try {
        kept.blocks.push_back({block, size});
        kept.total += size;
        // The oldest make room.
        while (kept.total > kKeptBytes) {
          kept.total -= kept.blocks.front().size;
          delete[] kept.blocks.front().block;
          kept.blocks.erase(kept.blocks.begin());
        }
        return;
      } catch (...) {  // no memory for the list: freed
      }
    }
  }
  delete[] block;
}

}  // namespace agmh
