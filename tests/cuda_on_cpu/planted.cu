// Counts the codes within a radius of each query, right or with one bug planted by -DBUG=1 to 5: what the tests of the
// kernels are able to catch. The last argument of the program is the number of codes.
#include <cuda_runtime.h>

#include <cstdlib>
#include <random>
#include <vector>

namespace {

enum Bug { kNone, kNoBarrier, kPastShared, kPastGlobal, kNoAtomic, kDivergentBarrier };
constexpr int kBug = BUG;
constexpr int kThreads = 64;

__global__ void near(const uint64_t* queries, const uint64_t* codes, int count, int radius, int* found) {
  __shared__ uint64_t tile[kThreads];
  const int t = static_cast<int>(threadIdx.x);
  const int first = static_cast<int>(blockIdx.x) * kThreads, query = static_cast<int>(blockIdx.y);
  tile[t] = kBug == kPastGlobal || first + t < count ? codes[first + t] : 0;
  if (kBug != kNoBarrier && (kBug != kDivergentBarrier || t < 40)) __syncthreads();
  // A code that a thread of another warp has loaded.
  const int other = kBug == kPastShared ? t + 1 : (t + 32) % kThreads;
  const bool hit = first + other < count && __popcll(queries[query] ^ tile[other]) <= radius;
  const int hits = __popc(__ballot_sync(~0u, hit));
  __syncthreads();
  if (t % 32 != 0) return;
  if (kBug == kNoAtomic)
    found[query] += hits;
  else
    atomicAdd(&found[query], hits);
}

}  // namespace

int main(int, char** arguments) {
  constexpr int kQueries = 2, kRadius = 28;
  const int count = std::atoi(arguments[1]);
  std::mt19937_64 random(1);
  std::vector<uint64_t> queries(kQueries), codes(static_cast<size_t>(count));
  for (uint64_t& query : queries) query = random();
  for (uint64_t& code : codes) code = random();
  std::vector<int> found(kQueries);
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>((count + kThreads - 1) / kThreads), kQueries);
  config.blockDim = dim3(kThreads);
  if (cudaLaunchKernelEx(&config, near, queries.data(), codes.data(), count, kRadius, found.data()) != cudaSuccess)
    return 1;
  for (int q = 0; q < kQueries; ++q) {
    int expected = 0;
    for (const uint64_t code : codes) expected += std::popcount(queries[static_cast<size_t>(q)] ^ code) <= kRadius;
    if (found[static_cast<size_t>(q)] != expected) {
      std::printf("query %d: found %d, there are %d\n", q, found[static_cast<size_t>(q)], expected);
      return 1;
    }
  }
  std::puts("all as expected");
}
