// SPDX-License-Identifier: Apache-2.0
//
// What the allocator linked in says of itself, after it has served threads that allocate. Prints
// "PCM key=value" lines.
#include <pcmalloc/pcmalloc.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

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

}  // namespace

int main(int argc, char** argv) {
  const int threads = argc > 1 ? atoi(argv[1]) : 3;
  std::vector<std::thread> running;
  for (int i = 0; i < threads; ++i) running.emplace_back(&Allocate);
  for (std::thread& thread : running) thread.join();
  static char json[1 << 16];
  pcmalloc_stats_json(json, sizeof(json));
  printf("PCM mode=%s\nPCM reason=%s\nPCM bound=%d\n", pcmalloc_mode(), pcmalloc_reason(),
         pcmalloc_cpu_bound());
  if (const char* slabs = strstr(json, "\"slabs\":")) printf("PCM slabs=%d\n", atoi(slabs + 8));
  return 0;
}
