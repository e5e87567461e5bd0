// SPDX-License-Identifier: Apache-2.0
#include "tests/instructions/subject.h"

#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "percpu/ops.h"
#include "rseq/rseq.h"
#include "tests/instructions/cpu.h"

namespace pcmalloc::instructions {
namespace {

using percpu::Index;
using percpu::Mode;

Shared* shared = nullptr;
const rseq::Area* victim_area = nullptr;
Outcome* received = nullptr;

template <Index kIndex>
__attribute__((noinline)) void RunPop(const uint64_t*, uint32_t, Outcome* outcome) {
  if (void* item = percpu::Pop<kIndex>(kClass)) {
    outcome->items[outcome->count++] = reinterpret_cast<uint64_t>(item);
  }
}

template <Index kIndex>
__attribute__((noinline)) void RunPush(const uint64_t* items, uint32_t, Outcome* outcome) {
  outcome->value = percpu::Push<kIndex>(kClass, reinterpret_cast<void*>(items[0])) ? 1 : 0;
}

// A pointer cached earlier would not outlive the stop between two rounds.
__attribute__((noinline)) void RunPopCached(const uint64_t*, uint32_t, Outcome* outcome) {
  if (!percpu::CacheSlab()) return;
  if (void* item = percpu::PopCached(kClass)) {
    outcome->items[outcome->count++] = reinterpret_cast<uint64_t>(item);
  }
}

__attribute__((noinline)) void RunPushCached(const uint64_t* items, uint32_t, Outcome* outcome) {
  if (!percpu::CacheSlab()) return;
  outcome->value = percpu::PushCached(kClass, reinterpret_cast<void*>(items[0])) ? 1 : 0;
}

__attribute__((noinline)) void RunPopBatch(const uint64_t*, uint32_t, Outcome* outcome) {
  void* items[kBatch] = {};
  outcome->count = percpu::PopBatch(kClass, items, kBatch);
  for (uint32_t i = 0; i < outcome->count; ++i) {
    outcome->items[i] = reinterpret_cast<uint64_t>(items[i]);
  }
}

__attribute__((noinline)) void RunPushBatch(const uint64_t* items, uint32_t, Outcome* outcome) {
  void* pushed[kBatch];
  for (uint32_t i = 0; i < kBatch; ++i) pushed[i] = reinterpret_cast<void*>(items[i]);
  outcome->value = static_cast<int32_t>(percpu::PushBatch(kClass, pushed, kBatch));
}

__attribute__((noinline)) void RunSetCapacity(const uint64_t*, uint32_t capacity,
                                              Outcome* outcome) {
  outcome->index = percpu::CurrentIndex();
  if (outcome->index >= 0) outcome->value = percpu::SetCapacity(outcome->index, kClass, capacity);
}

void PinTo(int cpu) {
  cpu_set_t one;
  CPU_ZERO(&one);
  CPU_SET(cpu, &one);
  if (sched_setaffinity(0, sizeof(one), &one) != 0) shared->failed = true;
}

percpu::Geometry GeometryWith(uint32_t capacity) {
  percpu::Geometry geometry = {};
  geometry.capacity[kClass] = capacity;
  return geometry;
}

void Receive(unsigned, void* const* items, uint32_t n) {
  for (uint32_t i = 0; i < n; ++i) {
    received->items[received->count++] = reinterpret_cast<uint64_t>(items[i]);
  }
}

void Prepare() {
  shared->victim = shared->other = Outcome();
  shared->failed = false;
  for (int s = 0; s < shared->slabs; ++s) {
    const int index = shared->indices[s];
    percpu::Slab* const slab = percpu::Stop(index);
    if (slab == nullptr) {
      shared->failed = true;
      continue;
    }
    percpu::Header header = {slab->begin[kClass], slab->begin[kClass] + kCapacity};
    *slab->slot(header.current - 1) = percpu::kMark;
    for (uint32_t j = 0; j < kItems; ++j) *slab->slot(header.current++) = InitialItem(s, j);
    slab->headers[kClass] = header;
    percpu::Restart(index);
  }
  shared->aborts = rseq::Aborts();
}

void Observe() {
  shared->aborts = rseq::Aborts() - shared->aborts;
  for (int s = 0; s < shared->slabs; ++s) {
    const int index = shared->indices[s];
    percpu::Slab* const slab = percpu::Stop(index);
    if (slab == nullptr) {
      shared->failed = true;
      continue;
    }
    Stack& stack = shared->stacks[s];
    stack = Stack();
    const percpu::Header header = slab->headers[kClass];
    const uint32_t begin = slab->begin[kClass];
    stack.capacity = header.end - begin;
    stack.count = header.current - begin;
    if (*slab->slot(begin - 1) != percpu::kMark || stack.count > kMost * 2) shared->failed = true;
    for (uint32_t i = 0; i < stack.count && i < kMost * 2; ++i) {
      stack.items[i] = *slab->slot(begin + i);
    }
    percpu::Restart(index);
  }
}

void RunSectionOf(Kind kind, Outcome* outcome) {
  uint64_t items[kBatch];
  for (uint32_t i = 0; i < kBatch; ++i) items[i] = OtherItem(i);
  // A cached pointer may be gone before it is used; what interferes shall not fail.
  const Mode mode = shared->mode == Mode::kCached ? Mode::kCpuId : shared->mode;
  for (const Operation& operation : Operations(mode)) {
    if (operation.kind == kind) return operation.run(items, kOtherCapacity, outcome);
  }
}

// The victim stands still: its area says what it used.
int VictimIndex() {
  const uint32_t index = shared->mode == Mode::kMmCid
                             ? __atomic_load_n(&victim_area->mm_cid, __ATOMIC_RELAXED)
                             : __atomic_load_n(&victim_area->cpu_id, __ATOMIC_RELAXED);
  shared->victim_slab = -1;
  for (int s = 0; s < shared->slabs; ++s) {
    if (shared->indices[s] == static_cast<int>(index)) shared->victim_slab = s;
  }
  return static_cast<int>(index);
}

void Conflict() {
  const int index = VictimIndex();
  if (shared->from_other_cpu) PinTo(shared->cpus[1]);
  received = &shared->other;
  switch (shared->conflict) {
    case Kind::kDrain:
      shared->other.value = static_cast<int32_t>(percpu::Drain(index, Receive));
      break;
    case Kind::kResize: {
      const bool large = percpu::CapacityOf(index, kClass).most > kMost;
      if (!percpu::Resize(index, GeometryWith(large ? kMost : 2 * kMost), Receive)) {
        shared->failed = true;
      }
      break;
    }
    case Kind::kHold:
      if (percpu::Stop(index) == nullptr) shared->failed = true;
      break;
    default:
      RunSectionOf(shared->conflict, &shared->other);
  }
  if (shared->from_other_cpu) PinTo(shared->cpus[0]);
}

void OnSignal(int) {
  shared->in_handler = true;
  RunSectionOf(shared->conflict, &shared->other);
  shared->in_handler = false;
}

void* Victim(void*) {
  if (!rseq::EnsureThreadRegistered()) shared->failed = true;
  victim_area = rseq::ThisArea();
  shared->victim_area = victim_area;
  shared->victim_id = static_cast<pid_t>(syscall(SYS_gettid));
  sem_post(&shared->ready);
  while (sem_wait(&shared->attached) != 0) {
  }
  uint64_t items[kBatch];
  for (uint32_t i = 0; i < kBatch; ++i) items[i] = VictimItem(i);
  while (true) {
    asm volatile(PCM_HAND_OVER : : : "memory");  // between rounds the tracer has the thread
    if (shared->operation < 0) {
      BreakpointProbe();
    } else {
      Operations(shared->mode)[static_cast<size_t>(shared->operation)].run(items, kVictimCapacity,
                                                                           &shared->victim);
    }
  }
  return nullptr;
}

void* Sleeper(void*) {
  while (true) pause();
  return nullptr;
}

}  // namespace

__attribute__((noinline)) void BreakpointProbe() { asm volatile("nop"); }

const std::vector<Operation>& Operations(Mode mode) {
  static const auto* const kByCpu = new std::vector<Operation>{
      {"Pop", Kind::kPop, RunPop<Index::kCpuId>},
      {"Push", Kind::kPush, RunPush<Index::kCpuId>},
      {"PopBatch", Kind::kPopBatch, RunPopBatch},
      {"PushBatch", Kind::kPushBatch, RunPushBatch},
      {"SetCapacity", Kind::kSetCapacity, RunSetCapacity},
  };
  static const auto* const kByCid = new std::vector<Operation>{
      {"Pop", Kind::kPop, RunPop<Index::kMmCid>},
      {"Push", Kind::kPush, RunPush<Index::kMmCid>},
      {"PopBatch", Kind::kPopBatch, RunPopBatch},
      {"PushBatch", Kind::kPushBatch, RunPushBatch},
      {"SetCapacity", Kind::kSetCapacity, RunSetCapacity},
  };
  static const auto* const kCached = new std::vector<Operation>{
      {"PopCached", Kind::kPop, RunPopCached},
      {"PushCached", Kind::kPush, RunPushCached},
      {"PopBatch", Kind::kPopBatch, RunPopBatch},
      {"PushBatch", Kind::kPushBatch, RunPushBatch},
      {"SetCapacity", Kind::kSetCapacity, RunSetCapacity},
  };
  return mode == Mode::kMmCid ? *kByCid : mode == Mode::kCached ? *kCached : *kByCpu;
}

void RunSubject(Shared* with) {
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  shared = with;
  Operations(shared->mode);  // allocates here and not in a signal handler
  percpu::InitTable(rseq::Discover().cpu_bound);
  percpu::Init(shared->mode, GeometryWith(kMost));
  for (int s = 0; s < shared->slabs; ++s) {
    if (!percpu::EnsureSlab(shared->indices[s])) shared->failed = true;
  }
  PinTo(shared->cpus[0]);
  struct sigaction action = {};
  action.sa_handler = OnSignal;
  sigaction(SIGUSR1, &action, nullptr);
  pthread_t thread;
  for (int i = 0; i < shared->sleepers; ++i) {
    if (pthread_create(&thread, nullptr, Sleeper, nullptr) != 0) _exit(1);
  }
  if (pthread_create(&thread, nullptr, Victim, nullptr) != 0) _exit(1);
  while (true) {
    while (sem_wait(&shared->go) != 0) {
    }
    switch (shared->command) {
      case Command::kPrepare:
        Prepare();
        break;
      case Command::kConflict:
        Conflict();
        break;
      case Command::kRelease:
        if (!percpu::Restart(shared->indices[shared->victim_slab])) shared->failed = true;
        break;
      case Command::kObserve:
        Observe();
        break;
      case Command::kQuit:
        _exit(0);
    }
    sem_post(&shared->done);
  }
}

}  // namespace pcmalloc::instructions
