#include "hamming/cuda/engine.h"
#include "hamming/cuda/launch.cuh"

namespace agmh::cuda {

int current_device(Device& device) {
  int number = 0, processors = 1, shared = 0;
  cudaError_t error = cudaGetDevice(&number);
  if (error == cudaSuccess) error = cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, number);
  if (error == cudaSuccess) error = cudaDeviceGetAttribute(&shared, cudaDevAttrMaxSharedMemoryPerBlockOptin, number);
  device.processors = processors;
  device.shared_bytes = shared;
  return static_cast<int>(error);
}

int fetch(int64_t& value, const int64_t* from, void* stream) {
  const auto queue = static_cast<cudaStream_t>(stream);
  const cudaError_t error = cudaMemcpyAsync(&value, from, sizeof(value), cudaMemcpyDeviceToHost, queue);
  return static_cast<int>(error == cudaSuccess ? cudaStreamSynchronize(queue) : error);
}

const char* error_text(int error) { return cudaGetErrorString(static_cast<cudaError_t>(error)); }

}  // namespace agmh::cuda
