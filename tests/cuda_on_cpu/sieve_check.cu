// Products of bits and of bytes on tensor cores, and the sieves that are made of them, against population counts. Built
// by test_sieve.py for the CPU and for a GPU: only there is the layout of fragments proved.
#include <cuda_runtime.h>

#include <bit>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <vector>

#include "hamming/cuda/sieve.cuh"

namespace {

using namespace agmh::cuda;

void check(bool right, const char* what, int words) {
  if (right) return;
  std::printf("FAILED: %s, %d words\n", what, words);
  std::exit(1);
}

// Memory that both sides see.
template <class T>
class Shared {
 public:
  explicit Shared(int64_t count) {
    const cudaError_t error = cudaMallocManaged(&data_, sizeof(T) * static_cast<size_t>(count));
    check(error == cudaSuccess, cudaGetErrorString(error), 0);
  }
  Shared(const Shared&) = delete;
  ~Shared() { cudaFree(data_); }
  T& operator[](int64_t i) { return data_[i]; }
  T* data() { return data_; }

 private:
  T* data_ = nullptr;
};

std::mt19937_64 generator(1);
uint32_t draw() { return static_cast<uint32_t>(generator()); }

template <class... Parameters, class... Arguments>
void run(void (*kernel)(Parameters...), unsigned threads, size_t shared, Arguments... arguments) {
  Launcher launch(nullptr);
  launch(kernel, dim3(1), threads, shared, arguments...);
  launch.note(cudaDeviceSynchronize());
  check(launch.error() == 0, cudaGetErrorString(static_cast<cudaError_t>(launch.error())), 0);
}

// d = c + a · b of 16 rows and 8 columns of kWords words, of bits or of signed bytes.
template <bool kBytes, int kWords>
__global__ void product_kernel(const uint32_t* a, const uint32_t* b, const int* c, int* d) {
  if constexpr (!kBytes && !kHasBmma) return;
  const int group = lane_of_thread() / 4, place = lane_of_thread() % 4;
  uint32_t of_a[kWords / 2], of_b[kWords / 4];
  int before[4], after[4];
  for (int i = 0; i < kWords / 2; ++i) of_a[i] = a[(group + 8 * (i % 2)) * kWords + place + 4 * (i / 2)];
  for (int i = 0; i < kWords / 4; ++i) of_b[i] = b[group * kWords + place + 4 * i];
  const auto at = [&](int i) { return (group + 8 * (i / 2)) * 8 + 2 * place + i % 2; };
  for (int i = 0; i < 4; ++i) before[i] = c[at(i)];
  if constexpr (kBytes)
    multiply_bytes(after, of_a, of_b, before);
  else
    multiply_bits(after, of_a, of_b, before);
  for (int i = 0; i < 4; ++i) d[at(i)] = after[i];
}

template <bool kBytes, int kWords>
void check_products() {
  Shared<uint32_t> a(16 * kWords), b(8 * kWords);
  Shared<int> c(128), d(128);
  for (int i = 0; i < 16 * kWords; ++i) a[i] = draw();
  for (int i = 0; i < 8 * kWords; ++i) b[i] = draw();
  for (int i = 0; i < 128; ++i) c[i] = static_cast<int>(draw() % 1000) - 500;
  run(product_kernel<kBytes, kWords>, 32, 0, a.data(), b.data(), c.data(), d.data());
  const auto product = [](uint32_t x, uint32_t y) {
    if (!kBytes) return std::popcount(x & y);
    int sum = 0;
    for (int shift = 0; shift < 32; shift += 8)
      sum += static_cast<signed char>(x >> shift) * static_cast<signed char>(y >> shift);
    return sum;
  };
  for (int row = 0; row < 16; ++row)
    for (int column = 0; column < 8; ++column) {
      int sum = c[row * 8 + column];
      for (int word = 0; word < kWords; ++word) sum += product(a[row * kWords + word], b[column * kWords + word]);
      check(d[row * 8 + column] == sum, "the layout of fragments", kWords);
    }
}

template <bool kSigns, int kWords>
__global__ void sieve_kernel(DeviceTask task, const int* limits, unsigned long long* near) {
  if constexpr (!kSigns && !kHasBmma) return;
  uint32_t* queries = dynamic_shared<uint32_t>();
  __shared__ int start[kSiftQueries];
  const int count = static_cast<int>(task.query_count), thread = static_cast<int>(threadIdx.x);
  load_queries<kWords>(task, queries, sift_pitch<kWords>(task.words), kSiftQueries, count, [](int q) { return q; });
  if (thread < kSiftQueries) start[thread] = thread < count ? -limits[thread] - 1 : 0;
  __syncthreads();
  SiftedQueries<kSigns, kWords> sifted(queries, start, task.words);
  const int64_t units = ceil_div<int64_t>(task.item_count, Unit<kWords>::kItems);
  for (int64_t unit = warp_of_thread(); unit < units; unit += kWarps) {
    const unsigned long long found = sift(task, sifted, unit * Unit<kWords>::kItems);
    if (lane_of_thread() == 0) near[unit] = found;
  }
}

// The sieve finds a query near a unit just where it is. Limits lie at the nearest item, below it or beyond.
template <bool kSigns, int kWords>
void check_sieve(int words, int64_t items, int count) {
  constexpr int64_t kItems = Unit<kWords>::kItems;
  const int64_t units = (items + kItems - 1) / kItems;
  Shared<uint32_t> queries(count * words), codes(items * words);
  Shared<int> limits(count);
  Shared<unsigned long long> near(units);
  for (int64_t i = 0; i < count * words; ++i) queries[i] = draw();
  for (int64_t i = 0; i < items * words; ++i) codes[i] = draw();
  const auto nearest = [&](int q, int64_t begin, int64_t end) {
    int least = 32 * words;
    for (int64_t item = begin; item < end; ++item) {
      int sum = 0;
      for (int word = 0; word < words; ++word)
        sum += std::popcount(queries[q * words + word] ^ codes[item * words + word]);
      least = std::min(least, sum);
    }
    return least;
  };
  for (int q = 0; q < count; ++q) limits[q] = std::max(nearest(q, 0, items) - 1 + static_cast<int>(draw() % 4), -1);
  DeviceTask task;
  task.bits = 32 * words;
  task.words = words;
  task.queries = queries.data();
  task.query_count = count;
  task.items = codes.data();
  task.item_count = items;
  const size_t shared = sizeof(uint32_t) * kSiftQueries * static_cast<size_t>(sift_pitch<kWords>(words));
  run(sieve_kernel<kSigns, kWords>, kThreads, shared, task, limits.data(), near.data());
  for (int64_t unit = 0; unit < units; ++unit) {
    const int64_t begin = std::min(unit * kItems, items - kItems);
    for (int q = 0; q < 64; ++q) {
      const bool is_near = q < count && nearest(q, begin, begin + kItems) <= limits[q];
      check((near[unit] >> q & 1) == is_near, "the sieve", words);
    }
  }
}

template <bool kSigns>
void check_sieves() {
  for (const int count : {1, 15, 64}) {
    check_sieve<kSigns, 1>(1, 128 * 3 + 5, count);
    check_sieve<kSigns, 2>(2, 128 * 9 + 127, count);
    check_sieve<kSigns, 4>(4, 64 * 5 + 1, count);
    check_sieve<kSigns, 8>(8, 32 * 4, count);
    for (const int words : {6, 10, 16, 32, 128}) check_sieve<kSigns, 0>(words, 32 * 2 + 31, count);
  }
}

}  // namespace

// "signs": without products of bits, for GPUs that have none.
int main(int arguments, char**) {
  check_products<true, 8>();
  check_sieves<true>();
  if (arguments == 1) {
    check_products<false, 4>();
    check_products<false, 8>();
    check_sieves<false>();
  }
  std::puts("all as expected");
}
