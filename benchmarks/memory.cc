// SPDX-License-Identifier: Apache-2.0
// What a process holds: at start, per idle thread, after frees, after a change of sizes, under the
// traffic of a cache. No row is about speed.
#include <malloc.h>
#include <pthread.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "benchmarks/harness.h"

namespace pcmalloc::bench {
namespace {

double Resident() { return static_cast<double>(ResidentBytes()); }

// What main() finds: RSS before anything was measured.
double resident_at_start = 0;

void Start(const char* row, const Arguments&) {
  Emit(row, "rss_bytes", "B", resident_at_start);
  free(MustAllocate(1));
  Emit("start/after-malloc", "rss_bytes", "B", Resident());
}

pthread_barrier_t barrier;

void* IdleThread(void* argument) {
  Random random(reinterpret_cast<uintptr_t>(argument));
  void* blocks[200];
  volatile char
      stack[2048];  // the stack that the calls below need is there before the first sample
  memset(const_cast<char*>(stack), 1, sizeof(stack));
  memset(blocks, 0, sizeof(blocks));
  pthread_barrier_wait(&barrier);
  pthread_barrier_wait(&barrier);
  for (void*& block : blocks) {
    const size_t size = MixedSize(random, 2048);
    block = MustAllocate(size);
    memset(block, 1, size);
  }
  for (void* block : blocks) free(block);
  pthread_barrier_wait(&barrier);
  pthread_barrier_wait(&barrier);
  return nullptr;
}

// RSS that 200 mixed allocations leave behind in each of many threads that then do nothing: soon,
// and when allocators that return memory with time have had some.
void IdleThreads(const char* row, const Arguments& arguments) {
  const int count = static_cast<int>(arguments.Get("threads", 1000));
  Table<pthread_t> threads(static_cast<size_t>(count));
  pthread_barrier_init(&barrier, nullptr, static_cast<unsigned>(count) + 1);
  pthread_attr_t attributes;
  pthread_attr_init(&attributes);
  pthread_attr_setstacksize(&attributes, 256 << 10);
  for (int i = 0; i < count; ++i) {
    if (pthread_create(&threads[static_cast<size_t>(i)], &attributes, IdleThread,
                       reinterpret_cast<void*>(static_cast<uintptr_t>(i) + 1)) != 0) {
      dprintf(2, "benchmark: cannot create thread %d\n", i);
      _exit(2);
    }
  }
  pthread_barrier_wait(&barrier);
  SleepSeconds(0.1);
  const double before = Resident();
  pthread_barrier_wait(&barrier);
  pthread_barrier_wait(&barrier);
  SleepSeconds(arguments.Get("settle", 1));
  Emit(row, "rss_per_thread_bytes", "B", (Resident() - before) / count);
  SleepSeconds(arguments.Get("later", 12));
  char name[64];
  snprintf(name, sizeof(name), "%s/later", row);
  Emit(name, "rss_per_thread_bytes", "B", (Resident() - before) / count);
  pthread_barrier_wait(&barrier);
  for (int i = 0; i < count; ++i) pthread_join(threads[static_cast<size_t>(i)], nullptr);
}

// Small blocks, all freed: how soon the RSS follows without the program's help, and on request.
void FreedBlocks(const char* row, const Arguments& arguments) {
  constexpr size_t kSize = 200;
  const size_t count = static_cast<size_t>(arguments.Get("megabytes", 850) * 1e6) / kSize;
  Table<void*> blocks(count);
  const double before = Resident();  // with the table
  for (size_t i = 0; i < count; ++i) {
    blocks[i] = MustAllocate(kSize);
    *static_cast<char*>(blocks[i]) = 1;
  }
  Emit(row, "rss_bytes", "B", Resident() - before);
  for (size_t i = 0; i < count; ++i) free(blocks[i]);
  const double times[] = {0, 0.1, 0.5, 1, 2, 3, 5, 7, 10};
  const double last = arguments.Get("seconds", 10);
  const uint64_t begin = MonotonicNs();
  for (double time : times) {
    if (time > last) break;
    const double now = static_cast<double>(MonotonicNs() - begin) * 1e-9;
    if (time > now) SleepSeconds(time - now);
    char name[64];
    snprintf(name, sizeof(name), "%s/%gs", row, time);
    Emit(name, "rss_bytes", "B", Resident() - before);
  }
  malloc_trim(0);
  char name[64];
  snprintf(name, sizeof(name), "%s/trimmed", row);
  Emit(name, "rss_bytes", "B", Resident() - before);
}

void* Nothing(void*) {
  while (true) pause();
}

// A server (it has a second thread) that is busy now and then: a tenth of its blocks
// stays, the rest comes and goes with each burst. What does a burst cost after the first,
// what is resident meanwhile?
void Bursts(const char* row, const Arguments& arguments) {
  const double gap = arguments.Get("gap", atof(strchr(row, '/') + 1));
  const int bursts = static_cast<int>(arguments.Get("bursts", 6));
  const size_t total = static_cast<size_t>(arguments.Get("megabytes", 100) * 1e6);
  pthread_t other;
  if (pthread_create(&other, nullptr, Nothing, nullptr) != 0) _exit(2);
  Table<void*> blocks(total / 256);
  const double before = Resident();
  double resident = 0;
  int samples = 0;
  Cost cost;
  Counters counters(Scope::kThread);
  for (int burst = 0; burst < bursts; ++burst) {
    Random random(5);
    counters.Start();
    size_t count = 0;
    for (size_t bytes = 0; bytes < total && count < blocks.size(); ++count) {
      const size_t size = MixedSize(random, 2048);
      bytes += size;
      if (burst > 0 && count % 10 == 0) continue;
      blocks[count] = MustAllocate(size);
      memset(blocks[count], 1, size);
    }
    for (size_t i = 0; i < count; ++i) {
      if (i % 10 != 0) free(blocks[i]);
    }
    const Cost one = counters.Stop();
    if (burst > 0) {
      cost.cpu_ns += one.cpu_ns / (bursts - 1);
      cost.page_faults += one.page_faults / (bursts - 1);
    }
    for (int i = 0; i < 10; ++i) {
      SleepSeconds(gap / 10);
      resident += Resident() - before;
      ++samples;
    }
  }
  Emit(row, "cpu_seconds", "s", cost.cpu_ns * 1e-9);
  Emit(row, "page_faults", "faults", cost.page_faults);
  Emit(row, "rss_bytes", "B", resident / samples);
}

// Filled with one size, nine of ten freed at random, filled with another: can the holes be used?
void SizeShift(const char* row, const Arguments& arguments) {
  const size_t total = static_cast<size_t>(arguments.Get("megabytes", 200) * 1e6);
  const size_t first_count = total / 64;
  const size_t second_count = total * 9 / 10 / 1024;
  Table<void*> first(first_count);
  Table<void*> second(second_count);
  const double before = Resident();
  Random random(3);
  for (size_t i = 0; i < first_count; ++i) {
    first[i] = MustAllocate(64);
    memset(first[i], 1, 64);
  }
  size_t live = first_count * 64;
  for (size_t i = 0; i < first_count; ++i) {
    if (random.Below(10) == 0) continue;
    free(first[i]);
    first[i] = nullptr;
    live -= 64;
  }
  for (size_t i = 0; i < second_count; ++i) {
    second[i] = MustAllocate(1024);
    memset(second[i], 1, 1024);
    live += 1024;
  }
  Emit(row, "rss_bytes", "B", Resident() - before);
  Emit(row, "rss_per_live_byte", "ratio", (Resident() - before) / static_cast<double>(live));
  for (size_t i = 0; i < first_count; ++i) free(first[i]);
  for (size_t i = 0; i < second_count; ++i) free(second[i]);
}

// An LRU cache with a byte limit. Each simulated second brings fresh entries that push out the
// oldest; the typical size drifts over the hour, and one entry in eight is touched again and stays.
class LruCache {
 public:
  LruCache(size_t capacity, size_t slots) : capacity_(capacity), entries_(slots) {}
  ~LruCache() {
    while (live_ > 0 && head_ != tail_) Evict();
  }

  void Insert(size_t size, bool keep) {
    while (live_ + size > capacity_ || tail_ - head_ == entries_.size()) Evict();
    void* block = MustAllocate(size);
    memset(block, 1, size);
    Append({block, static_cast<uint32_t>(size), keep});
    live_ += size;
  }
  size_t live() const { return live_; }

 private:
  struct Entry {
    void* block;
    uint32_t size;
    bool keep;
  };
  void Append(const Entry& entry) { entries_[tail_++ % entries_.size()] = entry; }
  void Evict() {
    Entry entry = entries_[head_++ % entries_.size()];
    if (entry.keep) {  // touched since: goes to the young end, once
      entry.keep = false;
      Append(entry);
      return;
    }
    free(entry.block);
    live_ -= entry.size;
  }

  size_t capacity_;
  Table<Entry> entries_;
  size_t head_ = 0;
  size_t tail_ = 0;
  size_t live_ = 0;
};

void CacheTraffic(const char* row, const Arguments& arguments) {
  const int seconds = static_cast<int>(arguments.Get("simulated", 3600));
  const int per_second = 1000;
  const size_t capacity = static_cast<size_t>(arguments.Get("megabytes", 200) * 1e6);
  // The table of the largest plausible number of entries is touched before the baseline.
  LruCache cache(capacity, capacity / 40);
  const double before = Resident();
  Random random(11);
  double worst = 0;
  double sum = 0;
  int samples = 0;
  const int interval = seconds / 12 > 0 ? seconds / 12 : 1;
  for (int second = 1; second <= seconds; ++second) {
    // Typical sizes: 64 B first, then 4 KiB, 256 B, 1 KiB, 16 KiB, 128 B.
    static constexpr size_t kTypical[] = {64, 4096, 256, 1024, 16384, 128};
    const size_t typical =
        kTypical[static_cast<size_t>(second - 1) * 6 / static_cast<size_t>(seconds)];
    for (int i = 0; i < per_second; ++i) {
      const uint64_t r = random.Next();
      const size_t size = typical / 2 + r % typical;
      cache.Insert((r >> 40) % 100 == 0 ? size * 16 : size, (r >> 50) % 8 == 0);
    }
    if (second % interval != 0) continue;
    const double overhead = (Resident() - before) / static_cast<double>(cache.live());
    if (overhead > worst && cache.live() > capacity / 2) worst = overhead;
    sum += overhead;
    ++samples;
    char name[64];
    snprintf(name, sizeof(name), "%s/%ds", row, second);
    Emit(name, "rss_bytes", "B", Resident() - before);
  }
  Emit(row, "rss_per_live_byte", "ratio", sum / samples);
  Emit(row, "worst_rss_per_live_byte", "ratio", worst);
  Emit(row, "peak_rss_bytes", "B", static_cast<double>(PeakResidentBytes()));
}

void CallocGigabyte(const char* row, const Arguments&) {
  const double before = Resident();
  void* block = calloc(1, size_t{1} << 30);
  if (block == nullptr) {
    dprintf(2, "benchmark: calloc(1 GiB) failed\n");
    _exit(2);
  }
  asm volatile("" : "+r"(block) : : "memory");
  Emit(row, "rss_bytes", "B", Resident() - before);
  free(block);
}

// A block of `size` bytes becomes one of `larger`, the new part is written to; counts a move.
char* Grow(char* block, size_t size, size_t larger, int* moves) {
  const uintptr_t old = reinterpret_cast<uintptr_t>(block);
  block = static_cast<char*>(realloc(block, larger));
  if (block == nullptr) {
    dprintf(2, "benchmark: realloc failed\n");
    _exit(2);
  }
  *moves += reinterpret_cast<uintptr_t>(block) != old;
  memset(block + size, 1, larger - size);
  return block;
}

void EmitGrowth(const char* row, int moves, const Cost& cost, double before) {
  Emit(row, "moves", "moves", moves);
  Emit(row, "cpu_seconds", "s", cost.cpu_ns * 1e-9);
  Emit(row, "rss_bytes", "B", Resident() - before);
  Emit(row, "peak_rss_bytes", "B", static_cast<double>(PeakResidentBytes()));
}

// A buffer that grows in steps of 1 MiB; then back to 1 MiB.
void ReallocSteps(const char* row, const Arguments&) {
  constexpr size_t kMiB = size_t{1} << 20;
  const double before = Resident();
  int moves = 0;
  char* block = Grow(nullptr, 0, kMiB, &moves);
  moves = 0;
  Counters counters(Scope::kThread);
  counters.Start();
  for (size_t size = kMiB; size < 128 * kMiB; size += kMiB) {
    block = Grow(block, size, size + kMiB, &moves);
  }
  EmitGrowth(row, moves, counters.Stop(), before);
  block = static_cast<char*>(realloc(block, kMiB));
  SleepSeconds(0.2);
  Emit("realloc-shrunk", "rss_bytes", "B", Resident() - before);
  free(block);
}

// Four buffers that grow by an eighth in turn, each in the other's way.
void ReallocInTurn(const char* row, const Arguments&) {
  const double before = Resident();
  int moves = 0;
  char* blocks[4] = {};
  Counters counters(Scope::kThread);
  counters.Start();
  for (size_t size = 0; size < size_t{64} << 20;) {
    const size_t larger = size == 0 ? 1024 : size + size / 8;
    for (char*& block : blocks) block = Grow(block, size, larger, &moves);
    size = larger;
  }
  EmitGrowth(row, moves, counters.Stop(), before);
  for (char* block : blocks) free(block);
}

const Row kRows[] = {
    {"start", Start},
    {"idle-threads", IdleThreads},
    {"freed-blocks", FreedBlocks},
    {"bursts/0.2s", Bursts},
    {"bursts/2s", Bursts},
    {"size-shift", SizeShift},
    {"cache-traffic", CacheTraffic},
    {"calloc-1GiB", CallocGigabyte},
    {"realloc-1-to-128MiB", ReallocSteps},
    {"realloc-four-in-turn", ReallocInTurn},
};

}  // namespace
}  // namespace pcmalloc::bench

int main(int argc, char** argv) {
  using namespace pcmalloc::bench;
  resident_at_start = static_cast<double>(ResidentBytes());
  return Main(argc, argv, kRows, sizeof(kRows) / sizeof(kRows[0]));
}
