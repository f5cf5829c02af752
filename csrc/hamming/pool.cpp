#include "hamming/pool.h"

#include <algorithm>
#include <mutex>
#include <new>
#include <vector>

#ifdef __linux__
#include <sys/mman.h>
#endif

namespace agmh {
namespace {

// Smaller blocks come from memory that the allocator has at hand.
constexpr size_t kLeast = size_t{256} << 10;
constexpr size_t kLine = 64, kHugePage = size_t{2} << 20;

#ifdef __linux__
// Huge pages: a 512th of the page faults, and keeping and taking back costs next to nothing.
void prefer_huge_pages(uint8_t* block, size_t size) { madvise(block, size, MADV_HUGEPAGE); }
void offer_to_system(uint8_t* block, size_t size) { madvise(block, size, MADV_FREE); }
#else
void prefer_huge_pages(uint8_t*, size_t) {}
void offer_to_system(uint8_t*, size_t) {}
#endif

Block allocate(size_t bytes) {
  const size_t unit = bytes > kHugeBytes - kLine ? kHugePage : kLine;
  if (bytes > SIZE_MAX - unit) throw std::bad_alloc();
  const size_t size = std::max(unit, (bytes + unit - 1) / unit * unit);
  Block block(static_cast<uint8_t*>(::operator new(size, std::align_val_t{unit})), Release{size});
  if (size >= kHugeBytes) prefer_huge_pages(block.get(), size);
  return block;
}

void release(uint8_t* block, size_t size) noexcept {
  ::operator delete(block, std::align_val_t{size >= kHugeBytes ? kHugePage : kLine});
}

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
      // The smallest that fits, and of those the warmest: a larger one is left for whoever needs it.
      auto best = kept.blocks.rend();
      for (auto each = kept.blocks.rbegin(); each != kept.blocks.rend(); ++each)
        if (each->size >= bytes && each->size / 2 <= bytes && (best == kept.blocks.rend() || each->size < best->size))
          best = each;
      if (best != kept.blocks.rend()) {
        Block block(best->block, Release{best->size});
        kept.total -= best->size;
        kept.blocks.erase(std::next(best).base());
        return block;
      }
    }
  }
  return allocate(bytes);
}

void Release::operator()(uint8_t* block) const noexcept {
  if (size >= kLeast && size <= kKeptBytes) {
    Pool& kept = pool();
    const std::unique_lock lock(kept.mutex, std::try_to_lock);
    if (lock.owns_lock()) {
      try {
        kept.blocks.push_back({block, size});
        kept.total += size;
        if (size >= kHugeBytes) offer_to_system(block, size);
        // The oldest make room.
        while (kept.total > kKeptBytes) {
          kept.total -= kept.blocks.front().size;
          release(kept.blocks.front().block, kept.blocks.front().size);
          kept.blocks.erase(kept.blocks.begin());
        }
        return;
      } catch (...) {  // no memory for the list: freed
      }
    }
  }
  release(block, size);
}

}  // namespace agmh
