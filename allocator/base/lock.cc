// SPDX-License-Identifier: Apache-2.0
#include "allocator/base/lock.h"

#include <linux/futex.h>

#include "absl/base/optimization.h"
#include "allocator/base/syscall.h"

namespace pcmalloc {
namespace {

// Aligned so that the bit that Lock::kSleepers names is free.
alignas(8) thread_local char thread_marker;

// Long enough to outlast a holder that runs on another CPU (a batch copy, well below a
// microsecond), short enough to be nothing beside a sleep when the holder was preempted.
constexpr int kSpins = 100;

inline void SpinPause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

// The futex is the half of the word that holds kSleepers: the first, on little-endian machines.
static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__);
uint32_t* FutexOf(std::atomic<uintptr_t>* word) { return reinterpret_cast<uint32_t*>(word); }

}  // namespace

uintptr_t ThreadId() { return reinterpret_cast<uintptr_t>(&thread_marker); }

bool Lock::TryAcquire() {
  uintptr_t expected = kFree;
  return word_.compare_exchange_strong(expected, ThreadId(), std::memory_order_acquire,
                                       std::memory_order_relaxed);
}

bool Lock::Acquire() {
  if (ABSL_PREDICT_TRUE(TryAcquire())) return true;
  if (HeldBySelf()) return false;
  AcquireSlow();
  return true;
}

void Lock::AcquireSlow() {
  for (int i = 0; i < kSpins; ++i) {
    if (word_.load(std::memory_order_relaxed) == kFree && TryAcquire()) return;
    SpinPause();
  }
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

void Lock::Release() {
  if (ABSL_PREDICT_FALSE((word_.exchange(kFree, std::memory_order_release) & kSleepers) != 0)) {
    RawSyscall(SYS_futex, FutexOf(&word_), FUTEX_WAKE_PRIVATE, 1, nullptr, nullptr, 0);
  }
}

}  // namespace pcmalloc
