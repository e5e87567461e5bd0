// SPDX-License-Identifier: Apache-2.0
#include "allocator/release/background.h"

#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <sys/prctl.h>
#include <time.h>

#include "allocator/base/lock.h"
#include "allocator/base/report.h"
#include "allocator/base/syscall.h"
#include "allocator/base/threads.h"
#include "allocator/central/sweep.h"
#include "allocator/config/config.h"
#include "allocator/os/clock.h"
#include "allocator/pages/page_heap.h"
#include "allocator/release/limits.h"
#include "allocator/release/maintenance.h"
#include "allocator/release/surroundings.h"

extern "C" {
// Weak: a program that is linked statically and has no threads need not get the code for them.
extern __typeof(pthread_create) pthread_create __attribute__((weak));
const char* gnu_get_libc_version() __attribute__((weak));
}

namespace pcmalloc::release {

constinit std::atomic<Attention> attention{Attention::kNone};

namespace {

// Touched where it is used alone. Roomy, because exit handlers of the program run on it if this is
// the last thread (see AloneInTheProcess).
constexpr size_t kStackBytes = size_t{1} << 20;

// How long the first thread waits with it after the second one came: it may be inside the very
// pthread_create that made the second, or about to do more before main.
constexpr uint64_t kSettleMs = 20;
constexpr uint64_t kRetryMs = 100;
constexpr int kMostFailures = 5;

// Slow paths between two that look whether something is due.
constexpr uint32_t kVisitsPerTick = 16;
// Of a sweep inside of spans: a millisecond or less.
constexpr unsigned kStretchesPerTick = 16;

// The coarse clock goes by the kernel's ticks, a hundred a second at least.
constexpr uint64_t kClockTickMs = 10;

// Threads' wakeups may be put off by so much, to share them with others'.
constexpr unsigned long kSlackNs = 5'000'000;

constinit std::atomic<CreateThread*> create_thread{nullptr};
constinit std::atomic<bool> allowed{false};
constinit std::atomic<bool> wanted_anyway{false};  // background_thread:on
constinit std::atomic<uintptr_t> first_thread{0};
constinit std::atomic<long> process{0};
constinit std::atomic<bool> flag_tells{false};  // the C library knew of one thread at first
constinit std::atomic<uint64_t> threads_since_ms{0};
constinit std::atomic<uint64_t> next_try_ms{0};
constinit std::atomic<uint64_t> odd_mask{0};
constinit std::atomic<int> failures{0};
constinit std::atomic<uint32_t> visits{0};

constinit std::atomic<const char*> state{"not started"};
constinit std::atomic<uint64_t> wakeups{0};
constinit std::atomic<uint64_t> started{0};

constexpr uint64_t Bit(int signal) { return uint64_t{1} << (signal - 1); }

// Left open: what the thread itself causes, or the program's handler would not see it (SIGSYS: of
// a filter whose handler does the system call in another way), and the signals that a C library
// uses for its own ends, setuid in all threads for one, which waits for every thread. glibc has two
// from 32 on, musl three.
uint64_t MaskForThread() {
  constexpr uint64_t kOwn =
      Bit(SIGILL) | Bit(SIGTRAP) | Bit(SIGBUS) | Bit(SIGFPE) | Bit(SIGSEGV) | Bit(SIGSYS);
  return ~(kOwn | Bit(32) | Bit(33) | (gnu_get_libc_version != nullptr ? 0 : Bit(34)));
}

void SwapMask(const uint64_t* mask, uint64_t* before) {
  RawSyscall(SYS_rt_sigprocmask, SIG_SETMASK, mask, before, sizeof(*mask));
}

// Whether a thread with this mask is probably not in a signal handler, during which at least the
// signal itself is blocked. Programs that block signals in all threads show the same mask again.
bool LooksLikeOrdinaryCode(uint64_t mask) {
  return mask == 0 || odd_mask.exchange(mask, std::memory_order_relaxed) == mask;
}

// A thread is like the one that started it, which may be pinned to one CPU, or real-time.
void BecomeOrdinary() {
  uint64_t main_mask[128] = {};
  uint64_t own_mask[128] = {};
  const long size = RawSyscall(SYS_sched_getaffinity, process.load(), sizeof(main_mask), main_mask);
  RawSyscall(SYS_sched_getaffinity, 0, sizeof(own_mask), own_mask);
  if (size > 0 && __builtin_memcmp(main_mask, own_mask, sizeof(own_mask)) != 0) {
    RawSyscall(SYS_sched_setaffinity, 0, size, main_mask);
  }
  const long policy = RawSyscall(SYS_sched_getscheduler, 0) & ~long{SCHED_RESET_ON_FORK};
  if (policy == SCHED_FIFO || policy == SCHED_RR || policy == 6 /* SCHED_DEADLINE */) {
    const sched_param none = {};
    RawSyscall(SYS_sched_setscheduler, 0, SCHED_OTHER, &none);
  }
}

void Sleep(uint64_t ms) {
  const timespec time = {static_cast<time_t>(ms / 1000), static_cast<long>(ms % 1000) * 1'000'000};
  // A futex that nobody wakes: filters of system calls let it pass more surely than nanosleep.
  static constinit uint32_t nobody = 0;
  RawSyscall(SYS_futex, &nobody, FUTEX_WAIT_PRIVATE, 0, &time, nullptr, 0);
  wakeups.fetch_add(1, std::memory_order_relaxed);
}

void* Run(void*) {
  // A filter may kill the process for a call that the program itself never makes.
  const Sandbox sandbox = FindSandbox();
  const bool filtered = sandbox != Sandbox::kNone;
  if (sandbox == Sandbox::kClosed) LeaveFilesAlone();
  if (!filtered) {
    RawSyscall(SYS_prctl, PR_SET_NAME, "pcmalloc", 0, 0, 0);
    RawSyscall(SYS_prctl, PR_SET_TIMERSLACK, kSlackNs, 0, 0, 0);
    BecomeOrdinary();
  }
  ForgetMaintenance();
  PageHeap::SetHelped(true);
  SetWatched(true);
  const uint64_t period = PeriodMs(GetConfig().decay);
  Sleep(period);
  while (filtered || !AloneInTheProcess()) {
    const uint64_t wait = Maintain(os::CoarseMilliseconds());
    if (wait != UINT64_MAX) {
      Sleep(wait);
      continue;
    }
    // Who passed while attention was kNone told nobody: one more look after a period in which
    // everybody does.
    attention.store(Attention::kNote, std::memory_order_seq_cst);
    Sleep(period + kClockTickMs);
    const bool over = Maintain(os::CoarseMilliseconds()) == UINT64_MAX;
    Attention note = Attention::kNote;
    if (over && attention.compare_exchange_strong(note, Attention::kNone)) break;
    attention.store(Attention::kNone, std::memory_order_relaxed);
  }
  PageHeap::SetHelped(false);
  SetWatched(false);
  // The last words: from here on another may be started.
  state.store("watching", std::memory_order_relaxed);
  attention.store(Attention::kWatch, std::memory_order_release);
  return nullptr;
}

void SwitchOff(const char* why) {
  state.store(why, std::memory_order_relaxed);
  attention.store(GetConfig().decay == kNever ? Attention::kNone : Attention::kTick,
                  std::memory_order_relaxed);
}

int Create() {
  pthread_attr_t attributes;
  pthread_t thread;
  int error = pthread_attr_init(&attributes);
  if (error != 0) return error;
  pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
  CreateThread* const given = create_thread.load(std::memory_order_relaxed);
  CreateThread* const create = given != nullptr ? given : &pthread_create;
  // Thread-local storage of the program may leave nothing of a small stack.
  for (size_t bytes = kStackBytes;; bytes *= 16) {
    pthread_attr_setstacksize(&attributes, bytes);
    error = create(&thread, &attributes, Run, nullptr);
    if (error != EINVAL || bytes > kStackBytes) break;
  }
  pthread_attr_destroy(&attributes);
  return error;
}

void TryToStart(uint64_t now_ms) {
  // A vfork child runs on its parent's memory: the thread would be the child's.
  if (RawSyscall(SYS_getpid) != process.load(std::memory_order_relaxed)) return;
  Attention watch = Attention::kWatch;
  if (!attention.compare_exchange_strong(watch, Attention::kNone, std::memory_order_acquire)) {
    return;
  }
  ErrnoSaver saver;
  const uint64_t mask = MaskForThread();
  uint64_t before = 0;
  SwapMask(&mask, &before);
  int error = EAGAIN;
  const bool ordinary = LooksLikeOrdinaryCode(before);
  if (ordinary) {
    state.store("running", std::memory_order_relaxed);
    error = Create();
  }
  SwapMask(&before, nullptr);
  if (error == 0) {
    started.fetch_add(1, std::memory_order_relaxed);
    return;
  }
  next_try_ms.store(now_ms + kRetryMs, std::memory_order_relaxed);
  if (ordinary && failures.fetch_add(1, std::memory_order_relaxed) + 1 == kMostFailures) {
    SwitchOff("off: pthread_create failed again and again");
    return;
  }
  state.store("watching", std::memory_order_relaxed);
  attention.store(Attention::kWatch, std::memory_order_relaxed);
}

void Watch() {
  if (!allowed.load(std::memory_order_relaxed)) return;
  uint64_t now_ms = 0;
  if (!wanted_anyway.load(std::memory_order_relaxed) &&
      ThreadId() == first_thread.load(std::memory_order_relaxed)) {
    if (!flag_tells.load(std::memory_order_relaxed) || KnownThreads() != Threads::kSeveral) return;
    now_ms = os::CoarseMilliseconds();
    uint64_t since = 0;
    if (threads_since_ms.compare_exchange_strong(since, now_ms)) return;
    if (now_ms - since < kSettleMs) return;
  }
  if (now_ms == 0) now_ms = os::CoarseMilliseconds();
  if (now_ms >= next_try_ms.load(std::memory_order_relaxed)) TryToStart(now_ms);
}

// Who the only thread is, and from when on the C library's word counts.
void Remember() {
  first_thread.store(ThreadId(), std::memory_order_relaxed);
  process.store(RawSyscall(SYS_getpid), std::memory_order_relaxed);
  flag_tells.store(KnownThreads() == Threads::kOne, std::memory_order_relaxed);
  threads_since_ms.store(0, std::memory_order_relaxed);
  next_try_ms.store(0, std::memory_order_relaxed);
}

}  // namespace

void CreateThreadBy(CreateThread* create) {
  create_thread.store(create, std::memory_order_relaxed);
}

void WatchForThreads() {
  Remember();
  if (GetConfig().background_thread == BackgroundThread::kOff) {
    SwitchOff("off: asked for by PCMALLOC_CONF (background_thread:off)");
    return;
  }
  if (GetConfig().decay == kNever) {
    SwitchOff("off: decay:never leaves it nothing to do");
    return;
  }
  if (pthread_create == nullptr) {
    SwitchOff("off: the program is linked without threads");
    return;
  }
  wanted_anyway.store(GetConfig().background_thread == BackgroundThread::kOn,
                      std::memory_order_relaxed);
  state.store("watching", std::memory_order_relaxed);
  attention.store(Attention::kWatch, std::memory_order_relaxed);
}

void AllowThread() { allowed.store(true, std::memory_order_relaxed); }

void PayAttention(bool may_start) {
  Attention seen = attention.load(std::memory_order_relaxed);
  if (seen == Attention::kNote) {
    attention.compare_exchange_strong(seen, Attention::kNone);
    return;
  }
  // Reading the clock costs as much as a tenth of a miss.
  const uint32_t visit = visits.load(std::memory_order_relaxed) + 1;
  visits.store(visit, std::memory_order_relaxed);
  if (visit % kVisitsPerTick == 0) {
    const uint64_t now_ms = os::CoarseMilliseconds();
    PageHeap::Tick();
    GatherOnTick(now_ms);
    (void)central::DecayHoles(now_ms, kStretchesPerTick);
    OnTick(now_ms);
  }
  if (seen == Attention::kWatch && may_start) Watch();
}

void ForgetThread() {
  if (GetConfig().background_thread == BackgroundThread::kOff || first_thread.load() == 0) return;
  // The parent may have been about to find out that it cannot be.
  const char* const was = state.load(std::memory_order_relaxed);
  if (was[0] == 'o') return;
  Remember();
  PageHeap::SetHelped(false);
  SetWatched(false);
  wanted_anyway.store(false, std::memory_order_relaxed);
  started.store(0, std::memory_order_relaxed);
  wakeups.store(0, std::memory_order_relaxed);
  state.store("watching", std::memory_order_relaxed);
  attention.store(Attention::kWatch, std::memory_order_relaxed);
}

BackgroundStats ReadBackgroundStats() {
  return {state.load(std::memory_order_relaxed), wakeups.load(std::memory_order_relaxed),
          started.load(std::memory_order_relaxed)};
}

}  // namespace pcmalloc::release
