// A block of CUDA threads: fibers that take turns until each waits for another or has ended. Reports and aborts where
// real threads would hang, or where a barrier is not the same one for all.
#pragma once

#include <algorithm>
#include <bit>
#include <condition_variable>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <mutex>
#include <source_location>
#include <thread>
#include <vector>

#include "fibers.h"
#include "vector_types.h"

namespace cuda_on_cpu {

using Place = std::source_location;

[[noreturn]] inline void stop(const char* what, const Place& place, const char* why) {
  std::fprintf(stderr, "cuda_on_cpu: %s at %s:%u: %s\n", what, place.file_name(), place.line(), why);
  std::abort();
}

// What a lane hands to the others of its warp in one operation.
struct Payload {
  uint64_t words[4] = {};
};

// One operation of a warp under way: lanes of `mask` arrive, and when all have, each reads what all brought. Lanes with
// another mask, or at another operation, meet elsewhere.
struct Meeting {
  unsigned mask = 0, arrived = 0;
  int readers = 0;
  const char* what = nullptr;
  Payload brought[32];

  bool idle() const { return arrived == 0 && readers == 0; }
};

struct Warp {
  std::vector<std::unique_ptr<Meeting>> meetings{};
  char order = 0;  // of memory, by __syncwarp

  Meeting& meet(const char* what, unsigned mask) {
    for (auto& meeting : meetings)
      if (meeting->arrived != 0 && meeting->mask == mask &&
          (meeting->what == what || std::strcmp(meeting->what, what) == 0))
        return *meeting;
    auto free = std::find_if(meetings.begin(), meetings.end(), [](const auto& meeting) { return meeting->idle(); });
    if (free == meetings.end()) free = meetings.insert(free, std::make_unique<Meeting>());
    (*free)->mask = mask;
    (*free)->what = what;
    return **free;
  }
};

struct Thread {
  Fiber* fiber = nullptr;
  uint3 index{};
  int number = 0;
  bool ended = false;
  const char* waits_at = nullptr;  // nullptr: it can go on
  unsigned waits_with = 0;         // the mask of a warp's operation, 0 at a block's barrier
  Place place;
};

class Block {
 public:
  Block(uint3 index, dim3 size, dim3 grid, size_t shared, const std::function<void()>& kernel)
      : index(index), size(size), grid(grid), kernel_(kernel), shared_(new char[shared + (shared == 0)]) {
    std::memset(shared_.get(), 0xCD, shared);
  }

  const uint3 index;
  const dim3 size, grid;

  CUDA_ON_CPU_UNSEEN static Block& current() { return *running(); }
  CUDA_ON_CPU_UNSEEN uint3 thread_index() const { return thread_->index; }
  CUDA_ON_CPU_UNSEEN int lane() const { return thread_->number % 32; }
  void* shared() const { return shared_.get(); }

  void run();
  // How many threads brought something other than 0, and how many there were.
  struct Votes {
    int nonzero, all;
  };
  Votes wait_for_block(const char* what, int brought, const Place& place);
  // What each lane of `mask` brought, good until the caller next waits.
  const Payload* wait_for_warp(const char* what, unsigned mask, const Payload& mine, const Place& place,
                               bool orders_memory = false);

 private:
  CUDA_ON_CPU_UNSEEN static Block*& running() {
    static thread_local Block* block = nullptr;
    return block;
  }
  static void entry();
  void wait(const char* what, unsigned mask, const Place& place) {
    Thread& me = *thread_;
    me.waits_at = what;
    me.waits_with = mask;
    me.place = place;
  }
  void give_way() {
    Thread& me = *thread_;
    while (me.waits_at != nullptr) me.fiber->leave(crew_->home);
  }
  void open_barrier_if_full();
  bool run_each_once();
  [[noreturn]] void report_deadlock();

  const std::function<void()>& kernel_;
  std::unique_ptr<char[]> shared_;
  Crew* crew_ = nullptr;
  std::vector<Thread> threads_;
  std::vector<Warp> warps_;
  Thread* thread_ = nullptr;
  int live_ = 0;
  int arrived_ = 0, nonzero_ = 0;  // threads at the barrier
  Votes votes_{};                  // of the last time it opened
  char start_order_ = 0, barrier_order_ = 0, end_order_ = 0;
};

inline void Block::entry() {
  Fiber::arrived(current().crew_->home);
  while (true) {  // for one block after another
    Block& block = current();
    acquire(&block.start_order_);
    block.kernel_();
    release(&block.end_order_);
    Fiber* me = nullptr;
    Home* home = nullptr;
    {
      const Unseen books;
      block.thread_->ended = true;
      me = block.thread_->fiber;
      home = &block.crew_->home;
    }
    me->leave(*home);
  }
}

inline void Block::open_barrier_if_full() {
  if (arrived_ == 0 || arrived_ != live_) return;
  const Thread* first = nullptr;
  for (Thread& thread : threads_) {
    if (thread.waits_at == nullptr || thread.waits_with != 0) continue;
    if (first == nullptr) first = &thread;
    if (thread.place.line() != first->place.line() || thread.place.file_name() != first->place.file_name())
      stop(thread.waits_at, thread.place, "other threads wait at another barrier: it is divergent");
    thread.waits_at = nullptr;
  }
  votes_ = {nonzero_, live_};
  arrived_ = nonzero_ = 0;
}

inline Block::Votes Block::wait_for_block(const char* what, int brought, const Place& place) {
  const Unseen books;
  release(&barrier_order_);
  wait(what, 0, place);
  ++arrived_;
  nonzero_ += brought != 0;
  open_barrier_if_full();
  give_way();
  acquire(&barrier_order_);
  return votes_;
}

inline const Payload* Block::wait_for_warp(const char* what, unsigned mask, const Payload& mine, const Place& place,
                                           bool orders_memory) {
  const Unseen books;
  const int lane = thread_->number % 32, first = thread_->number - lane;
  if ((mask >> lane & 1) == 0) stop(what, place, "the calling lane is not in its own mask");
  Warp& warp = warps_[static_cast<size_t>(first / 32)];
  Meeting& meeting = warp.meet(what, mask);
  meeting.brought[lane] = mine;
  if (orders_memory) release(&warp.order);
  meeting.arrived |= 1u << lane;
  wait(what, mask, place);
  if (meeting.arrived == mask) {
    meeting.arrived = 0;
    meeting.readers = std::popcount(mask);
    for (int other = 0; other < 32; ++other)
      if (mask >> other & 1) threads_[static_cast<size_t>(first + other)].waits_at = nullptr;
  }
  give_way();
  if (orders_memory) acquire(&warp.order);
  --meeting.readers;
  return meeting.brought;
}

// In order, or the other way round, which shows what only one order hides.
inline bool Block::run_each_once() {
  static const bool backward = std::getenv("CUDA_ON_CPU_BACKWARD") != nullptr;
  bool moved = false;
  for (size_t i = 0; i < threads_.size(); ++i) {
    Thread& thread = threads_[backward ? threads_.size() - 1 - i : i];
    if (thread.ended || thread.waits_at != nullptr) continue;
    moved = true;
    thread_ = &thread;
    thread.fiber->enter(crew_->home);
    if (!thread.ended) continue;
    --live_;
    open_barrier_if_full();
  }
  return moved;
}

inline void Block::report_deadlock() {
  std::fprintf(stderr, "cuda_on_cpu: deadlock in block (%u, %u, %u):\n", index.x, index.y, index.z);
  const Thread* last = nullptr;
  for (const Thread& thread : threads_) {
    if (thread.ended) continue;
    if (last == nullptr || last->place.line() != thread.place.line() || last->waits_with != thread.waits_with)
      std::fprintf(stderr, "  thread %d and on: %s, line %u, mask %08x\n", thread.number, thread.waits_at,
                   thread.place.line(), thread.waits_with);
    last = &thread;
  }
  std::abort();
}

inline void Block::run() {
  static thread_local Crew crew;
  crew_ = &crew;
  {
    const Unseen books;
    running() = this;
  }
  live_ = static_cast<int>(size.x * size.y * size.z);
  threads_.resize(static_cast<size_t>(live_));
  warps_.resize(static_cast<size_t>((live_ + 31) / 32));
  for (int i = 0; i < live_; ++i) {
    Thread& thread = threads_[static_cast<size_t>(i)];
    const unsigned number = static_cast<unsigned>(i);
    thread.number = i;
    thread.index = {number % size.x, number / size.x % size.y, number / (size.x * size.y)};
    thread.fiber = &crew.fiber(i, entry);
  }
  release(&start_order_);
  while (live_ > 0)
    if (!run_each_once()) report_deadlock();
  acquire(&end_order_);
}

#ifdef __SANITIZE_THREAD__
// A thread of the system that runs a block beside the caller's.
class Second {
 public:
  Second(const Second&) = delete;
  ~Second() {
    give(nullptr);
    thread_.join();
  }
  static Second& of_this_thread() {
    static thread_local Second second;
    return second;
  }
  void give(Block* block) {
    const std::lock_guard lock(mutex_);
    block_ = block;
    given_ = true;
    changed_.notify_one();
  }
  void wait() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [this] { return !given_; });
  }

 private:
  Second() : thread_([this] { work(); }) {}
  void work() {
    while (true) {
      std::unique_lock lock(mutex_);
      changed_.wait(lock, [this] { return given_; });
      if (block_ == nullptr) return;
      lock.unlock();
      block_->run();
      lock.lock();
      given_ = false;
      changed_.notify_one();
    }
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  Block* block_ = nullptr;
  bool given_ = false;
  std::thread thread_;
};
#endif

// All blocks of a grid, one after another; under the thread sanitizer two at a time, without order between them.
inline void run_grid(dim3 grid, dim3 size, size_t shared, const std::function<void()>& kernel) {
  const uint64_t blocks = uint64_t{grid.x} * grid.y * grid.z;
  const auto block = [&](uint64_t number) {
    const uint3 index = {static_cast<unsigned>(number % grid.x), static_cast<unsigned>(number / grid.x % grid.y),
                         static_cast<unsigned>(number / (uint64_t{grid.x} * grid.y))};
    return std::make_unique<Block>(index, size, grid, shared, kernel);
  };
#ifdef __SANITIZE_THREAD__
  Second& second = Second::of_this_thread();
  for (uint64_t i = 0; i < blocks; i += 2) {
    const std::unique_ptr<Block> one = block(i), other = i + 1 < blocks ? block(i + 1) : nullptr;
    if (other) second.give(other.get());
    one->run();
    if (other) second.wait();
  }
#else
  for (uint64_t i = 0; i < blocks; ++i) block(i)->run();
#endif
}

}  // namespace cuda_on_cpu
