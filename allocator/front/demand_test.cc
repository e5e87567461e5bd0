// SPDX-License-Identifier: Apache-2.0
//
// What misses say, by a clock that the tests set.
#include "allocator/front/demand.h"

#include <stdint.h>

#include "allocator/sizes/size_classes.h"
#include "gtest/gtest.h"

namespace pcmalloc::front {
namespace {

uint64_t now = 1'000'000'000'000;
uint64_t readings = 0;
uint64_t Clock() {
  ++readings;
  return now;
}

constexpr uint64_t kFast = 1000;    // ns between misses: they take 5 % of the time and more
constexpr uint64_t kSlow = 20'000;  // 2 % and less
constexpr unsigned kClass = 4;      // 64 bytes
constexpr uint32_t kBatch = BatchSize(kClass);
constexpr unsigned kOther = 10;
constexpr uint32_t kMost = 2048;

// An index for each test, since nothing is ever forgotten but by time.
int FreshIndex() {
  static int next = 100;
  return next++;
}

Demand NoteAfter(uint64_t pause, int index, unsigned size_class, Miss miss, uint32_t capacity) {
  now += pause;
  return NoteMiss(index, size_class, miss, capacity, kMost, Clock);
}

// `swings` times `run` misses of either kind; how many of the misses asked for more slots.
int Swing(uint64_t pause, int index, unsigned size_class, int swings, int run, uint32_t capacity) {
  int grown = 0;
  for (int i = 0; i < swings; ++i) {
    for (const Miss miss : {Miss::kEmpty, Miss::kFull}) {
      for (int k = 0; k < run; ++k) {
        grown += NoteAfter(pause, index, size_class, miss, capacity).grow;
      }
    }
  }
  return grown;
}

TEST(Demand, TheFirstSlotsComeAtOnce) {
  const int index = FreshIndex();
  EXPECT_TRUE(NoteAfter(kSlow, index, kClass, Miss::kEmpty, 0).grow);
  EXPECT_TRUE(NoteAfter(kSlow, index, kClass, Miss::kFull, kFirstCapacity - 1).grow);
  EXPECT_FALSE(NoteAfter(kSlow, index, kClass, Miss::kEmpty, kFirstCapacity).grow);
}

TEST(Demand, WhatMissedLongAgoCountsForLess) {
  const int index = FreshIndex();
  EXPECT_EQ(RecentMisses(index, kClass), 0u);
  for (int i = 0; i < 200; ++i) CountMiss(index, kClass);
  EXPECT_EQ(RecentMisses(index, kClass), 200u);
  for (int i = 0; i < 512; ++i) NoteAfter(kSlow, index, kOther, Miss::kEmpty, kMost);
  EXPECT_LE(RecentMisses(index, kClass), 100u);
  EXPECT_LE(RecentMisses(index, kOther), 255u);
  EXPECT_GT(RecentMisses(index, kOther), 100u);
  for (int i = 0; i < 8 * 512; ++i) CountMiss(index, kOther);
  EXPECT_EQ(RecentMisses(index, kClass), 0u);
  EXPECT_EQ(RecentMisses(index + 1, kOther), 0u);
}

TEST(Demand, RareMissesNeverGrow) {
  const int index = FreshIndex();
  EXPECT_EQ(Swing(kSlow, index, kClass, 5000, 1, kFirstCapacity), 0);
  EXPECT_EQ(Swing(kSlow, index, kClass, 5000, 1, 500), 0);
}

TEST(Demand, FrequentMissesGrow) {
  const int index = FreshIndex();
  EXPECT_GT(Swing(kFast, index, kClass, 100, 1, kFirstCapacity), 0);
  EXPECT_EQ(Swing(kFast, index, kClass, 100, 1, kFirstCapacity), 200);
  EXPECT_EQ(Swing(kFast, index, kClass, 100, 1, 500), 200);
}

// Just below and just above what is said to be frequent: time is not lost by rounding.
TEST(Demand, TheBoundIsWhatItSays) {
  for (const uint32_t capacity : {8u, 32u, 500u}) {
    const uint64_t bound =
        MissNanoseconds(BatchFor(kClass, capacity, false)) * 100 / kPercentOfTime;
    EXPECT_EQ(Swing(bound + bound / 20, FreshIndex(), kClass, 50000, 1, capacity), 0);
    EXPECT_GT(Swing(bound - bound / 20, FreshIndex(), kClass, 50000, 1, capacity), 90000);
  }
}

TEST(Demand, ABurstIsFree) {
  const int index = FreshIndex();
  const int misses = MissRate::kBurst / MissNanoseconds(kFirstCapacity);
  for (int burst = 0; burst < 100; ++burst) {
    now += 10'000'000;
    ASSERT_EQ(Swing(0, index, kClass, misses / 2, 1, kFirstCapacity), 0) << burst;
  }
}

TEST(Demand, Batches) {
  EXPECT_EQ(BatchFor(kClass, 0, false), 1u);
  EXPECT_EQ(BatchFor(kClass, 0, true), 1u);
  EXPECT_EQ(BatchFor(kClass, 8, false), 5u);
  EXPECT_EQ(BatchFor(kClass, 8, true), 8u);
  EXPECT_EQ(BatchFor(kClass, 2048, false), BatchSize(kClass));
  EXPECT_EQ(BatchFor(kClass, 2048, true), BatchSize(kClass));
}

TEST(Demand, APauseEndsIt) {
  const int index = FreshIndex();
  ASSERT_GT(Swing(kFast, index, kClass, 500, 1, kFirstCapacity), 0);
  now += 1'000'000'000;
  EXPECT_EQ(Swing(kSlow, index, kClass, 500, 1, kFirstCapacity), 0);
}

// A larger batch is worth it whichever way objects go; more than that only where they come back.
TEST(Demand, OneWayGrowsToABatch) {
  for (const Miss miss : {Miss::kEmpty, Miss::kFull}) {
    const int index = FreshIndex();
    const uint32_t batch = BatchSize(kClass);
    Swing(kFast, index, kClass, 100, 1, kFirstCapacity);
    NoteAfter(kFast, index, kClass, miss, batch - 1);
    EXPECT_TRUE(NoteAfter(kFast, index, kClass, miss, batch - 1).grow);
    EXPECT_FALSE(NoteAfter(kFast, index, kClass, miss, batch).grow);
    for (int i = 0; i < 1000; ++i) {
      ASSERT_TRUE(NoteAfter(kFast, index, kClass, miss, batch - 1).grow);
    }
    const Demand demand = NoteAfter(kFast, index, kClass, miss, batch);
    EXPECT_FALSE(demand.grow);
    EXPECT_TRUE(demand.one_way);
  }
}

TEST(Demand, ATurnIsNotOneWay) {
  const int index = FreshIndex();
  for (int i = 0; i < 10; ++i) NoteAfter(kFast, index, kClass, Miss::kEmpty, kBatch);
  EXPECT_TRUE(NoteAfter(kFast, index, kClass, Miss::kEmpty, kBatch).one_way);
  EXPECT_FALSE(NoteAfter(kFast, index, kClass, Miss::kFull, kBatch).one_way);
  EXPECT_FALSE(NoteAfter(kFast, index, kClass, Miss::kFull, kBatch).one_way);
  EXPECT_TRUE(NoteAfter(kFast, index, kClass, Miss::kFull, kBatch).one_way);
}

TEST(Demand, SwingsOfManyBatchesAreLeftAlone) {
  const int index = FreshIndex();
  Swing(kFast, index, kClass, 200, 8, kBatch);
  EXPECT_EQ(Swing(kFast, index, kClass, 100, 8, kBatch), 200) << "once at every turn";
  Swing(kFast, index, kClass, 1, 120, kBatch);
  EXPECT_EQ(Swing(kFast, index, kClass, 100, 120, kBatch), 0);
}

// Blocks that pass through in one direction miss as often as they must; that is no
// reason for others.
TEST(Demand, OneWayMissesMakeNothingFrequent) {
  const int index = FreshIndex();
  for (int i = 0; i < 200; ++i) NoteAfter(kSlow, index, kClass, Miss::kEmpty, kBatch);
  int grown = 0;
  for (int i = 0; i < 20000; ++i) {
    NoteAfter(kFast, index, kClass, Miss::kEmpty, kBatch);
    if (i % 20 == 0) {
      const Miss miss = i % 40 == 0 ? Miss::kEmpty : Miss::kFull;
      grown += NoteAfter(0, index, kOther, miss, kFirstCapacity).grow;
    }
  }
  EXPECT_EQ(grown, 0);
}

// Nor do those of a class that has all it may have; it is told which way they go.
TEST(Demand, NothingIsAskedForWhoHasAll) {
  const int index = FreshIndex();
  for (int i = 0; i < 20000; ++i) {
    const Demand demand = NoteAfter(kFast, index, kClass, Miss::kEmpty, kMost);
    ASSERT_FALSE(demand.grow);
    ASSERT_EQ(demand.one_way, i >= 2);
  }
  EXPECT_EQ(Swing(kFast, index, kOther, 10, 1, kFirstCapacity), 0);
}

TEST(Demand, IndexesAreTheirOwn) {
  const int busy = FreshIndex();
  const int idle = FreshIndex();
  ASSERT_GT(Swing(kFast, busy, kClass, 500, 1, kFirstCapacity), 0);
  EXPECT_EQ(Swing(kFast, idle, kClass, 10, 1, kFirstCapacity), 0);
}

TEST(Demand, TheClockIsReadSeldom) {
  const int index = FreshIndex();
  readings = 0;
  Swing(kSlow, index, kClass, 1600, 1, kFirstCapacity);
  EXPECT_GT(readings, 100u);
  EXPECT_LE(readings, 3200 * MissNanoseconds(5) / MissRate::kWindow);
}

// Without a clock classes grow at every miss, after the burst.
TEST(Demand, WithoutAClock) {
  const int index = FreshIndex();
  const uint64_t before = now;
  now = 0;
  Swing(0, index, kClass, 100, 1, kFirstCapacity);
  EXPECT_EQ(Swing(0, index, kClass, 100, 1, kFirstCapacity), 200);
  now = before;
}

}  // namespace
}  // namespace pcmalloc::front
