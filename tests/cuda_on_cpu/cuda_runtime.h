// CUDA without a GPU: `.cu` files that include <cuda_runtime.h> compile as C++ with this one in its place, and their
// kernels run on the CPU, each CUDA thread a fiber (block.h). Kernels are launched by cudaLaunchKernelEx; device memory
// is the program's own, so that the sanitizers see every access. Static shared memory keeps what the last block left.
//
//     g++ -std=c++20 -x c++ -I tests/cuda_on_cpu -I csrc kernel.cu check.cpp
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <map>
#include <utility>

#include "block.h"
#include "collectives.h"
#include "device_functions.h"
#include "vector_types.h"

#define CUDA_ON_CPU 1
#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
// Blocks run one after another, so that one copy does, and the address sanitizer guards a static array; under the
// thread sanitizer each block has a thread of the system, and a copy with it.
#ifdef __SANITIZE_THREAD__
#define __shared__ static thread_local
#else
#define __shared__ static
#endif

namespace cuda_on_cpu {

// A built-in variable: its components are read from the block that runs.
template <auto kRead>
struct Variable {
  template <unsigned uint3::* kMember>
  struct Component {
    operator unsigned() const { return kRead().*kMember; }
  };
  Component<&uint3::x> x;
  Component<&uint3::y> y;
  Component<&uint3::z> z;
};

inline uint3 as_uint3(dim3 size) { return {size.x, size.y, size.z}; }

}  // namespace cuda_on_cpu

inline constexpr cuda_on_cpu::Variable<[] { return cuda_on_cpu::Block::current().thread_index(); }> threadIdx;
inline constexpr cuda_on_cpu::Variable<[] { return cuda_on_cpu::Block::current().index; }> blockIdx;
inline constexpr cuda_on_cpu::Variable<[] { return cuda_on_cpu::as_uint3(cuda_on_cpu::Block::current().size); }>
    blockDim;
inline constexpr cuda_on_cpu::Variable<[] { return cuda_on_cpu::as_uint3(cuda_on_cpu::Block::current().grid); }>
    gridDim;

enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorMemoryAllocation = 2,
  cudaErrorInvalidConfiguration = 9,
};
struct CUstream_st;
using cudaStream_t = CUstream_st*;

inline const char* cudaGetErrorString(cudaError_t error) { return error == cudaSuccess ? "no error" : "an error"; }

enum cudaDeviceAttr {
  cudaDevAttrMultiProcessorCount = 16,
  cudaDevAttrComputeCapabilityMajor = 75,
  cudaDevAttrComputeCapabilityMinor = 76,
  cudaDevAttrMaxSharedMemoryPerBlockOptin = 97,
};
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize = 8 };
struct cudaLaunchAttribute;
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes;
  cudaStream_t stream;
  cudaLaunchAttribute* attrs;
  unsigned numAttrs;
};

namespace cuda_on_cpu {

inline cudaError_t last_error = cudaSuccess;
inline int64_t launches = 0;
// Dynamic shared memory that kernels were allowed beyond 48 KiB.
inline std::map<const void*, size_t> allowed_shared;

inline cudaError_t failed(cudaError_t error) { return last_error = error; }

inline void* dynamic_shared() { return Block::current().shared(); }

}  // namespace cuda_on_cpu

inline cudaError_t cudaGetLastError() { return std::exchange(cuda_on_cpu::last_error, cudaSuccess); }
inline cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  switch (attribute) {
    case cudaDevAttrMultiProcessorCount:
      *value = 2;
      break;
    case cudaDevAttrComputeCapabilityMajor:
      *value = 9;
      break;
    case cudaDevAttrComputeCapabilityMinor:
      *value = 0;
      break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      *value = 227 << 10;
      break;
  }
  return cudaSuccess;
}
inline cudaError_t cudaMemsetAsync(void* memory, int value, size_t bytes, cudaStream_t) {
  if (bytes > 0) std::memset(memory, value, bytes);
  return cudaSuccess;
}

enum cudaMemcpyKind { cudaMemcpyDeviceToHost = 2 };
inline cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind, cudaStream_t) {
  std::memcpy(to, from, bytes);
  return cudaSuccess;
}
inline cudaError_t cudaStreamSynchronize(cudaStream_t) { return cudaSuccess; }
inline cudaError_t cudaDeviceSynchronize() { return cudaSuccess; }

// As garbage.
template <class T>
cudaError_t cudaMallocManaged(T** memory, size_t bytes) {
  *memory = static_cast<T*>(std::malloc(bytes));
  if (*memory == nullptr) return cuda_on_cpu::failed(cudaErrorMemoryAllocation);
  std::memset(*memory, 0xCD, bytes);
  return cudaSuccess;
}
inline cudaError_t cudaFree(void* memory) {
  std::free(memory);
  return cudaSuccess;
}

template <class Kernel>
cudaError_t cudaFuncSetAttribute(Kernel* kernel, cudaFuncAttribute, int value) {
  cuda_on_cpu::allowed_shared[reinterpret_cast<const void*>(kernel)] = static_cast<size_t>(value);
  return cudaSuccess;
}

// Runs the whole grid before it returns; refuses what a GPU would.
template <class... Parameters, class... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               Arguments&&... arguments) {
  const dim3 grid = config->gridDim, block = config->blockDim;
  const uint64_t threads = uint64_t{block.x} * block.y * block.z;
  const bool empty = grid.x == 0 || grid.y == 0 || grid.z == 0 || threads == 0;
  if (empty || grid.x > 0x7fffffff || grid.y > 65535 || grid.z > 65535 || threads > 1024)
    return cuda_on_cpu::failed(cudaErrorInvalidConfiguration);
  const size_t allowed = std::max<size_t>(48 << 10, cuda_on_cpu::allowed_shared[reinterpret_cast<const void*>(kernel)]);
  if (config->dynamicSmemBytes > std::min<size_t>(allowed, 227 << 10))
    return cuda_on_cpu::failed(cudaErrorInvalidValue);
  ++cuda_on_cpu::launches;
  cuda_on_cpu::run_grid(grid, block, config->dynamicSmemBytes, [&] { kernel(static_cast<Parameters>(arguments)...); });
  return cudaSuccess;
}
