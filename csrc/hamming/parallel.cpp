#include "hamming/parallel.h"

#include <pthread.h>
#include <sched.h>

#include <algorithm>
#include <atomic>
#include <exception>
#include <mutex>
#include <vector>

namespace agmh {
namespace {

// Threads that do the same work. They begin on any processor but their maker's: Linux may queue a new thread behind the
// one that made it, there to wait until that one blocks, while another processor is idle. Once they run they may go
// wherever their maker may.
class Helpers {
 public:
  explicit Helpers(const std::function<void()>& work) : work_(work) {
    pthread_attr_init(&attributes_);
#ifdef __GLIBC__
    if (sched_getaffinity(0, sizeof allowed_, &allowed_) != 0) return;
    cpu_set_t others = allowed_;
    const int here = sched_getcpu();
    if (here >= 0 && here < CPU_SETSIZE) CPU_CLR(static_cast<size_t>(here), &others);
    placed_ = CPU_COUNT(&others) > 0 && pthread_attr_setaffinity_np(&attributes_, sizeof others, &others) == 0;
#endif
  }
  ~Helpers() {
    for (const pthread_t thread : threads_) pthread_join(thread, nullptr);
    pthread_attr_destroy(&attributes_);
  }
  Helpers(const Helpers&) = delete;
  Helpers& operator=(const Helpers&) = delete;

  // Up to `count`, as many as the system gives.
  void start(int64_t count) {
    threads_.reserve(static_cast<size_t>(count));
    for (pthread_t thread; static_cast<int64_t>(threads_.size()) < count; threads_.push_back(thread))
      if (pthread_create(&thread, &attributes_, run, this) != 0) return;
  }

 private:
  static void* run(void* made_by) {
    const Helpers& helpers = *static_cast<const Helpers*>(made_by);
#ifdef __GLIBC__
    if (helpers.placed_) pthread_setaffinity_np(pthread_self(), sizeof helpers.allowed_, &helpers.allowed_);
#endif
    helpers.work_();
    return nullptr;
  }

  const std::function<void()>& work_;
  std::vector<pthread_t> threads_;
  pthread_attr_t attributes_;
#ifdef __GLIBC__
  cpu_set_t allowed_;
  bool placed_ = false;
#endif
};

}  // namespace

void parallel_for(int threads, int64_t count, const std::function<void(int64_t)>& body) {
  const int64_t helpers = std::min<int64_t>(threads, count) - 1;
  if (helpers <= 0) {
    for (int64_t i = 0; i < count; ++i) body(i);
    return;
  }
  std::atomic<int64_t> next{0};
  std::exception_ptr failure;
  std::mutex failure_mutex;
  const std::function<void()> work = [&] {
    try {
      for (int64_t i = next++; i < count; i = next++) body(i);
    } catch (...) {
      next = count;
      const std::lock_guard<std::mutex> lock(failure_mutex);
      if (!failure) failure = std::current_exception();
    }
  };
  {
    Helpers others(work);
    others.start(helpers);
    work();
  }
  if (failure) std::rethrow_exception(failure);
}

}  // namespace agmh
