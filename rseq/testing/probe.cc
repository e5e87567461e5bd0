// SPDX-License-Identifier: Apache-2.0
#include "rseq/testing/probe.h"

#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <atomic>

#include "rseq/rseq.h"
#include "rseq/sections.h"

extern "C" {
extern const ptrdiff_t __rseq_offset __attribute__((weak));
extern const unsigned int __rseq_size __attribute__((weak));
}

namespace {

namespace rseq = ::pcmalloc::rseq;

void Print(const char* key, long value) { printf("%s=%ld\n", key, value); }

long Nanoseconds() {
  timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return now.tv_sec * 1000000000L + now.tv_nsec;
}

int CpuId() { return static_cast<int>(rseq::ThisArea()->cpu_id); }

// What the loader left, before the library has run at all.
const long initial_offset = rseq::pcmalloc_rseq_offset;

// The area that ThisArea() named before the library had run at all.
const rseq::Area* const initial_area = rseq::ThisArea();

long OffsetOf(const void* address) {
  return static_cast<const char*>(address) - static_cast<char*>(__builtin_thread_pointer());
}

void LookInitial() {
  Print("initial_offset", initial_offset);
  Print("initial_area_offset", OffsetOf(initial_area));
  Print("initial_cpu_id", CpuId());
}

// Lets the kernel claim 33 bytes of features, as Linux 7 does, in the aux vector that the C library
// reads: it follows the environment.
void LookFeature33() {
  char** end = environ;
  while (*end != nullptr) ++end;
  constexpr unsigned long kFeatureSize = 27;
  for (auto* entry = reinterpret_cast<unsigned long*>(end + 1); entry[0] != 0; entry += 2) {
    if (entry[0] == kFeatureSize) entry[1] = 33;
  }
}

void LookRequest32() { Print("request32", rseq::RequestLength32()); }

void LookDiscover() {
  errno = 77;
  const long begin = Nanoseconds();
  const rseq::Discovery& d = rseq::Discover();
  const long end = Nanoseconds();
  Print("errno_after_discover", errno);
  Print("nanoseconds", end - begin);
  Print("owner", static_cast<long>(d.owner));
  Print("refused_error", d.refused_error);
  Print("feature_size", d.feature_size);
  Print("alignment", d.alignment);
  Print("registered_length", d.registered_length);
  Print("mm_cid_maintained", d.mm_cid_maintained);
  Print("fence_available", d.fence_available);
  Print("fence_one_cpu", d.fence_one_cpu);
  Print("fence_error", d.fence_error);
  Print("cpu_bound", d.cpu_bound);
  cpu_set_t mask;
  Print("kernel_mask_bytes", syscall(SYS_sched_getaffinity, 0, sizeof(mask), &mask));
  printf("reason=%s\n", d.reason);
  Print("initial_area_offset", OffsetOf(initial_area));
  Print("cached_word", d.cached_word);
  Print("line_rest", reinterpret_cast<uintptr_t>(rseq::ThisArea()) % 64);
  Print("offset", rseq::pcmalloc_rseq_offset);
  Print("libc_offset", &__rseq_offset != nullptr ? __rseq_offset : 0);
  Print("libc_size", &__rseq_size != nullptr ? __rseq_size : 0);
  Print("cpu_id", CpuId());
  Print("same_answer", &rseq::Discover() == &d);
  errno = 78;
  Print("fence_cpu", rseq::FenceCpu(0));
  Print("fence_absent_cpu", rseq::FenceCpu(1 << 20));
  Print("fence_all", rseq::FenceAll());
  Print("errno_after_fence", errno);
  Print("current_cpu", rseq::CurrentCpu());
}

struct ThreadCounts {
  std::atomic<long> started, before_uninitialized, before_valid, usable, failed_mark, after_valid,
      signals_blocked, errno_changed;
};

void* CountThread(void* argument) {
  auto* counts = static_cast<ThreadCounts*>(argument);
  ++counts->started;
  if (rseq::ThisArea()->cpu_id == rseq::kUninitialized) ++counts->before_uninitialized;
  if (CpuId() >= 0) ++counts->before_valid;
  errno = 79;
  if (rseq::EnsureThreadRegistered()) ++counts->usable;
  if (rseq::EnsureThreadRegistered() != (CpuId() >= 0)) abort();
  if (errno != 79) ++counts->errno_changed;
  if (rseq::ThisArea()->cpu_id == rseq::kFailed) ++counts->failed_mark;
  if (CpuId() >= 0) ++counts->after_valid;
  sigset_t mask;
  pthread_sigmask(SIG_BLOCK, nullptr, &mask);
  if (sigismember(&mask, SIGUSR1) || sigismember(&mask, SIGTERM)) ++counts->signals_blocked;
  return nullptr;
}

void LookThreads() {
  rseq::Discover();
  static ThreadCounts counts;
  constexpr int kThreads = 1000;
  static pthread_t threads[kThreads];
  pthread_attr_t attributes;
  pthread_attr_init(&attributes);
  pthread_attr_setstacksize(&attributes, 128 << 10);
  for (pthread_t& thread : threads) {
    if (pthread_create(&thread, &attributes, CountThread, &counts) != 0) abort();
  }
  for (const pthread_t thread : threads) pthread_join(thread, nullptr);
  Print("threads_started", counts.started);
  Print("threads_before_uninitialized", counts.before_uninitialized);
  Print("threads_before_valid", counts.before_valid);
  Print("threads_usable", counts.usable);
  Print("threads_failed_mark", counts.failed_mark);
  Print("threads_after_valid", counts.after_valid);
  Print("threads_signals_blocked", counts.signals_blocked);
  Print("threads_errno_changed", counts.errno_changed);
}

// The CPU by rseq, after pinning to the last CPU that is allowed; -1: not what was pinned to.
int PinnedCpuId() {
  cpu_set_t allowed;
  sched_getaffinity(0, sizeof(allowed), &allowed);
  int last = -1;
  for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
    if (CPU_ISSET(cpu, &allowed)) last = cpu;
  }
  for (int cpu = 0; cpu <= last; ++cpu) {
    if (!CPU_ISSET(cpu, &allowed)) continue;
    cpu_set_t one;
    CPU_ZERO(&one);
    CPU_SET(cpu, &one);
    if (sched_setaffinity(0, sizeof(one), &one) != 0 || CpuId() != cpu) return -1;
  }
  return last;
}

void LookFork() {
  rseq::EnsureThreadRegistered();
  fflush(stdout);
  const pid_t child = fork();
  if (child == 0) {
    Print("forked_cpu_id_follows", PinnedCpuId() >= 0);
    Print("forked_usable", rseq::EnsureThreadRegistered());
    Print("forked_fence", rseq::FenceAll());
    static ThreadCounts counts;
    pthread_t thread;
    if (pthread_create(&thread, nullptr, CountThread, &counts) != 0) abort();
    pthread_join(thread, nullptr);
    Print("forked_thread_usable", counts.usable);
    fflush(stdout);
    _exit(0);
  }
  int status;
  waitpid(child, &status, 0);
  Print("forked_status", status);
}

volatile long vfork_usable = -1;

void* VforkInUnregisteredThread(void*) {
  Print("vfork_before_cpu_id", CpuId());
  const pid_t child = vfork();
  if (child == 0) {
    vfork_usable = rseq::EnsureThreadRegistered();
    _exit(0);
  }
  int status;
  waitpid(child, &status, 0);
  Print("vfork_child_usable", vfork_usable);
  Print("vfork_parent_cpu_id", CpuId());
  Print("vfork_parent_usable", rseq::EnsureThreadRegistered());
  Print("vfork_parent_cpu_id_follows", PinnedCpuId() >= 0);
  return nullptr;
}

void LookVfork() {
  rseq::Discover();
  pthread_t thread;
  if (pthread_create(&thread, nullptr, VforkInUnregisteredThread, nullptr) != 0) abort();
  pthread_join(thread, nullptr);
}

void* UnregisterInThread(void*) {
  Print("unregister_before", rseq::EnsureThreadRegistered());
  rseq::UnregisterThread();
  Print("unregister_cpu_id", CpuId());
  Print("unregister_usable", rseq::EnsureThreadRegistered());
  return nullptr;
}

void LookUnregister() {
  pthread_t thread;
  if (pthread_create(&thread, nullptr, UnregisterInThread, nullptr) != 0) abort();
  pthread_join(thread, nullptr);
}

std::atomic<long> detached_usable{0}, detached_ended{0};

void* DetachedThread(void*) {
  detached_usable += rseq::EnsureThreadRegistered();
  ++detached_ended;
  return nullptr;
}

// Threads whose storage the C library may unmap before they have left the processor.
void LookDetached() {
  pthread_attr_t attributes;
  pthread_attr_init(&attributes);
  pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
  constexpr long kThreads = 20000;
  for (long i = 0; i < kThreads; ++i) {
    while (i - detached_ended > 100) sched_yield();
    pthread_t thread;
    if (pthread_create(&thread, &attributes, DetachedThread, nullptr) != 0) abort();
  }
  while (detached_ended < kThreads) sched_yield();
  Print("detached_usable", detached_usable);
}

// Destructors of another key, made after the library's: what they find in each pass.
pthread_key_t end_key;
int end_cpu_id[4] = {-999, -999, -999, -999};
bool end_usable[4];

void LookAtEnd(void* value) {
  const auto pass = reinterpret_cast<uintptr_t>(value);
  end_usable[pass - 1] = rseq::EnsureThreadRegistered();
  end_cpu_id[pass - 1] = CpuId();
  if (pass < 3) pthread_setspecific(end_key, reinterpret_cast<void*>(pass + 1));
}

void* EndingThread(void* registered) {
  if (registered != nullptr) rseq::EnsureThreadRegistered();
  pthread_setspecific(end_key, reinterpret_cast<void*>(uintptr_t{1}));
  return nullptr;
}

void RunEndingThread(bool registered) {
  rseq::Discover();
  pthread_key_create(&end_key, LookAtEnd);
  pthread_t thread;
  if (pthread_create(&thread, nullptr, EndingThread, registered ? &end_key : nullptr)) abort();
  pthread_join(thread, nullptr);
  Print("end_usable_1", end_usable[0]);
  Print("end_usable_2", end_usable[1]);
  Print("end_usable_3", end_usable[2]);
  Print("end_cpu_id_3", end_cpu_id[2]);
}

void LookEnd() { RunEndingThread(true); }
void LookEndUnregistered() { RunEndingThread(false); }

// Somebody else's area, registered before the library looks.
void LookForeign() {
  alignas(64) static rseq::Area foreign = {0, rseq::kUninitialized, 0, 0, 0, 0, 0};
  Print("foreign_result", syscall(SYS_rseq, &foreign, 32, 0, pcmalloc::rseq::kSignature));
}

std::atomic<const rseq::Discovery*> first_answer{nullptr};
std::atomic<long> different_answers{0};
std::atomic<bool> go{false};

void* RaceThread(void*) {
  while (!go.load()) {
  }
  const rseq::Discovery* answer = &rseq::Discover();
  const rseq::Discovery* expected = nullptr;
  if (!first_answer.compare_exchange_strong(expected, answer) && expected != answer) {
    ++different_answers;
  }
  return nullptr;
}

// More threads than Discover() has slots, all calling it for the first time.
void LookRace() {
  pthread_t threads[16];
  for (pthread_t& thread : threads) {
    if (pthread_create(&thread, nullptr, RaceThread, nullptr) != 0) abort();
  }
  go.store(true);
  for (const pthread_t thread : threads) pthread_join(thread, nullptr);
  Print("race_different_answers", different_answers);
}

constexpr struct {
  const char* name;
  void (*look)();
} kLooks[] = {
    {"initial", LookInitial},
    {"feature33", LookFeature33},
    {"request32", LookRequest32},
    {"foreign", LookForeign},
    {"race", LookRace},
    {"discover", LookDiscover},
    {"threads", LookThreads},
    {"fork", LookFork},
    {"unregister", LookUnregister},
    {"vfork", LookVfork},
    {"detached", LookDetached},
    {"end", LookEnd},
    {"end_unregistered", LookEndUnregistered},
};

}  // namespace

int ProbeMain(int argc, char** argv) {
  if (argc != 2) return 2;
  for (char* name = strtok(argv[1], ","); name != nullptr; name = strtok(nullptr, ",")) {
    bool known = false;
    for (const auto& entry : kLooks) {
      if (strcmp(entry.name, name) == 0) {
        entry.look();
        known = true;
      }
    }
    if (!known) return 2;
  }
  fflush(stdout);
  return 0;
}
