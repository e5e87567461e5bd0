// SPDX-License-Identifier: Apache-2.0
// Single-thread rows, one per pattern and size, as Google Benchmark benchmarks. bench.py runs each
// row of each allocator in a process of its own. An operation is an allocation with its free.
#include <benchmark/benchmark.h>
#include <malloc.h>

#include <cstdlib>
#include <new>
#include <string>
#include <utility>

#include "benchmarks/counters.h"
#include "benchmarks/harness.h"

namespace pcmalloc::bench {
namespace {

using benchmark::DoNotOptimize;
using benchmark::State;

// Measures from construction to Finish, memory also at destruction; the results are user counters.
class Measured {
 public:
  Measured(const Measured&) = delete;
  Measured& operator=(const Measured&) = delete;
  explicit Measured(State& state) : state_(state), counters_(Scope::kThread) { counters_.Start(); }

  void Finish(double operations_per_iteration) {
    const Cost cost = counters_.Stop();
    const double operations = static_cast<double>(state_.iterations()) * operations_per_iteration;
    state_.counters["ns_per_op"] = cost.cpu_ns / operations;
    if (cost.cycles >= 0) {
      const char* name = cost.tsc         ? "tsc_cycles_per_op"
                         : cost.user_only ? "user_cycles_per_op"
                                          : "cycles_per_op";
      state_.counters[name] = cost.cycles / operations;
    }
    if (cost.instructions >= 0) {
      state_.counters[cost.user_only ? "user_instructions_per_op" : "instructions_per_op"] =
          cost.instructions / operations;
    }
    state_.counters["page_faults_per_op"] = cost.page_faults / operations;
    state_.counters["peak_rss_bytes"] = static_cast<double>(PeakResidentBytes());
  }

  // At the end of the benchmark, when it has freed its blocks.
  ~Measured() { state_.counters["rss_bytes"] = static_cast<double>(ResidentBytes()); }

 private:
  State& state_;
  Counters counters_;
};

void Pair(State& state, size_t size) {
  Measured measured(state);
  for (auto _ : state) {
    void* block = malloc(size);
    DoNotOptimize(block);
    free(block);
  }
  measured.Finish(1);
}

void SizedDelete(State& state, size_t size) {
  Measured measured(state);
  for (auto _ : state) {
    void* block = ::operator new(size);
    DoNotOptimize(block);
    ::operator delete(block, size);
  }
  measured.Finish(1);
}

void Calloc(State& state, size_t size) {
  Measured measured(state);
  for (auto _ : state) {
    void* block = calloc(1, size);
    DoNotOptimize(block);
    free(block);
  }
  measured.Finish(1);
}

void Aligned(State& state, size_t alignment) {
  Measured measured(state);
  for (auto _ : state) {
    void* block = memalign(alignment, alignment);
    DoNotOptimize(block);
    free(block);
  }
  measured.Finish(1);
}

// The steps of a buffer that doubles from 16 B to 1 MiB, as a string or vector grows.
void ReallocGrow(State& state) {
  Measured measured(state);
  for (auto _ : state) {
    void* block = malloc(16);
    for (size_t size = 32; size <= (size_t{1} << 20); size *= 2) {
      block = realloc(block, size);
      static_cast<char*>(block)[size - 1] = 1;
    }
    free(block);
  }
  measured.Finish(17);
}

// A generous buffer cut down to what was used.
void ReallocShrink(State& state) {
  Measured measured(state);
  for (auto _ : state) {
    void* block = malloc(64 << 10);
    for (size_t size = 32 << 10; size >= 16; size /= 2) {
      block = realloc(block, size);
      DoNotOptimize(block);
    }
    free(block);
  }
  measured.Finish(13);
}

enum class Order { kLifo, kFifo, kRandom };

void Batch(State& state, size_t size, uint32_t count, Order order) {
  Table<void*> blocks(count);
  Table<uint32_t> frees(count);
  Random random(count);
  for (uint32_t i = 0; i < count; ++i) frees[i] = order == Order::kLifo ? count - 1 - i : i;
  if (order == Order::kRandom) {
    for (uint32_t i = count; i > 1; --i) std::swap(frees[i - 1], frees[random.Below(i)]);
  }
  Measured measured(state);
  for (auto _ : state) {
    for (uint32_t i = 0; i < count; ++i) blocks[i] = malloc(size);
    benchmark::ClobberMemory();
    for (uint32_t i = 0; i < count; ++i) free(blocks[frees[i]]);
  }
  measured.Finish(count);
}

// Memory no one has touched: what a program pays for its first megabytes.
void FirstTouch(State& state, size_t size) {
  constexpr size_t kTotal = size_t{64} << 20;
  const size_t count = kTotal / size;
  Table<void*> blocks(count);
  Measured measured(state);
  for (auto _ : state) {
    for (size_t i = 0; i < count; ++i) {
      char* block = static_cast<char*>(MustAllocate(size));
      for (size_t at = 0; at < size; at += 4096) block[at] = 1;
      blocks[i] = block;
    }
  }
  measured.Finish(static_cast<double>(count));
  for (size_t i = 0; i < count; ++i) free(blocks[i]);
}

// A steady heap of so many blocks of mixed sizes, one random block replaced at a time.
template <typename Take>
void ChurnWith(Take take, State& state, uint32_t live, size_t limit) {
  Table<void*> blocks(live);
  Random random(7);
  for (uint32_t i = 0; i < live; ++i) blocks[i] = take(MixedSize(random, limit));
  Measured measured(state);
  for (auto _ : state) {
    void*& slot = blocks[random.Below(live)];
    free(slot);
    const size_t size = MixedSize(random, limit);
    slot = take(size);
    TouchPages(slot, size);
  }
  measured.Finish(1);
  for (uint32_t i = 0; i < live; ++i) free(blocks[i]);
}

void Churn(State& state, uint32_t live, size_t limit) {
  ChurnWith([](size_t size) { return malloc(size); }, state, live, limit);
}

void AlignedChurn(State& state, uint32_t live, size_t limit, size_t alignment) {
  ChurnWith([alignment](size_t size) { return memalign(alignment, size); }, state, live, limit);
}

std::string Name(size_t size) {
  if (size >= (size_t{1} << 20)) return std::to_string(size >> 20) + "M";
  if (size >= (size_t{1} << 10)) return std::to_string(size >> 10) + "K";
  return std::to_string(size);
}

template <typename Function, typename... Values>
benchmark::internal::Benchmark* Register(const std::string& name, Function function,
                                         Values... values) {
  return benchmark::RegisterBenchmark(name.c_str(),
                                      [=](State& state) { function(state, values...); });
}

void RegisterRows() {
  for (size_t size :
       {8, 16, 32, 64, 128, 256, 512, 1 << 10, 4 << 10, 16 << 10, 64 << 10, 256 << 10, 1 << 20}) {
    Register("pair/" + Name(size), Pair, size);
  }
  const std::pair<const char*, Order> orders[] = {
      {"lifo", Order::kLifo}, {"fifo", Order::kFifo}, {"random", Order::kRandom}};
  for (uint32_t count : {1000u, 100000u}) {
    for (size_t size : {size_t{64}, size_t{512}}) {
      for (const auto& [name, order] : orders) {
        Register("batch/" + std::to_string(count) + "x" + Name(size) + "/" + name, Batch, size,
                 count, order);
      }
    }
  }
  for (size_t size : {32, 1 << 10, 64 << 10}) {
    Register("sized-delete/" + Name(size), SizedDelete, size);
  }
  for (size_t size : {32, 512, 1 << 20, 16 << 20}) Register("calloc/" + Name(size), Calloc, size);
  for (size_t alignment : {64, 4096}) Register("aligned/" + Name(alignment), Aligned, alignment);
  Register("realloc/grow", ReallocGrow);
  Register("realloc/shrink", ReallocShrink);
  // Once only: a second pass would find the memory touched.
  for (size_t size : {64, 4096}) {
    Register("first-touch/" + Name(size), FirstTouch, size)->Iterations(1);
  }
  Register("churn/100000", Churn, 100000u, size_t{2048});
  // As many size classes as there are, and few blocks of each: larger ones than per-CPU or thread
  // caches like to hold.
  Register("churn/1000x32K", Churn, 1000u, size_t{32} << 10);
  Register("churn/300x1M", Churn, 300u, size_t{1} << 20);
  Register("churn/200x8M", Churn, 200u, size_t{8} << 20);
  Register("churn/400x128K/aligned-64K", AlignedChurn, 400u, size_t{128} << 10, size_t{64} << 10);
}

}  // namespace
}  // namespace pcmalloc::bench

int main(int argc, char** argv) {
  pcmalloc::bench::RegisterRows();
  benchmark::AddCustomContext("malloc", pcmalloc::bench::MallocObject());
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 2;
  benchmark::RunSpecifiedBenchmarks();
  benchmark::Shutdown();
  return 0;
}
