// SPDX-License-Identifier: Apache-2.0
#include "tests/instructions/owner.h"

#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "allocator/base/lock.h"
#include "rseq/rseq.h"
#include "tests/instructions/cpu.h"

namespace pcmalloc::owner {
namespace {

using percpu::Header;
using percpu::Slab;

constexpr int kAttempts = 100;  // of what a preemption may undo

Shared* shared = nullptr;

// The thread that forks is like one in a signal handler that interrupted the holder of a high lock:
// it waits for nobody.
constinit RankedLock<LockRank::kPages> interrupted;

percpu::Geometry GeometryOf(const uint32_t (&slots)[kNumClasses]) {
  percpu::Geometry geometry = {};
  for (int k = 0; k < kNumClasses; ++k) geometry.capacity[kClasses[k]] = slots[k];
  return geometry;
}

// Without calls of the C library: they would be instructions that nobody wants to see.
void Receive(unsigned, void* const* items, uint32_t n) {
  for (uint32_t i = 0; i < n && shared->taken_count < kMost; ++i) {
    shared->taken[shared->taken_count++] = reinterpret_cast<uint64_t>(items[i]);
  }
}

bool SetTo(unsigned size_class, uint32_t capacity) {
  for (int i = 0; i < kAttempts; ++i) {
    percpu::SetCapacity(shared->cpu, size_class, capacity);
    if (percpu::CapacityOf(shared->cpu, size_class).now == capacity) return true;
  }
  return false;
}

bool Fill(const uint32_t (&capacities)[kNumClasses], const uint32_t (&items)[kNumClasses]) {
  for (int k = 0; k < kNumClasses; ++k) {
    if (capacities[k] != 0 && !SetTo(kClasses[k], capacities[k])) return false;
    for (uint32_t j = 0; j < items[k]; ++j) {
      void* const item = reinterpret_cast<void*>(InitialItem(k, j));
      if (percpu::PushBatch(kClasses[k], &item, 1) != 1) return false;
    }
  }
  return true;
}

bool Prepare() {
  if (!percpu::PrepareThread() || !percpu::EnsureSlab(shared->cpu)) return false;
  if (percpu::CurrentIndex() != shared->cpu) return false;
  if (!Fill(kCapacity, kItems)) return false;
  if (shared->kind != Kind::kResizeToKept) return true;
  if (!percpu::Resize(shared->cpu, GeometryOf(kNarrow), Receive)) return false;
  percpu::Drain(shared->cpu, Receive);
  shared->taken_count = 0;
  return Fill(kNarrowCapacity, kNarrowItems);
}

void Run() {
  const int index = shared->cpu;
  void* items[kLargeBatch];
  for (uint32_t j = 0; j < kLargeBatch; ++j) items[j] = reinterpret_cast<void*>(PushedItem(j));
  switch (shared->kind) {
    case Kind::kPopBatch:
      shared->moved = percpu::PopBatch(kFew, items, kBatch);
      Receive(kFew, items, shared->moved);
      break;
    case Kind::kPushBatch:
      shared->moved = percpu::PushBatch(kFew, items, kBatch);
      break;
    case Kind::kPushMoreThanFits:
      shared->moved = percpu::PushBatch(kFew, items, kLargeBatch);
      break;
    case Kind::kRaiseCapacity:
      percpu::SetCapacity(index, kFew, kCapacity[1] + 3);
      break;
    case Kind::kLowerCapacity:
      percpu::SetCapacity(index, kFew, 3);
      break;
    case Kind::kFirstCapacity:
      percpu::SetCapacity(index, kNew, 12);
      break;
    case Kind::kStopAndStart:
      percpu::Stop(index);
      percpu::Restart(index);
      break;
    case Kind::kDrain:
      percpu::Drain(index, Receive);
      break;
    case Kind::kDrainWithCapacity:
      percpu::Drain(index, Receive, [](int, unsigned, uint32_t) {});
      break;
    case Kind::kResize:
      percpu::Resize(index, GeometryOf(kNarrow), Receive);
      break;
    case Kind::kResizeToKept:
      percpu::Resize(index, GeometryOf(kWide), Receive);
      break;
    case Kind::kTryResize:
      percpu::TryResize(index, GeometryOf(kNarrow), Receive);
      break;
    case Kind::kEnsure:
      percpu::EnsureSlab(shared->second);
      break;
  }
}

void Blame(const char* problem) {
  if (shared->view.problem[0] == '\0') strcpy(shared->view.problem, problem);
}

// Of one class, in a slab that the calling thread has stopped.
void LookAt(Slab* slab, unsigned size_class, Stack* stack) {
  const Header header = slab->headers[size_class];
  const uint32_t begin = slab->begin[size_class];
  const uint32_t limit = slab->limit[size_class];
  if (stack != nullptr) {
    *stack = {};
    stack->most = limit - begin;
  }
  if (header.end == 0) {
    if (header.current != percpu::kUnusedHeader.current) Blame("a header is unused by half");
    return;
  }
  if (header.end < begin || header.end > limit) return Blame("an end outside of the stack");
  if (header.current < begin || header.current > limit) return Blame("a top outside of the stack");
  if (*slab->slot(begin - 1) != percpu::kMark) return Blame("no mark below the stack");
  if (stack == nullptr) return Blame("a stack of a class without slots");
  stack->used = true;
  stack->capacity = header.end - begin;
  stack->count = header.current - begin;
  for (uint32_t i = 0; i < stack->count; ++i) stack->items[i] = *slab->slot(begin + i);
}

void Look() {
  View& view = shared->view;
  if (shared->mode != percpu::Mode::kLocked &&
      percpu::OpenSlab(shared->cpu) == percpu::ClosedSlab()) {
    return Blame("the slab stays closed to sections");
  }
  Slab* const slab = percpu::Stop(shared->cpu);
  if (slab == nullptr) return Blame("the slab cannot be stopped");
  for (unsigned c = 0; c < percpu::kSlabClasses; ++c) {
    Stack* stack = nullptr;
    for (int k = 0; k < kNumClasses; ++k) {
      if (kClasses[k] == c) stack = &view.stacks[k];
    }
    LookAt(slab, c, stack);
  }
  if (!percpu::Restart(shared->cpu)) Blame("the slab cannot be started");
}

// Whether what is there can be worked with: by whoever comes next in the child.
void Work() {
  const View& view = shared->view;
  size_t there = 0;
  for (const Stack& stack : view.stacks) there += stack.count;
  if (percpu::Drain(shared->cpu, [](unsigned, void* const*, uint32_t) {}) != there) {
    return Blame("a drain brings something else");
  }
  const bool wide = view.stacks[0].most == kWide[0];
  const auto none = [](unsigned, void* const*, uint32_t) { Blame("an item in a drained slab"); };
  if (!percpu::Resize(shared->cpu, GeometryOf(wide ? kNarrow : kWide), none)) {
    return Blame("no other geometry can be had");
  }
  if (!percpu::PrepareThread() || !SetTo(kFew, 2)) return Blame("no capacity can be set");
  void* const pushed = reinterpret_cast<void*>(PushedItem(0));
  void* popped = nullptr;
  if (percpu::PushBatch(kFew, &pushed, 1) != 1) return Blame("nothing can be pushed");
  if (percpu::PopBatch(kFew, &popped, 1) != 1 || popped != pushed) {
    return Blame("what was pushed does not come out");
  }
}

void LookAtSecond() {
  shared->view.second_there = percpu::CapacityOf(shared->second, kFew).most != 0;
  if (!percpu::EnsureSlab(shared->second)) return Blame("the index gets no slab");
  Slab* const slab = percpu::Stop(shared->second);
  if (slab == nullptr) return Blame("the new slab cannot be stopped");
  if (slab->limit[kFew] - slab->begin[kFew] != kWide[1]) Blame("the new slab has no geometry");
  for (const Header& header : slab->headers) {
    if (memcmp(&header, &percpu::kUnusedHeader, sizeof(header)) != 0) Blame("a header in use");
  }
  percpu::Restart(shared->second);
}

bool Fork() {
  shared->view = {};
  percpu::LockForFork();
  const pid_t child = fork();
  percpu::UnlockAfterFork(child == 0);
  if (child == 0) {
    alarm(10);
    interrupted.Release();
    if (shared->kind == Kind::kEnsure) LookAtSecond();
    Look();
    if (shared->view.problem[0] == '\0') Work();
    _exit(0);
  }
  int status = 0;
  if (child < 0 || waitpid(child, &status, 0) != child) return false;
  if (WIFSIGNALED(status)) Blame(WTERMSIG(status) == SIGALRM ? "the child hung" : "the child died");
  return true;
}

bool PinHere() {
  cpu_set_t one;
  CPU_ZERO(&one);
  CPU_SET(shared->cpu, &one);
  return sched_setaffinity(0, sizeof(one), &one) == 0;
}

void* Victim(void*) {
  if (!percpu::PrepareThread()) _exit(1);
  shared->victim_id = static_cast<pid_t>(syscall(SYS_gettid));
  sem_post(&shared->ready);
  while (sem_wait(&shared->attached) != 0) {
  }
  asm volatile(PCM_HAND_OVER : : : "memory");
  Run();
  __atomic_store_n(&shared->finished, true, __ATOMIC_RELEASE);
  while (true) pause();
  return nullptr;
}

}  // namespace

void RunOwner(Shared* with) {
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  shared = with;
  percpu::InitTable(rseq::Discover().cpu_bound);
  percpu::Init(shared->mode, GeometryOf(kWide));
  pthread_t thread;
  if (!PinHere() || pthread_create(&thread, nullptr, Victim, nullptr) != 0) _exit(1);
  while (true) {
    while (sem_wait(&shared->go) != 0) {
    }
    if (shared->command == Command::kPrepare) {
      shared->failed = !Prepare() || !interrupted.Acquire();
    } else {
      shared->failed = !Fork();
    }
    sem_post(&shared->done);
  }
}

}  // namespace pcmalloc::owner
