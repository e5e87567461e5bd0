// SPDX-License-Identifier: Apache-2.0
//
// What the allocator linked in says of itself, after it has served threads that allocate. Prints
// "PCM key=value" lines.
#include <errno.h>
#include <pcmalloc/pcmalloc.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include <thread>
#include <vector>

namespace {

void Allocate() {
  constexpr int kBlocks = 1000;
  std::vector<void*> blocks;
  for (int round = 0; round < 20; ++round) {
    for (int i = 0; i < kBlocks; ++i) {
      void* block = malloc(static_cast<size_t>(16 + i));
      if (block == nullptr) abort();
      memset(block, i & 0xff, static_cast<size_t>(16 + i));
      blocks.push_back(block);
    }
    for (void* block : blocks) free(block);
    blocks.clear();
  }
}

// The highest power of two at which memory can be had: how wide the kernel lets user space be.
int AddressBits() {
  const long page = sysconf(_SC_PAGESIZE);
  for (int bits = 56; bits > 30; --bits) {
    // Not the last pages, which no process may have.
    void* const wanted = reinterpret_cast<void*>((uintptr_t{1} << bits) - (1 << 20));
    void* const got = mmap(wanted, static_cast<size_t>(page), PROT_NONE,
                           MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
    if (got == MAP_FAILED && errno == EEXIST) return bits;
    if (got == MAP_FAILED) continue;
    munmap(got, static_cast<size_t>(page));
    if (got == wanted) return bits;
  }
  return 0;
}

int Slabs() {
  static char json[1 << 16];
  pcmalloc_stats_json(json, sizeof(json));
  const char* const slabs = strstr(json, "\"slabs\":");
  return slabs == nullptr ? -1 : atoi(slabs + 8);
}

}  // namespace

// mode [THREADS [SECONDS]]: so many threads, again and again until so many seconds are over.
int main(int argc, char** argv) {
  const int threads = argc > 1 ? atoi(argv[1]) : 3;
  const time_t end = time(nullptr) + (argc > 2 ? atoi(argv[2]) : 0);
  int slabs_before = -1;
  do {
    std::vector<std::thread> running;
    for (int i = 0; i < threads; ++i) running.emplace_back(&Allocate);
    for (std::thread& thread : running) thread.join();
    if (slabs_before < 0) slabs_before = Slabs();
  } while (time(nullptr) < end);
  printf("PCM mode=%s\nPCM reason=%s\nPCM bound=%d\n", pcmalloc_mode(), pcmalloc_reason(),
         pcmalloc_cpu_bound());
  printf("PCM page=%ld\nPCM address_bits=%d\n", sysconf(_SC_PAGESIZE), AddressBits());
  printf("PCM slabs_before=%d\nPCM slabs=%d\n", slabs_before, Slabs());
  return 0;
}
