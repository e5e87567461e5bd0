// SPDX-License-Identifier: Apache-2.0
//
// Blocks of some hundred KiB: spans of their own that pass through the per-CPU caches.
#include <inttypes.h>
#include <malloc.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <fstream>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "gtest/gtest.h"
#include "tests/support/allocator.h"

namespace pcmalloc::testing {
namespace {

constexpr size_t kKiB = 1024;
constexpr size_t kSizes[] = {256 * kKiB + 1, 300 * kKiB,      320 * kKiB,  512 * kKiB,
                             800 * kKiB,     1024 * kKiB - 1, 1024 * kKiB, 1024 * kKiB + 1};

TEST(Large, BlocksAreApart) {
  std::vector<char*> blocks;
  for (int round = 0; round < 3; ++round) {
    for (size_t size : kSizes) {
      for (int i = 0; i < 5; ++i) {
        char* p = static_cast<char*>(malloc(size));
        ASSERT_NE(p, nullptr);
        ASSERT_GE(malloc_usable_size(p), size);
        p[0] = p[size - 1] = static_cast<char>(blocks.size());
        blocks.push_back(p);
      }
    }
    EXPECT_EQ(std::set<char*>(blocks.begin(), blocks.end()).size(), blocks.size());
    for (size_t i = 0; i < blocks.size(); ++i) EXPECT_EQ(blocks[i][0], static_cast<char>(i));
    for (char* p : blocks) free(p);
    blocks.clear();
  }
}

TEST(Large, CallocClearsWhatWasUsed) {
  for (int round = 0; round < 12; ++round) {
    for (size_t size : kSizes) {
      char* p = static_cast<char*>(calloc(1, size));
      ASSERT_NE(p, nullptr);
      ASSERT_TRUE(std::all_of(p, p + size, [](char c) { return c == 0; })) << size;
      // Touched in full, in part, not at all.
      if (round % 3 == 0) memset(p, 1, size);
      if (round % 3 == 1) p[size / 2] = 1;
      free(p);
    }
  }
}

// A block whose length changed is of no class any more, or of another one.
TEST(Large, ResizedBlocksComeBackWhole) {
  for (int round = 0; round < 3; ++round) {
    for (size_t from : kSizes) {
      for (size_t to : kSizes) {
        char* p = static_cast<char*>(malloc(from));
        ASSERT_NE(p, nullptr);
        const char mark = static_cast<char>(round + 1);
        memset(p, mark, from);
        p = static_cast<char*>(realloc(p, to));
        ASSERT_NE(p, nullptr);
        ASSERT_TRUE(std::all_of(p, p + std::min(from, to), [=](char c) { return c == mark; }))
            << from << " " << to;
        ASSERT_GE(malloc_usable_size(p), to);
        memset(p, 0, to);
        free(p);
      }
    }
  }
}

TEST(Large, AlignedOnesAreAligned) {
  for (size_t size : kSizes) {
    for (size_t alignment : {size_t{64}, size_t{4096}, size_t{8192}, size_t{65536}}) {
      void* p = aligned_alloc(alignment, size);
      ASSERT_NE(p, nullptr);
      EXPECT_EQ(reinterpret_cast<uintptr_t>(p) % alignment, 0u);
      free(p);
    }
  }
}

// Made by one thread, freed by another.
TEST(Large, WanderBetweenThreads) {
  constexpr int kThreads = 4;
  static std::atomic<char*> shelf[kThreads];
  std::atomic<int> broken{0};
  std::vector<std::thread> threads;
  for (int id = 0; id < kThreads; ++id) {
    threads.emplace_back([id, &broken] {
      for (int i = 0; i < 3000; ++i) {
        const size_t size = kSizes[static_cast<size_t>(i + id) % std::size(kSizes)];
        char* p = static_cast<char*>(malloc(size));
        memcpy(p, &size, sizeof(size));
        p[size - 1] = 7;
        char* other = shelf[(id + i) % kThreads].exchange(p);
        if (other == nullptr) continue;
        size_t stored;
        memcpy(&stored, other, sizeof(stored));
        if (stored > kSizes[std::size(kSizes) - 1] || other[stored - 1] != 7) ++broken;
        free(other);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (auto& p : shelf) free(p.exchange(nullptr));
  EXPECT_EQ(broken, 0);
}

TEST(LargeDeathTest, DoubleFree) {
  if (!IsPcmalloc()) GTEST_SKIP() << "not pcmalloc";
  void* volatile p = malloc(512 * kKiB);
  EXPECT_DEATH(
      {
        free(p);
        free(p);
      },
      "free of 0x[0-9a-f]+: the memory is free already");
  EXPECT_DEATH(
      {
        free(p);
        if (realloc(p, 100) != nullptr) _exit(0);
      },
      "realloc of 0x[0-9a-f]+: the memory is free already");
  EXPECT_DEATH(free(static_cast<char*>(p) + 16), "points into a block");
  free(p);
}

// Where the mappings begin that reach up to `p` without a gap.
uintptr_t MappedFrom(const void* p) {
  std::ifstream maps("/proc/self/maps");
  uintptr_t from = 0, before = 0;
  for (std::string line; std::getline(maps, line);) {
    uintptr_t begin, end;
    EXPECT_EQ(sscanf(line.c_str(), "%" SCNxPTR "-%" SCNxPTR, &begin, &end), 2);
    if (begin != before) from = begin;
    if (reinterpret_cast<uintptr_t>(p) < end) break;
    before = end;
  }
  return from;
}

// The allocator's own maps lie in the address space that blocks come from.
TEST(LargeDeathTest, FreeOfWhatIsNoBlock) {
  if (!IsPcmalloc()) GTEST_SKIP() << "not pcmalloc";
  int local;
  EXPECT_DEATH(free(Escape(&local)), "free of 0x[0-9a-f]+: the address was not allocated");
  void* const p = malloc(512 * kKiB);
  const uintptr_t from = MappedFrom(p);
  const uintptr_t below = (reinterpret_cast<uintptr_t>(p) - from) / 2;
  for (uintptr_t offset = 0; offset < below; offset = offset * 8 + 8192) {
    void* const no_block = reinterpret_cast<void*>(from + offset);
    EXPECT_DEATH(free(Escape(no_block)), "free of 0x[0-9a-f]+: the address was not allocated")
        << offset;
  }
  free(p);
}

// A buffer that is appended to, as programs do: once it has moved to where there is room, it stays.
TEST(LargeRealloc, ABufferThatGrowsStaysWhereItIs) {
  constexpr size_t kStep = 8 << 10;
  size_t size = 40 << 10;
  char* p = static_cast<char*>(malloc(size));
  ASSERT_NE(p, nullptr);
  memset(p, 1, size);
  int moves = 0;
  while (size < (1 << 20)) {
    const uintptr_t before = reinterpret_cast<uintptr_t>(p);
    p = static_cast<char*>(realloc(p, size + kStep));
    ASSERT_NE(p, nullptr);
    moves += reinterpret_cast<uintptr_t>(p) != before;
    memset(p + size, static_cast<int>(size / kStep), kStep);
    size += kStep;
  }
  // It moves to where it can double: behind it a span may be in use, or may be free for much
  // longer. From one size class to the next would be 20 moves.
  EXPECT_LE(moves, 5);
  for (size_t at = 40 << 10; at < size; at += kStep) {
    ASSERT_EQ(p[at], static_cast<char>(at / kStep)) << at;
    ASSERT_EQ(p[at + kStep - 1], static_cast<char>(at / kStep)) << at;
  }
  ASSERT_EQ(p[0], 1);
  ASSERT_EQ(p[(40 << 10) - 1], 1);
  // And back: below the size where spans pay it is a block of a class again.
  p = static_cast<char*>(realloc(p, 100));
  ASSERT_NE(p, nullptr);
  ASSERT_EQ(p[99], 1);
  EXPECT_LT(malloc_usable_size(p), 1000u);
  free(p);
}

}  // namespace
}  // namespace pcmalloc::testing
