// SPDX-License-Identifier: Apache-2.0
#include "rseq/detect/probe.h"

#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <stddef.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>

#include <atomic>

#include "allocator/base/syscall.h"
#include "rseq/rseq.h"
#include "rseq/sections.h"
#if defined(__x86_64__)
#include "rseq/arch/probe_x86_64.h"
#else
#include "rseq/arch/probe_aarch64.h"
#endif

#ifndef SYS_rseq
#if defined(__x86_64__)
#define SYS_rseq 334
#else
#define SYS_rseq 293
#endif
#endif

namespace pcmalloc::rseq {
namespace {

constexpr size_t kStackBytes = 16 * 1024;
constexpr size_t kMostAreaBytes = 1024;
constexpr uint32_t kMark = 0x80000000u;  // as the legacy scheme's: bit 63 of the word
constexpr int kAttempts = 3;             // after which a CPU that does not stay allowed is given up
constexpr long kSleepNanoseconds = 20'000;
constexpr size_t kMaskBytes = 2048;  // twice what the largest kernel's mask takes

enum class Ending : uint8_t {
  kUnfinished,  // the helper was killed
  kRan,
  kMoved,    // a process left the CPU: the rounds say nothing
  kNotDone,  // see obstacle
};

// Shared by the three processes, written by one at a time or by atomics.
struct Shared {
  // What the program asks for.
  uint32_t length;
  bool mark;
  FakeKernel fake;
  long deadline;  // CLOCK_MONOTONIC, nanoseconds

  // What the spinner finds.
  std::atomic<uint32_t> wakes;
  std::atomic<int> registration_error;
  std::atomic<int> rounds;
  std::atomic<int> aborted;
  std::atomic<int> rewritten;
  std::atomic<bool> moved;

  // What the helper makes of it.
  Ending ending;
  int killed_by;
  const char* obstacle;
  int error;
  int cpu;

  unsigned long mask[kMaskBytes / sizeof(unsigned long)];
  alignas(kMostAreaBytes) unsigned char area[kMostAreaBytes];
  alignas(64) unsigned char helper_stack[kStackBytes];
  alignas(64) unsigned char spinner_stack[kStackBytes];
};

long Now() {
  timespec now = {};
  BareSyscall(SYS_clock_gettime, CLOCK_MONOTONIC, reinterpret_cast<long>(&now));
  return now.tv_sec * 1'000'000'000L + now.tv_nsec;
}

int CurrentCpuNumber() {
  unsigned cpu = 0;
  const long result = BareSyscall(SYS_getcpu, reinterpret_cast<long>(&cpu));
  return result == 0 ? static_cast<int>(cpu) : -1;
}

void Sleep() {
  const timespec time = {0, kSleepNanoseconds};
  BareSyscall(SYS_nanosleep, reinterpret_cast<long>(&time));
}

// The thread-local storage of the helpers is the program's: their code must not come near it, nor
// near an instrumentation that does.
#define PCM_HELPER __attribute__((no_sanitize("address", "thread", "undefined")))

PCM_HELPER int Spinner(void* argument) {
  auto* const s = static_cast<Shared*>(argument);
  // Dies with the helper, should that be killed.
  BareSyscall(SYS_prctl, PR_SET_PDEATHSIG, SIGKILL);
  // Under a real-time policy the helper, once awake, would wait for this loop to end.
  if (BareSyscall(SYS_sched_getscheduler, 0) > 0) {
    const sched_param none = {};
    BareSyscall(SYS_sched_setscheduler, 0, SCHED_OTHER, reinterpret_cast<long>(&none));
  }
  while (s->fake == FakeKernel::kHangs) Sleep();
  auto* const area = reinterpret_cast<Area*>(s->area);
  const long result = BareSyscall(SYS_rseq, reinterpret_cast<long>(area), s->length, 0, kSignature);
  if (result != 0) {
    s->registration_error = static_cast<int>(-result);
    return 0;
  }
  auto* const mark = &area->cpu_id_start;
  const uint64_t armed = s->fake == FakeKernel::kNeverAborts ? 0 : ~uint64_t{0};
  for (int round = 0; round < ProbeResult::kRounds; ++round) {
    if (s->mark) {
      __atomic_store_n(mark, kMark, __ATOMIC_RELAXED);
      if (s->fake == FakeKernel::kKills) BareSyscall(SYS_kill, BareSyscall(SYS_getpid), SIGKILL);
    }
    const bool aborted = SpinInSection(area, reinterpret_cast<uint32_t*>(&s->wakes), armed);
    if (s->mark) {
      if (s->fake == FakeKernel::kKeepsMark) __atomic_store_n(mark, kMark, __ATOMIC_RELAXED);
      if (__atomic_load_n(mark, __ATOMIC_RELAXED) != kMark) ++s->rewritten;
    }
    if (aborted) ++s->aborted;
    // Without a round on this CPU there was no preemption by the helper.
    if (CurrentCpuNumber() != s->cpu) s->moved = true;
    ++s->rounds;
  }
  return 0;
}

PCM_HELPER int GiveUp(Shared* s, const char* obstacle, long result) {
  s->ending = Ending::kNotDone;
  s->obstacle = obstacle;
  s->error = static_cast<int>(-result);
  return 0;
}

// Pins the calling process to a CPU that it may use, the present one if possible.
PCM_HELPER bool Pin(Shared* s) {
  constexpr size_t kBits = 8 * sizeof(unsigned long);
  const long mask = reinterpret_cast<long>(s->mask);
  const long bytes = BareSyscall(SYS_sched_getaffinity, 0, kMaskBytes, mask);
  const int present = CurrentCpuNumber();
  if (bytes <= 0 || present < 0) {
    GiveUp(s, "sched_getaffinity or getcpu is refused", bytes <= 0 ? bytes : 0);
    return false;
  }
  long result = -EINVAL;
  const int cpus = static_cast<int>(8 * bytes);
  for (int i = -1; i < cpus; ++i) {
    const int cpu = i < 0 ? present : i;
    if ((s->mask[cpu / kBits] >> (cpu % kBits) & 1) == 0) continue;
    // Read again in each turn: the kernel wants the one bit only.
    for (unsigned long& word : s->mask) word = 0;
    s->mask[cpu / kBits] = 1ul << (cpu % kBits);
    result = BareSyscall(SYS_sched_setaffinity, 0, bytes, mask);
    if (result == 0 && CurrentCpuNumber() == cpu) {
      s->cpu = cpu;
      return true;
    }
    if (BareSyscall(SYS_sched_getaffinity, 0, kMaskBytes, mask) <= 0) break;
  }
  GiveUp(s, "cannot pin a process to one CPU (sched_setaffinity)", result);
  return false;
}

// A spinner that is killed for its mark shall not leave a core. 1: not to a pipe either.
PCM_HELPER void ForbidCores() {
  rlimit limit = {};
  BareSyscall(SYS_prlimit64, 0, RLIMIT_CORE, 0, reinterpret_cast<long>(&limit));
  if (limit.rlim_max > 1) limit.rlim_max = 1;
  limit.rlim_cur = limit.rlim_max;
  BareSyscall(SYS_prlimit64, 0, RLIMIT_CORE, reinterpret_cast<long>(&limit));
}

PCM_HELPER int Helper(void* argument) {
  auto* const s = static_cast<Shared*>(argument);
  BareSyscall(SYS_prctl, PR_SET_PDEATHSIG, SIGKILL);
  BareSyscall(SYS_prctl, PR_SET_TIMERSLACK, 1);
  ForbidCores();
  if (!Pin(s)) return 0;
  const int spinner = clone(Spinner, s->spinner_stack + kStackBytes, CLONE_VM, s);
  if (spinner < 0) return GiveUp(s, "cannot make a process (clone)", -errno);
  int status = 0;
  long reaped;
  bool late = false;
  do {
    Sleep();
    s->wakes.fetch_add(1, std::memory_order_relaxed);
    if (CurrentCpuNumber() != s->cpu) s->moved = true;
    reaped = BareSyscall(SYS_wait4, spinner, reinterpret_cast<long>(&status), __WALL | WNOHANG);
    late = reaped == 0 && Now() > s->deadline;
  } while (reaped == 0 && !late);
  if (late) {
    BareSyscall(SYS_kill, spinner, SIGKILL);
    do {
      reaped = BareSyscall(SYS_wait4, spinner, reinterpret_cast<long>(&status), __WALL);
    } while (reaped == -EINTR);
    return GiveUp(s, "no answer in time: the machine is too busy", 0);
  }
  if (reaped != spinner) return GiveUp(s, "cannot wait for a process (wait4)", reaped);
  if (WIFSIGNALED(status)) s->killed_by = WTERMSIG(status);
  s->ending = s->moved ? Ending::kMoved : Ending::kRan;
  return 0;
}

// One run of helper and spinner. Every signal is blocked meanwhile and so in the helpers, where the
// program's handlers must never run.
void Run(Shared* s) {
  constexpr uint64_t kAll = ~uint64_t{0};
  constexpr int kSetMask = 2;
  uint64_t old = 0;
  const bool blocked = RawSyscall(SYS_rt_sigprocmask, kSetMask, &kAll, &old, sizeof(old)) == 0;
  // No exit signal: the program's SIGCHLD handlers and waits do not see this child.
  const ErrnoSaver saver;
  const int helper = clone(Helper, s->helper_stack + kStackBytes, CLONE_VM | CLONE_VFORK, s);
  if (helper < 0) {
    GiveUp(s, "cannot make a process (clone)", -errno);
  } else {
    int status;
    while (RawSyscall(SYS_wait4, helper, &status, __WALL, nullptr) == -EINTR) {
    }
  }
  if (blocked) RawSyscall(SYS_rt_sigprocmask, kSetMask, &old, nullptr, sizeof(old));
}

void Prepare(Shared* s, uint32_t length, bool mark, FakeKernel fake, long deadline) {
  s->length = length;
  s->mark = mark;
  s->fake = fake;
  s->deadline = deadline;
  s->wakes = 0;
  s->registration_error = s->rounds = s->aborted = s->rewritten = 0;
  s->moved = false;
  s->ending = Ending::kUnfinished;
  s->killed_by = s->error = 0;
  s->obstacle = "";
  s->cpu = -1;
  for (unsigned char& byte : s->area) byte = 0;
  reinterpret_cast<Area*>(s->area)->cpu_id = kUninitialized;
}

void Read(const Shared* s, ProbeResult& result) {
  result.registration_error = s->registration_error;
  result.aborted = s->aborted;
  result.rewritten = s->rewritten;
  result.killed_by = s->killed_by;
  result.obstacle = s->obstacle;
  result.error = s->error;
  switch (s->ending) {
    case Ending::kRan:
      if (s->registration_error != 0) break;
      result.finished = s->rounds == ProbeResult::kRounds || s->killed_by == SIGSEGV ||
                        (s->killed_by != 0 && s->fake == FakeKernel::kKills);
      if (!result.finished) result.obstacle = "a helper process was killed";
      break;
    case Ending::kMoved:
      result.obstacle = "the CPU was taken away while the probe ran";
      break;
    case Ending::kUnfinished:
      result.obstacle = "a helper process was killed";
      break;
    case Ending::kNotDone:
      break;
  }
}

// The process-wide answer of ClassifyForLegacy(). Racing callers find the same.
constinit std::atomic<Class32> known_class{Class32::kUnknown};

}  // namespace

ProbeResult Probe(uint32_t length, bool mark, FakeKernel fake) {
  ProbeResult result;
  const long begin = Now();
  if (length > kMostAreaBytes) {
    result.registration_error = EINVAL;
    return result;
  }
  const long address = RawSyscall(SYS_mmap, nullptr, sizeof(Shared), PROT_READ | PROT_WRITE,
                                  MAP_PRIVATE | MAP_ANONYMOUS, -1, 0l);
  if (address < 0 && address > -4096) {
    result.obstacle = "no memory for the probe's stacks (mmap)";
    result.error = static_cast<int>(-address);
    return result;
  }
  // Fields are stored one by one: a Shared on this stack would be large.
  auto* const shared = reinterpret_cast<Shared*>(address);
  static_assert(alignof(Shared) <= 4096);
  for (int attempt = 0; attempt < kAttempts; ++attempt) {
    Prepare(shared, length, mark, fake, begin + kMostNanoseconds);
    Run(shared);
    if (shared->ending != Ending::kMoved || Now() > shared->deadline) break;
  }
  Read(shared, result);
  RawSyscall(SYS_munmap, address, sizeof(Shared));
  result.nanoseconds = Now() - begin;
  return result;
}

Class32 Classify32(const ProbeResult& marked, const ProbeResult& unmarked) {
  if (marked.registration_error != 0) return Class32::kNoRseq;
  if (!marked.finished) return Class32::kUnknown;
  const bool killed = marked.killed_by != 0;
  const ProbeResult& aborts = killed ? unmarked : marked;
  if (!aborts.finished) return Class32::kUnknown;
  if (aborts.killed_by != 0 || aborts.aborted < ProbeResult::kRounds) return Class32::kNoRseq;
  if (killed || marked.rewritten < ProbeResult::kRounds) return Class32::kNoCache;
  return Class32::kCacheOk;
}

ClassV2 ClassifyV2(const ProbeResult& result) {
  if (result.registration_error != 0) return ClassV2::kNone;
  if (!result.finished) return ClassV2::kUnknown;
  if (result.killed_by != 0 || result.aborted < ProbeResult::kRounds) return ClassV2::kNoRseq;
  return ClassV2::kOk;
}

const char* Name(Class32 value) {
  switch (value) {
    case Class32::kCacheOk:
      return "CACHE_OK";
    case Class32::kNoCache:
      return "NO_CACHE";
    case Class32::kNoRseq:
      return "NO_RSEQ";
    case Class32::kUnknown:
      break;
  }
  return "unknown";
}

const char* Name(ClassV2 value) {
  switch (value) {
    case ClassV2::kOk:
      return "OK";
    case ClassV2::kNoRseq:
      return "NO_RSEQ";
    case ClassV2::kNone:
      return "none";
    case ClassV2::kUnknown:
      break;
  }
  return "unknown";
}

Finding32 FindClass32(FakeKernel fake) {
  constexpr uint32_t kLength = 32;
  Finding32 finding;
  finding.marked = Probe(kLength, /*mark=*/true, fake);
  ProbeResult unmarked;
  if (finding.marked.killed_by != 0) unmarked = Probe(kLength, /*mark=*/false, fake);
  finding.value = Classify32(finding.marked, unmarked);
  return finding;
}

FindingV2 FindClassV2(uint32_t length, FakeKernel fake) {
  FindingV2 finding;
  finding.result = Probe(length, /*mark=*/false, fake);
  finding.value = ClassifyV2(finding.result);
  return finding;
}

Class32 ClassifyForLegacy() {
  Class32 value = known_class.load(std::memory_order_relaxed);
  if (value != Class32::kUnknown) return value;
  value = FindClass32().value;
  known_class.store(value, std::memory_order_relaxed);
  return value;
}

}  // namespace pcmalloc::rseq
