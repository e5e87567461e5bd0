// SPDX-License-Identifier: Apache-2.0
// Does an operation cost the same when the heap is a thousand times larger? Rows over the heap's
// size and over the number of spans; the scale suite has them over threads.
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "benchmarks/harness.h"

namespace pcmalloc::bench {
namespace {

// A heap of that many live bytes in blocks of up to 2 KiB, one random block replaced at a time.
void Heap(const char* row, const Arguments& arguments) {
  const size_t megabytes = strtoull(strrchr(row, '/') + 1, nullptr, 10);
  const size_t bytes = megabytes << 20;
  constexpr size_t kSmallestMean = 128;
  Table<void*> blocks(bytes / kSmallestMean);
  Random random(5);
  size_t live = 0;
  uint32_t count = 0;
  while (live < bytes && count < blocks.size()) {
    const size_t size = MixedSize(random, 2048);
    blocks[count++] = MustAllocate(size);
    *static_cast<char*>(blocks[count - 1]) = 1;
    live += size;
  }
  const uint64_t operations = static_cast<uint64_t>(arguments.Get("operations", 2000000));
  Counters counters(Scope::kThread);
  counters.Start();
  for (uint64_t i = 0; i < operations; ++i) {
    void*& slot = blocks[random.Below(count)];
    free(slot);
    slot = malloc(MixedSize(random, 2048));
    *static_cast<char*>(slot) = 1;
  }
  const Cost cost = counters.Stop();
  EmitCost(row, cost, static_cast<double>(operations));
  Emit(row, "rss_bytes", "B", static_cast<double>(ResidentBytes()));
}

// That many live blocks too large for a size class (260 to 512 KiB, untouched but for the first
// byte), one random block replaced at a time: the page heap alone.
void Spans(const char* row, const Arguments& arguments) {
  const uint32_t count = static_cast<uint32_t>(strtoul(strrchr(row, '/') + 1, nullptr, 10));
  Table<void*> blocks(count);
  Random random(6);
  for (uint32_t i = 0; i < count; ++i) {
    blocks[i] = MustAllocate((260 + random.Below(253)) << 10);
    *static_cast<char*>(blocks[i]) = 1;
  }
  const uint64_t operations = static_cast<uint64_t>(arguments.Get("operations", 200000)) / 10;
  Counters counters(Scope::kThread);
  counters.Start();
  for (uint64_t i = 0; i < operations; ++i) {
    void*& slot = blocks[random.Below(count)];
    free(slot);
    slot = MustAllocate((260 + random.Below(253)) << 10);
    *static_cast<char*>(slot) = 1;
  }
  const Cost cost = counters.Stop();
  EmitCost(row, cost, static_cast<double>(operations));
  Emit(row, "rss_bytes", "B", static_cast<double>(ResidentBytes()));
}

const Row kRows[] = {
    {"heap-MiB/1", Heap},    {"heap-MiB/4", Heap},    {"heap-MiB/16", Heap},
    {"heap-MiB/64", Heap},   {"heap-MiB/256", Heap},  {"heap-MiB/1024", Heap},
    {"heap-MiB/4096", Heap}, {"heap-MiB/8192", Heap}, {"spans/100", Spans},
    {"spans/1000", Spans},   {"spans/10000", Spans},  {"spans/30000", Spans},
};

}  // namespace
}  // namespace pcmalloc::bench

int main(int argc, char** argv) {
  using pcmalloc::bench::kRows;
  return pcmalloc::bench::Main(argc, argv, kRows, sizeof(kRows) / sizeof(kRows[0]));
}
