// SPDX-License-Identifier: Apache-2.0
//
// Pressure on whole processes: a file of the test's own lies over the one that the kernel keeps.
#include <fcntl.h>
#include <sched.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <atomic>
#include <filesystem>
#include <fstream>
#include <string>
#include <thread>

#include "gtest/gtest.h"
#include "tests/limits/faults.h"
#include "tests/release/extension.h"
#include "tests/support/process.h"

namespace pcmalloc::testing {
namespace {

// The file that the library reads: the group's where version 2 has the memory controller.
std::string PressureFile() {
  std::string line, file = "/proc/pressure/memory";
  for (std::ifstream groups("/proc/self/cgroup"); std::getline(groups, line);) {
    if (line.find(":memory:") != std::string::npos) return "/proc/pressure/memory";
    if (line.rfind("0::", 0) != 0) continue;
    const std::string own = "/sys/fs/cgroup" + line.substr(3) + "/memory.pressure";
    if (access(own.c_str(), R_OK) == 0) file = own;
  }
  return file;
}

constexpr char kVariable[] = "PCM_TEST_PRESSURE";

// Two digits, so that at no moment the file is empty or says something else. Allocates nothing: a
// slow path may read in between.
void SetPressure(const char (&percent)[6]) {
  // Once: later the process may be in a sandbox.
  static const int fd = open(getenv(kVariable), O_WRONLY | O_CLOEXEC);
  EXPECT_EQ(pwrite(fd, percent, 5, sizeof("some avg10=") - 1), 5);
}

class Pressure : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!RunIn(Conf("decay:1s"), "Nothing")) GTEST_SKIP() << "files cannot be laid over others";
  }
  ::testing::AssertionResult RunIn(const std::string& conf, const char* scenario) {
    const std::string own = ::testing::TempDir() + "/pressure-" + std::to_string(getpid());
    std::ofstream(own) << "some avg10=00.00 avg60=0.00 avg300=0.00 total=0\n";
    FreshProcess options;
    options.environment = {conf, kVariable + ("=" + own)};
    options.before_exec = [own] {
      if (unshare(CLONE_NEWNS) != 0 ||
          mount(nullptr, "/", nullptr, MS_REC | MS_PRIVATE, nullptr) != 0 ||
          mount(own.c_str(), PressureFile().c_str(), nullptr, MS_BIND, nullptr) != 0) {
        _exit(125);
      }
    };
    const ::testing::AssertionResult result = InFreshProcess(scenario, options);
    std::filesystem::remove(own);
    return result;
  }
};

PCM_SCENARIO(Nothing) {}

// A program that allocates and frees more at a time than caches hold; what it keeps is bounded.
struct Work {
  void* blocks[500] = {};
  void For(long ms) {
    timespec begin, now;
    clock_gettime(CLOCK_MONOTONIC, &begin);
    do {
      for (void*& p : blocks) free(p);
      for (void*& p : blocks) p = malloc(20'000);
      SleepMs(1);
      clock_gettime(CLOCK_MONOTONIC, &now);
    } while ((now.tv_sec - begin.tv_sec) * 1000 + (now.tv_nsec - begin.tv_nsec) / 1'000'000 < ms);
  }
};

PCM_SCENARIO(AloneUnderPressure) {
  static Work work;
  ASSERT_EQ(Threads(), 1);
  void* p = malloc(100 * kMiB);
  memset(p, 1, 100 * kMiB);
  ASSERT_TRUE(Burst(30 * kMiB, 200));
  work.For(1100);
  const size_t budget = Ask("pcmalloc_percpu_cache");
  EXPECT_EQ(Statistic("pressure_rounds"), 0);
  SetPressure("40.00");
  void* q = malloc(40 * kMiB);
  work.For(1200);
  EXPECT_GE(Statistic("pressure_rounds"), 1);
  EXPECT_LE(Statistic("pressure_rounds"), 2);
  EXPECT_EQ(Ask("pcmalloc_percpu_cache"), budget / 4);
  EXPECT_LE(Footprint(), 160 * kMiB);
  const size_t before = Footprint();
  ASSERT_TRUE(Burst(30 * kMiB, 200));
  EXPECT_LE(Footprint(), before + 2 * kMiB) << "what became free stayed";
  // Once a second, whatever it does.
  work.For(3000);
  EXPECT_GE(Statistic("pressure_rounds"), 3);
  EXPECT_LE(Statistic("pressure_rounds"), 6);
  SetPressure("00.10");
  work.For(1100);
  EXPECT_EQ(Ask("pcmalloc_percpu_cache"), budget);
  const int64_t rounds = Statistic("pressure_rounds");
  work.For(1100);
  EXPECT_EQ(Statistic("pressure_rounds"), rounds);
  EXPECT_EQ(Threads(), 1);
  free(q);
  free(p);
}
TEST_F(Pressure, IsHonouredWithoutAThread) {
  EXPECT_TRUE(RunIn(Conf("decay:1s"), "AloneUnderPressure"));
  EXPECT_TRUE(RunIn(Conf("decay:1s,background_thread:off"), "AloneUnderPressure"));
}

// What a process with the background thread makes of pressure that comes and ends.
void FeelPressure(bool noticed) {
  static Work work;
  SetPressure("00.00");
  std::atomic<bool> stop{false};
  std::thread worker([&] {
    Work mine;
    while (!stop) mine.For(50);
  });
  void* const p = malloc(100 * kMiB);
  EXPECT_TRUE(Soon([] { return strcmp(State(), "running") == 0; }));
  const size_t budget = Ask("pcmalloc_percpu_cache");
  SetPressure("40.00");
  work.For(2200);
  if (noticed) {
    EXPECT_GE(Statistic("pressure_rounds"), 1);
    EXPECT_EQ(Ask("pcmalloc_percpu_cache"), budget / 4);
  } else {
    EXPECT_EQ(Statistic("pressure_rounds"), 0);
    EXPECT_EQ(Ask("pcmalloc_percpu_cache"), budget);
  }
  SetPressure("00.10");
  work.For(2200);
  EXPECT_EQ(Ask("pcmalloc_percpu_cache"), budget);
  stop = true;
  worker.join();
  free(p);
}

PCM_SCENARIO(ThreadsUnderPressure) { FeelPressure(true); }

// A container's filter lets files be read; it may not know the rest of what we could ask with.
PCM_SCENARIO(ThreadsInAContainer) {
  SetPressure("00.00");
  ASSERT_TRUE(DieOnSystemCalls({SYS_prctl, SYS_sched_setaffinity, SYS_sched_setscheduler,
                                SYS_sched_getscheduler, SYS_readlinkat, SYS_newfstatat,
                                SYS_faccessat, SYS_faccessat2, SYS_unshare}));
  FeelPressure(true);
}

PCM_SCENARIO(ThreadsWithoutFiles) {
  SetPressure("00.00");
  ASSERT_TRUE(RefuseSystemCalls({SYS_openat}));
  FeelPressure(false);
}

TEST_F(Pressure, IsHonouredByTheThread) {
  EXPECT_TRUE(RunIn(Conf("decay:1s"), "ThreadsUnderPressure"));
  EXPECT_TRUE(RunIn(Conf("decay:1s"), "ThreadsInAContainer"));
  EXPECT_TRUE(RunIn(Conf("decay:1s"), "ThreadsWithoutFiles"));
}

// Under a filter that kills whoever opens a file.
PCM_SCENARIO(AloneAndBlind) {
  static Work work;
  SetPressure("40.00");
  const int next = dup(0);
  close(next);
  ASSERT_TRUE(DieOnSystemCalls({SYS_openat, SYS_open, SYS_faccessat}));
  for (int i = 0; i < 3; ++i) {
    ASSERT_NE(Escape(malloc(100 * kMiB)), nullptr);
    work.For(400);
  }
  ASSERT_TRUE(Burst(100 * kMiB, 200));
  EXPECT_EQ(Statistic("pressure_rounds"), 0);
  EXPECT_EQ(Statistic("limit_cgroup"), -1);
}
TEST_F(Pressure, IsNotLookedAtWhenTold) {
  EXPECT_TRUE(RunIn(Conf("cgroup:false,thp:never"), "AloneAndBlind"));
}

}  // namespace
}  // namespace pcmalloc::testing
