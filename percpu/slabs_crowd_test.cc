// SPDX-License-Identifier: Apache-2.0
//
// Slabs under many threads, and what a fork leaves of them.
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <iterator>
#include <map>
#include <random>
#include <thread>
#include <vector>

#include "allocator/base/lock.h"
#include "gtest/gtest.h"
#include "percpu/slabs.h"
#include "percpu/slabs_test.h"

namespace pcmalloc::percpu {
namespace {

// While the locks are held for a fork, this thread is refused and others wait.
TEST_F(Slabs, ForkLocks) {
  EXPECT_EQ(PushAll(kClass, Tokens(0, 5)), 5u);
  LockForFork();
  EXPECT_EQ(Stop(index_), nullptr);
  EXPECT_EQ(Drain(index_, Receive), 0u);
  EXPECT_FALSE(EnsureSlab(index_));
  std::atomic<bool> drained{false};
  std::thread other([&] {
    Drain(index_, Receive);
    drained = true;
  });
  for (int i = 0; i < 100; ++i) sched_yield();
  EXPECT_FALSE(drained);
  UnlockAfterFork(/*in_child=*/false);
  other.join();
  EXPECT_EQ(received[kClass].size(), 5u);
}

// A handler that interrupted the holder of a high lock forks while another thread has stopped the
// slab, and may be waiting for that lock with what it drained: fork does not wait, and the child
// has a slab.
TEST_F(Slabs, AChildTakesOverWhatAnotherThreadHadStopped) {
  EXPECT_EQ(PushAll(kClass, Tokens(0, 5)), 5u);
  RankedLock<LockRank::kPages> interrupted;
  ASSERT_TRUE(interrupted.Acquire());
  std::atomic<int> stage{0};
  std::thread other([&] {
    Slab* const slab = Stop(index_);
    stage = slab == nullptr ? -1 : 1;
    while (stage == 1) sched_yield();
    Start(index_, slab);
  });
  while (stage == 0) sched_yield();
  ASSERT_EQ(stage, 1);
  const auto begin = std::chrono::steady_clock::now();
  LockForFork();
  EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::milliseconds(50));
  const pid_t child = fork();
  UnlockAfterFork(child == 0);
  ASSERT_GE(child, 0);
  if (child == 0) {
    alarm(10);
    interrupted.Release();
    const std::vector<void*> items = PopSome(kClass, 10);
    const bool pushed = PushAll(kClass, items) == items.size();
    _exit(items.size() == 5 && pushed && Drain(index_, Receive) == 5 ? 0 : 1);
  }
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  EXPECT_EQ(status, 0) << "14: hung";
  stage = 2;
  other.join();
  interrupted.Release();
  EXPECT_EQ(PopSome(kClass, 10).size(), 5u);
}

// Threads pop and push counted items while others drain, resize, stop and set capacities.
class Crowd {
 public:
  static constexpr uintptr_t kTokensEach = 100;
  static constexpr int kWorkers = 4;

  // At least so long, and until so much has been done; an emulated machine needs its time.
  static constexpr long kMoved = 1000;
  static constexpr long kDisturbed = 100;
  static constexpr int kPatienceMs = 60'000;

  void Run(int milliseconds) {
    std::vector<std::thread> threads;
    for (int id = 0; id < kWorkers; ++id) threads.emplace_back([this, id] { Work(id); });
    threads.emplace_back([this] { Disturb(1); });
    threads.emplace_back([this] { Disturb(2); });
    int slept = 0;
    while (slept < milliseconds ||
           (slept < kPatienceMs && (moved_ <= kMoved || disturbed_ <= kDisturbed))) {
      usleep(20'000);
      slept += 20;
    }
    stop_ = true;
    for (std::thread& thread : threads) thread.join();
  }

  // Each item exactly once: with a worker, received, or in a slab.
  void CheckItems() {
    for (unsigned i = 0; i < HighestUsed(); ++i) Drain(static_cast<int>(i), Receive);
    std::vector<int> times(kWorkers * kTokensEach);
    const auto count = [&times](const std::vector<void*>& items) {
      for (const void* item : items) ++times.at(NumberOf(item));
    };
    for (const std::vector<void*>& held : held_) count(held);
    for (const auto& [size_class, items] : received) count(items);
    received.clear();
    EXPECT_EQ(std::count(times.begin(), times.end(), 0), 0) << "lost";
    EXPECT_EQ(std::count_if(times.begin(), times.end(), [](int n) { return n > 1; }), 0)
        << "doubled";
  }

  long moved() const { return moved_; }
  long disturbed() const { return disturbed_; }
  long singles() const { return singles_; }

 private:
  void Work(int id) {
    std::mt19937 random(static_cast<unsigned>(id));
    std::vector<void*> held = Tokens(static_cast<uintptr_t>(id) * kTokensEach, kTokensEach);
    EXPECT_TRUE(PrepareThread());
    while (!stop_) {
      const int index = CurrentIndex();
      if (index >= 0 && CapacityOf(index, kClass).now < 8) {
        EnsureSlab(index);
        SetCapacity(index, kClass, 8);
      }
      const uint32_t n = 1 + random() % 6;
      if (random() % 2 == 0) {
        void* const item = n == 1 ? PopOne(kClass) : nullptr;
        if (item != nullptr) {
          ++singles_;
          held.push_back(item);
          continue;
        }
        const std::vector<void*> popped = PopSome(kClass, n);
        moved_ += static_cast<long>(popped.size());
        held.insert(held.end(), popped.begin(), popped.end());
      } else if (n == 1 && !held.empty() && PushOne(kClass, held.back())) {
        ++singles_;
        held.pop_back();
      } else {
        std::vector<void*> pushed;
        for (uint32_t i = 0; i < n && !held.empty(); ++i) {
          pushed.push_back(held.back());
          held.pop_back();
        }
        if (!pushed.empty()) {
          const uint32_t put = PushAll(kClass, pushed);
          held.insert(held.end(), pushed.begin() + put, pushed.end());
        }
      }
      if (held.size() < kTokensEach / 4) TakeReceived(held);
    }
    std::lock_guard<std::mutex> lock(received_mutex);
    held_[id] = held;
  }

  static void TakeReceived(std::vector<void*>& held) {
    std::lock_guard<std::mutex> lock(received_mutex);
    std::vector<void*>& items = received[kClass];
    while (!items.empty() && held.size() < kTokensEach) {
      held.push_back(items.back());
      items.pop_back();
    }
  }

  void Disturb(unsigned seed) {
    std::mt19937 random(seed);
    const std::vector<int> cpus = AllowedCpus();
    while (!stop_) {
      const int index = mode_under_test == Mode::kMmCid
                            ? static_cast<int>(random() % 3)
                            : cpus[random() % std::min<size_t>(cpus.size(), 4)];
      switch (random() % 4) {
        case 0:
          Drain(index, Receive);
          break;
        case 1:
          Resize(index, GeometryWith(random() % 2 == 0 ? 12 : kSlots), Receive);
          break;
        case 2:
          SetCapacity(index, kClass, 1 + random() % kSlots);
          break;
        default:
          if (Slab* slab = Stop(index)) {
            // Its own for a while: one item out and in again, by hand.
            Header& header = slab->headers[kClass];
            if (header.end != 0 && header.current > slab->begin[kClass]) {
              uintptr_t* const top = slab->slot(header.current - 1);
              const uintptr_t item = *top;
              --header.current;
              *top = ~uintptr_t{1};
              sched_yield();
              *top = item;
              ++header.current;
            }
            EXPECT_TRUE(Start(index, slab));
          }
      }
      ++disturbed_;
    }
  }

  std::atomic<bool> stop_{false};
  std::atomic<long> moved_{0};
  std::atomic<long> disturbed_{0};
  std::atomic<long> singles_{0};  // by the sections for one item
  std::vector<void*> held_[kWorkers];
};

TEST_F(Slabs, NothingIsLostOrDoubledInACrowd) {
  sched_setaffinity(0, sizeof(allowed_), &allowed_);
  received.clear();
  const Slab closed_before = *ClosedSlab();
  Crowd crowd;
  crowd.Run(2000);
  crowd.CheckItems();
  printf("PCM crowd_moved=%ld\nPCM crowd_disturbed=%ld\nPCM crowd_singles=%ld\n", crowd.moved(),
         crowd.disturbed(), crowd.singles());
  EXPECT_GT(crowd.moved(), Crowd::kMoved);
  EXPECT_GT(crowd.disturbed(), Crowd::kDisturbed);
  EXPECT_EQ(crowd.singles() > 0, mode_under_test != Mode::kLocked);
  EXPECT_EQ(memcmp(&closed_before, ClosedSlab(), sizeof(Slab)), 0);
}

// Every other fork is one of a handler that interrupted the holder of a high lock: it waits for
// nobody, and the child has the slabs as others were changing them.
TEST_F(Slabs, ForkWhileOthersStop) {
  received.clear();
  Crowd crowd;
  std::thread runner([&crowd] { crowd.Run(2000); });
  RankedLock<LockRank::kPages> interrupted;
  for (int i = 0; i < 200; ++i) {
    const bool in_handler = i % 2 == 1 && interrupted.Acquire();
    LockForFork();
    const pid_t child = fork();
    UnlockAfterFork(child == 0);
    if (in_handler) interrupted.Release();
    ASSERT_GE(child, 0);
    if (child == 0) {
      alarm(10);
      static std::atomic<int> times_drained[Crowd::kWorkers * Crowd::kTokensEach];
      static std::atomic<int> wrong{0};
      const auto count = [](unsigned, void* const* items, uint32_t n) {
        for (uint32_t k = 0; k < n; ++k) {
          const uintptr_t number = NumberOf(items[k]);
          const bool known = number < std::size(times_drained);
          if (!known || times_drained[number]++ != 0) ++wrong;
        }
      };
      bool well = PrepareThread();
      for (int cpu : AllowedCpus()) {
        if (CapacityOf(cpu, kClass).most == 0) continue;
        Slab* const slab = Stop(cpu);
        well = well && slab != nullptr && Start(cpu, slab);
        Drain(cpu, count);
      }
      well = well && wrong == 0;
      void* item = Token(5);
      const int index = CurrentIndex();
      EnsureSlab(index);
      SetCapacity(index, kClass, 8);
      if (PushBatch(kClass, &item, 1) == 1) PopBatch(kClass, &item, 1);
      _exit(well ? 0 : 1);
    }
    int status = 0;
    ASSERT_EQ(waitpid(child, &status, 0), child);
    ASSERT_TRUE(WIFEXITED(status)) << "hung or died: " << status;
    ASSERT_EQ(WEXITSTATUS(status), 0);
  }
  runner.join();
  crowd.CheckItems();
}

}  // namespace
}  // namespace pcmalloc::percpu
