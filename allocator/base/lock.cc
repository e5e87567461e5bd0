// SPDX-License-Identifier: Apache-2.0
#include "allocator/base/lock.h"

#include <linux/futex.h>
#include <time.h>

#include "absl/base/optimization.h"
#include "allocator/base/syscall.h"

namespace pcmalloc {
namespace {

// Aligned so that the bit that Lock::kSleepers names is free in its address.
struct alignas(8) ThreadState {
  std::atomic<LockRank> highest{LockRank::kNone};  // of the locks held or about to be taken
};
constinit thread_local ThreadState thread_state;

// Long enough to outlast a holder that runs on another CPU (a batch copy, well below a
// microsecond), short enough to be nothing beside a sleep when the holder was preempted.
constexpr int kSpins = 100;

constexpr int kForkSleeps = 1000;  // of 100 us

inline void SpinPause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

// The futex is the half of the word that holds kSleepers: the first, on little-endian machines.
static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__);
uint32_t* FutexOf(std::atomic<uintptr_t>* word) { return reinterpret_cast<uint32_t*>(word); }

// A signal handler on this thread must see the announcement in program order; no other thread reads
// it.
void Announce(LockRank rank) {
  thread_state.highest.store(rank, std::memory_order_relaxed);
  std::atomic_signal_fence(std::memory_order_seq_cst);
}

void Withdraw(LockRank before) {
  std::atomic_signal_fence(std::memory_order_seq_cst);
  thread_state.highest.store(before, std::memory_order_relaxed);
}

LockRank Highest() { return thread_state.highest.load(std::memory_order_relaxed); }

}  // namespace

uintptr_t ThreadId() { return reinterpret_cast<uintptr_t>(&thread_state); }

bool HoldsAnyLock() { return Highest() != LockRank::kNone; }

bool Lock::TakeWord() {
  uintptr_t expected = kFree;
  return word_.compare_exchange_strong(expected, ThreadId(), std::memory_order_acquire,
                                       std::memory_order_relaxed);
}

void Lock::GiveWord() {
  if (ABSL_PREDICT_FALSE((word_.exchange(kFree, std::memory_order_release) & kSleepers) != 0)) {
    RawSyscall(SYS_futex, FutexOf(&word_), FUTEX_WAKE_PRIVATE, 1, nullptr, nullptr, 0);
  }
}

bool Lock::Acquire(LockRank rank) {
  const LockRank before = Highest();
  if (ABSL_PREDICT_FALSE(before >= rank)) return false;
  Announce(rank);
  if (ABSL_PREDICT_FALSE(!TakeWord())) {
    // Between the fork handlers this thread holds every lock, without ranks.
    if (HeldBySelf()) {
      Withdraw(before);
      return false;
    }
    WaitForWord();
  }
  rank_before_ = before;
  return true;
}

bool Lock::TryAcquire(LockRank rank) {
  const LockRank before = Highest();
  if (ABSL_PREDICT_FALSE(before >= rank)) return false;
  Announce(rank);
  if (!TakeWord()) {
    Withdraw(before);
    return false;
  }
  rank_before_ = before;
  return true;
}

bool Lock::AcquireSoon(LockRank rank) {
  const LockRank before = Highest();
  if (ABSL_PREDICT_FALSE(before >= rank)) return false;
  Announce(rank);
  if (ABSL_PREDICT_FALSE(!TakeWord() && (HeldBySelf() || !SpinForWord()))) {
    Withdraw(before);
    return false;
  }
  rank_before_ = before;
  return true;
}

void Lock::Release() {
  const LockRank before = rank_before_;
  GiveWord();
  Withdraw(before);
}

bool Lock::SpinForWord() {
  for (int i = 0; i < kSpins; ++i) {
    if (word_.load(std::memory_order_relaxed) == kFree && TakeWord()) return true;
    SpinPause();
  }
  return false;
}

void Lock::WaitForWord() {
  if (SpinForWord()) return;
  // Whoever has slept may not be the only sleeper, so it takes the lock with the bit set.
  const uintptr_t self = ThreadId() | kSleepers;
  while (true) {
    uintptr_t seen = word_.load(std::memory_order_relaxed);
    if (seen == kFree) {
      if (word_.compare_exchange_weak(seen, self, std::memory_order_acquire)) return;
      continue;
    }
    if ((seen & kSleepers) == 0 &&
        !word_.compare_exchange_weak(seen, seen | kSleepers, std::memory_order_relaxed)) {
      continue;
    }
    RawSyscall(SYS_futex, FutexOf(&word_), FUTEX_WAIT_PRIVATE,
               static_cast<uint32_t>(seen | kSleepers), nullptr, nullptr, 0);
  }
}

bool Lock::AcquireForFork(LockRank rank, ForkPatience patience) {
  if (HeldBySelf()) return false;
  bool taken = TakeWord();
  if (!taken && Highest() < rank) {
    WaitForWord();
    taken = true;
  }
  // Below what an interrupted frame of this thread holds, waiting could be for ever.
  for (int i = 0; !taken && i < kForkSleeps; ++i) {
    if (patience == ForkPatience::kNone) return false;
    if (for_fork_.load(std::memory_order_acquire)) return false;
    if (patience == ForkPatience::kUnlessAtRest && at_rest_.load(std::memory_order_acquire)) {
      return false;
    }
    const timespec pause = {0, 100'000};
    RawSyscall(SYS_nanosleep, &pause, nullptr);
    taken = TakeWord();
  }
  if (taken) for_fork_.store(true, std::memory_order_release);
  return taken;
}

void Lock::ReleaseAfterFork(bool in_child) {
  const bool left_at_rest = in_child && !HeldBySelf() && at_rest_.load(std::memory_order_relaxed);
  if (!left_at_rest &&
      (!for_fork_.load(std::memory_order_relaxed) || !(in_child || HeldBySelf()))) {
    return;
  }
  for_fork_.store(false, std::memory_order_relaxed);
  if (left_at_rest) at_rest_.store(false, std::memory_order_relaxed);
  GiveWord();
}

}  // namespace pcmalloc
