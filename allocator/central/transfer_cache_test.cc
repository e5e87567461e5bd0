// SPDX-License-Identifier: Apache-2.0
#include "allocator/central/transfer_cache.h"

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <random>
#include <set>
#include <thread>
#include <utility>
#include <vector>

#include "allocator/pages/page_heap.h"
#include "allocator/pages/spans_come_back.h"
#include "allocator/sizes/size_classes.h"
#include "gtest/gtest.h"

namespace pcmalloc::central {
namespace {

std::vector<void*> TakeSome(unsigned size_class, uint32_t n) {
  std::vector<void*> objects(n);
  Shortage shortage;
  EXPECT_EQ(Take(size_class, objects.data(), n, &shortage), n);
  EXPECT_EQ(shortage, Shortage::kNone);
  return objects;
}

void GiveAll(unsigned size_class, const std::vector<void*>& objects) {
  ASSERT_EQ(Give(size_class, objects.data(), static_cast<uint32_t>(objects.size())),
            objects.size());
}

class TransferCache : public SpansComeBack {
 protected:
  void Empty() override { Trim(); }
};

TEST_F(TransferCache, TheLastGivenIsTakenFirst) {
  const std::vector<void*> objects = TakeSome(9, 20);
  GiveAll(9, objects);
  EXPECT_EQ(ClassStats(9).transfer_objects, 20u);
  EXPECT_EQ(ClassStats(9).transfer_bytes, 20 * ClassSize(9));
  const std::vector<void*> again = TakeSome(9, 5);
  EXPECT_EQ(again, std::vector<void*>(objects.end() - 5, objects.end()));
  EXPECT_EQ(ClassStats(9).transfer_objects, 15u);
  GiveAll(9, again);
}

// The same for a deep stack, in pieces of all kinds.
TEST_F(TransferCache, DeepStacksKeepTheirOrder) {
  const std::vector<void*> objects = TakeSome(9, 1000);
  std::vector<void*> stack;
  std::mt19937 random(1);
  for (int step = 0; step < 2000; ++step) {
    const uint32_t n = 1 + random() % 128;
    if (random() % 2 == 0 && stack.size() + n <= objects.size()) {
      const std::vector<void*> piece(objects.begin() + static_cast<ptrdiff_t>(stack.size()),
                                     objects.begin() + static_cast<ptrdiff_t>(stack.size() + n));
      GiveAll(9, piece);
      stack.insert(stack.end(), piece.begin(), piece.end());
    } else if (stack.size() >= n) {
      const std::vector<void*> piece = TakeSome(9, n);
      ASSERT_EQ(piece, std::vector<void*>(stack.end() - n, stack.end())) << stack.size();
      stack.resize(stack.size() - n);
    }
    ASSERT_EQ(ClassStats(9).transfer_objects, stack.size());
  }
  GiveAll(
      9, std::vector<void*>(objects.begin() + static_cast<ptrdiff_t>(stack.size()), objects.end()));
}

// What goes down for want of room is what has waited longest; the rest stays as it was.
TEST_F(TransferCache, TheOldestGoDown) {
  constexpr unsigned kDeep = 16;  // 256 bytes: 1000 of them are half of what all may hold
  const std::vector<void*> objects = TakeSome(kDeep, 1000);
  const std::vector<void*> others = TakeSome(kDeep + 1, 963);
  const std::vector<void*> more = TakeSome(kDeep + 2, 100);
  GiveAll(kDeep, objects);
  GiveAll(kDeep + 1, others);
  GiveAll(kDeep + 2, more);  // too much
  const size_t left = ClassStats(kDeep).transfer_objects + ClassStats(kDeep + 1).transfer_objects;
  ASSERT_LT(left, 1963u);
  for (const auto& [size_class, all] :
       {std::pair(kDeep, &objects), std::pair(kDeep + 1, &others)}) {
    const uint32_t n = static_cast<uint32_t>(ClassStats(size_class).transfer_objects);
    if (n == 0) continue;
    const std::vector<void*> stay = TakeSome(size_class, n);
    EXPECT_EQ(stay, std::vector<void*>(all->end() - n, all->end()));
    GiveAll(size_class, stay);
  }
}

TEST_F(TransferCache, WhatIsMissingComesFromTheSpans) {
  const std::vector<void*> some = TakeSome(9, 20);
  GiveAll(9, some);
  const std::vector<void*> more = TakeSome(9, 50);
  EXPECT_EQ(std::set<void*>(more.begin(), more.end()).size(), 50u);
  EXPECT_EQ(ClassStats(9).transfer_objects, 0u);
  GiveAll(9, more);
}

// At least two batches of every class and about 256 KiB; the rest goes to the spans, none is lost.
TEST_F(TransferCache, HoldsNoMoreThanItsLimit) {
  for (unsigned c = 1; c < kNumClasses; ++c) {
    SCOPED_TRACE(c);
    const uint32_t n =
        1100 < (4u << 20) / ClassSize(c) ? 1100 : static_cast<uint32_t>((4u << 20) / ClassSize(c));
    GiveAll(c, TakeSome(c, n));
    const Stats stats = ClassStats(c);
    EXPECT_LT(stats.transfer_objects, n);
    EXPECT_GE(stats.transfer_objects, 2 * BatchSize(c));
    EXPECT_LE(stats.transfer_bytes, std::max<size_t>(256 * 1024, 2 * BatchSize(c) * ClassSize(c)));
    EXPECT_LE(stats.transfer_objects, 1024u);
    Trim();
    EXPECT_EQ(ClassStats(c).transfer_objects, 0u);
    EXPECT_EQ(ClassStats(c).spans, 0u);
    EXPECT_EQ(ClassStats(c).central_bytes, 0u);
  }
}

TEST_F(TransferCache, TrimSaysHowMuch) {
  GiveAll(2, TakeSome(2, 10));
  GiveAll(70, TakeSome(70, 3));
  EXPECT_EQ(Trim(), 10 * ClassSize(2) + 3 * ClassSize(70));
  EXPECT_EQ(Trim(), 0u);
}

// A thread that holds the locks, as one in a fork or in a signal handler, gets an answer, and a
// thread that waits for them gets its objects afterwards.
TEST_F(TransferCache, RefusesWhoeverHoldsTheLocks) {
  const std::vector<void*> objects = TakeSome(6, 10);
  LockForFork();
  void* p = nullptr;
  Shortage shortage = Shortage::kNone;
  EXPECT_EQ(Take(6, &p, 1, &shortage), 0u);
  EXPECT_EQ(shortage, Shortage::kReentrant);
  EXPECT_EQ(Give(6, objects.data(), 10), 0u);
  std::atomic<bool> given{false};
  std::thread other([&] {
    GiveAll(6, objects);
    given = true;
  });
  for (int i = 0; i < 100; ++i) {
    std::this_thread::yield();
    ASSERT_FALSE(given);
  }
  UnlockAfterFork(/*in_child=*/false);
  other.join();
  EXPECT_TRUE(given);
}

TEST_F(TransferCache, ThreadsNeverGetTheSameObject) {
  static constexpr unsigned kClasses[] = {1, 12, 90};
  std::atomic<int> twice{0};
  std::vector<std::thread> threads;
  for (unsigned id = 1; id <= 4; ++id) {
    threads.emplace_back([id, &twice] {
      std::mt19937 random(id);
      std::vector<void*> held[3];
      for (int step = 0; step < 4000; ++step) {
        const size_t k = random() % 3;
        std::vector<void*>& mine = held[k];
        if (mine.size() < 200 && random() % 2 == 0) {
          for (void* p : TakeSome(kClasses[k], 1 + random() % 32)) {
            // The owner's mark: 0 while nobody has the object.
            if (std::atomic_ref(*static_cast<uint64_t*>(p)).exchange(id) != 0) ++twice;
            mine.push_back(p);
          }
        } else if (!mine.empty()) {
          std::shuffle(mine.begin(), mine.end(), random);
          const size_t n = 1 + random() % std::min<size_t>(32, mine.size());
          const std::vector<void*> gone(mine.end() - static_cast<ptrdiff_t>(n), mine.end());
          for (void* p : gone) {
            if (std::atomic_ref(*static_cast<uint64_t*>(p)).exchange(0) != id) ++twice;
          }
          mine.resize(mine.size() - n);
          GiveAll(kClasses[k], gone);
        }
        if (id == 1 && step % 500 == 0) Trim();
      }
      for (size_t k = 0; k < 3; ++k) {
        for (void* p : held[k]) *static_cast<uint64_t*>(p) = 0;
        GiveAll(kClasses[k], held[k]);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(twice, 0);
}

// What one group of CPUs gives back does not lie in another one's way, and is not lost to it.
TEST_F(TransferCache, ShardsAreApart) {
  ASSERT_TRUE(OpenShard(3));
  ASSERT_TRUE(OpenShard(3));
  EXPECT_EQ(OpenShards(), 2u);
  const std::vector<void*> objects = TakeSome(9, 40);
  EXPECT_EQ(Give(9, objects.data(), 20, 3), 20u);
  EXPECT_EQ(Give(9, objects.data() + 20, 20), 20u);
  EXPECT_EQ(ClassStats(9).transfer_objects, 40u);
  Shortage shortage;
  std::vector<void*> again(20);
  EXPECT_EQ(Take(9, again.data(), 20, &shortage, 3), 20u);
  EXPECT_EQ(again, std::vector<void*>(objects.begin(), objects.begin() + 20));
  // Its own are used up: the spans come next, the other shard keeps what it has.
  std::vector<void*> more(20);
  EXPECT_EQ(Take(9, more.data(), 20, &shortage, 3), 20u);
  EXPECT_EQ(ClassStats(9).transfer_objects, 20u);
  std::set<void*> all(objects.begin(), objects.end());
  all.insert(more.begin(), more.end());
  EXPECT_EQ(all.size(), 60u);
  EXPECT_EQ(Give(9, again.data(), 20, 3), 20u);
  EXPECT_EQ(Give(9, more.data(), 20, 3), 20u);
  EXPECT_EQ(TrimClass(9), 60 * ClassSize(9));
}

// While a trim waits for the spans' lock others use the transfer cache: a fork in a handler that
// has interrupted who has the former must not meet the latter taken.
TEST_F(TransferCache, ATrimThatWaitsHoldsNothing) {
  const std::vector<void*> objects = TakeSome(9, 20);
  GiveAll(9, std::vector<void*>(objects.begin() + 1, objects.end()));
  std::atomic<bool> given{false};
  ASSERT_TRUE(lists[9].LockForFork(/*heap_held=*/false));
  std::thread trimmer([] { TrimClass(9); });
  for (int i = 0; i < 2000 && ClassStats(9).transfer_objects != 0; ++i) usleep(1000);
  std::thread giver([&] {
    GiveAll(9, {objects[0]});
    given = true;
  });
  for (int i = 0; i < 2000 && !given; ++i) usleep(1000);
  EXPECT_TRUE(given);
  lists[9].UnlockAfterFork(/*in_child=*/false);
  trimmer.join();
  giver.join();
}

// The limit is on all shards together.
TEST_F(TransferCache, ShardsShareOneLimit) {
  for (unsigned shard : {1u, 2u, 3u}) ASSERT_TRUE(OpenShard(shard));
  std::vector<std::pair<unsigned, std::vector<void*>>> taken;
  for (unsigned c = 20; c < 60; ++c) {
    for (int i = 0; i < 4; ++i) taken.emplace_back(c, TakeSome(c, 200));
  }
  unsigned shard = 0;
  uint64_t most = 0;
  for (const auto& [c, objects] : taken) {
    EXPECT_EQ(Give(c, objects.data(), 200, shard++ % 4), 200u);
    uint64_t bytes = 0;
    for (unsigned each = 1; each < kNumClasses; ++each) bytes += ClassStats(each).transfer_bytes;
    most = std::max(most, bytes);
  }
  // A 32nd of a heap of 20 MiB, and what came since the search before; without a search 10 MB.
  EXPECT_LE(most, 2u << 20);
  EXPECT_GE(most, 512u << 10);
}

// One thread gives in one shard what the other takes from it in another; none is lost or doubled.
TEST_F(TransferCache, ShardsUnderThreads) {
  for (unsigned shard : {1u, 2u}) ASSERT_TRUE(OpenShard(shard));
  std::vector<std::thread> threads;
  std::atomic<int> twice{0};
  for (unsigned t = 0; t < 3; ++t) {
    threads.emplace_back([t, &twice] {
      std::mt19937 random(t);
      for (int i = 0; i < 20000; ++i) {
        void* objects[32];
        Shortage shortage;
        const uint32_t n = Take(7, objects, 1 + random() % 32, &shortage, random() % 3);
        for (uint32_t k = 0; k < n; ++k) {
          auto* const stamp = static_cast<std::atomic<unsigned>*>(objects[k]);
          if (stamp->exchange(t + 1) != 0) ++twice;
        }
        for (uint32_t k = 0; k < n; ++k) {
          auto* const stamp = static_cast<std::atomic<unsigned>*>(objects[k]);
          if (stamp->exchange(0) != t + 1) ++twice;
        }
        Give(7, objects, n, random() % 3);
        if (i % 1000 == 0) TrimClass(7);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(twice, 0);
}

}  // namespace
}  // namespace pcmalloc::central
