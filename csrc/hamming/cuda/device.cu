#include <string_view>

#include "hamming/cuda/backend.h"
#include "hamming/cuda/launch.cuh"

namespace agmh::cuda {

int current_device(Device& device) {
  int number = 0, processors = 1, shared = 0, major = 0, minor = 0;
  cudaError_t error = cudaGetDevice(&number);
  const auto ask = [&](int& value, cudaDeviceAttr attribute) {
    if (error == cudaSuccess) error = cudaDeviceGetAttribute(&value, attribute, number);
  };
  ask(processors, cudaDevAttrMultiProcessorCount);
  ask(shared, cudaDevAttrMaxSharedMemoryPerBlockOptin);
  ask(major, cudaDevAttrComputeCapabilityMajor);
  ask(minor, cudaDevAttrComputeCapabilityMinor);
  device.processors = processors;
  device.shared_bytes = shared;
  device.architecture = 10 * major + minor;
  return static_cast<int>(error);
}

const char* use_backend(const char* name, Device& device) {
  const std::string_view named(name);
  if (named != "popc" && named != "bmma" && named != "imma") return "choose popc, bmma or imma";
  if (named != "popc" && !has_imma(device.architecture))
    return "this GPU has no products of bits or bytes, compute capabilities from 8.0 on have: choose popc";
  if (named == "bmma" && !has_bmma(device.architecture))
    return "this GPU has no products of bits, compute capabilities 8.0 to 9.0 have: choose popc or imma";
  device.backend = named == "popc" ? Backend::kPopc : named == "bmma" ? Backend::kBmma : Backend::kImma;
  return nullptr;
}

int fetch(int64_t& value, const int64_t* from, void* stream) {
  const auto queue = static_cast<cudaStream_t>(stream);
  const cudaError_t error = cudaMemcpyAsync(&value, from, sizeof(value), cudaMemcpyDeviceToHost, queue);
  return static_cast<int>(error == cudaSuccess ? cudaStreamSynchronize(queue) : error);
}

const char* error_text(int error) { return cudaGetErrorString(static_cast<cudaError_t>(error)); }

}  // namespace agmh::cuda
