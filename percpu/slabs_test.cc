// SPDX-License-Identifier: Apache-2.0
//
// The life of slabs in one mode, which is final for a process: --mode=cpu, cid, legacy or locked.
#include "percpu/slabs.h"

#include <sched.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <thread>
#include <vector>

#include "gtest/gtest.h"
#include "percpu/ops.h"
#include "percpu/slabs_test.h"
#include "rseq/rseq.h"
#include "rseq/sections.h"
#include "tests/support/mode.h"

namespace pcmalloc::percpu {
namespace {

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
TEST_F(Slabs, ABatchComesOutNewestFirst) {
  EXPECT_EQ(PushAll(kClass, Tokens(0, 6)), 6u);
  EXPECT_EQ(PopSome(kClass, 4), (std::vector<void*>{Token(5), Token(4), Token(3), Token(2)}));
  EXPECT_EQ(PopSome(kClass, 4), (std::vector<void*>{Token(1), Token(0)}));
  EXPECT_TRUE(PopSome(kClass, 4).empty());
}

// However many are asked for, there, and room for: of the sections' steps and what is left over.
TEST_F(Slabs, BatchesOfEveryLength) {
  SetCapacity(index_, kClass, kSlots);
  for (uint32_t held = 0; held < 20; ++held) {
    for (uint32_t n = 1; n < 20; ++n) {
      SCOPED_TRACE(::testing::Message() << n << " with " << held << " there");
      ASSERT_EQ(PushAll(kClass, Tokens(100, 1)), 1u);
      for (uintptr_t i = 0; i < held; ++i) ASSERT_EQ(PushAll(kClass, Tokens(i, 1)), 1u);
      ASSERT_EQ(PushAll(kClass, Tokens(held, n)), n);
      std::vector<void*> expected = Tokens(held, n);
      std::reverse(expected.begin(), expected.end());
      ASSERT_EQ(PopSome(kClass, n), expected);
      expected = Tokens(0, held);
      expected.insert(expected.begin(), Token(100));
      std::reverse(expected.begin(), expected.end());
      if (expected.size() > n) {
        std::vector<void*> rest(expected.begin() + n, expected.end());
        expected.resize(n);
        ASSERT_EQ(PopSome(kClass, n), expected);
        ASSERT_EQ(PopSome(kClass, kSlots), rest);
      } else {
        ASSERT_EQ(PopSome(kClass, n), expected);
      }
      ASSERT_TRUE(PopSome(kClass, 1).empty());
    }
  }
  for (uint32_t room = 1; room < 20; ++room) {
    for (uint32_t n = 1; n < 20; ++n) {
      SCOPED_TRACE(::testing::Message() << n << " with room for " << room);
      ASSERT_EQ(PushAll(kClass, Tokens(0, kSlots - room)), kSlots - room);
      // Whatever lies behind the last slot is another class's.
      ASSERT_EQ(PushAll(kOtherClass, Tokens(50, 1)), 1u);
      const uint32_t fits = std::min(room, n);
      ASSERT_EQ(PushAll(kClass, Tokens(kSlots - room, n)), fits);
      std::vector<void*> expected = Tokens(0, kSlots - room + fits);
      std::reverse(expected.begin(), expected.end());
      ASSERT_EQ(PopSome(kClass, kSlots), expected);
      ASSERT_EQ(PopSome(kOtherClass, 2), Tokens(50, 1));
    }
  }
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

// Every preemption takes a cached pointer away, so an attempt may miss without a reason of its own.
constexpr int kAttempts = 100;

bool PushOneSoon(void* item) {
  for (int i = 0; i < kAttempts; ++i) {
    if (mode_under_test == Mode::kCached) CacheSlab();
    if (PushOne(kClass, item)) return true;
  }
  return false;
}

void* PopOneSoon() {
  for (int i = 0; i < kAttempts; ++i) {
    if (mode_under_test == Mode::kCached) CacheSlab();
    if (void* item = PopOne(kClass)) return item;
  }
  return nullptr;
}

TEST_F(Slabs, Singles) {
  if (mode_under_test == Mode::kLocked) {
    // The table stays closed for good: the inline sections miss.
    EXPECT_FALSE(Push<Index::kCpuId>(kClass, Token(0)));
    EXPECT_EQ(Pop<Index::kCpuId>(kClass), nullptr);
    EXPECT_EQ(OpenSlab(index_), ClosedSlab());
    return;
  }
  for (uintptr_t i = 0; i < 10; ++i) ASSERT_TRUE(PushOneSoon(Token(i)));
  EXPECT_FALSE(PushOneSoon(Token(10)));
  for (uintptr_t i = 10; i-- > 0;) ASSERT_EQ(PopOneSoon(), Token(i));
  EXPECT_EQ(PopOneSoon(), nullptr);
}

// A thread has the pointer once it has missed and gone the slow way, until the kernel takes it
// away: a stop does, from any CPU, and what goes the slow way meanwhile gets no other.
TEST_F(Slabs, ACachedPointerEndsWithAStop) {
  if (mode_under_test != Mode::kCached) GTEST_SKIP() << "there is none in this mode";
  sched_yield();
  // None yet or any more, or a preemption has come: one attempt of many will do.
  bool cached = false;
  for (int i = 0; i < kAttempts && !cached; ++i) {
    ASSERT_EQ(PushAll(kClass, Tokens(0, 1)), 1u);
    cached = PopOne(kClass) == Token(0);
    if (!cached) {
      ASSERT_EQ(PopSome(kClass, 2), Tokens(0, 1));
    }
  }
  ASSERT_TRUE(cached) << "the slow way caches nothing";
  for (const bool by_another : {false, true}) {
    SCOPED_TRACE(by_another ? "another thread" : "this thread");
    for (int round = 0; round < kAttempts; ++round) {
      ASSERT_EQ(PushAll(kClass, Tokens(0, 3)), 3u);
      std::atomic<int> stage{0};
      Slab* slab = nullptr;
      std::thread other;
      if (by_another) {
        other = std::thread([&] {
          sched_setaffinity(0, sizeof(allowed_), &allowed_);
          slab = Stop(index_);
          stage = 1;
          while (stage == 1) sched_yield();
          if (slab != nullptr) Restart(index_);
        });
        while (stage == 0) sched_yield();
      } else {
        slab = Stop(index_);
      }
      const Header before = slab == nullptr ? Header() : slab->headers[kClass];
      EXPECT_FALSE(PushOne(kClass, Token(3)));
      EXPECT_EQ(PopOne(kClass), nullptr);
      EXPECT_EQ(PushAll(kClass, Tokens(3, 1)), 0u);
      EXPECT_FALSE(PushOne(kClass, Token(3)));
      EXPECT_EQ(PopOne(kClass), nullptr);
      const bool same = slab != nullptr && slab->headers[kClass].current == before.current;
      if (by_another) {
        stage = 2;
        other.join();
      } else if (slab != nullptr) {
        Restart(index_);
      }
      ASSERT_TRUE(same && !HasFailure()) << "the slab was used while it was stopped";
      ASSERT_EQ(PopSome(kClass, 5).size(), 3u);
    }
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
  EXPECT_EQ(PushAll(kClass, Tokens(0, 5)), 5u);
  const auto misses = [this] {
    EXPECT_EQ(CurrentIndex(), -1);
    EXPECT_FALSE(PrepareThread());
    EXPECT_TRUE(PopSome(kClass, 1).empty());
    EXPECT_EQ(PushAll(kClass, Tokens(9, 1)), 0u);
    EXPECT_EQ(SetCapacity(index_, kClass, 20), 0);
    EXPECT_EQ(Pop<Index::kCpuId>(kClass), nullptr);
    EXPECT_FALSE(Push<Index::kCpuId>(kClass, Token(9)));
    EXPECT_EQ(Pop<Index::kMmCid>(kClass), nullptr);
    EXPECT_FALSE(Push<Index::kMmCid>(kClass, Token(9)));
    EXPECT_EQ(PopOne(kClass), nullptr);
    EXPECT_FALSE(PushOne(kClass, Token(9)));
  };
  std::thread([&misses] {
    PinTo(AllowedCpus()[0]);
    rseq::Area* const area = rseq::ThisArea();
    if (rseq::Discover().owner == rseq::Owner::kOwn) {
      ASSERT_TRUE(PrepareThread());
      ASSERT_TRUE(rseq::EnsureThreadRegistered());
      rseq::UnregisterThread();
      ASSERT_EQ(area->cpu_id, rseq::kFailed);
      if (mode_under_test == Mode::kCached) {
        EXPECT_FALSE(CacheSlab());
      }
      return misses();
    }
    const uint32_t length = rseq::Discover().registered_length;
    ASSERT_EQ(syscall(SYS_rseq, area, length, 1, rseq::kSignature), 0);
    for (const uint32_t absent : {rseq::kUninitialized, rseq::kFailed}) {
      __atomic_store_n(&area->cpu_id, absent, __ATOMIC_RELAXED);
      misses();
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

}  // namespace
}  // namespace pcmalloc::percpu

int main(int argc, char** argv) {
  pcmalloc::percpu::mode_under_test = pcmalloc::testing::InitForMode(&argc, argv);
  return RUN_ALL_TESTS();
}
