// SPDX-License-Identifier: Apache-2.0
//
// Limits that the program, or whoever runs it, sets.
#include <errno.h>
#include <malloc.h>
#include <pthread.h>
#include <signal.h>
#include <string.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <string>
#include <thread>
#include <vector>

#include "gtest/gtest.h"
#include "tests/release/extension.h"
#include "tests/support/process.h"

namespace pcmalloc::testing {
namespace {

::testing::AssertionResult RunWith(const char* scenario, const std::string& keys) {
  FreshProcess options;
  options.environment = {Conf(keys)};
  return InFreshProcess(scenario, options);
}

// Blocks in a list through themselves; written, so that they are resident.
struct Blocks {
  void* head = nullptr;
  size_t bytes = 0;
  bool Take(size_t size) {
    void* p = malloc(size);
    if (p == nullptr) return false;
    memset(p, 1, size);
    *static_cast<void**>(p) = head;
    head = p;
    bytes += size;
    return true;
  }
  void Free(size_t size) {
    void* p = head;
    head = *static_cast<void**>(p);
    bytes -= size;
    free(p);
  }
  void FreeAll(size_t size) {
    while (head != nullptr) Free(size);
  }
};

constexpr size_t kHard = 64 * kMiB;

std::atomic<bool> handler_may_set{false};

// A limit that is set while another one is being put in force must not give way to what was there
// before. A signal does what another thread might: it comes at any instruction, and soon enough at
// that one.
PCM_SCENARIO(TwoLimitsAtOnce) {
  auto* const set_soft = Lookup<void(size_t)>("pcmalloc_set_soft_limit");
  auto* const set_hard = Lookup<void(size_t)>("pcmalloc_set_hard_limit");
  ASSERT_TRUE(set_soft && set_hard);
  static void (*set_in_handler)(size_t);
  set_in_handler = set_hard;
  signal(SIGUSR1, [](int) {
    if (handler_may_set.exchange(false)) set_in_handler(kHard);
  });
  sigset_t mask;
  sigemptyset(&mask);
  sigaddset(&mask, SIGUSR1);
  pthread_sigmask(SIG_BLOCK, &mask, nullptr);
  std::atomic<bool> stop{false};
  const pthread_t self = pthread_self();
  std::thread disturber([&] {
    while (!stop) pthread_kill(self, SIGUSR1);
  });
  const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(3);
  int rounds = 0, lost = 0;
  while (std::chrono::steady_clock::now() < end) {
    set_hard(SIZE_MAX);
    pthread_sigmask(SIG_UNBLOCK, &mask, nullptr);
    handler_may_set = true;  // not by the signal that was pending
    while (handler_may_set) set_soft(SIZE_MAX);
    pthread_sigmask(SIG_BLOCK, &mask, nullptr);
    void* const p = Escape(malloc(2 * kHard));
    ++rounds;
    if (p != nullptr) ++lost;
    free(p);
  }
  stop = true;
  disturber.join();
  EXPECT_EQ(lost, 0) << "of " << rounds;
}

TEST(HardLimit, IsNotLostWhileAnotherIsSet) { EXPECT_TRUE(RunWith("TwoLimitsAtOnce", "")); }

PCM_SCENARIO(HardLimit) {
  EXPECT_EQ(Ask("pcmalloc_hard_limit"), kHard);
  for (size_t size : {size_t{100}, size_t{3000}, size_t{100'000}, size_t{2'000'000}}) {
    SCOPED_TRACE(size);
    Blocks blocks;
    for (int round = 0; round < 3; ++round) {
      errno = 0;
      while (blocks.bytes < 2 * kHard && blocks.Take(size)) {
      }
      EXPECT_EQ(errno, ENOMEM);
      EXPECT_LE(Footprint(), kHard);
      EXPECT_LE(Measure().resident, kHard + 16 * kMiB);
      // What can be had is most of it.
      EXPECT_GE(blocks.bytes, kHard / 4 * 3);
      errno = 0;
      EXPECT_EQ(Escape(calloc(1, kHard / 2)), nullptr);
      EXPECT_EQ(errno, ENOMEM);
      // Everything works again as soon as there is room.
      for (size_t freed = 0; freed < kHard / 2; freed += size) blocks.Free(size);
    }
    blocks.FreeAll(size);
    void* p = malloc(kHard / 4 * 3);
    EXPECT_NE(p, nullptr) << "memory of small blocks does not come back";
    memset(p, 1, kHard / 4 * 3);
    EXPECT_LE(Footprint(), kHard);
    free(p);
  }
  EXPECT_EQ(Escape(malloc(kHard)), nullptr);
  void* p = malloc(kMiB);
  void* grown = realloc(p, 2 * kHard);
  EXPECT_EQ(grown, nullptr);
  EXPECT_EQ(errno, ENOMEM);
  grown = realloc(p, 20 * kMiB);
  ASSERT_NE(grown, nullptr);
  free(grown);
}
TEST(Limit, HardOneIsENOMEM) {
  EXPECT_TRUE(RunWith("HardLimit", "limit_hard:64M"));
  EXPECT_TRUE(RunWith("HardLimit", "limit_hard:64M,background_thread:off,cgroup:false"));
}

PCM_SCENARIO(HardLimitInThreads) {
  std::vector<std::thread> threads;
  std::atomic<int> refused{0};
  for (int i = 0; i < 4; ++i) {
    threads.emplace_back([&refused, i] {
      for (int round = 0; round < 20; ++round) {
        Blocks blocks;
        const size_t size = static_cast<size_t>(500 + 3000 * i);
        while (blocks.bytes < kHard && blocks.Take(size)) {
        }
        refused += blocks.bytes < kHard;
        blocks.FreeAll(size);
      }
    });
  }
  size_t most = 0;
  for (int i = 0; i < 100; ++i) {
    most = std::max(most, Footprint());
    SleepMs(5);
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_LE(most, kHard);
  EXPECT_GT(refused, 0);
  EXPECT_TRUE(Burst(kHard / 2, 1000));
}
TEST(Limit, HardOneHoldsForAllThreadsTogether) {
  EXPECT_TRUE(RunWith("HardLimitInThreads", "limit_hard:64M"));
}

PCM_SCENARIO(SoftLimit) {
  // Below what free memory may otherwise stay.
  constexpr size_t kSoft = 8 * kMiB;
  EXPECT_EQ(Ask("pcmalloc_soft_limit"), kSoft);
  const size_t at_start = Measure().resident;
  for (size_t size : {size_t{200}, size_t{5000}, size_t{1'000'000}}) {
    SCOPED_TRACE(size);
    Blocks blocks;
    // It refuses nothing...
    while (blocks.bytes < 8 * kSoft) ASSERT_TRUE(blocks.Take(size));
    EXPECT_GE(Footprint(), 8 * kSoft);
    // ... but nothing idle stays above it, without anybody's help.
    blocks.FreeAll(size);
    EXPECT_LE(Footprint(), kSoft + kMiB);
    EXPECT_LE(Measure().resident, at_start + kSoft + 4 * kMiB);
  }
  EXPECT_GE(Statistic("limit_relieves"), 1);
}
TEST(Limit, NothingIdleStaysAboveTheSoftOne) {
  EXPECT_TRUE(RunWith("SoftLimit", "limit_soft:8M,decay:never"));
}

// Holes in spans have no memory, so they are no growth either: a heap above its limit is looked
// over when it has grown by a part of it, not at each request.
PCM_SCENARIO(SoftLimitWithHoles) {
  constexpr size_t kSize = 4096;
  std::vector<void*> blocks(24'000);
  std::vector<void*> large(200);
  for (void*& p : blocks) p = memset(malloc(kSize), 1, kSize);
  for (size_t i = 0; i < blocks.size(); ++i) {
    if (i % 8 != 0) free(blocks[i]);
  }
  malloc_trim(0);
  ASSERT_GT(Statistic("hole_bytes"), int64_t{48} * kMiB);
  const auto before = Statistic("limit_relieves");
  for (void*& p : large) p = malloc(300'000);
  // 57 MiB, a MiB or a sixteenth of the heap at a time.
  EXPECT_LE(Statistic("limit_relieves"), before + 60);
  for (void* p : large) free(p);
  for (size_t i = 0; i < blocks.size(); i += 8) free(blocks[i]);
}
TEST(Limit, HolesDoNotCountAsGrowth) {
  EXPECT_TRUE(RunWith("SoftLimitWithHoles", "limit_soft:8M,decay:never"));
}

PCM_SCENARIO(Setters) {
  EXPECT_EQ(Ask("pcmalloc_soft_limit"), SIZE_MAX);
  EXPECT_EQ(Ask("pcmalloc_hard_limit"), SIZE_MAX);
  EXPECT_EQ(Ask("pcmalloc_percpu_cache"), 8 * kMiB);
  ASSERT_TRUE(Burst(100 * kMiB, 5000));
  const size_t before = Footprint();
  EXPECT_GE(before, 4 * kMiB);
  // Takes effect at once on what is idle.
  Tell("pcmalloc_set_soft_limit", kMiB);
  EXPECT_EQ(Ask("pcmalloc_soft_limit"), kMiB);
  EXPECT_LT(Footprint(), before);
  EXPECT_LE(Footprint(), 5 * kMiB);
  EXPECT_EQ(Ask("pcmalloc_percpu_cache"), 64u << 10);
  Tell("pcmalloc_set_soft_limit", SIZE_MAX);
  EXPECT_EQ(Ask("pcmalloc_percpu_cache"), 8 * kMiB);
  Tell("pcmalloc_set_hard_limit", 8 * kMiB);
  EXPECT_FALSE(Burst(20 * kMiB, 1000));
  Tell("pcmalloc_set_hard_limit", SIZE_MAX);
  EXPECT_TRUE(Burst(20 * kMiB, 1000));
  // A limit below what is in use takes nothing away.
  void* p = malloc(10 * kMiB);
  memset(p, 5, 10 * kMiB);
  Tell("pcmalloc_set_hard_limit", kMiB);
  EXPECT_EQ(Escape(malloc(kMiB)), nullptr);
  EXPECT_EQ(static_cast<char*>(p)[9 * kMiB], 5);
  free(p);
}
TEST(Limit, CanBeSetWhileRunning) { EXPECT_TRUE(RunWith("Setters", "cgroup:false,decay:never")); }

PCM_SCENARIO(PercpuCache) {
  EXPECT_EQ(Ask("pcmalloc_percpu_cache"), 512u << 10);
  Burst(64 * kMiB, 3000);
  const int64_t cpus = Statistic("slabs");
  EXPECT_LE(Statistic("slab_held_bytes"), cpus * 512 << 10);
  Tell("pcmalloc_set_percpu_cache", 2 * kMiB);
  // The first slots of a few large classes are more than before.
  for (size_t size = 8 << 10; size <= 48 << 10; size += 8 << 10) Burst(20 * size, size);
  EXPECT_GT(Statistic("capacity_bytes"), 600 << 10);
  Tell("pcmalloc_set_percpu_cache", 64 << 10);
  // At once, not only with the next misses.
  EXPECT_LE(Statistic("slab_held_bytes"), cpus * 64 << 10);
  EXPECT_LE(Statistic("capacity_bytes"), cpus * 64 << 10);
  EXPECT_TRUE(Burst(kMiB, 3000));
  Tell("pcmalloc_set_percpu_cache", 1);
  EXPECT_EQ(Ask("pcmalloc_percpu_cache"), 64u << 10);
  Tell("pcmalloc_set_percpu_cache", SIZE_MAX);
  EXPECT_EQ(Ask("pcmalloc_percpu_cache"), size_t{1} << 30);
}
TEST(Limit, OfACpusCache) { EXPECT_TRUE(RunWith("PercpuCache", "percpu_cache:512K")); }

}  // namespace
}  // namespace pcmalloc::testing
