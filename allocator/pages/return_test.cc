// SPDX-License-Identifier: Apache-2.0
//
// Idle memory goes back: by age under a clock that the test turns, by slow paths and the real one,
// at once where that is asked for; and nobody waits for it. Every test in a child of its own.
#include <errno.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <random>
#include <thread>
#include <vector>

#include "allocator/config/config.h"
#include "allocator/os/clock.h"
#include "allocator/os/memory.h"
#include "allocator/pages/heap.h"
#include "allocator/pages/release_policy.h"
#include "allocator/pages/test_util.h"
#include "gtest/gtest.h"

namespace pcmalloc {
namespace {

constexpr size_t kMiB = size_t{1} << 20;
constexpr size_t kPagesPerMiB = kMiB >> kPageShift;

// Idle memory within the bound on its amount, so that age alone decides.
void LetIdle(size_t mib) {
  std::vector<Span*> spans;
  for (size_t i = 0; i < mib * kPagesPerMiB / 8; ++i) spans.push_back(TakeOrNull(8));
  for (Span* span : spans) memset(Begin(span), 1, span->bytes());
  for (Span* span : spans) ASSERT_EQ(PageHeap::Give(span), PageResult::kOk);
}

TEST(ReturnTest, IdleMemoryDecaysAlongTheCurve) {
  InChild([] {
    ParseConfig("decay:10s");
    uint64_t now = 1'000'000'000;  // not the time of the slow paths
    const uint64_t step = IdleAges::StepMs(10000);
    Span* last = TakeOrNull(1);
    PageHeap::Release(SIZE_MAX);
    EXPECT_EQ(PageHeap::Decay(now), IdleAges::SleepMs(10000));
    LetIdle(2);
    now += step;
    const uint64_t wait = PageHeap::Decay(now);
    EXPECT_GT(wait, 1u);
    EXPECT_LE(wait, step);
    EXPECT_EQ(PageHeap::Decay(now + 1), wait - 1);
    uint64_t idle = PageHeap::Stats().free_bytes;
    ASSERT_GE(idle, 2 * kMiB);
    const uint64_t all = idle;
    for (unsigned age = 1; age <= IdleAges::kSteps; ++age) {
      now += step;
      PageHeap::Decay(now);
      const uint64_t expected = all * IdleAges::Share(age) / IdleAges::kWhole;
      idle = PageHeap::Stats().free_bytes;
      EXPECT_LE(idle, expected + 64 * 1024) << age;
      EXPECT_GE(idle + 256 * 1024, expected) << age;
      CheckPageHeap();
    }
    EXPECT_LE(idle, 64u * 1024);
    EXPECT_EQ(PageHeap::Decay(now), IdleAges::SleepMs(10000));
    PageHeap::Give(last);
  });
}

TEST(ReturnTest, MemoryInUseAgainDoesNotDecay) {
  InChild([] {
    ParseConfig("decay:10s");
    uint64_t now = 1'000'000'000;
    const uint64_t step = IdleAges::StepMs(10000);
    PageHeap::Decay(now);
    for (int i = 0; i < 100; ++i) {
      LetIdle(2);
      PageHeap::Decay(now += step);
    }
    EXPECT_EQ(PageHeap::Stats().releases, 0u);
    EXPECT_GE(PageHeap::Stats().free_bytes, 2 * kMiB);
  });
}

// A heap that breathes by more than the least bound keeps its memory after a few breaths; one that
// shrinks for good does not.
TEST(ReturnTest, BreathingCostsNoCalls) {
  InChild([] {
    ParseConfig("decay:never,thp:never");
    for (int i = 0; i < 6; ++i) LetIdle(10);
    const uint64_t releases = PageHeap::Stats().releases;
    EXPECT_GT(releases, 0u);
    for (int i = 0; i < 20; ++i) LetIdle(10);
    EXPECT_EQ(PageHeap::Stats().releases, releases);
    LetIdle(100);
    EXPECT_LE(PageHeap::Stats().free_bytes, 4 * kMiB);
  });
}

// A block longer than what may be idle comes and goes: half of it would be of no use to
// the next one.
TEST(ReturnTest, ALongRangeGoesAsAWhole) {
  InChild([] {
    ParseConfig("decay:never,thp:never");
    std::vector<uint64_t> releases;
    for (int i = 0; i < 30; ++i) {
      Span* span = TakeOrNull(20 * kPagesPerMiB);
      ASSERT_NE(span, nullptr);
      ASSERT_EQ(PageHeap::Give(span), PageResult::kOk);
      releases.push_back(PageHeap::Stats().releases);
    }
    EXPECT_LE(releases[29] - releases[9], 20u);  // one call a time, or none
    EXPECT_LE(PageHeap::Stats().free_bytes, 20 * kMiB);
    CheckPageHeap();
    // What the program wants to keep it keeps to the byte, see WhatTheProgramWantsToKeepStays.
    PageHeap::SetIdleLimit(12 * kMiB);
    Span* span = TakeOrNull(20 * kPagesPerMiB);
    ASSERT_EQ(PageHeap::Give(span), PageResult::kOk);
    EXPECT_GE(PageHeap::Stats().free_bytes, 11 * kMiB);
  });
}

// Idle memory that fits nobody makes room for growth elsewhere.
TEST(ReturnTest, GrowthIsMadeUpFor) {
  InChild([] {
    ParseConfig("decay:never,thp:never");
    std::vector<Span*> spans;
    for (size_t i = 0; i < 16; ++i) {
      spans.push_back(TakeOrNull(kPagesPerMiB / 4));
      memset(Begin(spans.back()), 1, spans.back()->bytes());
    }
    for (size_t i = 0; i < spans.size(); i += 2) {
      ASSERT_EQ(PageHeap::Give(spans[i]), PageResult::kOk);
    }
    const PageStats before = PageHeap::Stats();
    ASSERT_GE(before.free_bytes, 2 * kMiB);
    for (int i = 0; i < 5; ++i) ASSERT_NE(TakeOrNull(kPagesPerMiB), nullptr);
    const PageStats after = PageHeap::Stats();
    EXPECT_EQ(after.large_bytes - before.large_bytes, 5 * kMiB);
    EXPECT_LE(after.free_bytes, (after.small_bytes + after.large_bytes) / 8 + 64 * 1024);
    // What does fit is used instead.
    ASSERT_NE(TakeOrNull(kPagesPerMiB / 8), nullptr);
    EXPECT_EQ(PageHeap::Stats().releases, after.releases);
    CheckPageHeap();
  });
}

// Page faults of so many replacements of random ones among `live` blocks, which are written to all
// over, after a quarter as many that do not count. The blocks' lengths are from `least` pages to
// five octaves above.
long FaultsOfLargeBlocks(size_t live, size_t least, int replacements) {
  std::mt19937 random(1);
  std::vector<Span*> spans(live);
  const auto replace = [&] {
    Span*& span = spans[random() % live];
    if (span != nullptr) {
      ASSERT_EQ(PageHeap::Give(span), PageResult::kOk);
    }
    const size_t octave = least << random() % 5;
    span = TakeOrNull(octave + random() % octave);
    ASSERT_NE(span, nullptr);
    for (uintptr_t at = span->start; at < span->end(); at += 4096) *reinterpret_cast<char*>(at) = 1;
  };
  const auto faults = [] {
    rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    return usage.ru_minflt;
  };
  for (int i = 0; i < replacements / 4; ++i) replace();
  const long before = faults();
  for (int i = 0; i < replacements; ++i) replace();
  return faults() - before;
}

// Large blocks of all sizes that come and go: what is idle between two does not go and come back.
TEST(ReturnTest, WhatLargeBlocksLeaveStaysForTheNext) {
  InChild([] {
    ParseConfig("decay:60s");
    // From 32 KiB to 1 MiB. Of some 1.4 million pages written to.
    EXPECT_LT(FaultsOfLargeBlocks(100, 4, 20'000), 10'000);
    CheckPageHeap();
  });
  InChild([] {
    ParseConfig("decay:60s");
    // From 256 KiB to 8 MiB. Of some 5.6 million.
    EXPECT_LT(FaultsOfLargeBlocks(50, 32, 10'000), 30'000);
    CheckPageHeap();
  });
}

// Blocks of all lengths that are replaced leave holes, more than an eighth among few. They are
// needed again, so after a while nothing goes.
TEST(ReturnTest, HolesThatAreNeededAgainStay) {
  InChild([] {
    ParseConfig("decay:never,thp:never");
    std::mt19937 random(1);
    std::vector<Span*> spans;
    for (int i = 0; i < 100; ++i) spans.push_back(TakeOrNull(36 + random() % 8 * 4));
    auto replace = [&](int times) {
      for (int i = 0; i < times; ++i) {
        Span*& span = spans[random() % spans.size()];
        ASSERT_EQ(PageHeap::Give(span), PageResult::kOk);
        span = TakeOrNull(36 + random() % 8 * 4);
        ASSERT_NE(span, nullptr);
      }
    };
    replace(20000);
    const PageStats before = PageHeap::Stats();
    replace(20000);
    EXPECT_LE(PageHeap::Stats().releases - before.releases, 20u);
    EXPECT_LE(PageHeap::Stats().free_bytes, IdleBound::kMost);
    CheckPageHeap();
  });
}

TEST(ReturnTest, NeverAndAtOnce) {
  InChild([] {
    ParseConfig("decay:never");
    LetIdle(2);
    EXPECT_EQ(PageHeap::Decay(1'000'000'000), UINT64_MAX);
    EXPECT_EQ(PageHeap::Decay(2'000'000'000), UINT64_MAX);
    EXPECT_GE(PageHeap::Stats().free_bytes, 2 * kMiB);
    EXPECT_GE(PageHeap::Release(SIZE_MAX), 2 * kMiB);
  });
  InChild([] {
    ParseConfig("decay:0");
    LetIdle(2);
    EXPECT_EQ(PageHeap::Stats().free_bytes, 0u);
    EXPECT_GE(PageHeap::Stats().releases, 2 * kPagesPerMiB / 8);
    CheckPageHeap();
  });
}

TEST(ReturnTest, WhatTheProgramWantsToKeepStays) {
  InChild([] {
    ParseConfig("decay:1s");
    PageHeap::SetIdleLimit(8 * kMiB);
    uint64_t now = 1'000'000'000;
    PageHeap::Decay(now);
    LetIdle(8);
    for (int i = 0; i < 100; ++i) PageHeap::Decay(now += 100);
    EXPECT_GE(PageHeap::Stats().free_bytes, 7 * kMiB);
    EXPECT_LE(PageHeap::Stats().free_bytes, 8 * kMiB);
  });
}

// The page heap's own slow paths are enough, without a thread that calls Decay.
TEST(ReturnTest, SlowPathsDoItInTime) {
  InChild([] {
    ParseConfig("decay:400ms");
    LetIdle(2);
    Span* span = TakeOrNull(1);
    const uint64_t begin = os::CoarseMilliseconds();
    // 400 ms, an interval between two visits, and the coarseness of the clock.
    while (os::CoarseMilliseconds() < begin + 400 + 50) {
      usleep(20000);
      ASSERT_EQ(PageHeap::Resize(span, span->pages == 1 ? 2 : 1), PageResult::kOk);
    }
    EXPECT_LE(PageHeap::Stats().free_bytes, 256u * 1024);
    EXPECT_GE(PageHeap::Stats().releases, 4u);
    LetIdle(2);
    usleep(500000);
    for (int i = 0; i < 3; ++i) {
      PageHeap::Tick();
      usleep(450000);
    }
    EXPECT_LE(PageHeap::Stats().free_bytes, 256u * 1024);
    CheckPageHeap();
  });
}

// Of the calling thread, for good.
void RefuseMadvise() {
  sock_filter code[] = {
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, nr)),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_madvise, 0, 1),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EINVAL),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
  };
  const sock_fprog program = {sizeof(code) / sizeof(code[0]), code};
  ASSERT_EQ(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
  ASSERT_EQ(prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program), 0);
}

// As a kernel before 5.18 refuses it for locked memory, too.
TEST(ReturnTest, RefusedMemoryIsAskedForRarely) {
  InChild([] {
    ParseConfig("decay:1s");
    uint64_t now = 1'000'000'000;
    PageHeap::Decay(now);
    std::vector<Span*> spans;
    for (int i = 0; i < 2; ++i) {
      Span* span = TakeOrNull(kPagesPerMiB);
      memset(Begin(span), 1, span->bytes());
      spans.push_back(span);
    }
    for (Span* span : spans) ASSERT_EQ(PageHeap::Give(span), PageResult::kOk);
    const uint64_t idle = PageHeap::Stats().free_bytes;
    std::thread([&now] {
      RefuseMadvise();
      for (int i = 0; i < 100; ++i) PageHeap::Decay(now += 50);
    }).join();
    EXPECT_EQ(PageHeap::Stats().free_bytes, idle);
    CheckPageHeap();
    for (int i = 0; i < 200; ++i) PageHeap::Decay(now += 50);
    EXPECT_LE(PageHeap::Stats().free_bytes, 64u * 1024);
    CheckPageHeap();
  });
}

// Memory that another thread is returning at the moment must not be missed: a heap that is used up
// but for that memory serves every request.
TEST(ReturnTest, TakesDuringAReturnFindTheMemory) {
  InChild([] {
    Span* everything = TakeOrNull(64 * kPagesPerMiB);
    ASSERT_NE(everything, nullptr);
    ASSERT_EQ(PageHeap::Give(everything), PageResult::kOk);
    const size_t pages = PageHeap::Stats().committed_bytes / 2 >> kPageShift;
    std::atomic<bool> stop{false};
    std::thread returner([&stop] {
      while (!stop) PageHeap::Release(SIZE_MAX);
    });
    rlimit limit = {};
    ASSERT_EQ(getrlimit(RLIMIT_DATA, &limit), 0);
    limit.rlim_cur = 1;  // nothing more becomes writable
    ASSERT_EQ(setrlimit(RLIMIT_DATA, &limit), 0);
    int refused = 0;
    for (int i = 0; i < 3000; ++i) {
      Span* span = TakeOrNull(pages);
      if (span == nullptr) {
        ++refused;
        continue;
      }
      memset(Begin(span), 1, kMiB);
      PageHeap::Give(span);
    }
    stop = true;
    returner.join();
    EXPECT_EQ(refused, 0);
    CheckPageHeap();
  });
}

size_t ResidentBytes() {
  FILE* const file = fopen("/proc/self/statm", "re");
  size_t pages = 0, resident = 0;
  if (file == nullptr || fscanf(file, "%zu %zu", &pages, &resident) != 2) return 0;
  fclose(file);
  return resident * os::KernelPageSize();
}

// A heap that was large keeps neither its Spans nor its maps in memory, and works as before.
TEST(ReturnTest, MetadataFollows) {
  InChild([] {
    ParseConfig("decay:never");
    constexpr size_t kSpans = 60000;
    std::vector<Span*> spans(kSpans);
    const size_t before = ResidentBytes();
    for (int round = 0; round < 3; ++round) {
      for (Span*& span : spans) {
        span = TakeOrNull(2);
        ASSERT_NE(span, nullptr);
        *Begin(span) = 1;
      }
      const uint64_t full = PageHeap::Stats().metadata_bytes;
      EXPECT_GE(full, kSpans * sizeof(Span));
      for (Span* span : spans) ASSERT_EQ(PageHeap::Give(span), PageResult::kOk);
      PageHeap::Release(SIZE_MAX);
      // What is left is the committed maps.
      EXPECT_LE(PageHeap::Stats().metadata_bytes, full - kSpans * sizeof(Span) * 9 / 10);
      // Which are 1.1 MiB, and have no memory.
      EXPECT_LE(ResidentBytes(), before + 3 * kMiB / 2);
      CheckPageHeap();
    }
  });
}

TEST(ReturnTest, ForkDuringReturns) {
  InChild([] {
    std::atomic<bool> stop{false};
    std::vector<std::thread> threads;
    for (int t = 0; t < 3; ++t) {
      threads.emplace_back([&stop] {
        while (!stop) {
          Span* span = TakeOrNull(3 * kPagesPerMiB);
          if (span == nullptr) continue;
          memset(Begin(span), 1, 64 * 1024);
          PageHeap::Give(span);
          PageHeap::Release(kMiB);
        }
      });
    }
    for (int i = 0; i < 50; ++i) {
      ASSERT_TRUE(PageHeap::LockForFork());
      const pid_t child = fork();
      PageHeap::UnlockAfterFork(child == 0);
      ASSERT_GE(child, 0);
      if (child == 0) {
        alarm(20);
        CheckPageHeap();
        PageHeap::Release(SIZE_MAX);
        CheckPageHeap();
        const PageStats stats = PageHeap::Stats();
        _exit(::testing::Test::HasFailure() ? 1 : stats.free_bytes == 0 ? 0 : 2);
      }
      int status;
      ASSERT_EQ(waitpid(child, &status, 0), child);
      ASSERT_EQ(status, 0);
    }
    stop = true;
    for (std::thread& thread : threads) thread.join();
  });
}

// The block of Spans that a thread of the parent was about to return is not lost to the child.
TEST(ReturnTest, AForksChildHasAllSpans) {
  InChild([] {
    ParseConfig("decay:never,thp:never");
    PageHeap::SetIdleLimit(SIZE_MAX);
    std::vector<Span*> spans(5000);
    for (Span*& span : spans) span = TakeOrNull(1);
    for (Span* span : spans) ASSERT_EQ(PageHeap::Give(span), PageResult::kOk);
    SpanStore& store = pages::heap.store;
    const size_t bytes = store.bytes();
    ASSERT_NE(store.TakeEmpty(), nullptr);
    ASSERT_TRUE(PageHeap::LockForFork());
    PageHeap::UnlockAfterFork(/*in_child=*/true);
    for (Span*& span : spans) ASSERT_NE(span = TakeOrNull(1), nullptr);
    EXPECT_EQ(store.bytes(), bytes);
  });
}

// Returning a gigabyte takes the kernel some 100 ms; who takes and gives meanwhile must not wait.
TEST(ReturnTest, NobodyWaitsForTheKernel) {
  InChild([] {
    ParseConfig("decay:never,thp:never");
    PageHeap::SetIdleLimit(SIZE_MAX);
    constexpr size_t kAll = 512;
    Span* big = TakeOrNull(kAll * kPagesPerMiB);
    ASSERT_NE(big, nullptr);
    memset(Begin(big), 1, big->bytes());
    ASSERT_EQ(PageHeap::Give(big), PageResult::kOk);
    std::atomic<uint64_t> took_us{0};
    std::thread returner([&took_us] {
      timespec begin, end;
      clock_gettime(CLOCK_MONOTONIC, &begin);
      EXPECT_GE(PageHeap::Release(SIZE_MAX), (kAll - 1) * kMiB);
      clock_gettime(CLOCK_MONOTONIC, &end);
      took_us = (end.tv_sec - begin.tv_sec) * 1000000 + (end.tv_nsec - begin.tv_nsec) / 1000 + 1;
    });
    uint64_t operations = 0;
    while (took_us == 0) {
      Span* span = TakeOrNull(1);
      PageHeap::Give(span);
      ++operations;
    }
    returner.join();
    // With the lock held throughout it would be a handful.
    EXPECT_GE(operations, 200u) << took_us << " us";
    CheckPageHeap();
  });
}

}  // namespace
}  // namespace pcmalloc
