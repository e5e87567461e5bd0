// SPDX-License-Identifier: Apache-2.0
//
// Purpose: the threads that allocate, stamp, hand over, verify and free.
//
//   Each worker owns lasting slots (blocks kept for a while), scratch slots (hot pairs and bursts),
//   keepsakes (never freed before the end, so that fork children may verify those of every thread)
//   and the slots of its signal handler. Blocks change hands through cells that all workers share:
//   a worker exchanges what it gives for whatever lies there.
//
// Invariants: a slot or cell holds the index of at most one block description, and a description
//   lies in at most one slot or cell; all of it in memory from mmap.
// Cost: a hand-over is one atomic exchange.
#ifndef PCMALLOC_TESTS_STRESS_WORKER_H_
#define PCMALLOC_TESTS_STRESS_WORKER_H_

#include <sys/types.h>

#include <atomic>

#include "tests/stress/actor.h"

namespace stress {

class Worker {
 public:
  // Allocates the books of `count` workers.
  static void InitAll(unsigned count);
  static Worker& At(unsigned index);
  static unsigned count();

  // Starts the thread. False if the system refuses.
  bool Start();
  void AskToLeave() { leave_.store(true, std::memory_order_relaxed); }
  bool running() const { return running_.load(std::memory_order_acquire); }
  void AskToFork() { fork_wanted_.store(true, std::memory_order_relaxed); }
  // Kernel's thread id, 0 while there is no thread that may be signalled.
  pid_t tid() const { return tid_.load(std::memory_order_acquire); }
  // Pinned to a CPU for good: not to be migrated.
  bool pinned() const { return pinned_cpu_ >= 0; }

  uint64_t signals() const { return signals_.Get(); }
  uint64_t forks() const { return forks_.Get(); }
  const Counters& main_counters() const { return main_.counters(); }
  const Counters& handler_counters() const { return handler_.counters(); }

  // Verifies and frees, through `actor`, every block of every worker and cell. No worker may run.
  // Returns how many blocks there were.
  static uint64_t FreeAll(Actor& actor);

  // Signal number of the storm; its handler allocates and frees in the interrupted thread.
  static int StormSignal();
  static void InstallStormHandler();

  // What the calling thread is called in messages: "thread 3", "another thread".
  static int CurrentThread();
  static bool CurrentInsideMalloc();

 private:
  static constexpr unsigned kScratch = 256;
  static constexpr unsigned kHandlerSlots = 8;
  static constexpr unsigned kKeepsakes = 16;

  static void* ThreadMain(void* self);
  static void OnStorm(int signal);
  static bool IsHeldByForker(const Block& block);

  void Init(unsigned index);
  void SetUpThread();
  void Run();
  void HotPairs();
  void Churn();
  void Burst();
  void Exchange();
  void ForkOnce();
  [[noreturn]] void RunForkChild();
  void WaitForChild(pid_t child);
  void HandlerStep();
  void HandOver(uint32_t* slot);

  Actor main_;
  Actor handler_;
  unsigned index_ = 0;
  int pinned_cpu_ = -1;
  unsigned scratch_next_ = 0;
  uint32_t* lasting_ = nullptr;
  uint32_t scratch_[kScratch];
  uint32_t handler_slots_[kHandlerSlots];
  uint32_t keepsakes_[kKeepsakes];
  bool keepsakes_made_ = false;
  void* signal_stack_ = nullptr;
  std::atomic<bool> leave_{false};
  std::atomic<bool> running_{false};
  std::atomic<bool> fork_wanted_{false};
  std::atomic<pid_t> tid_{0};
  Counter signals_;
  Counter forks_;
};

// Set once, at the end of the run or after an interrupt: all threads leave.
extern std::atomic<bool> stopping;

// Gives the calling thread a stack of its own for the crash handler; `stack` from an earlier call,
// or null for a new one.
void* UseSignalStack(void* stack);

}  // namespace stress

#endif  // PCMALLOC_TESTS_STRESS_WORKER_H_
