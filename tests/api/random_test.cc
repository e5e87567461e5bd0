// SPDX-License-Identifier: Apache-2.0
//
// Random sequences of every way to allocate, with each block's content checked before it goes.
#include <errno.h>
#include <malloc.h>
#include <stdlib.h>

#include <algorithm>
#include <atomic>
#include <thread>
#include <vector>

#include "gtest/gtest.h"
#include "tests/support/allocator.h"
#include "tests/support/process.h"

namespace pcmalloc::testing {
namespace {

struct Block {
  void* p = nullptr;
  size_t size = 0;
  size_t alignment = 16;
  uint64_t seed = 0;
};

// What the blocks hold stays bounded: a large block takes the place of many small ones.
struct Range {
  const char* name;
  int max_bits;
  size_t blocks;
  int steps;
};

const Range kRanges[] = {
    {"small", 10, 2000, 300000},
    {"classes", 18, 300, 60000},
    {"spans", 22, 40, 4000},
    {"large", 26, 6, 300},
};

void Check(const Block& block) {
  EXPECT_EQ(reinterpret_cast<uintptr_t>(block.p) % block.alignment, 0u);
  EXPECT_GE(malloc_usable_size(block.p), block.size);
  EXPECT_TRUE(Holds(block.p, block.size, block.seed)) << block.size;
}

void Step(const Range& range, Random& random, Block& block) {
  size_t size = random.Size(range.max_bits);
  if (block.p != nullptr) {
    Check(block);
    if (random.Below(3) == 0) {
      void* moved = realloc(block.p, size);
      ASSERT_NE(moved, nullptr);
      EXPECT_TRUE(HoldsPrefix(moved, std::min(size, block.size), block.size, block.seed))
          << block.size << " -> " << size;
      block = {moved, size, 16, block.seed};
      Fill(block.p, size, block.seed);
      return;
    }
    free(block.p);
    block.p = nullptr;
    if (random.Below(4) == 0) return;
  }
  block = {nullptr, size, 16, random.Next()};
  switch (random.Below(5)) {
    case 0:
      block.alignment = size_t{16} << random.Below(13);
      block.p = memalign(block.alignment, size);
      break;
    case 1:
      block.alignment = size_t{8} << random.Below(10);
      EXPECT_EQ(posix_memalign(&block.p, block.alignment, size), 0);
      break;
    case 2: {
      block.p = calloc(size, 1);
      auto* bytes = static_cast<uint8_t*>(block.p);
      ASSERT_NE(bytes, nullptr);
      for (size_t i = 0; i < size; i = NextChecked(i, size)) ASSERT_EQ(bytes[i], 0) << size;
      break;
    }
    default:
      block.p = malloc(size);
  }
  ASSERT_NE(block.p, nullptr);
  Fill(block.p, size, block.seed);
}

class RandomSequence : public ::testing::TestWithParam<Range> {};

TEST_P(RandomSequence, KeepsEveryBlock) {
  Range range = GetParam();
  if (Variant() == "valgrind") range.steps /= 10;
  std::vector<std::thread> threads;
  for (uint64_t id = 1; id <= 3; ++id) {
    threads.emplace_back([&range, id] {
      Random random(id);
      std::vector<Block> blocks(range.blocks);
      for (int i = 0; i < range.steps && !::testing::Test::HasFailure(); ++i) {
        Step(range, random, blocks[random.Below(blocks.size())]);
      }
      for (Block& block : blocks) {
        if (block.p != nullptr) Check(block);
        free(block.p);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
}

INSTANTIATE_TEST_SUITE_P(Ranges, RandomSequence, ::testing::ValuesIn(kRanges),
                         [](const auto& info) { return info.param.name; });

TEST(Realloc, InSmallStepsKeepsTheContent) {
  for (size_t step : {size_t{1}, size_t{15}, size_t{4000}, size_t{1} << 20}) {
    size_t limit = std::min(step * 3000, size_t{64} << 20);
    void* p = nullptr;
    size_t size = 0;
    for (; size + step <= limit; size += step) {
      p = realloc(p, size + step);
      ASSERT_NE(p, nullptr);
      ASSERT_TRUE(size == 0 || HoldsPrefix(p, size, size, step)) << size;
      Fill(p, size + step, step);
    }
    for (; size > step; size = size * 2 / 3) {
      void* q = realloc(p, size * 2 / 3 + 1);
      ASSERT_NE(q, nullptr);
      p = q;
      ASSERT_TRUE(HoldsPrefix(p, std::min(size * 2 / 3 + 1, size_t{2048}), 2048, step));
    }
    free(p);
  }
}

// Blocks handed to a thread that only frees.
TEST(Free, OnAnotherThreadKeepsTheContent) {
  constexpr size_t kSlots = 1024;
  static std::atomic<Block*> slots[kSlots];
  std::atomic<bool> done{false};
  const int steps = Variant() == "valgrind" ? 20000 : 300000;
  std::thread taker([&] {
    Random random(5);
    for (int i = 0; i < steps; ++i) {
      auto* block = new Block;
      block->size = random.Size(i % 64 == 0 ? 18 : 11);
      block->seed = random.Next();
      block->p = malloc(block->size);
      Fill(block->p, block->size, block->seed);
      Block* expected = nullptr;
      while (!slots[i % kSlots].compare_exchange_weak(expected, block)) {
        expected = nullptr;
        std::this_thread::yield();
      }
    }
    done = true;
  });
  for (int i = 0; i < steps; ++i) {
    Block* block;
    while ((block = slots[i % kSlots].exchange(nullptr)) == nullptr) std::this_thread::yield();
    Check(*block);
    free(block->p);
    delete block;
  }
  taker.join();
  EXPECT_TRUE(done);
}

}  // namespace
}  // namespace pcmalloc::testing
