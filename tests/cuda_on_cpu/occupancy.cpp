// Lines of "architecture, registers, static and dynamic shared bytes, threads of a block" become blocks a
// multiprocessor, by the calculator that comes with CUDA, which needs no GPU.
#include <cuda_occupancy.h>
#include <cuda_runtime_api.h>

#include <cstdio>

namespace {

cudaOccDeviceProp properties(int architecture) {
  cudaOccDeviceProp device = {};
  const bool small = architecture == 86;
  const size_t shared = static_cast<size_t>(architecture == 80 ? 164 : small ? 100 : 228) << 10;
  device.computeMajor = architecture / 10;
  device.computeMinor = architecture % 10;
  device.maxThreadsPerBlock = 1024;
  device.maxThreadsPerMultiprocessor = small ? 1536 : 2048;
  device.regsPerBlock = device.regsPerMultiprocessor = 65536;
  device.warpSize = 32;
  device.sharedMemPerBlock = 48 << 10;
  device.sharedMemPerMultiprocessor = shared;
  device.reservedSharedMemPerBlock = 1 << 10;
  device.sharedMemPerBlockOptin = shared - device.reservedSharedMemPerBlock;
  device.numSms = 1;
  return device;
}

}  // namespace

int main() {
  int architecture = 0, registers = 0, shared = 0, dynamic = 0, threads = 0;
  while (std::scanf("%d %d %d %d %d", &architecture, &registers, &shared, &dynamic, &threads) == 5) {
    const cudaOccDeviceProp device = properties(architecture);
    cudaOccFuncAttributes kernel = {};
    kernel.maxThreadsPerBlock = 1024;
    kernel.numRegs = registers;
    kernel.sharedSizeBytes = static_cast<size_t>(shared);
    kernel.partitionedGCConfig = PARTITIONED_GC_OFF;
    kernel.shmemLimitConfig = FUNC_SHMEM_LIMIT_OPTIN;
    kernel.maxDynamicSharedSizeBytes = static_cast<size_t>(dynamic);
    const cudaOccDeviceState state = {};
    cudaOccResult result = {};
    if (cudaOccMaxActiveBlocksPerMultiprocessor(&result, &device, &kernel, &state, threads,
                                                static_cast<size_t>(dynamic)) != CUDA_OCC_SUCCESS)
      return 1;
    std::printf("%d\n", result.activeBlocksPerMultiprocessor);
  }
}
