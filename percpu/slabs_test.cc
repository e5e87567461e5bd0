// SPDX-License-Identifier: Apache-2.0
//
// The life of slabs in one mode, which is final for a process: --mode=cpu, cid or locked.
#include "percpu/slabs.h"

#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <map>
#include <mutex>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "allocator/base/lock.h"
#include "gtest/gtest.h"
#include "percpu/ops.h"
#include "rseq/rseq.h"
#include "rseq/sections.h"

namespace pcmalloc::percpu {
namespace {

constexpr unsigned kClass = 11;
constexpr unsigned kOtherClass = 12;
constexpr uint32_t kSlots = 40;

Mode mode_under_test = Mode::kUnset;

Geometry GeometryWith(uint32_t capacity) {
  Geometry geometry = {};
  geometry.capacity[kClass] = capacity;
  geometry.capacity[kOtherClass] = capacity;
  return geometry;
}

void* Token(uintptr_t i) { return reinterpret_cast<void*>((i + 1) * 16); }
uintptr_t NumberOf(const void* token) { return reinterpret_cast<uintptr_t>(token) / 16 - 1; }

std::vector<void*> Tokens(uintptr_t first, uint32_t n) {
  std::vector<void*> tokens;
  for (uintptr_t i = first; i < first + n; ++i) tokens.push_back(Token(i));
  return tokens;
}

std::vector<void*> PopSome(unsigned size_class, uint32_t n) {
  std::vector<void*> items(n);
  items.resize(PopBatch(size_class, items.data(), n));
  return items;
}

uint32_t PushAll(unsigned size_class, const std::vector<void*>& items) {
  return PushBatch(size_class, items.data(), static_cast<uint32_t>(items.size()));
}

// What Drain and Resize handed out; one lock is enough.
std::mutex received_mutex;
std::map<unsigned, std::vector<void*>> received;
void Receive(unsigned size_class, void* const* items, uint32_t n) {
  std::lock_guard<std::mutex> held(received_mutex);
  received[size_class].insert(received[size_class].end(), items, items + n);
}

std::vector<int> AllowedCpus() {
  cpu_set_t allowed;
  sched_getaffinity(0, sizeof(allowed), &allowed);
  std::vector<int> cpus;
  for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
    if (CPU_ISSET(cpu, &allowed)) cpus.push_back(cpu);
  }
  return cpus;
}

void PinTo(int cpu) {
  cpu_set_t one;
  CPU_ZERO(&one);
  CPU_SET(cpu, &one);
  ASSERT_EQ(sched_setaffinity(0, sizeof(one), &one), 0);
}

// The first test of the process: what a thread finds when nothing has been made yet.
TEST(FirstUse, StartsClosed) {
  EXPECT_EQ(CurrentMode(), Mode::kUnset);
  EXPECT_EQ(CurrentIndex(), -1);
  EXPECT_FALSE(PrepareThread());
  EXPECT_TRUE(PopSome(kClass, 1).empty());
  EXPECT_EQ(PushAll(kClass, Tokens(0, 1)), 0u);
  InitTable(rseq::Discover().cpu_bound);
  EXPECT_EQ(Bound(), rseq::Discover().cpu_bound);
  for (unsigned i = 0; i < Bound(); ++i) ASSERT_EQ(OpenSlab(static_cast<int>(i)), ClosedSlab());
  Init(mode_under_test, GeometryWith(kSlots));
  EXPECT_EQ(CurrentMode(), mode_under_test);
  EXPECT_EQ(PopulatedSlabs(), 0u);
  EXPECT_EQ(SlabBytes(), 0u);
  ASSERT_TRUE(PrepareThread());
  const int index = CurrentIndex();
  ASSERT_GE(index, 0);
  EXPECT_EQ(Stop(index), nullptr);
  EXPECT_EQ(CapacityOf(index, kClass).most, 0u);
  EXPECT_TRUE(PopSome(kClass, 1).empty());
  ASSERT_TRUE(EnsureSlab(index));
  EXPECT_GE(PopulatedSlabs(), 1u);
  EXPECT_GT(HighestUsed(), static_cast<unsigned>(index));
  EXPECT_GT(SlabBytes(), 0u);
  // A class has no stack before its capacity is set for the first time.
  EXPECT_EQ(CapacityOf(index, kClass).now, 0u);
  EXPECT_EQ(CapacityOf(index, kClass).most, kSlots);
}

// Every test on one CPU, with a slab whose class has kSlots slots, of which 10 are in force.
class Slabs : public ::testing::Test {
 protected:
  void SetUp() override {
    sched_getaffinity(0, sizeof(allowed_), &allowed_);
    PinTo(AllowedCpus()[0]);
    ASSERT_TRUE(PrepareThread());
    index_ = CurrentIndex();
    ASSERT_GE(index_, 0);
    EnsureSlab(index_);
    ASSERT_TRUE(Resize(index_, GeometryWith(kSlots), Receive));
    Drain(index_, Receive);
    received.clear();
    for (const unsigned c : {kClass, kOtherClass}) SetCapacity(index_, c, 10);
    ASSERT_EQ(CapacityOf(index_, kClass).now, 10u);
  }
  void TearDown() override {
    Drain(index_, Receive);
    sched_setaffinity(0, sizeof(allowed_), &allowed_);
  }

  int index_ = -1;
  cpu_set_t allowed_;
};

TEST_F(Slabs, ABatchComesOutNewestFirst) {
  EXPECT_EQ(PushAll(kClass, Tokens(0, 6)), 6u);
  EXPECT_EQ(PopSome(kClass, 4), (std::vector<void*>{Token(5), Token(4), Token(3), Token(2)}));
  EXPECT_EQ(PopSome(kClass, 4), (std::vector<void*>{Token(1), Token(0)}));
  EXPECT_TRUE(PopSome(kClass, 4).empty());
}

TEST_F(Slabs, WhatDoesNotFitStaysWithTheCaller) {
  EXPECT_EQ(PushAll(kClass, Tokens(0, 16)), 10u);
  EXPECT_EQ(PushAll(kClass, Tokens(50, 1)), 0u);
  EXPECT_EQ(PopSome(kClass, 1), Tokens(9, 1));
  EXPECT_EQ(PushAll(kClass, Tokens(50, 3)), 1u);
  EXPECT_EQ(PopSome(kClass, 1), Tokens(50, 1));
}

TEST_F(Slabs, ClassesAreApart) {
  EXPECT_EQ(PushAll(kClass, Tokens(0, 10)), 10u);
  EXPECT_EQ(PushAll(kOtherClass, Tokens(20, 10)), 10u);
  EXPECT_EQ(PopSome(kOtherClass, 20).size(), 10u);
  EXPECT_EQ(PopSome(kClass, 1), Tokens(9, 1));
}

TEST_F(Slabs, AClassWithoutSlotsMisses) {
  EXPECT_EQ(PushAll(kClass + 5, Tokens(0, 1)), 0u);
  EXPECT_TRUE(PopSome(kClass + 5, 1).empty());
  EXPECT_EQ(PushAll(0, Tokens(0, 1)), 0u);
  EXPECT_TRUE(PopSome(0, 1).empty());
}

template <Index kIndex>
void CheckSingles() {
  for (uintptr_t i = 0; i < 10; ++i) ASSERT_TRUE(Push<kIndex>(kClass, Token(i)));
  EXPECT_FALSE(Push<kIndex>(kClass, Token(10)));
  for (uintptr_t i = 10; i-- > 0;) ASSERT_EQ(Pop<kIndex>(kClass), Token(i));
  EXPECT_EQ(Pop<kIndex>(kClass), nullptr);
}

TEST_F(Slabs, Singles) {
  switch (mode_under_test) {
    case Mode::kCpuId:
      return CheckSingles<Index::kCpuId>();
    case Mode::kMmCid:
      return CheckSingles<Index::kMmCid>();
    default:
      // The table stays closed for good: the inline sections miss.
      EXPECT_FALSE(Push<Index::kCpuId>(kClass, Token(0)));
      EXPECT_EQ(Pop<Index::kCpuId>(kClass), nullptr);
      EXPECT_EQ(OpenSlab(index_), ClosedSlab());
  }
}

TEST_F(Slabs, CapacityGrowsToWhatTheGeometryAllows) {
  EXPECT_EQ(SetCapacity(index_, kClass, 25), 15);
  EXPECT_EQ(SetCapacity(index_, kClass, 1000), static_cast<int32_t>(kSlots - 25));
  EXPECT_EQ(CapacityOf(index_, kClass).now, kSlots);
  EXPECT_EQ(CapacityOf(index_, kClass).most, kSlots);
  EXPECT_EQ(SetCapacity(index_, kClass, 1000), 0);
  EXPECT_EQ(PushAll(kClass, Tokens(0, 50)), kSlots);
}

TEST_F(Slabs, WhatLiesAboveALoweredCapacityCanBePopped) {
  EXPECT_EQ(PushAll(kClass, Tokens(0, 10)), 10u);
  EXPECT_EQ(SetCapacity(index_, kClass, 4), -6);
  EXPECT_EQ(PushAll(kClass, Tokens(10, 1)), 0u);
  EXPECT_EQ(PopSome(kClass, 7).size(), 7u);
  EXPECT_EQ(PushAll(kClass, Tokens(10, 5)), 1u);
  EXPECT_EQ(PopSome(kClass, 9), (std::vector<void*>{Token(10), Token(2), Token(1), Token(0)}));
}

TEST_F(Slabs, ACapacityOfNothing) {
  EXPECT_EQ(PushAll(kClass, Tokens(0, 2)), 2u);
  EXPECT_EQ(SetCapacity(index_, kClass, 0), -10);
  EXPECT_EQ(CapacityOf(index_, kClass).now, 0u);
  EXPECT_EQ(PushAll(kClass, Tokens(5, 1)), 0u);
  EXPECT_EQ(PopSome(kClass, 5).size(), 2u);
  EXPECT_EQ(PushAll(kClass, Tokens(5, 1)), 0u);
  EXPECT_EQ(SetCapacity(index_, kClass, 3), 3);
  EXPECT_EQ(PushAll(kClass, Tokens(0, 5)), 3u);
}

TEST_F(Slabs, AStoppedIndexTakesTheSlowWay) {
  EXPECT_EQ(PushAll(kClass, Tokens(0, 3)), 3u);
  Slab* const slab = Stop(index_);
  ASSERT_NE(slab, nullptr);
  EXPECT_EQ(OpenSlab(index_), ClosedSlab());
  EXPECT_EQ(PushAll(kClass, Tokens(3, 1)), 0u);
  EXPECT_TRUE(PopSome(kClass, 1).empty());
  EXPECT_EQ(SetCapacity(index_, kClass, 20), 0);
  EXPECT_EQ(Stop(index_), nullptr) << "stopped twice";
  EXPECT_FALSE(EnsureSlab(index_)) << "somebody has stopped it and will open it";
  bool started_by_another = true;
  std::thread([&] { started_by_another = Start(index_, slab) || Restart(index_); }).join();
  EXPECT_FALSE(started_by_another);
  EXPECT_EQ(slab->headers[kClass].current - slab->begin[kClass], 3u);
  ASSERT_TRUE(Restart(index_));
  EXPECT_FALSE(Restart(index_));
  EXPECT_FALSE(Start(index_, slab));
  EXPECT_EQ(PopSome(kClass, 5).size(), 3u);
}

TEST_F(Slabs, TheStopperOwnsTheSlab) {
  Slab* const slab = Stop(index_);
  ASSERT_NE(slab, nullptr);
  Header& header = slab->headers[kClass];
  *slab->slot(header.current++) = reinterpret_cast<uintptr_t>(Token(77));
  ASSERT_TRUE(Start(index_, slab));
  EXPECT_EQ(PopSome(kClass, 5), Tokens(77, 1));
}

TEST_F(Slabs, DrainHandsOutEverything) {
  EXPECT_EQ(PushAll(kClass, Tokens(0, 10)), 10u);
  EXPECT_EQ(PushAll(kOtherClass, Tokens(20, 4)), 4u);
  EXPECT_EQ(Drain(index_, Receive), 14u);
  std::sort(received[kClass].begin(), received[kClass].end());
  std::sort(received[kOtherClass].begin(), received[kOtherClass].end());
  EXPECT_EQ(received[kClass], Tokens(0, 10));
  EXPECT_EQ(received[kOtherClass], Tokens(20, 4));
  EXPECT_EQ(Drain(index_, Receive), 0u);
  EXPECT_EQ(CapacityOf(index_, kClass).now, 10u) << "the capacity stays";
}

TEST_F(Slabs, ResizeKeepsWhatFits) {
  EXPECT_EQ(PushAll(kClass, Tokens(0, 10)), 10u);
  ASSERT_TRUE(Resize(index_, GeometryWith(4), Receive));
  EXPECT_EQ(CapacityOf(index_, kClass).most, 4u);
  EXPECT_EQ(received[kClass].size(), 6u);
  std::vector<void*> all = PopSome(kClass, 20);
  EXPECT_EQ(all.size(), 4u);
  all.insert(all.end(), received[kClass].begin(), received[kClass].end());
  std::sort(all.begin(), all.end());
  EXPECT_EQ(all, Tokens(0, 10));
}

TEST_F(Slabs, ResizeUsesKeptSlabsAgain) {
  for (const uint32_t slots : {100u, kSlots})
    ASSERT_TRUE(Resize(index_, GeometryWith(slots), Receive));
  const size_t bytes = SlabBytes();
  for (int i = 0; i < 10; ++i) {
    for (const uint32_t slots : {100u, kSlots}) {
      ASSERT_TRUE(Resize(index_, GeometryWith(slots), Receive));
    }
  }
  EXPECT_EQ(SlabBytes(), bytes);
}

TEST_F(Slabs, TryResizeNeverWaits) {
  EXPECT_FALSE(TryResize(index_, GeometryWith(kSlots), Receive)) << "has it already";
  EXPECT_EQ(PushAll(kClass, Tokens(0, 10)), 10u);
  ASSERT_TRUE(TryResize(index_, GeometryWith(50), Receive));
  EXPECT_EQ(CapacityOf(index_, kClass).most, 50u);
  EXPECT_EQ(PopSome(kClass, 20).size(), 10u);
  Slab* slab = Stop(index_);
  ASSERT_NE(slab, nullptr);
  // From another thread: one that has stopped the index is refused for its own sake.
  std::thread([this] { EXPECT_FALSE(TryResize(index_, GeometryWith(4), Receive)); }).join();
  ASSERT_TRUE(Start(index_, slab));
  ASSERT_TRUE(TryResize(index_, GeometryWith(kSlots), Receive));
}

// The numbers of CPUs have gaps: what lies between two that are used stays without a slab.
TEST_F(Slabs, NumbersWithGaps) {
  const int last = static_cast<int>(Bound()) - 1;
  if (last <= index_ + 1) GTEST_SKIP() << "too few numbers";
  const unsigned populated = PopulatedSlabs();
  const bool fresh = CapacityOf(last, kClass).most == 0;
  ASSERT_TRUE(EnsureSlab(last));
  ASSERT_TRUE(EnsureSlab(last)) << "there is one";
  EXPECT_EQ(PopulatedSlabs(), populated + (fresh ? 1 : 0));
  EXPECT_EQ(HighestUsed(), Bound());
  EXPECT_EQ(CapacityOf(last - 1, kClass).most, 0u);
  EXPECT_EQ(CapacityOf(last - 1, kClass).now, 0u);
  EXPECT_EQ(OpenSlab(last - 1), ClosedSlab());
  EXPECT_EQ(Stop(last - 1), nullptr);
  EXPECT_EQ(Drain(last - 1, Receive), 0u);
  EXPECT_FALSE(Resize(last - 1, GeometryWith(4), Receive));
  EXPECT_EQ(SetCapacity(last - 1, kClass, 5), 0);
  EXPECT_EQ(Drain(last, Receive), 0u);
  EXPECT_TRUE(Resize(last, GeometryWith(4), Receive));
}

// A thread whose registration is gone has a negative index and meets the closed slab.
TEST_F(Slabs, AThreadWithoutRegistration) {
  if (mode_under_test == Mode::kLocked) GTEST_SKIP() << "needs none";
  if (rseq::Discover().owner != rseq::Owner::kLibc) GTEST_SKIP() << rseq::Discover().reason;
  EXPECT_EQ(PushAll(kClass, Tokens(0, 5)), 5u);
  std::thread([this] {
    PinTo(AllowedCpus()[0]);
    rseq::Area* const area = rseq::ThisArea();
    const uint32_t length = rseq::Discover().registered_length;
    ASSERT_EQ(syscall(SYS_rseq, area, length, 1, rseq::kSignature), 0);
    for (const uint32_t absent : {rseq::kUninitialized, rseq::kFailed}) {
      __atomic_store_n(&area->cpu_id, absent, __ATOMIC_RELAXED);
      EXPECT_EQ(CurrentIndex(), -1);
      EXPECT_FALSE(PrepareThread());
      EXPECT_TRUE(PopSome(kClass, 1).empty());
      EXPECT_EQ(PushAll(kClass, Tokens(9, 1)), 0u);
      EXPECT_EQ(SetCapacity(index_, kClass, 20), 0);
      EXPECT_EQ(Pop<Index::kCpuId>(kClass), nullptr);
      EXPECT_FALSE(Push<Index::kCpuId>(kClass, Token(9)));
      EXPECT_EQ(Pop<Index::kMmCid>(kClass), nullptr);
      EXPECT_FALSE(Push<Index::kMmCid>(kClass, Token(9)));
    }
    EXPECT_EQ(syscall(SYS_rseq, area, length, 0, rseq::kSignature), 0);
    EXPECT_GE(CurrentIndex(), 0);
  }).join();
  EXPECT_EQ(Drain(index_, Receive), 5u);
}

TEST_F(Slabs, TheClosedSlabIsReadOnly) {
  for (const Header& header : ClosedSlab()->headers) {
    EXPECT_EQ(header.current, kUnusedHeader.current);
    EXPECT_EQ(header.end, 0u);
  }
  EXPECT_EQ(ClosedSlab()->mark, kMark);
  EXPECT_EXIT(*const_cast<volatile uint32_t*>(&ClosedSlab()->headers[3].current) = 1,
              ::testing::KilledBySignal(SIGSEGV), "");
}

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

// A handler that interrupted the holder of a high lock forks while another thread has stopped the slab,
// and may be waiting for that lock with what it drained: fork does not wait, and the child has a slab.
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
        const std::vector<void*> popped = PopSome(kClass, n);
        moved_ += static_cast<long>(popped.size());
        held.insert(held.end(), popped.begin(), popped.end());
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
  std::vector<void*> held_[kWorkers];
};

TEST_F(Slabs, NothingIsLostOrDoubledInACrowd) {
  sched_setaffinity(0, sizeof(allowed_), &allowed_);
  received.clear();
  const Slab closed_before = *ClosedSlab();
  Crowd crowd;
  crowd.Run(2000);
  crowd.CheckItems();
  printf("PCM crowd_moved=%ld\nPCM crowd_disturbed=%ld\n", crowd.moved(), crowd.disturbed());
  EXPECT_GT(crowd.moved(), Crowd::kMoved);
  EXPECT_GT(crowd.disturbed(), Crowd::kDisturbed);
  EXPECT_EQ(memcmp(&closed_before, ClosedSlab(), sizeof(Slab)), 0);
}

TEST_F(Slabs, ForkWhileOthersStop) {
  received.clear();
  Crowd crowd;
  std::thread runner([&crowd] { crowd.Run(2000); });
  for (int i = 0; i < 50; ++i) {
    LockForFork();
    const pid_t child = fork();
    UnlockAfterFork(child == 0);
    ASSERT_GE(child, 0);
    if (child == 0) {
      alarm(10);
      const auto ignore = [](unsigned, void* const*, uint32_t) {};
      bool well = PrepareThread();
      for (int cpu : AllowedCpus()) {
        if (CapacityOf(cpu, kClass).most == 0) continue;
        Slab* const slab = Stop(cpu);
        well = well && slab != nullptr && Start(cpu, slab);
        Drain(cpu, ignore);
      }
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

int main(int argc, char** argv) {
  using pcmalloc::percpu::Mode;
  ::testing::InitGoogleTest(&argc, argv);
  const std::string mode = argc == 2 ? argv[1] : "";
  auto& chosen = pcmalloc::percpu::mode_under_test;
  if (mode == "--mode=cpu") chosen = Mode::kCpuId;
  if (mode == "--mode=cid") chosen = Mode::kMmCid;
  if (mode == "--mode=locked") chosen = Mode::kLocked;
  if (chosen == Mode::kUnset) {
    fprintf(stderr, "usage: %s --mode=cpu|cid|locked\n", argv[0]);
    return 2;
  }
  const pcmalloc::rseq::Discovery& discovery = pcmalloc::rseq::Discover();
  if (chosen != Mode::kLocked &&
      (discovery.owner == pcmalloc::rseq::Owner::kNone || !discovery.fence_available)) {
    printf("SKIPPED: no sections here: %s\n", discovery.reason);
    return 0;
  }
  if (chosen == Mode::kMmCid && !discovery.mm_cid_maintained) {
    printf("SKIPPED: this kernel keeps no mm_cid\n");
    return 0;
  }
  return RUN_ALL_TESTS();
}
