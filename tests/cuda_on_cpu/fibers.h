// Fibers: functions with a stack of their own that give way to one another within a thread of the system. The
// sanitizers are told of every switch; to the thread sanitizer each fiber is a thread, and a switch orders nothing.
#pragma once

#if !defined(__x86_64__) || !defined(__GNUC__)
#error "CUDA on the CPU needs GCC or Clang on x86-64"
#endif

#include <sys/mman.h>

#include <cstdint>
#include <cstdlib>
#include <new>
#include <vector>

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
#ifdef __SANITIZE_THREAD__
#include <sanitizer/tsan_interface.h>
#define CUDA_ON_CPU_UNSEEN __attribute__((no_sanitize("thread")))
extern "C" {
void AnnotateIgnoreReadsBegin(const char*, int);
void AnnotateIgnoreReadsEnd(const char*, int);
void AnnotateIgnoreWritesBegin(const char*, int);
void AnnotateIgnoreWritesEnd(const char*, int);
}
#else
#define CUDA_ON_CPU_UNSEEN
#endif

// Saves the callee's registers and the stack pointer in *from and goes on where `to` was saved.
extern "C" void cuda_on_cpu_switch(void** from, void* to);
asm(R"(.text
.weak cuda_on_cpu_switch
cuda_on_cpu_switch:
  pushq %rbp; pushq %rbx; pushq %r12; pushq %r13; pushq %r14; pushq %r15
  movq %rsp, (%rdi); movq %rsi, %rsp
  popq %r15; popq %r14; popq %r13; popq %r12; popq %rbx; popq %rbp
  ret
)");

namespace cuda_on_cpu {

// What one thread does before release() has happened, in the thread sanitizer's eyes, when another returns from
// acquire().
inline void release([[maybe_unused]] void* order) {
#ifdef __SANITIZE_THREAD__
  __tsan_release(order);
#endif
}
inline void acquire([[maybe_unused]] void* order) {
#ifdef __SANITIZE_THREAD__
  __tsan_acquire(order);
#endif
}

// While one lives the thread sanitizer does not see what the calling fiber reads and writes: our own books, which all
// fibers keep.
class Unseen {
 public:
#ifdef __SANITIZE_THREAD__
  Unseen() {
    AnnotateIgnoreReadsBegin(__FILE__, __LINE__);
    AnnotateIgnoreWritesBegin(__FILE__, __LINE__);
  }
  ~Unseen() {
    AnnotateIgnoreWritesEnd(__FILE__, __LINE__);
    AnnotateIgnoreReadsEnd(__FILE__, __LINE__);
  }
#else
  Unseen() {}
#endif
  Unseen(const Unseen&) = delete;
};

// The side that fibers come back to: one a thread of the system.
struct Home {
  void* stack_pointer = nullptr;
  const void* stack_bottom = nullptr;
  size_t stack_size = 0;
#ifdef __SANITIZE_THREAD__
  void* thread = __tsan_get_current_fiber();
#endif
};

class Fiber {
 public:
  static constexpr size_t kStackBytes = 64 << 10;

  // `entry` runs on `stack` at the first enter() and never returns.
  Fiber(char* stack, void (*entry)()) : stack_(stack) {
    void** top = reinterpret_cast<void**>(stack + kStackBytes);
    *--top = nullptr;
    *--top = reinterpret_cast<void*>(entry);
    for (int saved = 0; saved < 6; ++saved) *--top = nullptr;
    stack_pointer_ = top;
  }

  // From home to the fiber; returns when the fiber leaves.
  CUDA_ON_CPU_UNSEEN void enter(Home& home) {
#ifdef __SANITIZE_ADDRESS__
    void* fake = nullptr;
    __sanitizer_start_switch_fiber(&fake, stack_, kStackBytes);
#endif
#ifdef __SANITIZE_THREAD__
    __tsan_switch_to_fiber(thread_, 1);
#endif
    cuda_on_cpu_switch(&home.stack_pointer, stack_pointer_);
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_finish_switch_fiber(fake, nullptr, nullptr);
#endif
  }

  // What a fiber calls first.
  static void arrived([[maybe_unused]] Home& home) {
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_finish_switch_fiber(nullptr, &home.stack_bottom, &home.stack_size);
#endif
  }

  // From the fiber to home; returns when the fiber is entered again.
  CUDA_ON_CPU_UNSEEN void leave(Home& home) {
#ifdef __SANITIZE_ADDRESS__
    void* fake = nullptr;
    __sanitizer_start_switch_fiber(&fake, home.stack_bottom, home.stack_size);
#endif
#ifdef __SANITIZE_THREAD__
    __tsan_switch_to_fiber(home.thread, 1);
#endif
    cuda_on_cpu_switch(&stack_pointer_, home.stack_pointer);
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_finish_switch_fiber(fake, &home.stack_bottom, &home.stack_size);
#endif
  }

  void end() {
#ifdef __SANITIZE_THREAD__
    __tsan_destroy_fiber(thread_);
#endif
  }

 private:
  void* stack_pointer_ = nullptr;
  char* stack_;
#ifdef __SANITIZE_THREAD__
  void* thread_ = __tsan_create_fiber(0);
#endif
};

// Fibers that one block after another has for its threads: to make one costs the thread sanitizer more than most
// kernels do.
class Crew {
 public:
  static constexpr int kMost = 1024;  // threads of a block

  Crew() : stacks_(mmap(nullptr, kBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)) {
    if (stacks_ == MAP_FAILED) throw std::bad_alloc();
    fibers_.reserve(kMost);
  }
  Crew(const Crew&) = delete;
  ~Crew() {
    for (Fiber& fiber : fibers_) fiber.end();
#ifdef __SANITIZE_ADDRESS__
    __asan_unpoison_memory_region(stacks_, kBytes);  // of the functions that never return
#endif
    munmap(stacks_, kBytes);
  }

  Home home;
  // `entry` is what all of them run.
  Fiber& fiber(int i, void (*entry)()) {
    while (static_cast<int>(fibers_.size()) <= i)
      fibers_.emplace_back(static_cast<char*>(stacks_) + fibers_.size() * Fiber::kStackBytes, entry);
    return fibers_[static_cast<size_t>(i)];
  }

 private:
  static constexpr size_t kBytes = kMost * Fiber::kStackBytes;

  void* stacks_;
  std::vector<Fiber> fibers_;
};

}  // namespace cuda_on_cpu
