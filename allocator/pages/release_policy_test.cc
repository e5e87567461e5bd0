// SPDX-License-Identifier: Apache-2.0
#include "allocator/pages/release_policy.h"

#include <random>

#include "gtest/gtest.h"

namespace pcmalloc {
namespace {

TEST(ReleasePolicyTest, NothingGoesBelowTheBoundAndHalfOfItStaysOrMost) {
  EXPECT_EQ(ReleasePolicy::BytesToReturn(1000, 1000), 0u);
  EXPECT_EQ(ReleasePolicy::BytesToReturn(1001, 1000), 501u);
  EXPECT_EQ(ReleasePolicy::BytesToReturn(SIZE_MAX / 2, SIZE_MAX), 0u);
  constexpr uint64_t kMiB = uint64_t{1} << 20;
  EXPECT_EQ(ReleasePolicy::BytesToReturn(IdleBound::kLeast + 1, IdleBound::kLeast),
            1 + IdleBound::kLeast / 2);
  EXPECT_EQ(ReleasePolicy::BytesToReturn(65 * kMiB, 64 * kMiB), 5 * kMiB);
}

TEST(ReleasePolicyTest, GrowthIsPaidOutOfWhatIsIdle) {
  constexpr uint64_t kStep = ReleasePolicy::kGrowthStep;
  EXPECT_EQ(ReleasePolicy::BytesForGrowth(kStep - 1, 10 * kStep, 0, 0), 0u);
  EXPECT_EQ(ReleasePolicy::BytesForGrowth(kStep, 10 * kStep, 0, 0), kStep);
  EXPECT_EQ(ReleasePolicy::BytesForGrowth(20 * kStep, 10 * kStep, 0, 0), 10 * kStep);
  EXPECT_EQ(ReleasePolicy::BytesForGrowth(kStep, 10 * kStep, 80 * kStep, 0), 0u);
  EXPECT_EQ(ReleasePolicy::BytesForGrowth(9 * kStep, 10 * kStep, 40 * kStep, 0), 5 * kStep);
  EXPECT_EQ(ReleasePolicy::BytesForGrowth(9 * kStep, 10 * kStep, 40 * kStep, 8 * kStep), 2 * kStep);
  EXPECT_EQ(ReleasePolicy::BytesForGrowth(9 * kStep, 10 * kStep, 40 * kStep, 10 * kStep), 0u);
}

TEST(IdleBoundTest, RisesWhileWhatWasReturnedIsTakenAgain) {
  IdleBound bound;
  EXPECT_EQ(bound.For(0), IdleBound::kLeast);
  bound.Taken(1000, 0);
  bound.Returned(100, 0);
  EXPECT_EQ(bound.For(0), IdleBound::kLeast) << "nothing had been returned";
  EXPECT_EQ(bound.Earned(0), 0u);
  for (int i = 0; i < 10; ++i) {
    bound.Taken(60, 0);
    for (int k = 0; k < 4; ++k) bound.Returned(25, 0);
  }
  EXPECT_EQ(bound.For(0), IdleBound::kMost);
  EXPECT_EQ(bound.Earned(0), IdleBound::kMost);
  for (int i = 0; i < 10; ++i) {
    bound.Taken(40, 0);
    bound.Returned(100, 0);
  }
  EXPECT_EQ(bound.For(0), IdleBound::kLeast);
}

TEST(IdleBoundTest, FallsWhenTheHeapShrinks) {
  IdleBound bound;
  for (int i = 0; i < 10; ++i) {
    bound.Returned(100, 0);
    bound.Taken(100, 0);
  }
  ASSERT_EQ(bound.For(0), IdleBound::kMost);
  for (int i = 0; i < 20; ++i) bound.Returned(IdleBound::kMost / 2, 0);
  EXPECT_EQ(bound.For(0), IdleBound::kLeast);
}

TEST(IdleBoundTest, IsInProportionToTheHeap) {
  constexpr uint64_t kUsed = uint64_t{3200} << 20;
  IdleBound bound;
  EXPECT_EQ(bound.For(kUsed), kUsed / IdleBound::kLeastDivisor);
  bound.Returned(100, kUsed);
  EXPECT_EQ(bound.Earned(kUsed), 0u);
  for (int i = 0; i < 10; ++i) {
    bound.Returned(100, kUsed);
    bound.Taken(100, kUsed);
  }
  EXPECT_EQ(bound.For(kUsed), kUsed + kUsed / 2);
  for (int i = 0; i < 100; ++i) bound.Age(0);
  EXPECT_EQ(bound.For(0), IdleBound::kMost);
}

TEST(IdleBoundTest, WhatIsBreathedStays) {
  constexpr uint64_t kMiB = uint64_t{1} << 20;
  IdleBound bound;
  bound.Taken(200 * kMiB, 200 * kMiB);
  bound.Returned(40 * kMiB, 120 * kMiB);
  bound.Returned(60 * kMiB, 100 * kMiB);
  EXPECT_LE(bound.For(100 * kMiB), 4 * kMiB) << "it has not been needed again";
  bound.Taken(90 * kMiB, 200 * kMiB);
  bound.Returned(6 * kMiB, 190 * kMiB);
  EXPECT_GE(bound.For(100 * kMiB), 100 * kMiB) << "less than what went and came";
  EXPECT_GE(bound.For(20 * kMiB), 100 * kMiB) << "less than what went and came";
  EXPECT_LE(bound.For(60 * kMiB), 140 * kMiB) << "more than what was used at once";
  // What is not breathed any more is forgotten.
  for (unsigned i = 0; i < 2 * IdleAges::kSteps; ++i) bound.Age(10 * kMiB);
  EXPECT_LE(bound.For(10 * kMiB), IdleBound::kMost + 4 * kMiB);
  for (unsigned i = 0; i < 8 * IdleAges::kSteps; ++i) bound.Age(10 * kMiB);
  EXPECT_EQ(bound.For(10 * kMiB), IdleBound::kLeast);
}

// Where blocks are large what is used swings from one moment to the next: the bound must not.
TEST(IdleBoundTest, GoesByWhatWasUsedAtTheHeight) {
  constexpr uint64_t kMiB = uint64_t{1} << 20;
  IdleBound bound;
  for (int i = 0; i < 20; ++i) {
    bound.Taken(30 * kMiB, 140 * kMiB);
    bound.Returned(30 * kMiB, 100 * kMiB);
  }
  EXPECT_EQ(bound.For(100 * kMiB), 210 * kMiB);
  EXPECT_EQ(bound.For(140 * kMiB), 210 * kMiB);
}

// Inside of spans, where a free place fits every object of its class, what is missing to the
// height is enough.
TEST(IdleBoundTest, OfPlacesGoesByWhatIsMissingToTheHeight) {
  constexpr uint64_t kMiB = uint64_t{1} << 20;
  IdleBound bound(IdleBound::Reach::kPlaces);
  for (int i = 0; i < 20; ++i) {
    bound.Taken(30 * kMiB, 140 * kMiB);
    bound.Returned(30 * kMiB, 100 * kMiB);
  }
  EXPECT_EQ(bound.For(100 * kMiB), 40 * kMiB);
  EXPECT_EQ(bound.For(140 * kMiB), 140 * kMiB / IdleBound::kMostDivisor);
  EXPECT_EQ(bound.For(40 * kMiB), 100 * kMiB);
  EXPECT_EQ(bound.For(139 * kMiB), 139 * kMiB / IdleBound::kMostDivisor);
}

TEST(IdleAgesTest, ShareFallsSmoothlyFromAllToNothing) {
  EXPECT_EQ(IdleAges::Share(0), IdleAges::kWhole);
  EXPECT_EQ(IdleAges::Share(IdleAges::kSteps), 0u);
  EXPECT_EQ(IdleAges::Share(1000), 0u);
  EXPECT_NEAR(IdleAges::Share(IdleAges::kSteps / 2), IdleAges::kWhole / 2, 2);
  for (unsigned age = 0; age < IdleAges::kSteps; ++age) {
    EXPECT_GT(IdleAges::Share(age), IdleAges::Share(age + 1));
    EXPECT_LT(IdleAges::Share(age) - IdleAges::Share(age + 1), IdleAges::kWhole / 8);
  }
}

TEST(IdleAgesTest, StepsAndOneSleepFitIntoTheDecayTime) {
  for (uint64_t decay : {100u, 1000u, 10000u, 12345u}) {
    EXPECT_LE(IdleAges::StepMs(decay) * IdleAges::kSteps + IdleAges::SleepMs(decay), decay);
    EXPECT_GE(IdleAges::StepMs(decay) * IdleAges::kSteps, decay / 2);
  }
  EXPECT_EQ(IdleAges::StepMs(1), 1u);
}

TEST(IdleAgesTest, WhatBecameIdleAtOnceFollowsTheCurve) {
  constexpr uint64_t kPages = 100000;
  IdleAges ages;
  uint64_t idle = 0;
  EXPECT_EQ(ages.Advance(1, 0, idle), 0u);
  idle = kPages;
  EXPECT_EQ(ages.Advance(1, 0, idle), 0u);
  for (unsigned age = 1; age <= IdleAges::kSteps; ++age) {
    EXPECT_TRUE(ages.Pending(idle));
    idle -= ages.Advance(1, idle, idle);
    EXPECT_NEAR(idle, kPages * IdleAges::Share(age) / IdleAges::kWhole, age);
  }
  EXPECT_EQ(idle, 0u);
  EXPECT_FALSE(ages.Pending(idle));
}

TEST(IdleAgesTest, LateCallsCatchUp) {
  IdleAges one, other;
  EXPECT_EQ(one.Advance(1, 0, 5000), 0u);
  EXPECT_EQ(other.Advance(1, 0, 5000), 0u);
  uint64_t idle = 5000;
  for (int i = 0; i < 5; ++i) idle -= one.Advance(1, idle, idle);
  EXPECT_NEAR(other.Advance(5, 5000, 5000), 5000 - idle, 5);
  EXPECT_EQ(one.Advance(1000000, idle, idle), idle);
}

TEST(IdleAgesTest, MemoryThatIsUsedAgainAndAgainStays) {
  IdleAges ages;
  for (int i = 0; i < 100; ++i) {
    // All of it was in use at some time since the last step.
    EXPECT_EQ(ages.Advance(1, 0, 1000), 0u) << i;
  }
  // Now half of it never is. The young half is what stays.
  uint64_t idle = 1000;
  for (int i = 0; i < 100; ++i) {
    idle -= ages.Advance(1, idle - 500, idle);
    EXPECT_GE(idle, 500u);
    idle = idle < 1000 ? idle : 1000;
  }
  EXPECT_EQ(idle, 500u);
}

TEST(IdleAgesTest, WhatCannotGoIsAskedForAgainOnceInAWhile) {
  IdleAges ages;
  ages.Advance(1, 0, 1000);
  int asked = 0;
  for (int i = 0; i < 10 * static_cast<int>(IdleAges::kSteps); ++i) {
    const uint64_t due = ages.Advance(1, 1000, 1000);
    if (due == 0) continue;
    ++asked;
    ages.Left(due);
  }
  // Once each step of the curve, then once each time around.
  EXPECT_GE(asked, 16 + 8);
  EXPECT_LE(asked, 16 + 12);
  EXPECT_FALSE(ages.Pending(1000));
  EXPECT_TRUE(ages.Pending(1001));
}

TEST(IdleAgesTest, NeverAsksForMoreThanThereIs) {
  std::mt19937_64 random(3);
  IdleAges ages;
  uint64_t idle = 0;
  for (int i = 0; i < 200000; ++i) {
    const uint64_t least = idle == 0 ? 0 : random() % (idle + 1);
    idle = least + random() % 10000;
    const uint64_t due = ages.Advance(random() % 20, least, idle);
    ASSERT_LE(due, least);  // and nothing that was not idle all the time
    const uint64_t gone = random() % 4 == 0 ? due / 2 : due;
    if (gone < due) ages.Left(due - gone);
    idle -= gone;
  }
}

}  // namespace
}  // namespace pcmalloc
