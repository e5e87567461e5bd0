// SPDX-License-Identifier: Apache-2.0
//
// Purpose: a mutual exclusion lock that never makes a signal handler wait for what its own thread,
//   further up the stack, holds or is about to take.
//
//      word_   0                  free
//              ThreadId()         held by that thread
//              ThreadId() | 1     held, and somebody sleeps in the kernel
//
//   Every lock has a rank; the paths of the allocator take locks in rising ranks only. A thread
//   that asks for a rank that is not above all it holds is therefore in a signal handler that
//   interrupted the holder: it is refused at once. (It must not wait even for a lock of that rank
//   that another thread holds, because that thread may be waiting for what was interrupted here.)
//
// Invariants: constant-initialised (usable before any constructor); no allocation; errno untouched.
//   A thread announces a rank before it takes the lock and withdraws it after giving the lock back:
//   a signal in between finds too much announced, never too little.
// Cost: one compare-and-swap and three thread-local accesses to take, one exchange to give back;
//   waiting spins briefly, then sleeps on a futex (the word's low half).
#ifndef PCMALLOC_ALLOCATOR_BASE_LOCK_H_
#define PCMALLOC_ALLOCATOR_BASE_LOCK_H_

#include <stdint.h>

#include <atomic>

namespace pcmalloc {

// In the order in which the paths take them.
enum class LockRank : uint8_t {
  kNone,
  kCreation,  // making slabs
  kCpu,       // one CPU's slab
  kTransfer,  // one class's transfer cache
  kSweep,     // the search for memory inside of spans
  kCentral,   // one class's spans
  kReturn,    // returning memory to the operating system
  kPages,     // the page heap
};

// Identifies the calling thread: an even, non-zero address inside its thread-local storage. A vfork
// child has the value of its parent, which sleeps meanwhile.
uintptr_t ThreadId();

// How long a fork in a signal handler that interrupted the allocator waits for another thread that
// holds a lock. That one may itself be waiting, for what was interrupted.
enum class ForkPatience : uint8_t {
  kSome,          // some 100 ms
  kUnlessAtRest,  // the same, but not if the holder is at rest (Lock::SetAtRest)
  kNone,          // the child can take over what it guards (Lock::FreeInChild)
};

// Whether the calling thread holds a lock or is about to take one: true only in a signal handler
// that interrupted the allocator, or between the fork handlers' locks and such.
bool HoldsAnyLock();

// The lock without its rank; use RankedLock.
class Lock {
 public:
  constexpr Lock() = default;
  Lock(const Lock&) = delete;
  Lock& operator=(const Lock&) = delete;

  // The calling thread must hold the lock.
  void Release();

  bool HeldBySelf() const {
    return (word_.load(std::memory_order_relaxed) & ~kSleepers) == ThreadId();
  }

  // Undoes AcquireForFork where that returned true; no effect on locks held otherwise. In the child
  // also frees a lock that another thread, which is not there, had taken for a fork of its own.
  void ReleaseAfterFork(bool in_child = false);

  // Whether a thread has it that is between the fork handlers: what it guards is at rest.
  bool HeldForFork() const { return for_fork_.load(std::memory_order_relaxed); }

  // The holder says that what the lock guards is at rest while it waits for a higher lock: a fork
  // in a signal handler that interrupted whoever has that one need not wait for this one, and the
  // child may free it.
  void SetAtRest(bool at_rest) { at_rest_.store(at_rest, std::memory_order_release); }

  // In a fork's child, for a lock that fork did not take, of which what it guards can be taken over
  // in any state: frees it if its holder is not there; whether that was so.
  bool FreeInChild() {
    if (HeldBySelf()) return false;
    return word_.exchange(kFree, std::memory_order_relaxed) != kFree;
  }

 protected:
  bool Acquire(LockRank rank);
  bool TryAcquire(LockRank rank);
  bool AcquireSoon(LockRank rank);
  bool AcquireForFork(LockRank rank, ForkPatience patience);

 private:
  static constexpr uintptr_t kFree = 0;
  static constexpr uintptr_t kSleepers = 1;

  bool TakeWord();
  bool SpinForWord();
  void WaitForWord();
  void GiveWord();

  std::atomic<uintptr_t> word_{kFree};
  std::atomic<bool> for_fork_{false};       // the holder is between the fork handlers
  std::atomic<bool> at_rest_{false};        // see SetAtRest
  LockRank rank_before_ = LockRank::kNone;  // the holder's highest rank without this lock
};

// The rank is part of the type, so that arrays of locks are zero in the file.
template <LockRank kRank>
class RankedLock : public Lock {
 public:
  // Takes the lock, waiting if need be. Returns false, at once and without the lock, when the
  // calling thread holds a lock of this or a higher rank: the caller must reach its aim another
  // way. Async-signal-safe.
  [[nodiscard]] bool Acquire() { return Lock::Acquire(kRank); }

  // The same, but never waits.
  [[nodiscard]] bool TryAcquire() { return Lock::TryAcquire(kRank); }

  // The same, but waits only as long as a holder that runs and does not sleep needs. For locks that
  // may be held for long, where there is another way.
  [[nodiscard]] bool AcquireSoon() { return Lock::AcquireSoon(kRank); }

  // For fork handlers, which take all locks, several of one rank among them: false if the calling
  // thread holds this one already, or if it is in a signal handler that interrupted the allocator
  // and another thread does not give the lock back: at once if that thread is forking itself (what
  // the lock guards is at rest then, and ReleaseAfterFork frees it in the child), else when
  // `patience` ends (then the child inherits a lock that nobody gives back, unless FreeInChild
  // takes care of it). kUnlessAtRest is for who itself holds, further up its stack, the lock that
  // holders at rest wait for.
  [[nodiscard]] bool AcquireForFork(ForkPatience patience = ForkPatience::kSome) {
    return Lock::AcquireForFork(kRank, patience);
  }
};

// Says for a scope that what a lock guards, which the calling thread holds, is at rest.
class AtRest {
 public:
  explicit AtRest(Lock& lock) : lock_(lock) { lock_.SetAtRest(true); }
  ~AtRest() { lock_.SetAtRest(false); }
  AtRest(const AtRest&) = delete;
  AtRest& operator=(const AtRest&) = delete;

 private:
  Lock& lock_;
};

// Holds a lock for a scope. Test it before touching what the lock protects:
//   LockHolder held(lock_);
//   if (!held) return ...;  // this thread is in a signal handler inside the allocator
template <LockRank kRank>
class LockHolder {
 public:
  explicit LockHolder(RankedLock<kRank>& lock) : lock_(lock.Acquire() ? &lock : nullptr) {}
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
