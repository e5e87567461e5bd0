// SPDX-License-Identifier: Apache-2.0
#include "allocator/pages/emergency.h"

#include <signal.h>
#include <stdint.h>
#include <string.h>
#include <sys/time.h>

#include <atomic>
#include <random>
#include <set>
#include <thread>
#include <vector>

#include "gtest/gtest.h"

namespace pcmalloc {
namespace {

TEST(EmergencyTest, SizesAndAlignments) {
  const size_t before = EmergencyBlocks();
  size_t taken = 0;
  for (size_t size : {0, 1, 16, 17, 100, 4096, 32768, 32769, 100000, 5000000}) {
    for (size_t alignment = 1; alignment <= size_t{4} << 20; alignment *= 4) {
      char* p = static_cast<char*>(EmergencyTake(size, alignment));
      ASSERT_NE(p, nullptr);
      ++taken;
      EXPECT_EQ(reinterpret_cast<uintptr_t>(p) % (alignment < 16 ? 16 : alignment), 0u);
      ASSERT_TRUE(EmergencyOwns(p));
      ASSERT_GE(EmergencySize(p), size);
      memset(p, 1, EmergencySize(p));
      EmergencyGive(p);
    }
  }
  EXPECT_EQ(EmergencyBlocks(), before + taken);
}

TEST(EmergencyTest, RefusesWhatCannotBe) {
  EXPECT_EQ(EmergencyTake(SIZE_MAX, 16), nullptr);
  EXPECT_EQ(EmergencyTake(PTRDIFF_MAX, 16), nullptr);
  EXPECT_EQ(EmergencyTake(16, size_t{1} << 62), nullptr);
  // A refusal keeps no slot.
  for (int i = 0; i < 2000; ++i) ASSERT_EQ(EmergencyTake(size_t{1} << 60, 16), nullptr);
  void* p = EmergencyTake(1 << 20, 16);
  ASSERT_NE(p, nullptr);
  EmergencyGive(p);
}

TEST(EmergencyTest, ForeignAddresses) {
  int local;
  EXPECT_FALSE(EmergencyOwns(nullptr));
  EXPECT_FALSE(EmergencyOwns(&local));
  char* large = static_cast<char*>(EmergencyTake(1 << 20, 16));
  EXPECT_TRUE(EmergencyOwns(large));
  EXPECT_FALSE(EmergencyOwns(large - 1) && EmergencyOwns(large + (1 << 20)));
  EmergencyGive(large);
  EXPECT_FALSE(EmergencyOwns(large));
}

TEST(EmergencyTest, BlocksAreDistinctAndUsedAgain) {
  std::set<void*> first;
  for (int i = 0; i < 10000; ++i) ASSERT_TRUE(first.insert(EmergencyTake(48, 16)).second);
  for (void* p : first) EmergencyGive(p);
  size_t again = 0;
  std::set<void*> second;
  for (int i = 0; i < 10000; ++i) {
    void* p = EmergencyTake(48, 16);
    ASSERT_TRUE(second.insert(p).second);
    again += first.count(p);
  }
  EXPECT_EQ(again, 10000u);
  for (void* p : second) EmergencyGive(p);
}

TEST(EmergencyTest, ThreadsNeverShareABlock) {
  std::vector<std::thread> threads;
  std::atomic<int> errors{0};
  for (int t = 0; t < 6; ++t) {
    threads.emplace_back([t, &errors] {
      std::mt19937_64 random(t);
      std::vector<uint64_t*> mine;
      for (int i = 0; i < 60000; ++i) {
        if (mine.size() < 20 && random() % 2 == 0) {
          const size_t size = random() % 1000 == 0 ? 50000 : 16 << (random() % 3);
          uint64_t* p = static_cast<uint64_t*>(EmergencyTake(size, 16));
          if (p == nullptr) {
            ++errors;
            continue;
          }
          p[0] = p[1] = reinterpret_cast<uintptr_t>(p) + t;
          mine.push_back(p);
        } else if (!mine.empty()) {
          uint64_t* p = mine.back();
          mine.pop_back();
          const uint64_t expected = reinterpret_cast<uintptr_t>(p) + t;
          if (p[0] != expected || p[1] != expected) ++errors;
          EmergencyGive(p);
        }
      }
      for (uint64_t* p : mine) EmergencyGive(p);
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(errors, 0);
}

std::atomic<int> handler_runs;
std::atomic<int> handler_errors;

void TimerHandler(int) {
  void* p[3];
  for (void*& block : p) block = EmergencyTake(64, 16);
  if (p[0] == nullptr || p[0] == p[1] || p[1] == p[2] || p[0] == p[2]) ++handler_errors;
  for (void* block : p) EmergencyGive(block);
  ++handler_runs;
}

TEST(EmergencyTest, HandlersInterruptEmergencyItself) {
  struct sigaction action = {};
  action.sa_handler = TimerHandler;
  ASSERT_EQ(sigaction(SIGALRM, &action, nullptr), 0);
  const itimerval every = {{0, 100}, {0, 100}};
  const itimerval never = {};
  setitimer(ITIMER_REAL, &every, nullptr);
  while (handler_runs < 1000) {
    uint64_t* p = static_cast<uint64_t*>(EmergencyTake(64, 16));
    ASSERT_NE(p, nullptr);
    *p = 42;
    uint64_t* q = static_cast<uint64_t*>(EmergencyTake(64, 16));
    ASSERT_NE(p, q);
    *q = 43;
    ASSERT_EQ(*p, 42u);
    EmergencyGive(p);
    EmergencyGive(q);
  }
  setitimer(ITIMER_REAL, &never, nullptr);
  EXPECT_EQ(handler_errors, 0);
}

TEST(EmergencyDeathTest, GivingTwiceIsNoticed) {
  void* p = EmergencyTake(64, 16);
  EmergencyGive(p);
  EXPECT_DEATH(EmergencyGive(p), "internal error");
}

}  // namespace
}  // namespace pcmalloc
