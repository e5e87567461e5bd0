// SPDX-License-Identifier: Apache-2.0
//
// pcmalloc_stop_cpu: the thread keeps CPUs' caches closed while others allocate on those CPUs. They
// must go on without waiting for it, whatever the mode.
#include <stdlib.h>

#include <atomic>
#include <thread>
#include <vector>

#include "gtest/gtest.h"
#include "tests/support/allocator.h"
#include "tests/support/process.h"

namespace pcmalloc::testing {
namespace {

using CpuFunction = int(int);

// One thread keeps one CPU: as many as there are CPUs keep all of them.
TEST(Stop, OthersGoOnAllocating) {
  auto* bound = Lookup<int(void)>("pcmalloc_cpu_bound");
  auto* stop = Lookup<CpuFunction>("pcmalloc_stop_cpu");
  auto* start = Lookup<CpuFunction>("pcmalloc_start_cpu");
  if (bound == nullptr || stop == nullptr || start == nullptr) GTEST_SKIP() << "not pcmalloc";
  EXPECT_TRUE(InChild(
      [=] {
        const int cpus = bound();
        ASSERT_GT(cpus, 0);
        for (int cpu = 0; cpu < cpus; ++cpu) {
          if (stop(cpu) != 0) continue;  // never used
          bool whole = true;
          {
            std::thread other([&whole] {
              void* blocks[100];
              for (int round = 0; round < 100; ++round) {
                for (size_t i = 0; i < 100; ++i) Fill(blocks[i] = malloc(i * 20), i * 20, i);
                for (size_t i = 0; i < 100; ++i) {
                  whole = Holds(blocks[i], i * 20, i) && whole;
                  free(blocks[i]);
                }
              }
            });
            other.join();
          }
          EXPECT_TRUE(whole) << "CPU " << cpu;
          EXPECT_EQ(start(cpu), 0);
        }
      },
      30));
}

// The one who moves a stopped cache waits for it, but nobody who allocates waits for him.
TEST(Stop, AMoveThatWaitsKeepsNobodyWaiting) {
  auto* bound = Lookup<int(void)>("pcmalloc_cpu_bound");
  auto* stop = Lookup<CpuFunction>("pcmalloc_stop_cpu");
  auto* start = Lookup<CpuFunction>("pcmalloc_start_cpu");
  auto* resize = Lookup<CpuFunction>("pcmalloc_resize_cpu");
  if (bound == nullptr || stop == nullptr || resize == nullptr) GTEST_SKIP() << "not pcmalloc";
  EXPECT_TRUE(InChild(
      [=] {
        for (int cpu = 0; cpu < bound(); ++cpu) {
          if (stop(cpu) != 0) continue;
          std::atomic<int> moved{1};
          std::thread mover([&] { moved = resize(cpu); });
          usleep(50000);
          std::vector<std::thread> others;
          for (int i = 0; i < 4; ++i) {
            others.emplace_back([] {
              for (size_t i = 0; i < 10000; ++i) free(Escape(malloc(i)));
            });
          }
          for (std::thread& other : others) other.join();
          EXPECT_EQ(start(cpu), 0);
          mover.join();
          EXPECT_EQ(moved, 0);
        }
      },
      30));
}

}  // namespace
}  // namespace pcmalloc::testing
