// SPDX-License-Identifier: Apache-2.0
#include "allocator/pages/free_spans.h"

#include <algorithm>
#include <memory>
#include <random>
#include <vector>

#include "gtest/gtest.h"

namespace pcmalloc {
namespace {

Span Make(uintptr_t page, uint32_t pages) {
  Span span = {};
  span.start = page << kPageShift;
  span.pages = pages;
  return span;
}

TEST(FreeSpansTest, BinsAreOrderedAndNoWiderThanASixteenth) {
  EXPECT_EQ(FreeSpans::BinOf(UINT32_MAX), FreeSpans::kBins - 1);
  for (size_t pages = 1; pages < 32; ++pages) EXPECT_EQ(FreeSpans::BinOf(pages), int(pages));
  size_t first_of_bin = 1;
  for (size_t pages = 2; pages < 300000; ++pages) {
    const int step = FreeSpans::BinOf(pages) - FreeSpans::BinOf(pages - 1);
    ASSERT_TRUE(step == 0 || step == 1) << pages;
    if (step == 1) first_of_bin = pages;
    ASSERT_LE(pages, first_of_bin + first_of_bin / 16) << pages;
  }
}

TEST(FreeSpansTest, EmptyFindsNothing) {
  FreeSpans spans;
  EXPECT_EQ(spans.Find(1), nullptr);
  EXPECT_EQ(spans.Find(SIZE_MAX), nullptr);
  EXPECT_EQ(spans.HighestBin(), -1);
}

TEST(FreeSpansTest, TakesTheSmallestThatFitsAndLowAddressesFirst) {
  FreeSpans spans;
  Span five = Make(1000, 5), high = Make(900, 7), low = Make(100, 7), big = Make(10, 5000);
  for (Span* span : {&five, &high, &low, &big}) spans.Insert(span);
  EXPECT_EQ(spans.pages(), 5019u);
  EXPECT_EQ(spans.Find(6), &low);
  EXPECT_EQ(spans.Find(5), &five);
  EXPECT_EQ(spans.Find(8), &big);
  EXPECT_EQ(spans.Find(5001), nullptr);
  spans.Remove(&low);
  EXPECT_EQ(spans.Find(6), &high);
}

TEST(FreeSpansTest, BinsInTheSameBitmapWordBelowTheRequestAreNotTaken) {
  FreeSpans spans;
  Span small = Make(1, 3);
  spans.Insert(&small);
  EXPECT_EQ(spans.Find(4), nullptr);
  EXPECT_EQ(spans.Find(60), nullptr);
}

TEST(FreeSpansTest, PatienceBoundsTheSearchAndUnlimitedDoesNot) {
  FreeSpans spans;
  Span fits = Make(1000, 1023);
  spans.Insert(&fits);
  std::vector<Span> too_short(20);
  for (int i = 0; i < 20; ++i) {
    too_short[i] = Make(900 - i, 1000);
    spans.Insert(&too_short[i]);
  }
  ASSERT_EQ(FreeSpans::BinOf(1000), FreeSpans::BinOf(1023));
  EXPECT_EQ(spans.Find(1020), nullptr);
  EXPECT_EQ(spans.Find(1020, FreeSpans::kUnlimited), &fits);
}

TEST(FreeSpansTest, AnAlignedRunIsFoundWhereItJustFits) {
  constexpr size_t k64K = 8 * kPageSize;
  FreeSpans spans;
  Span sure = Make(1601, 17), across = Make(1002, 12), fits = Make(798, 12);
  for (Span* span : {&sure, &across}) spans.Insert(span);
  EXPECT_EQ(spans.FindAligned(10, k64K), &sure) << "the other holds 6 pages from page 1008 on";
  EXPECT_EQ(spans.FindAligned(6, k64K), &across);
  EXPECT_EQ(spans.FindAligned(12, kPageSize), &across);
  EXPECT_EQ(spans.FindAligned(11, k64K), nullptr) << "17 pages need not hold 11 aligned ones";
  spans.Insert(&fits);
  EXPECT_EQ(spans.FindAligned(10, k64K), &fits);
  EXPECT_EQ(spans.FindAligned(SIZE_MAX, k64K), nullptr);
}

TEST(FreeSpansTest, PatienceBoundsTheSearchForAlignedRuns) {
  constexpr size_t k64K = 8 * kPageSize;
  FreeSpans spans;
  Span fits = Make(8000, 10), sure = Make(9001, 17);
  for (Span* span : {&fits, &sure}) spans.Insert(span);
  std::vector<Span> across(FreeSpans::kAlignedPatienceHere);
  for (size_t i = 0; i < across.size(); ++i) across[i] = Make(7 - i + 1000, 10);
  EXPECT_EQ(spans.FindAligned(10, k64K), &fits);
  for (Span& span : across) spans.Insert(&span);
  EXPECT_EQ(spans.FindAligned(10, k64K), &sure);
}

// Against a plain list: what is found fits, is in, and is of the lowest bin that can serve.
TEST(FreeSpansTest, RandomOperationsAgreeWithAList) {
  std::mt19937_64 random(1);
  FreeSpans spans;
  std::vector<std::unique_ptr<Span>> in;
  for (int round = 0; round < 40000; ++round) {
    const size_t pages = (random() & ((size_t{1} << (1 + random() % 30)) - 1)) + 1;
    if (random() % 2 == 0 && in.size() < 300) {
      in.push_back(std::make_unique<Span>(Make(random() >> 20, pages)));
      spans.Insert(in.back().get());
    } else if (!in.empty() && random() % 2 == 0) {
      const size_t victim = random() % in.size();
      spans.Remove(in[victim].get());
      in.erase(in.begin() + victim);
    } else {
      Span* found = spans.Find(pages, FreeSpans::kUnlimited);
      size_t fitting = 0;
      int lowest = FreeSpans::kBins;
      for (const auto& span : in) {
        if (span->pages < pages) continue;
        ++fitting;
        lowest = std::min(lowest, FreeSpans::BinOf(span->pages));
      }
      ASSERT_EQ(found != nullptr, fitting != 0);
      if (found != nullptr) {
        ASSERT_GE(found->pages, pages);
        ASSERT_EQ(FreeSpans::BinOf(found->pages), lowest);
      }
      const size_t alignment = kPageSize << random() % 12;
      if (const Span* const aligned = spans.FindAligned(pages, alignment)) {
        const uintptr_t start = (aligned->start + alignment - 1) / alignment * alignment;
        ASSERT_LE(start + (pages << kPageShift), aligned->end());
      }
    }
    size_t sum = 0;
    int highest = -1;
    for (const auto& span : in) {
      sum += span->pages;
      highest = std::max(highest, FreeSpans::BinOf(span->pages));
    }
    ASSERT_EQ(spans.pages(), sum);
    ASSERT_EQ(spans.spans(), in.size());
    ASSERT_EQ(spans.HighestBin(), highest);
  }
  size_t walked = 0;
  for (int bin = spans.HighestBin(); bin >= 0; bin = spans.HighestBin(bin - 1)) {
    for (Span* span = spans.First(bin); span != nullptr; span = span->next) {
      ASSERT_EQ(FreeSpans::BinOf(span->pages), bin);
      ++walked;
    }
  }
  EXPECT_EQ(walked, in.size());
}

}  // namespace
}  // namespace pcmalloc
