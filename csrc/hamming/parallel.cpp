#include "hamming/parallel.h"

#include <algorithm>
#include <atomic>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

namespace agmh {

void parallel_for(int threads, int64_t count, const std::function<void(int64_t)>& body) {
  const int64_t helpers = std::min<int64_t>(threads, count) - 1;
  if (helpers <= 0) {
    for (int64_t i = 0; i < count; ++i) body(i);
    return;
  }
  std::atomic<int64_t> next{0};
  std::exception_ptr failure;
  std::mutex failure_mutex;
  const auto work = [&] {
    try {
      for (int64_t i = next++; i < count; i = next++) body(i);
    } catch (...) {
      next = count;
      const std::lock_guard<std::mutex> lock(failure_mutex);
      if (!failure) failure = std::current_exception();
    }
  };
  std::vector<std::thread> pool;
  pool.reserve(static_cast<size_t>(helpers));
  try {
    while (static_cast<int64_t>(pool.size()) < helpers) pool.emplace_back(work);
  } catch (const std::exception&) {
    // No more threads, or no memory to start one: those that did start, and this one, do it all.
  }
  work();
  for (std::thread& thread : pool) thread.join();
  if (failure) std::rethrow_exception(failure);
}

}  // namespace agmh
