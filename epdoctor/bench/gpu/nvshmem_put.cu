// NVSHMEM put between the first two ranks: bandwidth by blocks of threads, latency of one word; bytes verified.
// Rank 0 makes the unique id and says it; the others read it from stdin. Values: one JSON object a line on
// descriptor 3. Sources: NVSHMEM 3.4.5 API, nvshmemx_get_uniqueid, nvshmemx_set_attr_uniqueid_args.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>
#include <algorithm>
#include <unistd.h>
#include <cuda_runtime.h>
#include <nvshmem.h>
#include <nvshmemx.h>

#define CUDA(call) do { cudaError_t e = (call); if (e != cudaSuccess) { \
  fprintf(stderr, "CUDA error: %s in %s\n", cudaGetErrorString(e), #call); exit(2); } } while (0)

static void say(const std::string &text) {
  std::string line = text + "\n";
  if (write(3, line.data(), line.size()) < 0) exit(3);
}

__global__ void put_blocks(char *target, const char *source, size_t bytes, int peer, int repeat) {
  size_t share = bytes / gridDim.x;
  size_t at = share * blockIdx.x;
  for (int i = 0; i < repeat; i++) nvshmemx_putmem_nbi_block(target + at, source + at, share, peer);
  nvshmem_quiet();
}

__global__ void put_word(long *target, int peer, int repeat) {
  for (int i = 0; i < repeat; i++) {
    nvshmem_long_p(target, i, peer);
    nvshmem_quiet();
  }
}

int main() {
  int rank = atoi(getenv("RANK")), local = atoi(getenv("LOCAL_RANK")), world = atoi(getenv("EPDOCTOR_WORLD"));
  size_t bytes = strtoull(getenv("EPDOCTOR_BYTES"), nullptr, 10);
  int blocks = atoi(getenv("EPDOCTOR_BLOCKS"));
  nvshmemx_uniqueid_t id = NVSHMEMX_UNIQUEID_INITIALIZER;
  const size_t n = sizeof(id);
  unsigned char *raw = reinterpret_cast<unsigned char *>(&id);
  CUDA(cudaSetDevice(local));
  if (rank == 0) {
    if (nvshmemx_get_uniqueid(&id) != 0) { fprintf(stderr, "nvshmemx_get_uniqueid failed\n"); return 4; }
    std::string hex;
    char two[3];
    for (size_t i = 0; i < n; i++) { snprintf(two, 3, "%02x", raw[i]); hex += two; }
    say("{\"uid\":\"" + hex + "\"}");
  } else {
    std::string hex(2 * n + 2, '\0');
    if (!fgets(&hex[0], (int)hex.size(), stdin)) { fprintf(stderr, "no unique id\n"); return 4; }
    for (size_t i = 0; i < n; i++) {
      unsigned value = 0;
      if (sscanf(hex.c_str() + 2 * i, "%2x", &value) != 1) { fprintf(stderr, "bad unique id\n"); return 4; }
      raw[i] = (unsigned char)value;
    }
  }
  nvshmemx_init_attr_t attr = NVSHMEMX_INIT_ATTR_INITIALIZER;
  if (nvshmemx_set_attr_uniqueid_args(rank, world, &id, &attr) != 0) return 4;
  if (nvshmemx_init_attr(NVSHMEMX_INIT_WITH_UNIQUEID, &attr) != 0) return 5;
  int major = 0, minor = 0, patch = 0;
  nvshmemx_vendor_get_version_info(&major, &minor, &patch);
  char text[256];
  snprintf(text, sizeof text, "{\"started\":true,\"nvshmem\":\"%d.%d.%d\"}", major, minor, patch);
  say(text);
  char *target = (char *)nvshmem_malloc(bytes);
  char *source = (char *)nvshmem_malloc(bytes);
  if (!target || !source) { fprintf(stderr, "nvshmem_malloc of %zu bytes failed\n", bytes); return 6; }
  std::vector<unsigned char> pattern(bytes);
  unsigned state = 12345u + rank;
  for (size_t i = 0; i < bytes; i++) { state = state * 1664525u + 1013904223u; pattern[i] = state >> 24; }
  CUDA(cudaMemcpy(source, pattern.data(), bytes, cudaMemcpyHostToDevice));
  CUDA(cudaMemset(target, 0xEE, bytes));
  nvshmem_barrier_all();
  int peer = (rank + 1) % world;
  int from = (rank + world - 1) % world;
  cudaEvent_t begin, end;
  CUDA(cudaEventCreate(&begin));
  CUDA(cudaEventCreate(&end));
  std::vector<float> times;
  const int repeat = 10;
  for (int round = 0; round < 9; round++) {
    CUDA(cudaEventRecord(begin));
    put_blocks<<<blocks, 1024>>>(target, source, bytes, peer, repeat);
    CUDA(cudaEventRecord(end));
    CUDA(cudaEventSynchronize(end));
    CUDA(cudaGetLastError());
    float ms = 0;
    CUDA(cudaEventElapsedTime(&ms, begin, end));
    if (round >= 2) times.push_back(ms / repeat);
    nvshmem_barrier_all();
  }
  std::sort(times.begin(), times.end());
  std::vector<unsigned char> got(bytes), want(bytes);
  CUDA(cudaMemcpy(got.data(), target, bytes, cudaMemcpyDeviceToHost));
  state = 12345u + from;
  for (size_t i = 0; i < bytes; i++) { state = state * 1664525u + 1013904223u; want[i] = state >> 24; }
  snprintf(text, sizeof text, "{\"what\":\"put\",\"gb_s\":%.2f,\"right\":%s,\"peer\":%d}",
           bytes / 1e6 / times[times.size() / 2], got == want ? "true" : "false", peer);
  say(text);
  nvshmem_barrier_all();
  if (rank == 0) {
    const int words = 1000;
    put_word<<<1, 1>>>((long *)target, peer, 100);
    CUDA(cudaDeviceSynchronize());
    CUDA(cudaEventRecord(begin));
    put_word<<<1, 1>>>((long *)target, peer, words);
    CUDA(cudaEventRecord(end));
    CUDA(cudaEventSynchronize(end));
    float ms = 0;
    CUDA(cudaEventElapsedTime(&ms, begin, end));
    snprintf(text, sizeof text, "{\"what\":\"latency\",\"us\":%.3f,\"peer\":%d}", ms * 1e3 / words, peer);
    say(text);
  }
  nvshmem_barrier_all();
  nvshmem_free(target);
  nvshmem_free(source);
  nvshmem_finalize();
  return 0;
}
