// SPDX-License-Identifier: Apache-2.0
// Blocks that one thread allocates and another frees, and blocks of several threads that may share
// a cache line.
#include <sched.h>

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "benchmarks/harness.h"
#include "benchmarks/scale_threads.h"

namespace pcmalloc::bench {
namespace {

// One producer, one consumer. Waiting yields: with more threads than CPUs, spinning alone would
// measure the scheduler's time slice.
class Ring {
 public:
  void Push(void* block) {
    const uint64_t tail = tail_.load(std::memory_order_relaxed);
    while (tail - head_.load(std::memory_order_acquire) == kSlots) sched_yield();
    slots_[tail % kSlots] = block;
    tail_.store(tail + 1, std::memory_order_release);
  }
  // Null if empty.
  void* Pop() {
    const uint64_t head = head_.load(std::memory_order_relaxed);
    if (head == tail_.load(std::memory_order_acquire)) return nullptr;
    void* block = slots_[head % kSlots];
    head_.store(head + 1, std::memory_order_release);
    return block;
  }

 private:
  static constexpr uint64_t kSlots = 512;
  alignas(64) std::atomic<uint64_t> head_{0};
  alignas(64) std::atomic<uint64_t> tail_{0};
  alignas(64) void* slots_[kSlots] = {};
};

Ring rings[8];

struct TransferWork {
  int producers;
  int consumers;
  size_t size;
  uint64_t per_ring;
};

// Ring r has producer r % producers and consumer r % consumers.
void TransferBody(void* context, int index) {
  const TransferWork* work = static_cast<TransferWork*>(context);
  const int ring_count = work->producers > work->consumers ? work->producers : work->consumers;
  if (index < work->producers) {
    for (uint64_t i = 0; i < work->per_ring; ++i) {
      for (int r = index; r < ring_count; r += work->producers) {
        char* block = static_cast<char*>(MustAllocate(work->size));
        for (size_t at = 0; at < work->size; at += 64) block[at] = 1;
        rings[r].Push(block);
      }
    }
    return;
  }
  const int consumer = index - work->producers;
  const int mine = (ring_count - consumer + work->consumers - 1) / work->consumers;
  uint64_t left = work->per_ring * static_cast<uint64_t>(mine);
  while (left > 0) {
    bool any = false;
    for (int r = consumer; r < ring_count; r += work->consumers) {
      void* block = rings[r].Pop();
      if (block == nullptr) continue;
      free(block);
      --left;
      any = true;
    }
    if (!any) sched_yield();
  }
}

// Threads put batches into their neighbour's mailbox; whoever owns the mailbox frees them.
constexpr int kMailBatch = 64;
struct Mail {
  void* blocks[kMailBatch];
};
struct alignas(64) Mailbox {
  std::atomic<Mail*> mail{nullptr};
};
Mailbox mailboxes[kMaxThreads];

struct RemoteWork {
  int threads;
  uint64_t batches;
};

void FreeMail(Mail* mail) {
  if (mail == nullptr) return;
  for (void* block : mail->blocks) free(block);
  free(mail);
}

void RemoteBody(void* context, int index) {
  const RemoteWork* work = static_cast<RemoteWork*>(context);
  Random random(static_cast<uint64_t>(index) + 1);
  Mailbox& next = mailboxes[(index + 1) % work->threads];
  for (uint64_t i = 0; i < work->batches; ++i) {
    Mail* mail = static_cast<Mail*>(MustAllocate(sizeof(Mail)));
    for (void*& block : mail->blocks) {
      block = MustAllocate(MixedSize(random, 512));
      *static_cast<char*>(block) = 1;
    }
    FreeMail(next.mail.exchange(mail, std::memory_order_acq_rel));
    FreeMail(mailboxes[index].mail.exchange(nullptr, std::memory_order_acq_rel));
  }
}

struct SharingWork {
  uint64_t rounds;
  bool passive;
  void* given[kMaxThreads];
};

constexpr int kWritesPerRound = 100;

void SharingBody(void* context, int index) {
  SharingWork* work = static_cast<SharingWork*>(context);
  if (work->passive) free(work->given[index]);
  for (uint64_t i = 0; i < work->rounds; ++i) {
    volatile char* block = static_cast<char*>(MustAllocate(8));
    for (int w = 0; w < kWritesPerRound; ++w) block[w % 8] = static_cast<char>(block[w % 8] + 1);
    free(const_cast<char*>(block));
  }
}

void Sharing(const char* row, const Arguments& arguments, bool passive) {
  const int threads = ThreadsOf(row);
  SharingWork work{Operations(arguments, 8000000) / threads, passive, {}};
  // Passive: blocks that the main thread got from one line are given out; what their frees bring
  // back to each thread's cache is what the thread then writes to.
  for (int i = 0; passive && i < threads; ++i) work.given[i] = MustAllocate(8);
  const Cost cost = RunThreads(threads, {nullptr, SharingBody, nullptr}, &work);
  EmitCost(row, cost, static_cast<double>(work.rounds * threads));
}

}  // namespace

void Transfer(const char* row, const Arguments& arguments) {
  TransferWork work{};
  if (sscanf(row, "transfer/%dto%d/%zu", &work.producers, &work.consumers, &work.size) != 3)
    abort();
  const int ring_count = work.producers > work.consumers ? work.producers : work.consumers;
  work.per_ring = Operations(arguments, 8000000) / static_cast<uint64_t>(ring_count);
  const Cost cost =
      RunThreads(work.producers + work.consumers, {nullptr, TransferBody, nullptr}, &work);
  EmitCost(row, cost, static_cast<double>(work.per_ring * static_cast<uint64_t>(ring_count)));
  EmitMemory(row, arguments);
}

void RemoteFree(const char* row, const Arguments& arguments) {
  RemoteWork work{};
  work.threads = ThreadsOf(row);
  work.batches = Operations(arguments, 160000) / static_cast<uint64_t>(work.threads);
  const Cost cost = RunThreads(work.threads, {nullptr, RemoteBody, nullptr}, &work);
  for (Mailbox& mailbox : mailboxes) FreeMail(mailbox.mail.exchange(nullptr));
  EmitCost(row, cost, static_cast<double>(work.batches * (kMailBatch + 1)) * work.threads);
  EmitMemory(row, arguments);
}

void FalseSharingActive(const char* row, const Arguments& arguments) {
  Sharing(row, arguments, false);
}

void FalseSharingPassive(const char* row, const Arguments& arguments) {
  Sharing(row, arguments, true);
}

}  // namespace pcmalloc::bench
