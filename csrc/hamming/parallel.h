// Loops over threads that live for one call: nothing is left running, so a fork between calls is safe.
#pragma once

#include <cstdint>
#include <functional>

namespace agmh {

// Calls body(i) once for each i in [0, count), on at most `threads` threads, the caller's among them; work is handed
// out one i at a time. Returns when all is done and rethrows the first exception. With one thread the order is 0, 1,
// ...
void parallel_for(int threads, int64_t count, const std::function<void(int64_t)>& body);

}  // namespace agmh
