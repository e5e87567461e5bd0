// SPDX-License-Identifier: Apache-2.0
//
// Pressure in a process without the background thread: what slow paths do about it, at times that
// the test makes up. The machine's files are the test's own.
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <string>
#include <thread>
#include <vector>

#include "allocator/config/config.h"
#include "allocator/front/budget.h"
#include "allocator/pages/page_heap.h"
#include "allocator/release/limits.h"
#include "allocator/release/own_machine.h"
#include "gtest/gtest.h"

namespace pcmalloc::release {
namespace {

constexpr char kFile[] = "/proc/pressure/memory";

// What a slow path does.
void Visit() {
  if (PageHeap::TakeMark()) OnGrowth(now_ms);
}
void Tick() {
  Visit();
  OnTick(now_ms);
}
void TickAfter(uint64_t ms) {
  now_ms += ms;
  Tick();
}

uint64_t Rounds() { return ReadLimitStats().pressure_rounds; }

class PressureTest : public OwnMachine {
 protected:
  void SetUp() override {
    OwnMachine::SetUp();
    TickAfter(1'000);  // growth counts from here
    ASSERT_FALSE(UnderPressure());
    ASSERT_LT(PageHeap::Footprint(), 20 * kMiB);
  }
  void TearDown() override {
    while (!spans_.empty()) Shrink();
    std::filesystem::remove(Real(kFile));
    TickAfter(1'000);
    OwnMachine::TearDown();
  }

  void Take(uint64_t bytes) {
    Span* span = nullptr;
    ASSERT_EQ(PageHeap::Take(bytes >> kPageShift, kPageSize, 0, &span), PageResult::kOk);
    spans_.push_back(span);
  }
  // The heap grows; a slow path follows.
  void Grow(uint64_t bytes) {
    Take(bytes);
    Visit();
  }
  void Shrink() {
    ASSERT_EQ(PageHeap::Give(spans_.back()), PageResult::kOk);
    spans_.pop_back();
    PageHeap::Release(SIZE_MAX);
  }
  void BringPressure() {
    if (spans_.empty()) Grow(100 * kMiB);
    SetPressure("50.00");
    now_ms += 1'000;
    Grow(20 * kMiB);
    ASSERT_TRUE(UnderPressure());
  }

 private:
  std::vector<Span*> spans_;
};

TEST_F(PressureTest, BeginsWhereTheHeapGrowsAndEndsOnTicks) {
  const size_t budget = front::Budget();
  Grow(100 * kMiB);
  Burst(30 * kMiB);
  ASSERT_TRUE(SlabHolds());
  ASSERT_GT(InTransfer(), 0u);
  ASSERT_GT(PageHeap::Stats().free_bytes, kMiB);
  // The same threshold as with the thread.
  SetPressure("4.99");
  now_ms += 1'000;
  Grow(20 * kMiB);
  EXPECT_FALSE(UnderPressure());
  EXPECT_TRUE(SlabHolds());
  SetPressure("5.00");
  now_ms += 1'000;
  const uint64_t rounds = Rounds();
  Grow(20 * kMiB);
  EXPECT_TRUE(UnderPressure());
  EXPECT_EQ(Rounds(), rounds + 1);
  EXPECT_FALSE(SlabHolds());
  EXPECT_EQ(InTransfer(), 0u);
  EXPECT_EQ(PageHeap::Stats().free_bytes, 0u);
  EXPECT_EQ(front::Budget(), budget / 4);
  // While it lasts nothing that is freed stays, and what caches hold goes every second.
  Burst(30 * kMiB);
  EXPECT_EQ(PageHeap::Stats().free_bytes, 0u);
  EXPECT_TRUE(SlabHolds());
  SetPressure("1.00");
  TickAfter(1'000);
  EXPECT_FALSE(SlabHolds());
  EXPECT_EQ(front::Budget(), budget / 4);
  EXPECT_EQ(Rounds(), rounds + 2);
  Burst(kMiB);  // without growth
  ASSERT_TRUE(SlabHolds());
  TickAfter(1'000);
  EXPECT_FALSE(SlabHolds());
  EXPECT_EQ(Rounds(), rounds + 3);
  // Nothing grows, yet it ends.
  SetPressure("0.99");
  TickAfter(1'000);
  EXPECT_FALSE(UnderPressure());
  EXPECT_EQ(front::Budget(), budget);
  Burst(30 * kMiB);
  EXPECT_GT(PageHeap::Stats().free_bytes, kMiB);
}

TEST_F(PressureTest, IsLookedAtOnceASecond) {
  Grow(100 * kMiB);  // a look
  SetPressure("50.00");
  const uint64_t rounds = Rounds();
  for (int i = 0; i < 9; ++i) {
    now_ms += 100;
    Grow(20 * kMiB);
    Tick();
  }
  TickAfter(99);
  EXPECT_FALSE(UnderPressure());
  // The look that growth was denied is made up for.
  TickAfter(1);
  EXPECT_TRUE(UnderPressure());
  for (int i = 1; i <= 1000; ++i) {
    TickAfter(10);
    if (i % 50 == 0) Grow(50 * kMiB);
    ASSERT_EQ(Rounds(), rounds + 1 + static_cast<uint64_t>(i) / 100);
  }
}

TEST_F(PressureTest, ASmallHeapReadsNothing) {
  SetPressure("50.00");
  for (int i = 0; i < 8; ++i) {
    Take(5 * kMiB);
    EXPECT_FALSE(PageHeap::MarkPassed());
    TickAfter(1'000);
  }
  EXPECT_FALSE(UnderPressure());
  Grow(30 * kMiB);
  EXPECT_TRUE(UnderPressure());
}

TEST_F(PressureTest, ASixteenthIsGrowth) {
  Grow(160 * kMiB);
  const uint64_t from = PageHeap::Footprint();
  SetPressure("50.00");
  // A heap that stays as it is makes no system calls.
  for (int i = 0; i < 100; ++i) TickAfter(100);
  EXPECT_FALSE(UnderPressure());
  // However slowly it comes.
  for (int i = 0; i < 9; ++i) {
    Grow(kMiB);
    TickAfter(2'000);
  }
  ASSERT_LT(PageHeap::Footprint(), from + from / 16);
  EXPECT_FALSE(UnderPressure());
  Grow(2 * kMiB);
  EXPECT_TRUE(UnderPressure());
}

TEST_F(PressureTest, AHeapThatHasShrunkGrowsFromThere) {
  Grow(100 * kMiB);
  Grow(400 * kMiB);
  Shrink();
  TickAfter(1'000);  // owed, because of the second growth
  TickAfter(1'000);
  SetPressure("50.00");
  now_ms += 1'000;
  Grow(20 * kMiB);
  EXPECT_TRUE(UnderPressure());
}

TEST_F(PressureTest, EndsWithTheFile) {
  const size_t budget = front::Budget();
  BringPressure();
  ASSERT_EQ(front::Budget(), budget / 4);
  std::filesystem::remove(Real(kFile));
  TickAfter(1'000);
  EXPECT_FALSE(UnderPressure());
  EXPECT_EQ(front::Budget(), budget);
}

TEST_F(PressureTest, EndsInAHeapThatHasBecomeSmall) {
  BringPressure();
  Shrink();
  Shrink();
  ASSERT_LT(PageHeap::Footprint(), 20 * kMiB);
  TickAfter(1'000);
  EXPECT_TRUE(UnderPressure());
  SetPressure("0.00");
  TickAfter(1'000);
  EXPECT_FALSE(UnderPressure());
}

// As in a child of fork in another time namespace.
TEST_F(PressureTest, EndsWhereTheClockGoesBack) {
  BringPressure();
  SetPressure("0.00");
  const uint64_t before = now_ms;
  now_ms = 5'000;
  Tick();
  EXPECT_FALSE(UnderPressure());
  now_ms = before + 1'000'000;
}

TEST_F(PressureTest, IsTheThreadsWhereThereIsOne) {
  Grow(100 * kMiB);
  SetWatched(true);
  SetPressure("50.00");
  for (int i = 0; i < 5; ++i) {
    now_ms += 1'000;
    Grow(16 * kMiB);
    OnTick(now_ms);
  }
  EXPECT_FALSE(UnderPressure());
  // Nor is growth by a sixteenth told.
  Span* span = nullptr;
  ASSERT_EQ(PageHeap::Take((15 * kMiB) >> kPageShift, kPageSize, 0, &span), PageResult::kOk);
  EXPECT_FALSE(PageHeap::MarkPassed());
  ASSERT_EQ(PageHeap::Give(span), PageResult::kOk);
  // What the thread leaves, in whatever state, slow paths see to.
  WatchMachine(now_ms);
  ASSERT_TRUE(UnderPressure());
  SetWatched(false);
  SetPressure("0.00");
  TickAfter(1'000);
  EXPECT_FALSE(UnderPressure());
  SetPressure("50.00");
  now_ms += 1'000;
  Grow(20 * kMiB);
  EXPECT_TRUE(UnderPressure());
}

TEST_F(PressureTest, KeepsErrnoAndLeavesNoDescriptor) {
  const int next = dup(0);
  close(next);
  errno = EXDEV;
  BringPressure();
  std::filesystem::remove(Real(kFile));
  errno = EXDEV;
  TickAfter(1'000);
  EXPECT_EQ(errno, EXDEV);
  const int now_next = dup(0);
  close(now_next);
  EXPECT_EQ(next, now_next);
}

// One reads, and is slow about it: a pipe without a writer. Others, a signal handler's slow path
// among them, must not wait; a child of fork, where the reader is not, must be able to read.
TEST_F(PressureTest, IsReadByOneAtATime) {
  BringPressure();
  std::filesystem::remove(Real(kFile));
  ASSERT_EQ(mkfifo(Real(kFile).c_str(), 0600), 0);
  alarm(20);
  now_ms += 1'000;
  const uint64_t at = now_ms;
  std::thread reader([at] { OnTick(at); });
  int fd;
  // A writer can open it without waiting once there is a reader; held open, the read waits.
  while ((fd = open(Real(kFile).c_str(), O_WRONLY | O_NONBLOCK)) < 0) usleep(1000);
  TickAfter(5'000);
  OnGrowth(now_ms);
  EXPECT_TRUE(UnderPressure());
  std::filesystem::rename(Real(kFile), Real("/pipe"));
  SetPressure("0.00");
  TickAfter(5'000);
  EXPECT_TRUE(UnderPressure());
  const pid_t child = fork();
  if (child == 0) {
    alarm(10);
    ForgetWatchers();
    TickAfter(1'000);
    _exit(UnderPressure() ? 1 : 0);
  }
  int status = -1;
  waitpid(child, &status, 0);
  EXPECT_EQ(status, 0);
  constexpr char kText[] = "some avg10=50.00 avg60=0.00\n";
  EXPECT_EQ(write(fd, kText, sizeof(kText) - 1), static_cast<ssize_t>(sizeof(kText) - 1));
  close(fd);
  reader.join();
  alarm(0);
  EXPECT_TRUE(UnderPressure());
  TickAfter(1'000);
  EXPECT_FALSE(UnderPressure());
}

// What cannot be taken back, each in a child.
using PressureDeathTest = PressureTest;

void GrowUnderPressure() {
  SetPressure("50.00");
  now_ms += 10'000;
  Span* span = nullptr;
  PageHeap::Take((300 * kMiB) >> kPageShift, kPageSize, 0, &span);
  Tick();
  TickAfter(10'000);
}

TEST_F(PressureDeathTest, TheSameButFreeToLook) {
  EXPECT_EXIT(
      {
        GrowUnderPressure();
        exit(UnderPressure() ? 0 : 1);
      },
      ::testing::ExitedWithCode(0), "");
}

TEST_F(PressureDeathTest, IsNotLookedAtWithoutCgroup) {
  EXPECT_EXIT(
      {
        ParseConfig("decay:8s,cgroup:false");
        GrowUnderPressure();
        exit(UnderPressure() ? 1 : 0);
      },
      ::testing::ExitedWithCode(0), "");
}

TEST_F(PressureDeathTest, IsNotLookedAtWithoutDecay) {
  EXPECT_EXIT(
      {
        ParseConfig("decay:never");
        GrowUnderPressure();
        exit(UnderPressure() ? 1 : 0);
      },
      ::testing::ExitedWithCode(0), "");
}

TEST_F(PressureDeathTest, EndsWhereFilesMustBeLeftAlone) {
  BringPressure();
  const size_t shrunk = front::Budget();
  EXPECT_EXIT(
      {
        LeaveFilesAlone();
        exit(!UnderPressure() && front::Budget() == 4 * shrunk ? 0 : 1);
      },
      ::testing::ExitedWithCode(0), "");
}

}  // namespace
}  // namespace pcmalloc::release
