// SPDX-License-Identifier: Apache-2.0
#include "allocator/os/zero.h"

#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>

#include "allocator/os/memory.h"
#include "allocator/os/test_util.h"
#include "gtest/gtest.h"

namespace pcmalloc::os {
namespace {

class Zero : public ::testing::Test {
 protected:
  void SetUp() override {
    memory_ = static_cast<char*>(
        mmap(nullptr, kBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    ASSERT_NE(memory_, MAP_FAILED);
    // Resident pages are counted below: no hugepages.
    ASSERT_EQ(madvise(memory_, kBytes, MADV_NOHUGEPAGE), 0);
  }
  void TearDown() override { munmap(memory_, kBytes); }

  size_t ResidentPages() const { return os::ResidentPages(memory_, kBytes); }

  static bool AllZero(const char* p, size_t bytes) {
    return std::all_of(p, p + bytes, [](char c) { return c == 0; });
  }

  static constexpr size_t kBytes = size_t{24} << 20;  // more than one question's worth
  char* memory_ = nullptr;
};

TEST_F(Zero, UntouchedMemoryStaysUntouched) {
  for (int i = 0; i < 100; ++i) os::Zero(memory_, kBytes);
  EXPECT_EQ(ResidentPages(), 0u);
}

TEST_F(Zero, ClearsWhatIsThere) {
  for (int i = 0; i < 40; ++i) {  // until it asks
    memset(memory_, 1, size_t{1} << 20);
    os::Zero(memory_, size_t{1} << 20);
  }
  memset(memory_, 1, kBytes);
  os::Zero(memory_, kBytes);
  EXPECT_EQ(ResidentPages(), kBytes / KernelPageSize()) << "clearing was cheaper than faults";
  EXPECT_TRUE(AllZero(memory_, kBytes));
}

TEST_F(Zero, ClearsWhereverItWasTouched) {
  const size_t page = KernelPageSize();
  // Single pages, runs, and holes just shorter and longer than what is worth dropping.
  for (const size_t step : {size_t{1}, size_t{2}, size_t{7}, size_t{15}, size_t{16}, size_t{17},
                            size_t{100}, size_t{511}, size_t{4096}}) {
    ASSERT_TRUE(Return(memory_, kBytes));
    for (size_t i = 0; i < kBytes / page; i += step) memory_[i * page + i % page] = 1;
    os::Zero(memory_, kBytes);
    EXPECT_TRUE(AllZero(memory_, kBytes)) << step;
  }
}

// The bytes around the range belong to others; its ends need not be on pages.
TEST_F(Zero, KeepsToItsRange) {
  for (const size_t bytes : {size_t{1}, size_t{5000}, kWorthAsking - 1, kWorthAsking,
                             kWorthAsking + 4321, size_t{5} << 20}) {
    memset(memory_, 1, kBytes);
    os::Zero(memory_ + 1000, bytes);
    EXPECT_TRUE(AllZero(memory_ + 1000, bytes));
    EXPECT_EQ(memory_[999], 1);
    EXPECT_EQ(memory_[1000 + bytes], 1);
  }
}

// After many untouched blocks it drops without asking; what had been touched must be zero still.
TEST_F(Zero, IsRightWhenItGuessesWrong) {
  for (int i = 0; i < 100; ++i) os::Zero(memory_, kBytes);
  for (int i = 0; i < 100; ++i) {
    memset(memory_, i + 1, size_t{1} << 20);
    os::Zero(memory_, size_t{1} << 20);
    ASSERT_TRUE(AllZero(memory_, size_t{1} << 20)) << i;
  }
  // By then it has learned that clearing is cheaper here.
  EXPECT_EQ(ResidentPages(), (size_t{1} << 20) / KernelPageSize());
}

// Once it only looks at samples, it must still find out soon that blocks are used, wherever.
TEST_F(Zero, NoticesUseInAnyPartOfABlock) {
  constexpr size_t kBlock = size_t{4} << 20;
  constexpr size_t kPart = kBlock / 8;
  for (size_t used = 0; used < kBlock; used += kPart) {
    ASSERT_TRUE(Return(memory_, kBytes));
    for (int i = 0; i < 100; ++i) os::Zero(memory_, kBlock);
    // Dropped pages are gone, cleared ones stay.
    int dropped = 0;
    for (; dropped < 1000; ++dropped) {
      memset(memory_ + used, 1, kPart);
      os::Zero(memory_, kBlock);
      if (ResidentPages() != 0) break;
      ASSERT_TRUE(AllZero(memory_ + used, kPart));
    }
    EXPECT_LT(dropped, 1000) << used;
    EXPECT_TRUE(AllZero(memory_, kBlock));
  }
}

TEST_F(Zero, LockedMemoryIsCleared) {
  if (mlock(memory_, size_t{1} << 20) != 0) GTEST_SKIP() << "no memory may be locked here";
  for (int i = 0; i < 3; ++i) {
    memset(memory_, 1, size_t{1} << 20);
    os::Zero(memory_, size_t{2} << 20);
    EXPECT_TRUE(AllZero(memory_, size_t{2} << 20));
  }
}

}  // namespace
}  // namespace pcmalloc::os
