// Launching kernels, and their dynamic shared memory, in plain C++: tests/cuda_on_cpu/ compiles the same files without
// CUDA.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>

namespace agmh::cuda {

template <class Integer>
__host__ __device__ constexpr Integer ceil_div(Integer a, Integer b) {
  return (a + b - 1) / b;
}
template <class Integer>
__host__ __device__ constexpr Integer smaller(Integer a, Integer b) {
  return b < a ? b : a;
}

// Launches on one stream, as kernel<<<grid, threads, shared, stream>>>(arguments...) would. After one that fails the
// others are left out; error() is the first error.
class Launcher {
 public:
  explicit Launcher(void* stream) : stream_(static_cast<cudaStream_t>(stream)) {}

  template <class... Parameters, class... Arguments>
  void operator()(void (*kernel)(Parameters...), dim3 grid, unsigned threads, size_t shared, Arguments... arguments) {
    constexpr size_t kAlwaysAllowed = 48 << 10;
    if (shared > kAlwaysAllowed)
      note(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared)));
    if (error_ != cudaSuccess) return;
    cudaLaunchConfig_t config = {};
    config.gridDim = grid;
    config.blockDim = dim3(threads);
    config.dynamicSmemBytes = shared;
    config.stream = stream_;
    note(cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...));
  }

  void clear(void* memory, size_t bytes) {
    if (error_ == cudaSuccess) note(cudaMemsetAsync(memory, 0, bytes, stream_));
  }

  void note(cudaError_t error) {
    if (error_ == cudaSuccess) error_ = error;
  }
  int error() const { return static_cast<int>(error_); }

 private:
  cudaStream_t stream_;
  cudaError_t error_ = cudaSuccess;
};

// The dynamic shared memory of a kernel's block.
template <class T>
__device__ __forceinline__ T* dynamic_shared() {
#ifdef __CUDACC__
  extern __shared__ uint4 memory[];
  return reinterpret_cast<T*>(memory);
#else
  return static_cast<T*>(cuda_on_cpu::dynamic_shared());
#endif
}

}  // namespace agmh::cuda
