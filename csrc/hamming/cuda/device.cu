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

const char* error_text(int error) { return cudaGetErrorString(static_cast<cudaError_t>(error)); }

}  // namespace agmh::cuda
