// SPDX-License-Identifier: Apache-2.0
#include "allocator/base/lock.h"

#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <thread>
#include <vector>

#include "gtest/gtest.h"

namespace pcmalloc {
namespace {

TEST(LockTest, ExcludesThreads) {
  RankedLock<LockRank::kPages> lock;
  int64_t counter = 0;
  std::vector<std::thread> threads;
  for (int t = 0; t < 8; ++t) {
    threads.emplace_back([&] {
      for (int i = 0; i < 50'000; ++i) {
        LockHolder held(lock);
        ASSERT_TRUE(held);
        // Not atomic: two holders at once would lose an increment.
        counter = counter + 1;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(counter, 8 * 50'000);
}

TEST(LockTest, RefusesWhatItsThreadHolds) {
  RankedLock<LockRank::kCentral> lock;
  ASSERT_TRUE(lock.Acquire());
  EXPECT_TRUE(lock.HeldBySelf());
  EXPECT_FALSE(lock.Acquire());
  EXPECT_FALSE(lock.TryAcquire());
  std::thread([&] {
    EXPECT_FALSE(lock.HeldBySelf());
    EXPECT_FALSE(lock.TryAcquire());
  }).join();
  lock.Release();
  EXPECT_FALSE(lock.HeldBySelf());
  EXPECT_TRUE(lock.TryAcquire());
  lock.Release();
}

TEST(LockTest, TakesRisingRanksOnly) {
  RankedLock<LockRank::kCpu> cpu;
  RankedLock<LockRank::kCpu> other_cpu;
  RankedLock<LockRank::kCentral> central;
  ASSERT_TRUE(cpu.Acquire());
  EXPECT_FALSE(other_cpu.Acquire()) << "a second lock of one rank";
  ASSERT_TRUE(central.Acquire());
  central.Release();
  cpu.Release();
  ASSERT_TRUE(central.Acquire());
  EXPECT_FALSE(cpu.Acquire()) << "a lower rank";
  central.Release();
  EXPECT_TRUE(cpu.Acquire());
  cpu.Release();
}

TEST(LockTest, RefusesWhatItsThreadHoldsForAFork) {
  RankedLock<LockRank::kCentral> first;
  RankedLock<LockRank::kCentral> second;
  ASSERT_TRUE(first.AcquireForFork());
  ASSERT_TRUE(second.AcquireForFork()) << "fork takes several locks of one rank";
  EXPECT_FALSE(first.AcquireForFork());
  EXPECT_FALSE(first.Acquire()) << "a handler between prepare and parent must not wait for itself";
  second.ReleaseAfterFork();
  first.ReleaseAfterFork();
  EXPECT_TRUE(first.Acquire());
  first.Release();
}

// A handler that interrupted the holder of a high lock forks, while somebody who waits for that one
// holds a low lock: it does not wait for him if he is at rest, and the child may use the lock.
TEST(LockTest, AForkDoesNotWaitForWhoIsAtRest) {
  RankedLock<LockRank::kCentral> low;
  RankedLock<LockRank::kPages> high;
  ASSERT_TRUE(high.Acquire());
  std::atomic<int> stage{0};
  std::thread other([&] {
    ASSERT_TRUE(low.Acquire());
    {
      const AtRest at_rest(low);
      stage = 1;
      ASSERT_TRUE(high.Acquire());
    }
    high.Release();
    low.Release();
  });
  while (stage == 0) sched_yield();
  const auto begin = std::chrono::steady_clock::now();
  EXPECT_FALSE(low.AcquireForFork(ForkPatience::kUnlessAtRest));
  EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::milliseconds(50));
  const pid_t child = fork();
  if (child == 0) {
    low.ReleaseAfterFork(/*in_child=*/true);
    high.Release();
    _exit(low.Acquire() ? 0 : 1);
  }
  low.ReleaseAfterFork();
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  EXPECT_EQ(status, 0);
  high.Release();
  other.join();
  EXPECT_TRUE(low.Acquire()) << "it is nobody's";
  low.Release();
}

// Two threads that each hold one lock, with handlers that want the other one: without ranks they
// would wait for each other.
RankedLock<LockRank::kCpu>* handler_lock;
std::atomic<int> handler_refused{0};
std::atomic<int> handler_taken{0};

void WantLock(int) {
  LockHolder held(*handler_lock);
  ++(held ? handler_taken : handler_refused);
}

TEST(LockTest, HandlersNeverWaitForWhatTheyInterrupted) {
  RankedLock<LockRank::kCpu> low;
  RankedLock<LockRank::kCentral> high;
  handler_lock = &low;
  struct sigaction action = {};
  action.sa_handler = WantLock;
  ASSERT_EQ(sigaction(SIGUSR1, &action, nullptr), 0);
  std::atomic<bool> stop{false};
  auto work = [&] {
    while (!stop) {
      LockHolder outer(low);
      LockHolder inner(high);
    }
  };
  std::thread a(work);
  std::thread b(work);
  for (int i = 0; i < 20'000; ++i) {
    pthread_kill(a.native_handle(), SIGUSR1);
    pthread_kill(b.native_handle(), SIGUSR1);
  }
  stop = true;
  a.join();
  b.join();
  EXPECT_GT(handler_refused, 0);
  EXPECT_GT(handler_taken + handler_refused, 100);
}

}  // namespace
}  // namespace pcmalloc
