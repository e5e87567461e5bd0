// SPDX-License-Identifier: Apache-2.0
//
// Every test runs in a process of its own, with the whole of what lies below the caches.
#include "allocator/central/sweep.h"

#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <random>
#include <set>
#include <thread>
#include <vector>

#include "allocator/central/holes.h"
#include "allocator/central/transfer_cache.h"
#include "allocator/config/config.h"
#include "allocator/os/clock.h"
#include "allocator/pages/page_heap.h"
#include "allocator/pages/page_map.h"
#include "allocator/pages/release_policy.h"
#include "allocator/pages/test_util.h"
#include "allocator/sizes/size_classes.h"
#include "gtest/gtest.h"

namespace pcmalloc::central {
namespace {

constexpr size_t kMiB = size_t{1} << 20;

struct Block {
  void* p;
  size_t size;
};

// Some objects of a class, past the transfer caches. Each is full of a stamp of its own.
class Heap {
 public:
  Heap() : list_(1 << 18) { list_.clear(); }

  void Fill(unsigned size_class, size_t bytes) {
    for (size_t i = 0; i < bytes / ClassSize(size_class); ++i) Take(size_class);
  }
  void Take(unsigned size_class) {
    Shortage shortage;
    void* p = nullptr;
    ASSERT_EQ(lists[size_class].Take(size_class, &p, 1, &shortage), 1u);
    memset(p, StampOf(p), ClassSize(size_class));
    list_.push_back({p, ClassSize(size_class)});
  }
  // All but one in `keep`; they come back as they would from a transfer cache.
  void FreeBut(size_t keep) {
    std::vector<Block> kept;
    for (size_t i = 0; i < list_.size(); ++i) {
      if (keep != 0 && i % keep == 0) {
        kept.push_back(list_[i]);
        continue;
      }
      Give(list_[i]);
      SweepIfDue();
    }
    list_ = kept;
  }
  // Somebody else's business, who has no use for what is free here.
  static void Churn(size_t bytes) {
    const unsigned c = SizeClassOf(64);
    for (size_t i = 0; i < bytes / 64 / 1000; ++i) {
      void* some[1000];
      Shortage shortage;
      ASSERT_EQ(lists[c].Take(c, some, 1000, &shortage), 1000u);
      ASSERT_EQ(lists[c].Give(c, some, 1000), 1000u);
      SweepIfDue();
    }
  }
  void Check() const {
    for (const Block& block : list_) {
      const unsigned char* const bytes = static_cast<const unsigned char*>(block.p);
      for (size_t i = 0; i < block.size; i += 16) ASSERT_EQ(bytes[i], StampOf(block.p));
    }
  }
  const std::vector<Block>& blocks() const { return list_; }

 private:
  static void Give(const Block& block) {
    const unsigned c = SizeClassOf(block.size);
    ASSERT_EQ(lists[c].Give(c, &block.p, 1), 1u);
  }
  static unsigned char StampOf(const void* p) {
    return static_cast<unsigned char>(1 + (reinterpret_cast<uintptr_t>(p) >> 4) % 255);
  }
  std::vector<Block> list_;
};

size_t Resident() {
  FILE* const file = fopen("/proc/self/statm", "r");
  size_t size = 0, resident = 0;
  EXPECT_EQ(fscanf(file, "%zu %zu", &size, &resident), 2);
  fclose(file);
  return resident * os::KernelPageSize();
}

// A class whose objects are as long as a kernel page, so that a free one is a hole.
unsigned PageClass() { return SizeClassOf(os::KernelPageSize()); }

TEST(SweepTest, FragmentationDoesNotCostMoreThanABound) {
  InChild([] {
    ParseConfig("thp:never");
    Heap heap;
    heap.Fill(PageClass(), 128 * kMiB);
    const size_t before = Resident();
    heap.FreeBut(8);
    EXPECT_EQ(PageHeap::HoleBytes(), 0u) << "nobody knows yet that it is not needed";
    Heap::Churn(40 * kMiB);
    heap.Check();
    EXPECT_EQ(PageHeap::Stats().small_bytes, 128 * kMiB) << "the kept ones must keep every span";
    // 112 MiB are free, 16 stay idle and half of that goes with them.
    EXPECT_LT(Resident(), before - 88 * kMiB);
    EXPECT_GT(PageHeap::HoleBytes(), 88 * kMiB);
    EXPECT_LE(CentralList::IdleBytes(), 20 * kMiB);
    EXPECT_LT(PageHeap::Footprint(), 52 * kMiB);
    // All of it can be used again, and is booked as what it is.
    heap.Fill(PageClass(), 112 * kMiB);
    heap.Check();
    EXPECT_EQ(PageHeap::HoleBytes(), 0u);
    EXPECT_EQ(CentralList::IdleBytes(), 0u);
    EXPECT_EQ(PageHeap::Stats().small_bytes, 128 * kMiB);
    EXPECT_GE(CentralList::RefilledBytes(), 88 * kMiB);
    heap.FreeBut(0);
    EXPECT_EQ(PageHeap::HoleBytes(), 0u);
    EXPECT_EQ(CentralList::IdleBytes(), 0u);
    EXPECT_EQ(PageHeap::Stats().small_bytes, 0u);
  });
}

TEST(SweepTest, SpansThatEmptyWithHolesInThemAreWholeAgain) {
  InChild([] {
    ParseConfig("thp:never");
    Heap heap;
    heap.Fill(PageClass(), 64 * kMiB);
    heap.FreeBut(8);
    Heap::Churn(40 * kMiB);
    ASSERT_GT(PageHeap::HoleBytes(), 30 * kMiB);
    heap.FreeBut(0);
    EXPECT_EQ(PageHeap::HoleBytes(), 0u);
    EXPECT_EQ(CentralList::IdleBytes(), 0u);
    CheckPageHeap();
    heap.Fill(SizeClassOf(100), 10 * kMiB);
    heap.Check();
    heap.FreeBut(0);
  });
}

// A program that frees most of what it has and takes it again keeps it; one that does so more
// slowly than the sweep can know of pays once.
TEST(SweepTest, BreathIsLeftAlone) {
  InChild([] {
    ParseConfig("thp:never");
    Heap heap;
    heap.Fill(PageClass(), 128 * kMiB);
    for (int i = 0; i < 5; ++i) {
      heap.FreeBut(8);
      heap.Fill(PageClass(), 112 * kMiB);
    }
    EXPECT_EQ(CentralList::RefilledBytes(), 0u);
    for (int i = 0; i < 5; ++i) {
      heap.FreeBut(8);
      Heap::Churn(70 * kMiB);
      heap.Fill(PageClass(), 112 * kMiB);
    }
    EXPECT_GT(CentralList::RefilledBytes(), 90 * kMiB);
    EXPECT_LT(CentralList::RefilledBytes(), 300 * kMiB);
    heap.FreeBut(0);
  });
}

TEST(SweepTest, LittleFragmentationGoesByAge) {
  InChild([] {
    ParseConfig("thp:never,decay:1s");
    Heap heap;
    heap.Fill(PageClass(), 12 * kMiB);
    heap.FreeBut(6);
    ASSERT_EQ(PageHeap::HoleBytes(), 0u) << "too little to go at once";
    uint64_t now = 1'000'000'000;
    DecayHoles(now);
    for (int i = 0; i < 5; ++i) DecayHoles(now += 50);
    const uint64_t soon = PageHeap::HoleBytes();
    EXPECT_LT(soon, 3 * kMiB);
    for (int i = 0; i < 20; ++i) DecayHoles(now += 50);
    EXPECT_EQ(PageHeap::HoleBytes(), 10 * kMiB);
    heap.Check();
    // Nothing is left to do, and the caller may sleep.
    EXPECT_GE(DecayHoles(now += 50), IdleAges::SleepMs(1000));
    heap.FreeBut(0);
  });
}

TEST(SweepTest, WhatIsUsedAgainAllTheTimeDoesNotAge) {
  InChild([] {
    ParseConfig("thp:never,decay:1s");
    Heap heap;
    heap.Fill(PageClass(), 12 * kMiB);
    uint64_t now = 1'000'000'000;
    for (int i = 0; i < 60; ++i) {
      heap.FreeBut(6);
      DecayHoles(now += 50);  // always sees 10 MiB
      heap.Fill(PageClass(), 10 * kMiB);
    }
    EXPECT_EQ(CentralList::RefilledBytes(), 0u);
    heap.FreeBut(0);
  });
}

TEST(SweepTest, WhatCannotGoIsNotLookedForAllTheTime) {
  InChild([] {
    ParseConfig("thp:never,decay:1s");
    Heap heap;
    heap.Fill(SizeClassOf(48), 8 * kMiB);
    heap.FreeBut(8);  // leaves no page without an object
    uint64_t now = 1'000'000'000;
    int sleeps = 0;
    for (int i = 0; i < 100; ++i) {
      const uint64_t wait = DecayHoles(now);
      sleeps += wait >= IdleAges::SleepMs(1000);
      now += 50;
    }
    EXPECT_LT(PageHeap::HoleBytes(), kMiB / 4);
    EXPECT_GT(sleeps, 60);
    heap.FreeBut(0);
  });
}

TEST(SweepTest, AStepOfTheSweepIsShort) {
  InChild([] {
    ParseConfig("thp:never,decay:1s");
    Heap heap;
    heap.Fill(PageClass(), 18 * kMiB);
    heap.FreeBut(6);
    uint64_t now = 1'000'000'000;
    DecayHoles(now);
    uint64_t before = PageHeap::HoleBytes();
    int steps = 0;
    // One stretch a call: 2 MiB with their kept sixth.
    for (int i = 0; i < 60; ++i, ++steps) {
      DecayHoles(now += 50, 1);
      EXPECT_LE(PageHeap::HoleBytes(), before + 2 * kMiB);
      before = PageHeap::HoleBytes();
    }
    EXPECT_EQ(PageHeap::HoleBytes(), 15 * kMiB);
    heap.FreeBut(0);
  });
}

TEST(SweepTest, AllOfItOnRequest) {
  InChild([] {
    ParseConfig("thp:never");
    Heap heap;
    heap.Fill(PageClass(), 4 * kMiB);
    heap.Fill(SizeClassOf(48), 4 * kMiB);
    heap.Fill(SizeClassOf(100'000), 8 * kMiB);
    heap.FreeBut(5);
    ASSERT_EQ(PageHeap::HoleBytes(), 0u);
    const uint64_t idle = CentralList::IdleBytes();
    const size_t before = Resident();
    const size_t returned = ReturnHoles();
    EXPECT_EQ(CentralList::IdleBytes(), idle - returned);
    EXPECT_EQ(PageHeap::HoleBytes(), returned);
    EXPECT_GT(returned, 8 * kMiB);
    // What was never used counts as idle too: in each class's last span.
    EXPECT_NEAR(before - Resident(), returned, kMiB);
    heap.Check();
    EXPECT_EQ(ReturnHoles(), 0u) << "the same memory twice";
    heap.FreeBut(0);
    EXPECT_EQ(PageHeap::HoleBytes(), 0u);
  });
}

// What lies behind a span's last object goes with it, but was not idle before.
TEST(SweepTest, HolesOfOneClassDoNotHideWhatIsIdleInAnother) {
  InChild([] {
    ParseConfig("thp:never,decay:never");
    Heap heap;
    const unsigned c = SizeClassOf(122'880);  // four in a span, and 32 KiB
    heap.Fill(c, 64 * ClassSize(c));
    heap.FreeBut(4);
    ReturnHoles();
    ASSERT_GT(PageHeap::HoleBytes(), 16 * SpanPages(c) * kPageSize / 2);
    Heap other;
    other.Fill(PageClass(), 2 * kMiB);
    other.FreeBut(16);
    EXPECT_GE(CentralList::IdleBytes(), 2 * kMiB / 16 * 15);
    other.FreeBut(0);
    heap.FreeBut(0);
    EXPECT_EQ(PageHeap::HoleBytes(), 0u);
    EXPECT_EQ(CentralList::IdleBytes(), 0u);
  });
}

TEST(SweepTest, LockedMemoryStaysAndIsNotAskedForForever) {
  InChild([] {
    ParseConfig("thp:never");
    Heap heap;
    heap.Fill(PageClass(), 3 * kMiB);
    const auto [first, last] =
        std::minmax_element(heap.blocks().begin(), heap.blocks().end(),
                            [](const Block& a, const Block& b) { return a.p < b.p; });
    char* const begin = static_cast<char*>(first->p);
    const size_t bytes = static_cast<size_t>(static_cast<char*>(last->p) - begin) + last->size;
    if (mlock(begin, bytes) != 0) {
      printf("memory cannot be locked here (RLIMIT_MEMLOCK)\n");
      return;
    }
    heap.FreeBut(5);
    const uint64_t calls = PageHeap::Stats().releases;
    EXPECT_EQ(ReturnHoles(), 0u);
    EXPECT_EQ(PageHeap::HoleBytes(), 0u);
    EXPECT_LE(PageHeap::Stats().releases, calls + 20);
    munlock(begin, bytes);
    EXPECT_GT(ReturnHoles(), 2 * kMiB);
    heap.Check();
    heap.FreeBut(0);
  });
}

TEST(SweepTest, HugePagesAreBrokenOnlyForMuch) {
  InChild([] {
    ParseConfig("thp:always");
    if (os::FindHugePages() == os::HugePages::kNever) {
      printf("this system has no hugepages\n");
      return;
    }
    Heap heap;
    heap.Fill(PageClass(), 64 * kMiB);
    const size_t huge = Arenas::at(0).huge_count();
    ASSERT_GT(huge, 24u);
    // One page in 16 is free: 128 KiB of a hugepage, in holes of one page each.
    std::vector<void*> some;
    for (size_t i = 0; i < heap.blocks().size(); i += 16) some.push_back(heap.blocks()[i].p);
    const unsigned c = PageClass();
    ASSERT_EQ(lists[c].Give(c, some.data(), static_cast<uint32_t>(some.size())), some.size());
    uint64_t now = 1'000'000'000;
    for (int i = 0; i < 500; ++i) DecayHoles(now += 50);
    // At the ends there is memory that did not come in hugepages.
    EXPECT_LT(PageHeap::HoleBytes(), kMiB / 4);
    EXPECT_EQ(Arenas::at(0).huge_count(), huge);
    EXPECT_GT(ReturnHoles(), 3 * kMiB);
    EXPECT_LT(Arenas::at(0).huge_count(), 5u);
  });
}

// What is in use keeps its contents while memory around it goes back, from all sides at once.
TEST(SweepTest, NothingInUseIsLost) {
  InChild([] {
    ParseConfig("thp:never");
    constexpr int kThreads = 3;
    std::atomic<bool> stop{false};
    std::atomic<uint64_t> returned{0};
    std::thread sweeper([&] {
      while (!stop.load()) returned += ReturnHoles();
    });
    std::vector<std::thread> threads;
    for (int t = 0; t < kThreads; ++t) {
      threads.emplace_back([t, &returned] {
        std::mt19937_64 random(static_cast<uint64_t>(t));
        constexpr size_t kSizes[] = {64, 1024, 4096, 20'000};
        std::vector<Block> blocks;
        const uint64_t begin = os::CoarseMilliseconds();
        for (int i = 0; i < 60'000 ||
                        (returned.load() < 4 * kMiB && os::CoarseMilliseconds() - begin < 20'000);
             ++i) {
          if (blocks.size() < 400 || random() % 2 == 0) {
            const unsigned c = SizeClassOf(kSizes[random() % 4]);
            void* p = nullptr;
            Shortage shortage;
            ASSERT_EQ(lists[c].Take(c, &p, 1, &shortage), 1u);
            memset(p, t + 1, ClassSize(c));
            blocks.push_back({p, ClassSize(c)});
            continue;
          }
          std::swap(blocks[random() % blocks.size()], blocks.back());
          const Block block = blocks.back();
          blocks.pop_back();
          const char* const bytes = static_cast<const char*>(block.p);
          for (size_t k = 0; k < block.size; k += 64) ASSERT_EQ(bytes[k], t + 1);
          const unsigned c = SizeClassOf(block.size);
          ASSERT_EQ(lists[c].Give(c, &block.p, 1), 1u);
        }
        for (const Block& block : blocks) {
          const unsigned c = SizeClassOf(block.size);
          ASSERT_EQ(lists[c].Give(c, &block.p, 1), 1u);
        }
      });
    }
    for (std::thread& thread : threads) thread.join();
    stop = true;
    sweeper.join();
    EXPECT_GE(returned.load(), 4 * kMiB);
    EXPECT_EQ(PageHeap::Stats().spans, 0u);
    EXPECT_EQ(PageHeap::HoleBytes(), 0u);
    EXPECT_EQ(CentralList::IdleBytes(), 0u);
    CheckPageHeap();
  });
}

// Span objects serve one class after the other while the sweep still thinks of them as what they
// were when it found them.
TEST(SweepTest, ASpanThatServesAnotherClassMeanwhileIsLeftAlone) {
  InChild([] {
    ParseConfig("thp:never");
    std::atomic<bool> stop{false};
    std::thread sweeper([&] {
      while (!stop.load()) ReturnHoles();
    });
    std::vector<std::thread> threads;
    for (int t = 0; t < 3; ++t) {
      threads.emplace_back([t] {
        std::mt19937_64 random(static_cast<uint64_t>(t));
        constexpr size_t kSizes[] = {4096, 4608, 5120, 6144, 7168, 8192};
        std::vector<void*> blocks(6);
        const uint64_t begin = os::CoarseMilliseconds();
        while (os::CoarseMilliseconds() - begin < 1'000) {
          const unsigned c = SizeClassOf(kSizes[random() % 6]);
          Shortage shortage;
          ASSERT_EQ(lists[c].Take(c, blocks.data(), 6, &shortage), 6u);
          for (void* p : blocks) memset(p, t + 1, ClassSize(c));
          for (const void* p : blocks) {
            const char* const bytes = static_cast<const char*>(p);
            for (size_t k = 0; k < ClassSize(c); k += 64) ASSERT_EQ(bytes[k], t + 1);
          }
          ASSERT_EQ(lists[c].Give(c, blocks.data(), 6), 6u);
        }
      });
    }
    for (std::thread& thread : threads) thread.join();
    stop = true;
    sweeper.join();
    EXPECT_EQ(PageHeap::Stats().spans, 0u);
    EXPECT_EQ(PageHeap::HoleBytes(), 0u);
    EXPECT_EQ(CentralList::IdleBytes(), 0u);
    CheckPageHeap();
  });
}

// A span that was away when its process forked is not lost to the child.
TEST(SweepTest, AForksChildHasAllSpans) {
  InChild([] {
    ParseConfig("thp:never");
    Heap heap;
    heap.Fill(PageClass(), 8 * kMiB);
    heap.FreeBut(8);
    std::atomic<bool> stop{false};
    std::thread sweeper([&] {
      while (!stop.load()) {
        ReturnHoles();
        // What was returned gets memory again, so that there is always something to do.
        std::vector<void*> objects(1700);
        Shortage shortage;
        const unsigned c = PageClass();
        lists[c].Take(c, objects.data(), 1700, &shortage);
        lists[c].Give(c, objects.data(), 1700);
      }
    });
    int away = 0;
    for (int i = 0; i < 300; ++i) {
      LockForFork();
      (void)PageHeap::LockForFork();
      bool found = false;
      for (const Block& block : heap.blocks()) found |= SpanOf(block.p)->away;
      const pid_t child = fork();
      if (child == 0) {
        PageHeap::UnlockAfterFork(true);
        UnlockAfterFork(true);
        std::set<const Span*> spans;
        for (const Block& block : heap.blocks()) spans.insert(SpanOf(block.p));
        uint64_t holes = 0;
        for (const Span* span : spans) {
          if (span->away) _exit(3);
          holes += BytesOf(span, span->holes);
        }
        if (holes != PageHeap::HoleBytes()) _exit(4);
        // In flight may be what the other thread had taken, nothing more.
        ReturnHoles();
        _exit(0);
      }
      PageHeap::UnlockAfterFork(false);
      UnlockAfterFork(false);
      away += found;
      int status = 0;
      ASSERT_EQ(waitpid(child, &status, 0), child);
      ASSERT_EQ(status, 0);
    }
    stop = true;
    sweeper.join();
    EXPECT_GT(away, 0) << "no fork met the sweep";
    heap.FreeBut(0);
  });
}

}  // namespace
}  // namespace pcmalloc::central
