// SPDX-License-Identifier: Apache-2.0
#include "allocator/pages/page_heap.h"

#include <signal.h>
#include <string.h>

#include <array>
#include <atomic>
#include <fstream>
#include <map>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "allocator/config/config.h"
#include "allocator/os/memory.h"
#include "allocator/pages/emergency.h"
#include "allocator/pages/release_policy.h"
#include "allocator/pages/test_util.h"
#include "gtest/gtest.h"

namespace pcmalloc {
namespace {

constexpr size_t kMiB = size_t{1} << 20;
constexpr size_t kPagesPerMiB = kMiB >> kPageShift;

// Where the next span lies shall not depend on the time of day.
[[maybe_unused]] const bool kNoDecay = (ParseConfig("decay:never"), true);

size_t ResidentKiB() {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);) {
    size_t value;
    if (sscanf(line.c_str(), "VmRSS: %zu kB", &value) == 1) return value;
  }
  return 0;
}

bool AllZero(const char* p, size_t size) {
  return size == 0 || (p[0] == 0 && memcmp(p, p + 1, size - 1) == 0);
}

TEST(PageHeapTest, SmallSpansHaveTheirClassInEveryEntry) {
  Span* span = TakeOrNull(4, kPageSize, 77);
  ASSERT_NE(span, nullptr);
  EXPECT_EQ(span->state, SpanState::kSmall);
  EXPECT_EQ(span->size_class, 77);
  CheckPageHeap();
  char* begin = Begin(span);
  ASSERT_EQ(PageHeap::Give(span), PageResult::kOk);
  for (int i = 0; i < 4; ++i) EXPECT_EQ(ClassOf(begin + i * kPageSize), 0u);
  CheckPageHeap();
}

TEST(PageHeapTest, AlignedTakes) {
  std::vector<Span*> spans;
  for (size_t alignment = kPageSize; alignment <= 256 * kMiB; alignment *= 2) {
    for (size_t pages : {1, 3, 300}) {
      Span* span = TakeOrNull(pages, alignment);
      ASSERT_NE(span, nullptr);
      EXPECT_EQ(span->start % alignment, 0u);
      EXPECT_EQ(span->pages, pages);
      spans.push_back(span);
    }
  }
  CheckPageHeap();
  for (Span* span : spans) ASSERT_EQ(PageHeap::Give(span), PageResult::kOk);
  CheckPageHeap();
}

// What an aligned block leaves behind serves the next one, although it is not as long as would do
// wherever it begins: blocks that come and go do not make the heap grow for ever.
TEST(PageHeapTest, AlignedBlocksReuseWhatTheyLeave) {
  constexpr size_t kAlignment = size_t{64} << 10;
  constexpr size_t kLive = 200, kMostPages = 13;
  std::mt19937 random(1);
  std::vector<Span*> live(kLive, nullptr);
  const PageStats before = PageHeap::Stats();
  for (int i = 0; i < 50000; ++i) {
    Span*& span = live[random() % kLive];
    if (span != nullptr) {
      ASSERT_EQ(PageHeap::Give(span), PageResult::kOk);
    }
    span = TakeOrNull(1 + random() % kMostPages, kAlignment);
    ASSERT_NE(span, nullptr);
  }
  const PageStats after = PageHeap::Stats();
  EXPECT_LT(after.large_bytes + after.free_bytes + after.returned_bytes,
            before.free_bytes + before.returned_bytes + 2 * kLive * 2 * kAlignment);
  for (Span* span : live) {
    if (span != nullptr) {
      ASSERT_EQ(PageHeap::Give(span), PageResult::kOk);
    }
  }
  CheckPageHeap();
}

TEST(PageHeapTest, ImpossibleRequestsFailCleanly) {
  Span* const live = TakeOrNull(2);
  ASSERT_NE(live, nullptr);
  const size_t sizes[] = {0,
                          kMaxPages,
                          kMaxPages + 1,
                          size_t{1} << 40,
                          SIZE_MAX >> kPageShift,
                          SIZE_MAX,
                          (size_t{1} << 47) >> kPageShift};
  for (size_t pages : sizes) {
    EXPECT_EQ(TakeOrNull(pages), nullptr) << pages;
    EXPECT_EQ(TakeOrNull(pages, size_t{1} << 63), nullptr) << pages;
    EXPECT_EQ(PageHeap::Resize(live, pages), PageResult::kNoMemory) << pages;
  }
  EXPECT_EQ(TakeOrNull(1, size_t{1} << 63), nullptr);
  EXPECT_EQ(TakeOrNull(1, size_t{1} << 46), nullptr);
  EXPECT_EQ(live->pages, 2u);
  ASSERT_EQ(PageHeap::Give(live), PageResult::kOk);
  CheckPageHeap();
}

TEST(PageHeapTest, FreedNeighboursMergeInAnyOrder) {
  PageHeap::Release(SIZE_MAX);  // no warm span of another length nearby
  Span* block = TakeOrNull(300);
  ASSERT_NE(block, nullptr);
  const uintptr_t start = block->start;
  ASSERT_EQ(PageHeap::Give(block), PageResult::kOk);
  std::vector<int> order = {0, 1, 2};
  do {
    Span* part[3];
    for (Span*& span : part) ASSERT_NE(span = TakeOrNull(100), nullptr);
    for (int i : order) ASSERT_EQ(PageHeap::Give(part[i]), PageResult::kOk);
    CheckPageHeap();
  } while (std::next_permutation(order.begin(), order.end()));
  block = TakeOrNull(300);
  EXPECT_EQ(block->start, start);
  ASSERT_EQ(PageHeap::Give(block), PageResult::kOk);
}

// What a block leaves over has a beginning that nobody wrote to; behind it, once it is free too,
// lies one that somebody did.
TEST(PageHeapTest, LargeBlocksBeginWhereOthersBegan) {
  PageHeap::Release(SIZE_MAX);  // nothing warm but what follows
  Span* left = TakeOrNull(96);
  Span* right = TakeOrNull(160);
  Span* const end = TakeOrNull(8);
  ASSERT_TRUE(left != nullptr && right != nullptr && end != nullptr);
  const uintptr_t first = left->start;
  const uintptr_t second = right->start;
  ASSERT_EQ(left->end(), second);
  ASSERT_EQ(PageHeap::Give(left), PageResult::kOk);
  left = TakeOrNull(80);
  ASSERT_EQ(left->start, first);
  ASSERT_EQ(PageHeap::Give(right), PageResult::kOk);
  CheckPageHeap();
  right = TakeOrNull(160);
  EXPECT_EQ(right->start, second);
  CheckPageHeap();
  // Merged with what began at its beginning the rest begins there as well.
  ASSERT_EQ(PageHeap::Give(left), PageResult::kOk);
  ASSERT_EQ(PageHeap::Give(right), PageResult::kOk);
  right = TakeOrNull(160);
  EXPECT_EQ(right->start, first);
  CheckPageHeap();
  for (Span* span : {right, end}) ASSERT_EQ(PageHeap::Give(span), PageResult::kOk);
}

TEST(PageHeapTest, WarmSpansComeBeforeColdOnesAndGrowth) {
  Span* separator[2];
  Span* span = TakeOrNull(50);
  separator[0] = TakeOrNull(1);
  memset(Begin(span), 1, span->bytes());
  const uintptr_t start = span->start;
  ASSERT_EQ(PageHeap::Give(span), PageResult::kOk);
  const uint64_t committed = PageHeap::Stats().committed_bytes;
  separator[1] = TakeOrNull(50);
  EXPECT_EQ(separator[1]->start, start);
  EXPECT_FALSE(separator[1]->zeroed);
  EXPECT_EQ(PageHeap::Stats().committed_bytes, committed);
  for (Span* s : separator) ASSERT_EQ(PageHeap::Give(s), PageResult::kOk);
}

// Warm memory that is too short and the cold beside it are one block's, on either side and on both.
TEST(PageHeapTest, LargeBlocksTakeWarmAndColdNeighboursTogether) {
  constexpr size_t kPart = 48;
  struct Case {
    std::array<bool, 3> warm;
    size_t pages;
    size_t first;  // page of the three parts that the block is to begin at
  };
  for (const Case& test :
       {Case{{true, false, true}, 3 * kPart, 0}, Case{{true, false, false}, 2 * kPart - 8, 0},
        Case{{false, true, false}, 2 * kPart - 8, kPart},
        Case{{false, false, true}, 2 * kPart - 8, kPart + 8},
        Case{{false, true, false}, 3 * kPart - 8, 8}}) {
    PageHeap::Release(SIZE_MAX);
    Span* part[3];
    for (Span*& span : part) {
      ASSERT_NE(span = TakeOrNull(kPart), nullptr);
      memset(Begin(span), 1, span->bytes());
    }
    Span* const end = TakeOrNull(1);
    const uintptr_t start = part[0]->start;
    ASSERT_EQ(end->start, start + ((3 * kPart) << kPageShift));
    for (int i = 0; i < 3; ++i) {
      if (!test.warm[i]) {
        ASSERT_EQ(PageHeap::Give(part[i]), PageResult::kOk);
      }
    }
    PageHeap::Release(SIZE_MAX);
    for (int i = 0; i < 3; ++i) {
      if (test.warm[i]) {
        ASSERT_EQ(PageHeap::Give(part[i]), PageResult::kOk);
      }
    }
    const PageStats before = PageHeap::Stats();
    Span* const block = TakeOrNull(test.pages);
    ASSERT_NE(block, nullptr);
    EXPECT_EQ(block->start, start + (test.first << kPageShift));
    EXPECT_EQ(block->pages, test.pages);
    EXPECT_FALSE(block->zeroed);
    EXPECT_EQ(PageHeap::Stats().free_bytes, 0u);
    EXPECT_EQ(PageHeap::Stats().committed_bytes, before.committed_bytes);
    CheckPageHeap();
    for (Span* span : {block, end}) ASSERT_EQ(PageHeap::Give(span), PageResult::kOk);
    CheckPageHeap();
  }
}

TEST(PageHeapTest, ResizeInPlace) {
  PageHeap::Release(SIZE_MAX);  // one free span, so that the next two are neighbours
  Span* span = TakeOrNull(100);
  Span* behind = TakeOrNull(100);
  ASSERT_EQ(behind->start, span->end());
  memset(Begin(span), 3, span->bytes());
  EXPECT_EQ(PageHeap::Resize(span, 101), PageResult::kNoMemory);
  EXPECT_EQ(PageHeap::Resize(span, 100), PageResult::kOk);
  EXPECT_EQ(PageHeap::Resize(span, 10), PageResult::kOk);
  EXPECT_EQ(span->pages, 10u);
  CheckPageHeap();
  EXPECT_EQ(PageHeap::Resize(span, 100), PageResult::kOk);
  EXPECT_EQ(PageHeap::Resize(span, 101), PageResult::kNoMemory);
  EXPECT_EQ(Begin(span)[0], 3);
  // Over several free spans, warm and cold, and beyond what the arena has committed.
  ASSERT_EQ(PageHeap::Give(behind), PageResult::kOk);
  const Arena* arena = Arenas::Find(span->start);
  const size_t to_end = arena->used_pages() - arena->PageOf(span->start);
  EXPECT_EQ(PageHeap::Resize(span, to_end + 1000), PageResult::kOk);
  EXPECT_EQ(span->pages, to_end + 1000);
  memset(Begin(span), 4, span->bytes());
  CheckPageHeap();
  ASSERT_EQ(PageHeap::Give(span), PageResult::kOk);
  CheckPageHeap();
}

TEST(PageHeapTest, MovedPagesKeepTheirContents) {
  Span* from = TakeOrNull(200);
  Span* fence = TakeOrNull(1);
  Span* to = TakeOrNull(300);
  for (size_t i = 0; i < from->bytes(); i += 64) memcpy(Begin(from) + i, &i, sizeof(i));
  ASSERT_TRUE(PageHeap::MovePages(from, to));
  for (size_t i = 0; i < from->bytes(); i += 64) ASSERT_EQ(memcmp(Begin(to) + i, &i, sizeof(i)), 0);
  memset(Begin(from), 1, from->bytes());
  for (Span* span : {from, fence, to}) ASSERT_EQ(PageHeap::Give(span), PageResult::kOk);
  CheckPageHeap();
}

TEST(PageHeapTest, ReleaseReturnsMemoryForGood) {
#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
  GTEST_SKIP() << "the sanitizer's shadow memory counts as resident";
#endif
  PageHeap::Release(SIZE_MAX);
  const size_t before = ResidentKiB();
  Span* span = TakeOrNull(2 * kPagesPerMiB);
  ASSERT_NE(span, nullptr);
  memset(Begin(span), 1, span->bytes());
  ASSERT_EQ(PageHeap::Give(span), PageResult::kOk);
  EXPECT_GE(ResidentKiB(), before + 2 * 1024);
  const PageStats warm = PageHeap::Stats();
  EXPECT_GE(warm.free_bytes, 2 * kMiB);
  EXPECT_GE(PageHeap::Release(1), 1u);
  PageHeap::Release(SIZE_MAX);
  const PageStats cold = PageHeap::Stats();
  EXPECT_EQ(cold.free_bytes, 0u);
  EXPECT_GT(cold.releases, warm.releases);
  EXPECT_LT(ResidentKiB(), before + 1024);
  EXPECT_EQ(PageHeap::Release(SIZE_MAX), 0u);
  span = TakeOrNull(2 * kPagesPerMiB);
  EXPECT_TRUE(span->zeroed);
  EXPECT_TRUE(AllZero(Begin(span), span->bytes()));
  ASSERT_EQ(PageHeap::Give(span), PageResult::kOk);
  CheckPageHeap();
}

TEST(PageHeapTest, IdleMemoryIsBoundedWithoutACallForEachSmallSpan) {
  PageHeap::Release(SIZE_MAX);
  std::vector<Span*> spans;
  for (int i = 0; i < 200; ++i) spans.push_back(TakeOrNull(kPagesPerMiB));
  std::vector<Span*> small;
  for (int i = 0; i < 20000; ++i) small.push_back(TakeOrNull(1, kPageSize, 3));
  const uint64_t releases = PageHeap::Stats().releases;
  for (Span* span : spans) ASSERT_EQ(PageHeap::Give(span), PageResult::kOk);
  const PageStats stats = PageHeap::Stats();
  EXPECT_LE(stats.free_bytes,
            IdleBound::kMost + (stats.small_bytes + stats.large_bytes) / IdleBound::kLeastDivisor);
  EXPECT_GT(stats.releases, releases);
  EXPECT_LE(stats.releases, releases + 200);
  // Every other span: 80 MiB in ranges of one page.
  for (size_t i = 0; i < small.size(); i += 2) {
    ASSERT_EQ(PageHeap::Give(small[i]), PageResult::kOk);
  }
  EXPECT_LE(PageHeap::Stats().releases, stats.releases + 50);
  for (size_t i = 1; i < small.size(); i += 2) {
    ASSERT_EQ(PageHeap::Give(small[i]), PageResult::kOk);
  }
  EXPECT_LE(PageHeap::Stats().free_bytes, IdleBound::kMost);
  CheckPageHeap();
}

// Random operations against a map of the live spans: no overlap, contents stay, what is said to be
// zeroed is.
TEST(PageHeapTest, RandomOperationsAgreeWithAModel) {
  std::mt19937_64 random(7);
  struct Live {
    Span* span;
    uint64_t stamp;
  };
  std::map<uintptr_t, Live> live;  // by start
  uint64_t next_stamp = 1;
  size_t zeroed = 0;
  auto stamp = [](const Live& l, size_t from) {
    for (size_t page = from; page < l.span->pages; ++page) {
      memcpy(Begin(l.span) + page * kPageSize, &l.stamp, sizeof(l.stamp));
      memcpy(Begin(l.span) + (page + 1) * kPageSize - sizeof(l.stamp), &l.stamp, sizeof(l.stamp));
    }
  };
  auto verify = [](const Live& l, size_t pages) {
    for (size_t page = 0; page < pages; ++page) {
      if (memcmp(Begin(l.span) + page * kPageSize, &l.stamp, sizeof(l.stamp)) != 0 ||
          memcmp(Begin(l.span) + (page + 1) * kPageSize - sizeof(l.stamp), &l.stamp,
                 sizeof(l.stamp)) != 0) {
        return false;
      }
    }
    return true;
  };
  auto random_pages = [&] { return (random() & ((size_t{1} << (1 + random() % 11)) - 1)) + 1; };
  for (int round = 0; round < 10000; ++round) {
    const int what = random() % 100;
    auto victim =
        live.lower_bound(live.empty() ? 0 : (--live.end())->first - random() % (256 * kMiB));
    if (victim == live.end() && !live.empty()) victim = live.begin();
    if (what < 45 && live.size() < 400) {
      const size_t alignment = random() % 4 == 0 ? kPageSize << (random() % 10) : kPageSize;
      const unsigned size_class = random() % 2 == 0 ? 1 + random() % 100 : 0;
      const size_t pages = random_pages();
      Span* span = TakeOrNull(pages, alignment, size_class);
      ASSERT_NE(span, nullptr);
      ASSERT_EQ(span->pages, pages);
      ASSERT_EQ(span->start % alignment, 0u);
      auto above = live.lower_bound(span->start);
      if (above != live.end()) {
        ASSERT_LE(span->end(), above->first);
      }
      if (above != live.begin()) {
        ASSERT_LE(std::prev(above)->second.span->end(), span->start);
      }
      if (span->zeroed) {
        ++zeroed;
        ASSERT_TRUE(AllZero(Begin(span), span->bytes()));
      }
      Live entry = {span, next_stamp++};
      stamp(entry, 0);
      live[span->start] = entry;
    } else if (what < 85 && !live.empty()) {
      ASSERT_TRUE(verify(victim->second, victim->second.span->pages));
      ASSERT_EQ(PageHeap::Give(victim->second.span), PageResult::kOk);
      live.erase(victim);
    } else if (what < 98 && !live.empty() && victim->second.span->state == SpanState::kLarge) {
      Live& entry = victim->second;
      const size_t before = entry.span->pages;
      const size_t pages = random_pages();
      const PageResult result = PageHeap::Resize(entry.span, pages);
      ASSERT_EQ(entry.span->pages, result == PageResult::kOk ? pages : before);
      if (pages <= before) {
        ASSERT_EQ(result, PageResult::kOk);
      }
      ASSERT_TRUE(verify(entry, std::min<size_t>(before, entry.span->pages)));
      auto above = live.upper_bound(entry.span->start);
      if (above != live.end()) {
        ASSERT_LE(entry.span->end(), above->first);
      }
      stamp(entry, 0);
    } else if (what >= 98) {
      PageHeap::Release(random() % (4 * kMiB));
    }
    if (round % 250 == 0) CheckPageHeap();
    if (HasFatalFailure()) return;
  }
  EXPECT_GT(zeroed, 30u);
  for (auto& [start, entry] : live) {
    ASSERT_TRUE(verify(entry, entry.span->pages));
    ASSERT_EQ(PageHeap::Give(entry.span), PageResult::kOk);
  }
  CheckPageHeap();
}

TEST(PageHeapTest, ThreadsTakeGiveResizeAndLookUp) {
  constexpr int kThreads = 6;
  std::vector<std::thread> threads;
  std::atomic<int> errors{0};
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([t, &errors] {
      std::mt19937_64 random(t);
      std::vector<Span*> mine;
      for (int i = 0; i < 20000; ++i) {
        if (mine.size() < 50 && random() % 2 == 0) {
          const unsigned size_class = random() % 2 == 0 ? t + 1 : 0;
          Span* span = TakeOrNull(1 + random() % 16, kPageSize << (random() % 3), size_class);
          if (span == nullptr) {
            ++errors;
            continue;
          }
          Begin(span)[0] = static_cast<char>(t);
          Begin(span)[span->bytes() - 1] = static_cast<char>(t);
          mine.push_back(span);
        } else if (!mine.empty()) {
          const size_t victim = random() % mine.size();
          Span* span = mine[victim];
          const unsigned expected = span->state == SpanState::kSmall ? t + 1 : 0;
          if (Begin(span)[0] != t || SpanOf(Begin(span)) != span ||
              SpanOf(Begin(span) + span->bytes() - 1) != span || ClassOf(Begin(span)) != expected ||
              PrimaryClassOf(Begin(span)) != expected) {
            ++errors;
          }
          if (span->state == SpanState::kLarge && random() % 4 == 0) {
            PageHeap::Resize(span, 1 + random() % 20);
            Begin(span)[span->bytes() - 1] = static_cast<char>(t);
          } else {
            if (PageHeap::Give(span) != PageResult::kOk) ++errors;
            mine[victim] = mine.back();
            mine.pop_back();
          }
        }
        if (i % 5000 == 0) PageHeap::Release(kMiB);
        if (i % 1000 == 0) PageHeap::Stats();
      }
      for (Span* span : mine) {
        if (PageHeap::Give(span) != PageResult::kOk) ++errors;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(errors, 0);
  EXPECT_EQ(PageHeap::Stats().spans, 0u);
  CheckPageHeap();
}

Span* handler_span;
PageResult handler_take, handler_give, handler_resize;
bool handler_fork;
void* handler_block;

void Handler(int) {
  Span* span = nullptr;
  handler_take = PageHeap::Take(1, kPageSize, 0, &span);
  handler_give = PageHeap::Give(handler_span);
  handler_resize = PageHeap::Resize(handler_span, 1);
  handler_fork = PageHeap::LockForFork();
  PageHeap::Stats();
  PageHeap::Release(1);
  handler_block = EmergencyTake(100, 16);
}

TEST(PageHeapTest, SignalHandlerInsideTheLockIsToldSo) {
  handler_span = TakeOrNull(3);
  ASSERT_NE(handler_span, nullptr);
  struct sigaction action = {};
  action.sa_handler = Handler;
  ASSERT_EQ(sigaction(SIGUSR1, &action, nullptr), 0);
  ASSERT_TRUE(PageHeap::LockForFork());
  raise(SIGUSR1);
  PageHeap::UnlockAfterFork();
  EXPECT_EQ(handler_take, PageResult::kReentrant);
  EXPECT_EQ(handler_give, PageResult::kReentrant);
  EXPECT_EQ(handler_resize, PageResult::kReentrant);
  EXPECT_FALSE(handler_fork);
  EXPECT_EQ(handler_span->pages, 3u);
  ASSERT_NE(handler_block, nullptr);
  EXPECT_TRUE(EmergencyOwns(handler_block));
  EXPECT_FALSE(InArena(handler_block));
  EmergencyGive(handler_block);
  EXPECT_EQ(PageHeap::Give(handler_span), PageResult::kOk);
  CheckPageHeap();
}

TEST(PageHeapTest, ForkUnderLoad) {
  std::atomic<bool> stop{false};
  std::vector<std::thread> threads;
  for (int t = 0; t < 3; ++t) {
    threads.emplace_back([&stop] {
      while (!stop) {
        Span* span = TakeOrNull(3);
        if (span != nullptr) PageHeap::Give(span);
      }
    });
  }
  for (int i = 0; i < 100; ++i) {
    ASSERT_TRUE(PageHeap::LockForFork());
    const pid_t child = fork();
    PageHeap::UnlockAfterFork();
    ASSERT_GE(child, 0);
    if (child == 0) {
      alarm(20);  // a child that hangs must not hang the test
      Span* span = TakeOrNull(5);
      if (span == nullptr) _exit(1);
      memset(Begin(span), 1, span->bytes());
      if (PageHeap::Give(span) != PageResult::kOk) _exit(2);
      CheckPageHeap();
      _exit(::testing::Test::HasFailure() ? 3 : 0);
    }
    int status;
    ASSERT_EQ(waitpid(child, &status, 0), child);
    ASSERT_EQ(status, 0);
  }
  stop = true;
  for (std::thread& thread : threads) thread.join();
}

TEST(PageHeapDeathTest, GivingTwiceIsNoticed) {
  Span* fence[2] = {TakeOrNull(1), nullptr};
  Span* span = TakeOrNull(1);
  fence[1] = TakeOrNull(1);
  ASSERT_EQ(PageHeap::Give(span), PageResult::kOk);
  EXPECT_DEATH(PageHeap::Give(span), "internal error");
  for (Span* s : fence) ASSERT_EQ(PageHeap::Give(s), PageResult::kOk);
}

}  // namespace
}  // namespace pcmalloc
