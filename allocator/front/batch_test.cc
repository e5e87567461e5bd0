// SPDX-License-Identifier: Apache-2.0
#include "allocator/front/batch.h"

#include <atomic>
#include <thread>
#include <vector>

#include "gtest/gtest.h"

namespace pcmalloc::front {
namespace {

TEST(BatchTest, ShortOnesNeedNothingShared) {
  Batch batch(3, kMostInArray);
  EXPECT_EQ(batch.most(), kMostInArray);
  EXPECT_FALSE(shared_batches[3].taken);
}

TEST(BatchTest, TheFirstHasTheLongArray) {
  for (int i = 0; i < 3; ++i) {
    Batch batch(3, kMostInArray + 1);
    EXPECT_EQ(batch.most(), kMaxBatch);
    EXPECT_EQ(batch.items(), shared_batches[3].items);
    EXPECT_TRUE(shared_batches[3].taken);
  }
  EXPECT_FALSE(shared_batches[3].taken);
}

// As a signal handler inside of the first one's batch, and a thread on a CPU of the same remainder.
TEST(BatchTest, OthersHaveTheirOwn) {
  Batch first(3, kMaxBatch);
  Batch second(3, kMaxBatch);
  Batch third(3 + kSharedBatches, kMaxBatch);
  EXPECT_EQ(second.most(), kMostInArray);
  EXPECT_EQ(third.most(), kMostInArray);
  EXPECT_NE(second.items(), first.items());
  EXPECT_NE(third.items(), second.items());
  Batch elsewhere(4, kMaxBatch);
  EXPECT_EQ(elsewhere.most(), kMaxBatch);
}

TEST(BatchTest, NoIndexIsOneToo) {
  Batch batch(-1, kMaxBatch);
  EXPECT_EQ(batch.items(), shared_batches[kSharedBatches - 1].items);
}

TEST(BatchTest, NoTwoThreadsWriteToOneArray) {
  constexpr int kThreads = 4;
  std::atomic<int> wrong{0};
  std::atomic<int> long_ones{0};
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([&] {
      for (int i = 0; i < 20'000; ++i) {
        Batch batch(5, kMaxBatch);
        long_ones += batch.most() == kMaxBatch ? 1 : 0;
        for (uint32_t k = 0; k <= batch.most(); ++k) batch.items()[k] = &batch;
        for (uint32_t k = 0; k <= batch.most(); ++k) wrong += batch.items()[k] != &batch ? 1 : 0;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(wrong, 0);
  EXPECT_GT(long_ones, 1000);
}

}  // namespace
}  // namespace pcmalloc::front
