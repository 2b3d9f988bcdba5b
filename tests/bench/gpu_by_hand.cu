// The yardstick for layers 5 and 6: a plain copy kernel from one GPU into another, and the same NVSHMEM put loop.
#include <cstdio>
#include <cstdlib>
#include <cuda_runtime.h>
#define CUDA(call) do { cudaError_t e = (call); if (e != cudaSuccess) { \
  fprintf(stderr, "%s: %s\n", #call, cudaGetErrorString(e)); exit(2); } } while (0)

__global__ void copy(int4 *target, const int4 *source, size_t count) {
  size_t step = (size_t)gridDim.x * blockDim.x;
  for (size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x; i < count; i += 4 * step) {
    int4 a[4];
    #pragma unroll
    for (int k = 0; k < 4; k++) if (i + k * step < count) a[k] = source[i + k * step];
    #pragma unroll
    for (int k = 0; k < 4; k++) if (i + k * step < count) target[i + k * step] = a[k];
  }
}

int main() {
  const size_t bytes = 256u << 20;
  char *source, *target;
  CUDA(cudaSetDevice(1));
  CUDA(cudaMalloc(&target, bytes));
  CUDA(cudaSetDevice(0));
  CUDA(cudaDeviceEnablePeerAccess(1, 0));
  CUDA(cudaMalloc(&source, bytes));
  CUDA(cudaMemset(source, 7, bytes));
  cudaEvent_t begin, end;
  CUDA(cudaEventCreate(&begin));
  CUDA(cudaEventCreate(&end));
  for (int blocks : {64, 132, 264, 528}) {
    float best = 1e9f;
    for (int round = 0; round < 9; round++) {
      CUDA(cudaEventRecord(begin));
      for (int i = 0; i < 4; i++) copy<<<blocks, 1024>>>((int4 *)target, (const int4 *)source, bytes / 16);
      CUDA(cudaEventRecord(end));
      CUDA(cudaEventSynchronize(end));
      CUDA(cudaGetLastError());
      float ms;
      CUDA(cudaEventElapsedTime(&ms, begin, end));
      if (round >= 2 && ms / 4 < best) best = ms / 4;
    }
    printf("kernel copy, %d blocks: %.1f GB/s\n", blocks, bytes / 1e6 / best);
  }
  return 0;
}
