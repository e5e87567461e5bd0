// SPDX-License-Identifier: Apache-2.0
//
// Hugepages: asked for in proportion to the heap, filled densely, returned whole, and not at all
// where they are switched off. Every test in a child with a configuration of its own.
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <unistd.h>

#include <fstream>
#include <string>
#include <vector>

#include "allocator/config/config.h"
#include "allocator/os/memory.h"
#include "allocator/os/thp.h"
#include "allocator/pages/huge_policy.h"
#include "allocator/pages/test_util.h"
#include "gtest/gtest.h"

namespace pcmalloc {
namespace {

constexpr size_t kMiB = size_t{1} << 20;
constexpr size_t kPagesPerMiB = kMiB >> kPageShift;
constexpr size_t kSpanPages = 8;
constexpr size_t kSpansPerMiB = kPagesPerMiB / kSpanPages;

// Of this process, from the sum over its mappings.
size_t RollupKiB(const char* key) {
  std::ifstream rollup("/proc/self/smaps_rollup");
  for (std::string line; std::getline(rollup, line);) {
    if (line.compare(0, strlen(key), key) == 0) return std::stoul(line.substr(strlen(key) + 1));
  }
  return 0;
}

size_t ResidentKiB() { return RollupKiB("Rss:"); }
size_t HugeKiB() { return RollupKiB("AnonHugePages:"); }

size_t Faults() {
  rusage usage;
  getrusage(RUSAGE_SELF, &usage);
  return static_cast<size_t>(usage.ru_minflt);
}

// The machine gives hugepages, and has 64 of them now.
bool HaveHugePages() {
  if (os::FindHugePages() == os::HugePages::kNever) return false;
  constexpr size_t kSize = 128 * kMiB;
  char* start = static_cast<char*>(os::Reserve(kSize, os::kHugePage));
  bool all = os::Commit(start, kSize) && os::WantHuge(start, kSize, true);
  const size_t before = Faults();
  for (size_t i = 0; all && i < kSize; i += 4096) start[i] = 1;
  all = all && Faults() - before < 200;
  os::Unreserve(start, kSize);
  return all;
}
#define NEED_HUGE_PAGES() \
  if (!HaveHugePages()) GTEST_SKIP() << "this machine gives no hugepages"

using Spans = std::vector<Span*>;

// Small spans, all touched.
void Fill(size_t mib, Spans* spans) {
  for (size_t i = 0; i < mib * kSpansPerMiB; ++i) {
    Span* span = TakeOrNull(kSpanPages, kPageSize, 3);
    ASSERT_NE(span, nullptr);
    memset(Begin(span), 1, span->bytes());
    spans->push_back(span);
  }
}

Spans Reserved() {
  Spans spans;
  spans.reserve(100000);
  return spans;
}

TEST(HugeTest, LargeHeapsFaultLess) {
  NEED_HUGE_PAGES();
  size_t faults[2];
  for (int i = 0; i < 2; ++i) {
    int ends[2];
    ASSERT_EQ(pipe(ends), 0);
    InChild([&] {
      ParseConfig(i == 0 ? "thp:never" : "thp:auto");
      Spans spans = Reserved();
      const size_t before = Faults();
      Fill(64, &spans);
      const size_t count = Faults() - before;
      ASSERT_EQ(write(ends[1], &count, sizeof(count)), ssize_t{sizeof(count)});
      CheckPageHeap();
    });
    ASSERT_EQ(read(ends[0], &faults[i], sizeof(faults[i])), ssize_t{sizeof(faults[i])});
    close(ends[0]);
    close(ends[1]);
  }
  EXPECT_GT(faults[0], 64u * 256);
  // The first MiB come page by page.
  EXPECT_LT(faults[1], HugePolicy::kSmallestHeap / 4096 + 500);
}

TEST(HugeTest, SmallHeapsGetNone) {
  InChild([] {
    ParseConfig("thp:auto");
    Spans spans = Reserved();
    Fill(HugePolicy::kSmallestHeap / kMiB - 1, &spans);
    EXPECT_EQ(HugeKiB(), 0u);
    EXPECT_EQ(Arenas::at(0).huge_count(), 0u);
    // Nor do blocks that may be used in part, however many, beside few small ones.
    constexpr size_t kSome = 4 * kPagesPerMiB;
    for (int i = 0; i < 20; ++i) ASSERT_NE(TakeOrNull(kSome), nullptr);
    EXPECT_EQ(Arenas::at(0).huge_count(), 0u);
    while (PageHeap::SmallBytes() < HugePolicy::kSmallestHeap) {
      ASSERT_NE(TakeOrNull(32, kPageSize, 99), nullptr);  // long ones get none
    }
    EXPECT_EQ(Arenas::at(0).huge_count(), 0u);
    ASSERT_NE(TakeOrNull(kSome), nullptr);
    EXPECT_GT(Arenas::at(0).huge_count(), 0u);
  });
}

// As a server does that reserves megabytes for each of its threads.
TEST(HugeTest, BuffersThatAreHardlyTouchedStaySmall) {
  NEED_HUGE_PAGES();
  InChild([] {
    ParseConfig("thp:auto");
    Spans spans = Reserved();
    Fill(4, &spans);
    const size_t before = ResidentKiB();
    for (int i = 0; i < 20; ++i) {
      Span* const buffer = TakeOrNull(4 * kPagesPerMiB);
      ASSERT_NE(buffer, nullptr);
      for (const size_t at : {size_t{0}, kMiB, 3 * kMiB}) Begin(buffer)[at] = 1;
    }
    EXPECT_LE(ResidentKiB() - before, 1024u);
    CheckPageHeap();
  });
}

TEST(HugeTest, WhatIsNotUsedIsOneHugePageAtMost) {
  NEED_HUGE_PAGES();
  InChild([] {
    ParseConfig("thp:auto");
    Spans spans = Reserved();
    const size_t before = ResidentKiB();
    for (size_t mib : {1, 16, 1, 13, 1, 20}) {
      Fill(mib, &spans);
      const size_t used = spans.size() * kSpanPages * kPageSize / 1024;
      EXPECT_LE(ResidentKiB() - before, used + 2048 + 512) << used;
    }
    EXPECT_GE(HugeKiB(), 30u * 1024);
    CheckPageHeap();
  });
}

// Spans of objects of 16 KiB, longer ones, and blocks below 2 MiB are used in part, often.
TEST(HugeTest, SparseUseCostsWhatIsTouched) {
  NEED_HUGE_PAGES();
  InChild([] {
    ParseConfig("thp:auto");
    Spans spans = Reserved();
    Fill(32, &spans);
    const size_t before = ResidentKiB();
    for (int i = 0; i < 64; ++i) {
      Span* sparse[] = {TakeOrNull(16, kPageSize, 98), TakeOrNull(64, kPageSize, 99),
                        TakeOrNull(128)};
      for (Span* span : sparse) Begin(span)[0] = 1;
    }
    EXPECT_LE(ResidentKiB() - before, 64u * 3 * 4 + 1024);
    // Neither do they stand in the way of others.
    const size_t huge = HugeKiB();
    Fill(32, &spans);
    EXPECT_GE(HugeKiB() - huge, 28u * 1024);
    CheckPageHeap();
  });
}

TEST(HugeTest, LargeBlocks) {
  NEED_HUGE_PAGES();
  InChild([] {
    ParseConfig("thp:auto");
    const size_t before = Faults();
    Span* block = TakeOrNull(64 * kPagesPerMiB);
    memset(Begin(block), 1, block->bytes());
    EXPECT_LT(Faults() - before, 200u);
    EXPECT_EQ(block->start % os::kHugePage, 0u);
    CheckPageHeap();
    // What is cut off goes back with the rest.
    ASSERT_EQ(PageHeap::Resize(block, 33 * kPagesPerMiB), PageResult::kOk);
    PageHeap::Release(SIZE_MAX);
    CheckPageHeap();
    ASSERT_EQ(PageHeap::Resize(block, 80 * kPagesPerMiB), PageResult::kOk);
    CheckPageHeap();
    memset(Begin(block), 1, block->bytes());
    ASSERT_EQ(PageHeap::Give(block), PageResult::kOk);
    PageHeap::Release(SIZE_MAX);
    EXPECT_EQ(PageHeap::Stats().free_bytes, 0u);
    CheckPageHeap();
  });
}

TEST(HugeTest, OnlyWholeHugePagesDecay) {
  NEED_HUGE_PAGES();
  InChild([] {
    ParseConfig("thp:auto,decay:1s");
    Spans spans = Reserved();
    Fill(160, &spans);
    PageHeap::Release(SIZE_MAX);  // breaks the last one
    const Arena& arena = Arenas::at(0);
    const size_t huge = arena.huge_count();
    const size_t huge_kib = HugeKiB();
    ASSERT_GE(huge, 28u);
    // One whole hugepage, and half of two others.
    std::vector<uintptr_t> starts;
    for (uintptr_t at = arena.AddressOf(arena.first_page()) & ~(os::kHugePage - 1);
         starts.size() < 3; at += os::kHugePage) {
      if (arena.huge(at)) starts.push_back(at);
    }
    for (Span*& span : spans) {
      const size_t where = span->start % os::kHugePage;
      const uintptr_t hugepage = span->start - where;
      if (hugepage == starts[0] || (hugepage == starts[1] && where < kMiB) ||
          (hugepage == starts[2] && where >= kMiB)) {
        ASSERT_EQ(PageHeap::Give(span), PageResult::kOk);
        span = nullptr;
      }
    }
    EXPECT_EQ(PageHeap::Stats().free_bytes, 4 * kMiB);
    uint64_t now = 1'000'000'000;
    PageHeap::Decay(now);
    for (int i = 0; i < 100; ++i) PageHeap::Decay(now += 50);
    EXPECT_EQ(PageHeap::Stats().free_bytes, 2 * kMiB);
    EXPECT_EQ(HugeKiB(), huge_kib - 2048);
    EXPECT_EQ(arena.huge_count(), huge);  // it may become one again
    CheckPageHeap();
    // A trim breaks them.
    const size_t resident = ResidentKiB();
    EXPECT_EQ(PageHeap::Release(SIZE_MAX), 2 * kMiB);
    EXPECT_LE(ResidentKiB(), resident - 1900);
    EXPECT_EQ(arena.huge_count(), huge - 2);
    CheckPageHeap();
    // New memory comes page by page where part of a hugepage is in use, and as one where it is not.
    for (Span*& span : spans) {
      if (span == nullptr) span = TakeOrNull(kSpanPages, kPageSize, 3);
      memset(Begin(span), 2, span->bytes());
    }
    CheckPageHeap();
  });
}

TEST(HugeTest, HugePagesThatAreNearlyEmptyAreBroken) {
  NEED_HUGE_PAGES();
  InChild([] {
    ParseConfig("thp:auto,decay:1s");
    Spans spans = Reserved();
    Fill(128, &spans);
    // One span of each 2 MiB stays.
    Spans kept = Reserved();
    for (Span* span : spans) {
      if (span->start % os::kHugePage == kMiB) {
        kept.push_back(span);
      } else {
        ASSERT_EQ(PageHeap::Give(span), PageResult::kOk);
      }
    }
    uint64_t now = 1'000'000'000;
    PageHeap::Decay(now);
    for (int i = 0; i < 100; ++i) PageHeap::Decay(now += 50);
    EXPECT_LE(PageHeap::Stats().free_bytes, 4 * kMiB);
    CheckPageHeap();
  });
}

// A heap that was large and is small again grows page by page, even where there were hugepages.
TEST(HugeTest, ShrunkHeapsAreSmallHeaps) {
  NEED_HUGE_PAGES();
  InChild([] {
    ParseConfig("thp:auto");
    Spans spans = Reserved();
    Fill(64, &spans);
    for (Span* span : spans) ASSERT_EQ(PageHeap::Give(span), PageResult::kOk);
    spans.clear();
    PageHeap::Release(SIZE_MAX);
    EXPECT_EQ(HugeKiB(), 0u);
    const size_t before = ResidentKiB();
    Fill(HugePolicy::kSmallestHeap / kMiB - 1, &spans);
    EXPECT_LE(ResidentKiB() - before, HugePolicy::kSmallestHeap / 1024 - 1024 + 256);
    EXPECT_EQ(HugeKiB(), 0u);
    CheckPageHeap();
  });
}

TEST(HugeTest, SwitchedOffByConfigurationOrForTheProcess) {
  for (const char* conf : {"thp:never", "thp:auto", "thp:always"}) {
    InChild([conf] {
      ParseConfig(conf);
      if (strcmp(conf, "thp:never") != 0) {
        ASSERT_EQ(prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0), 0);
      }
      Spans spans = Reserved();
      Fill(64, &spans);
      EXPECT_EQ(HugeKiB(), 0u);
      EXPECT_EQ(Arenas::at(0).huge_count(), 0u);
      EXPECT_LE(PageHeap::Stats().free_bytes, 64u * 1024);
      CheckPageHeap();
    });
  }
}

TEST(HugeTest, AlwaysMeansFromTheStart) {
  NEED_HUGE_PAGES();
  InChild([] {
    ParseConfig("thp:always");
    Spans spans = Reserved();
    Fill(4, &spans);
    EXPECT_GE(HugeKiB(), 2048u);
    CheckPageHeap();
  });
}

TEST(HugeTest, HardLimitHoldsWithThem) {
  NEED_HUGE_PAGES();
  InChild([] {
    ParseConfig("thp:auto");
    constexpr size_t kLimit = 40 * kMiB + 512 * 1024;
    PageHeap::SetLimits(UINT64_MAX, kLimit);
    Spans spans = Reserved();
    while (Span* span = TakeOrNull(kSpanPages, kPageSize, 3)) {
      memset(Begin(span), 1, span->bytes());
      spans.push_back(span);
    }
    EXPECT_LE(PageHeap::Footprint(), kLimit);
    EXPECT_GE(spans.size() * kSpanPages * kPageSize, kLimit - kMiB);
    CheckPageHeap();
  });
}

// A hugepage that just fits leaves no room for the maps and Spans of the memory around it.
TEST(HugeTest, HardLimitHoldsForTheirBooksToo) {
  NEED_HUGE_PAGES();
  for (size_t limit = 20 * kMiB; limit < 40 * kMiB; limit += 96 * 1024) {
    InChild([limit] {
      ParseConfig("thp:auto");
      PageHeap::SetLimits(UINT64_MAX, limit);
      Spans spans = Reserved();
      while (Span* span = TakeOrNull(1, kPageSize, 3)) {
        spans.push_back(span);
        ASSERT_LE(PageHeap::Footprint(), limit) << "with " << spans.size() << " spans";
      }
    });
  }
}

}  // namespace
}  // namespace pcmalloc
