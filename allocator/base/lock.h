// SPDX-License-Identifier: Apache-2.0
//
// Purpose: a mutual exclusion lock that knows its owner, so that a signal handler which
//   interrupted the owner is told so instead of waiting for itself for ever.
//
//      word_   0                  free
//              ThreadId()         held by that thread
//              ThreadId() | 1     held, and somebody sleeps in the kernel
//
//   Owner and state are one word because a signal may arrive between any two stores.
//
// Invariants: constant-initialised (usable before any constructor); no allocation; errno untouched.
// Cost: one compare-and-swap to take, one exchange to give back; waiting spins briefly, then sleeps
//   on a futex (the word's low half).
#ifndef PCMALLOC_ALLOCATOR_BASE_LOCK_H_
#define PCMALLOC_ALLOCATOR_BASE_LOCK_H_

#include <stdint.h>

#include <atomic>

namespace pcmalloc {

// Identifies the calling thread: an even, non-zero address inside its thread-local storage. A vfork
// child has the value of its parent, which sleeps meanwhile.
uintptr_t ThreadId();

class Lock {
 public:
  constexpr Lock() = default;
  Lock(const Lock&) = delete;
  Lock& operator=(const Lock&) = delete;

  // Takes the lock, waiting if need be. Returns false, at once and without the lock, when the
  // calling thread holds it already: the caller runs in a signal handler that interrupted the
  // holder and must reach its aim another way. Async-signal-safe.
  [[nodiscard]] bool Acquire();

  // Takes the lock if nobody holds it.
  [[nodiscard]] bool TryAcquire();

  // The calling thread must hold the lock.
  void Release();

  bool HeldBySelf() const {
    return (word_.load(std::memory_order_relaxed) & ~kSleepers) == ThreadId();
  }

 private:
  static constexpr uintptr_t kFree = 0;
  static constexpr uintptr_t kSleepers = 1;

  void AcquireSlow();

  std::atomic<uintptr_t> word_{kFree};
};

// Holds a lock for a scope. Test it before touching what the lock protects:
//   LockHolder held(lock_);
//   if (!held) return ...;  // this thread holds it further up its own stack
class LockHolder {
 public:
  explicit LockHolder(Lock& lock) : lock_(lock.Acquire() ? &lock : nullptr) {}
  ~LockHolder() {
    if (lock_ != nullptr) lock_->Release();
  }
  LockHolder(const LockHolder&) = delete;
  LockHolder& operator=(const LockHolder&) = delete;

  explicit operator bool() const { return lock_ != nullptr; }

 private:
  Lock* const lock_;
};

}  // namespace pcmalloc

#endif  // PCMALLOC_ALLOCATOR_BASE_LOCK_H_
