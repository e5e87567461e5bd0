// SPDX-License-Identifier: Apache-2.0
// Threads that work side by side: each on its own blocks, or (larson) on blocks that a thread
// before it allocated. Rows where blocks change hands while both live are in scale_transfer.cc.
#include <cstdlib>

#include "benchmarks/harness.h"
#include "benchmarks/scale_threads.h"

namespace pcmalloc::bench {
namespace {

struct Work {
  uint64_t operations;  // of one thread
};

void EmitRow(const char* row, const Arguments& arguments, const Cost& cost, uint64_t operations) {
  EmitCost(row, cost, static_cast<double>(operations));
  EmitMemory(row, arguments);
}

void PairBody(void* context, int) {
  const Work* work = static_cast<Work*>(context);
  for (uint64_t i = 0; i < work->operations; ++i) {
    void* block = malloc(64);
    asm volatile("" : "+r"(block) : : "memory");
    free(block);
  }
}

void Pair(const char* row, const Arguments& arguments) {
  const int threads = ThreadsOf(row);
  Work work{Operations(arguments, 80000000) / threads};
  const Cost cost = RunThreads(threads, {nullptr, PairBody, nullptr}, &work);
  EmitRow(row, arguments, cost, work.operations * threads);
}

void BatchBody(void* context, int) {
  constexpr uint32_t kBatch = 1000;
  const Work* work = static_cast<Work*>(context);
  void* blocks[kBatch];
  for (uint64_t done = 0; done < work->operations; done += kBatch) {
    for (void*& block : blocks) block = malloc(64);
    for (void* block : blocks) free(block);
  }
}

void Batch(const char* row, const Arguments& arguments) {
  const int threads = ThreadsOf(row);
  const uint64_t batches = Operations(arguments, 32000) / threads;
  Work work{(batches == 0 ? 1 : batches) * 1000};
  const Cost cost = RunThreads(threads, {nullptr, BatchBody, nullptr}, &work);
  EmitRow(row, arguments, cost, work.operations * threads);
}

struct ChurnWork {
  uint64_t operations;
  uint32_t live;
  size_t limit;          // bytes of a block
  Table<void*>* blocks;  // `live` slots for each thread
};

void ChurnPrepare(void* context, int index) {
  const ChurnWork* work = static_cast<ChurnWork*>(context);
  void** mine = work->blocks->data() + static_cast<size_t>(index) * work->live;
  Random random(static_cast<uint64_t>(index) + 100);
  for (uint32_t i = 0; i < work->live; ++i) mine[i] = MustAllocate(MixedSize(random, work->limit));
}

void ChurnBody(void* context, int index) {
  const ChurnWork* work = static_cast<ChurnWork*>(context);
  void** mine = work->blocks->data() + static_cast<size_t>(index) * work->live;
  Random random(static_cast<uint64_t>(index) + 1);
  for (uint64_t i = 0; i < work->operations; ++i) {
    void*& slot = mine[random.Below(work->live)];
    free(slot);
    const size_t size = MixedSize(random, work->limit);
    slot = malloc(size);
    TouchPages(slot, size);
  }
}

void ChurnFinish(void* context, int index) {
  const ChurnWork* work = static_cast<ChurnWork*>(context);
  void** mine = work->blocks->data() + static_cast<size_t>(index) * work->live;
  for (uint32_t i = 0; i < work->live; ++i) free(mine[i]);
}

void ChurnOf(uint32_t live, size_t limit, uint64_t operations, const char* row,
             const Arguments& arguments) {
  const int threads = ThreadsOf(row);
  Table<void*> blocks(static_cast<size_t>(live) * threads);
  ChurnWork work{Operations(arguments, operations) / threads, live, limit, &blocks};
  const Cost cost = RunThreads(threads, {ChurnPrepare, ChurnBody, ChurnFinish}, &work);
  EmitRow(row, arguments, cost, work.operations * threads);
}

void Churn(const char* row, const Arguments& arguments) {
  ChurnOf(100000u / static_cast<uint32_t>(ThreadsOf(row)), 2048, 32000000, row, arguments);
}

// A thousand blocks a thread, from a few bytes to 32 KiB.
void ChurnWide(const char* row, const Arguments& arguments) {
  ChurnOf(1000, size_t{32} << 10, 32000000, row, arguments);
}

// Up to 1 MiB, of which all pages are written to.
void ChurnLarge(const char* row, const Arguments& arguments) {
  ChurnOf(100, size_t{1} << 20, 1000000, row, arguments);
}

void* ShortThread(void* argument) {
  Random random(reinterpret_cast<uintptr_t>(argument));
  void* blocks[20];
  for (void*& block : blocks) {
    block = MustAllocate(MixedSize(random, 1024));
    *static_cast<char*>(block) = 1;
  }
  for (void* block : blocks) free(block);
  return nullptr;
}

// Two short threads alive at a time, as a server that starts a thread for each request. An
// operation is a thread.
void ThreadChurn(const char* row, const Arguments& arguments) {
  const uint64_t pairs = Operations(arguments, 10000) / 2;
  Counters counters(Scope::kProcess);
  counters.Start();
  for (uint64_t i = 0; i < pairs; ++i) {
    pthread_t threads[2];
    for (pthread_t& thread : threads)
      MustCreate(&thread, ShortThread, reinterpret_cast<void*>(i + 1));
    for (pthread_t thread : threads) pthread_join(thread, nullptr);
  }
  EmitRow(row, arguments, counters.Stop(), pairs * 2);
}

// A server in the manner of larson: the blocks of a connection outlive the thread that made them;
// every so often a fresh thread takes a connection over and replaces its predecessor's blocks.
constexpr uint32_t kConnectionBlocks = 1000;

struct Connection {
  void** blocks;
  uint64_t operations;
  uint64_t seed;
};

void* Serve(void* argument) {
  Connection* connection = static_cast<Connection*>(argument);
  Random random(++connection->seed);
  for (uint64_t i = 0; i < connection->operations; ++i) {
    void*& slot = connection->blocks[random.Below(kConnectionBlocks)];
    free(slot);
    slot = malloc(MixedSize(random, 1024));
    *static_cast<char*>(slot) = 1;
  }
  return nullptr;
}

constexpr int kGenerations = 5;

void LarsonBody(void* context, int index) {
  const Work* work = static_cast<Work*>(context);
  Table<void*> blocks(kConnectionBlocks);
  Connection connection{blocks.data(), work->operations / kGenerations,
                        static_cast<uint64_t>(index) * 1000};
  for (int generation = 0; generation < kGenerations; ++generation) {
    pthread_t thread;
    MustCreate(&thread, Serve, &connection);
    pthread_join(thread, nullptr);
  }
  for (size_t i = 0; i < blocks.size(); ++i) free(blocks[i]);
}

void Larson(const char* row, const Arguments& arguments) {
  const int threads = ThreadsOf(row);
  Work work{Operations(arguments, 32000000) / threads};
  const Cost cost = RunThreads(threads, {nullptr, LarsonBody, nullptr}, &work);
  EmitRow(row, arguments, cost, work.operations / kGenerations * kGenerations * threads);
}

#define PCM_ROWS_BY_THREADS(name, function)                                                        \
  {name "/1t", function}, {name "/2t", function}, {name "/4t", function}, {name "/16t", function}, \
  {                                                                                                \
    name "/64t", function                                                                          \
  }

const Row kRows[] = {
    PCM_ROWS_BY_THREADS("pair-64", Pair),
    PCM_ROWS_BY_THREADS("batch-1000x64", Batch),
    PCM_ROWS_BY_THREADS("churn", Churn),
    PCM_ROWS_BY_THREADS("churn-32K", ChurnWide),
    {"churn-1M/1t", ChurnLarge},
    {"churn-1M/2t", ChurnLarge},
    {"churn-1M/4t", ChurnLarge},
    {"churn-1M/16t", ChurnLarge},
    PCM_ROWS_BY_THREADS("larson", Larson),
    PCM_ROWS_BY_THREADS("remote-free", RemoteFree),
    {"transfer/1to1/64", Transfer},
    {"transfer/1to1/1024", Transfer},
    {"transfer/1to8/64", Transfer},
    {"transfer/1to8/1024", Transfer},
    {"transfer/8to1/64", Transfer},
    {"transfer/8to1/1024", Transfer},
    {"thread-churn", ThreadChurn},
    {"false-sharing-active/2t", FalseSharingActive},
    {"false-sharing-active/4t", FalseSharingActive},
    {"false-sharing-passive/2t", FalseSharingPassive},
    {"false-sharing-passive/4t", FalseSharingPassive},
};

}  // namespace
}  // namespace pcmalloc::bench

int main(int argc, char** argv) {
  using pcmalloc::bench::kRows;
  return pcmalloc::bench::Main(argc, argv, kRows, sizeof(kRows) / sizeof(kRows[0]));
}
