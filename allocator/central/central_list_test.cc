// SPDX-License-Identifier: Apache-2.0
#include "allocator/central/central_list.h"

#include <stdint.h>

#include <algorithm>
#include <random>
#include <set>
#include <utility>
#include <vector>

#include "allocator/pages/page_heap.h"
#include "allocator/pages/page_map.h"
#include "allocator/sizes/size_classes.h"
#include "gtest/gtest.h"

namespace pcmalloc {
namespace {

std::vector<void*> TakeSome(CentralList& list, unsigned size_class, uint32_t n) {
  std::vector<void*> objects(n);
  Shortage shortage;
  EXPECT_EQ(list.Take(size_class, objects.data(), n, &shortage), n);
  EXPECT_EQ(shortage, Shortage::kNone);
  return objects;
}

uint32_t ObjectsInASpan(unsigned size_class) {
  const size_t objects = SpanPages(size_class) * kPageSize / ClassSize(size_class);
  return static_cast<uint32_t>(std::min<size_t>(objects, Span::kMaxObjects));
}

void* Inside(void* p, size_t offset) { return static_cast<char*>(p) + offset; }

// The index arithmetic is exact for every object of every class: each one comes out once, at a
// multiple of the size from its span's start, and is found again when it comes back.
TEST(CentralList, EveryObjectOfEveryClass) {
  std::mt19937 random(1);
  for (unsigned c = 1; c < kNumClasses; ++c) {
    SCOPED_TRACE(c);
    CentralList list;
    const uint64_t spans_before = PageHeap::Stats().spans;
    const uint32_t n = 2 * ObjectsInASpan(c);
    std::vector<void*> objects = TakeSome(list, c, n);
    EXPECT_EQ(list.spans(), 2u);
    EXPECT_EQ(list.free_objects(), 0u);
    EXPECT_EQ(PageHeap::Stats().spans, spans_before + 2);
    EXPECT_EQ(std::set<void*>(objects.begin(), objects.end()).size(), n);
    for (void* p : objects) {
      const Span* span = SpanOf(p);
      ASSERT_NE(span, nullptr);
      const uintptr_t offset = reinterpret_cast<uintptr_t>(p) - span->start;
      ASSERT_EQ(offset % ClassSize(c), 0u);
      ASSERT_LE(offset + ClassSize(c), span->bytes());
      ASSERT_EQ(ClassOf(p), c);
      ASSERT_EQ(ClassOf(Inside(p, ClassSize(c) - 1)), c);
      ASSERT_FALSE(CentralList::IsFree(span, p));
    }
    std::shuffle(objects.begin(), objects.end(), random);
    for (uint32_t i = 0; i + 1 < n; ++i) {
      const Span* span = SpanOf(objects[i]);
      const uint16_t free_before = span->free_objects;
      ASSERT_EQ(list.Give(c, &objects[i], 1), 1u);
      if (free_before + 1 < span->objects) {
        ASSERT_TRUE(CentralList::IsFree(span, objects[i]));
        ASSERT_EQ(span->free_objects, free_before + 1);
      }
    }
    EXPECT_EQ(list.spans(), 1u);
    ASSERT_EQ(list.Give(c, &objects[n - 1], 1), 1u);
    EXPECT_EQ(list.spans(), 0u);
    EXPECT_EQ(list.free_objects(), 0u);
    EXPECT_EQ(PageHeap::Stats().spans, spans_before);
  }
}

TEST(CentralList, ObjectsComeInDescendingOrder) {
  CentralList list;
  const std::vector<void*> objects = TakeSome(list, 3, 100);
  EXPECT_TRUE(std::is_sorted(objects.rbegin(), objects.rend()));
  EXPECT_EQ(list.Give(3, objects.data(), 100), 100u);
}

TEST(CentralList, NeighboursComeInDescendingOrderHoweverMany) {
  constexpr unsigned kClass = 5;
  const size_t size = ClassSize(kClass);
  CentralList list;
  for (uint32_t first = 0; first < 10; ++first) {
    for (uint32_t n = 1; n < 150; ++n) {
      SCOPED_TRACE(testing::Message() << n << " behind " << first);
      std::vector<void*> before = TakeSome(list, kClass, first + 1);
      std::vector<void*> objects = TakeSome(list, kClass, n);
      for (uint32_t i = 0; i < n; ++i) {
        ASSERT_EQ(objects[i], Inside(before[0], (n - i) * size));
      }
      ASSERT_EQ(list.Give(kClass, objects.data(), n), n);
      ASSERT_EQ(list.Give(kClass, before.data(), first + 1), first + 1);
    }
  }
}

TEST(CentralList, TheCountsAddUp) {
  CentralList list;
  constexpr unsigned kClass = 20;
  std::mt19937 random(2);
  std::vector<void*> held;
  for (int step = 0; step < 3000; ++step) {
    if (held.empty() || random() % 2 == 0) {
      for (void* p : TakeSome(list, kClass, 1 + random() % 50)) held.push_back(p);
    } else {
      std::shuffle(held.begin(), held.end(), random);
      const uint32_t n = static_cast<uint32_t>(1 + random() % std::min<size_t>(50, held.size()));
      ASSERT_EQ(list.Give(kClass, held.data() + held.size() - n, n), n);
      held.resize(held.size() - n);
    }
    ASSERT_EQ(held.size() + list.free_objects(), list.spans() * ObjectsInASpan(kClass));
  }
  ASSERT_EQ(list.Give(kClass, held.data(), static_cast<uint32_t>(held.size())), held.size());
  EXPECT_EQ(list.spans(), 0u);
}

// Runs up and down, across words and spans, with holes and in disorder: against a model that knows
// which objects are free, span by span.
TEST(CentralList, EveryBitAndCountIsRight) {
  std::mt19937 random(3);
  for (const unsigned c : {2u, 4u, 30u, 100u, kNumClasses - 1}) {
    SCOPED_TRACE(c);
    CentralList list;
    const uint32_t n = 5 * ObjectsInASpan(c) / 2;
    std::vector<void*> held = TakeSome(list, c, n);
    std::set<void*> out(held.begin(), held.end());
    // So that no span leaves.
    std::set<const Span*> spans;
    std::set<void*> kept;
    for (void* p : held) {
      if (spans.insert(SpanOf(p)).second) kept.insert(p);
    }
    for (int round = 0; round < 60; ++round) {
      std::vector<void*> given;
      const uint32_t every = 1 + random() % 20;
      for (void* p : out) {
        if (kept.count(p) == 0 && (every == 1 || random() % every != 0)) given.push_back(p);
      }
      given.resize(random() % (given.size() + 1));
      const unsigned order = random() % 5;
      if (order == 1) std::reverse(given.begin(), given.end());
      if (order == 2) std::shuffle(given.begin(), given.end(), random);
      if (order == 3 && !given.empty()) {
        std::rotate(given.begin(), given.begin() + static_cast<ptrdiff_t>(random() % given.size()),
                    given.end());
      }
      if (order == 4) {
        for (size_t i = 0; i < given.size(); i += 10) {
          std::swap(given[i], given[random() % given.size()]);
        }
      }
      ASSERT_EQ(list.Give(c, given.data(), static_cast<uint32_t>(given.size())), given.size());
      for (void* p : given) out.erase(p);
      for (const Span* span : spans) {
        uint32_t free = 0;
        for (uint32_t i = 0; i < span->objects; ++i) {
          void* p = reinterpret_cast<void*>(span->start + size_t{i} * span->object_size);
          ASSERT_EQ(CentralList::IsFree(span, p), out.count(p) == 0);
          free += out.count(p) == 0;
        }
        ASSERT_EQ(span->free_objects, free);
        if (free != 0) {
          ASSERT_EQ(span->list_index, (free * 8 - 1) / span->objects);
        }
      }
      for (void* p :
           TakeSome(list, c, static_cast<uint32_t>(random() % (list.free_objects() + 1)))) {
        ASSERT_TRUE(out.insert(p).second);
      }
    }
    EXPECT_EQ(list.spans(), spans.size());
    const std::vector<void*> rest(out.begin(), out.end());
    EXPECT_EQ(list.Give(c, rest.data(), static_cast<uint32_t>(rest.size())), rest.size());
    EXPECT_EQ(list.spans(), 0u);
  }
}

// So that the others empty out.
TEST(CentralList, TakesFromTheFullestSpan) {
  CentralList list;
  constexpr unsigned kClass = 4;
  const uint32_t n = ObjectsInASpan(kClass);
  std::vector<std::vector<void*>> spans;
  for (int i = 0; i < 4; ++i) spans.push_back(TakeSome(list, kClass, n));
  // Free in the four: nearly all, an eighth, a half, a quarter (each in a list of its own).
  const uint32_t freed[] = {n - 1, n / 8 - 1, n / 2, n / 4};
  for (size_t i = 0; i < 4; ++i) ASSERT_EQ(list.Give(kClass, spans[i].data(), freed[i]), freed[i]);
  for (const size_t i : {size_t{1}, size_t{3}, size_t{2}, size_t{0}}) {
    const Span* span = SpanOf(spans[i].back());
    for (void* p : TakeSome(list, kClass, freed[i])) ASSERT_EQ(SpanOf(p), span) << i;
  }
  for (const std::vector<void*>& span : spans) ASSERT_EQ(list.Give(kClass, span.data(), n), n);
}

// A span whose last object was out and that gets one back is found again, and goes when it is free.
TEST(CentralList, SpansMoveBetweenTheLists) {
  CentralList list;
  constexpr unsigned kClass = kNumClasses - 1;  // a handful of objects: every step moves the span
  const uint32_t n = ObjectsInASpan(kClass);
  std::vector<void*> objects = TakeSome(list, kClass, n);
  for (uint32_t i = 0; i < n; ++i) {
    ASSERT_EQ(list.Give(kClass, &objects[i], 1), 1u);
    ASSERT_EQ(TakeSome(list, kClass, 1)[0], objects[i]);
  }
  EXPECT_EQ(list.spans(), 1u);
  EXPECT_EQ(list.Give(kClass, objects.data(), n), n);
  EXPECT_EQ(list.spans(), 0u);
}

// In the thread that holds the lock already, as in a signal handler.
TEST(CentralList, RefusesWhoeverHoldsItsLock) {
  CentralList list;
  std::vector<void*> objects = TakeSome(list, 5, 10);
  ASSERT_TRUE(list.LockForFork(false));
  void* p = nullptr;
  Shortage shortage = Shortage::kNone;
  EXPECT_EQ(list.Take(5, &p, 1, &shortage), 0u);
  EXPECT_EQ(shortage, Shortage::kReentrant);
  EXPECT_EQ(list.Give(5, objects.data(), 10), 0u);
  EXPECT_FALSE(list.LockForFork(false));
  list.UnlockAfterFork(false);
  EXPECT_EQ(list.Give(5, objects.data(), 10), 10u);
}

class CentralListDeathTest : public ::testing::TestWithParam<unsigned> {
 protected:
  static void Give(CentralList& list, unsigned size_class, void* p) {
    list.Give(size_class, &p, 1);
  }
};

TEST_P(CentralListDeathTest, DoubleFree) {
  CentralList list;
  const unsigned c = GetParam();
  std::vector<void*> objects = TakeSome(list, c, 2);
  Give(list, c, objects[1]);
  EXPECT_DEATH(Give(list, c, objects[1]), "double free of 0x.*object 0\\)");
  Give(list, c, objects[0]);
}

// In a batch in order, up and down, and in disorder; the message names the one.
TEST_P(CentralListDeathTest, MisuseWithinABatch) {
  CentralList list;
  const unsigned c = GetParam();
  std::vector<void*> objects = TakeSome(list, c, ObjectsInASpan(c));
  std::reverse(objects.begin(), objects.end());
  const auto n = static_cast<uint32_t>(objects.size());
  // A run does not go on behind the span's last object.
  std::vector<void*> beyond = {objects[n - 2], objects[n - 1],
                               Inside(objects[n - 1], ClassSize(c))};
  EXPECT_DEATH(list.Give(c, beyond.data(), 3), "free of a pointer");
  std::vector<void*> before = {objects[1], objects[0],
                               reinterpret_cast<char*>(objects[0]) - ClassSize(c)};
  EXPECT_DEATH(list.Give(c, before.data(), 3), "free of a pointer");
  Give(list, c, objects[2]);
  EXPECT_DEATH(list.Give(c, objects.data(), n), "double free of 0x.*object 2\\)");
  std::vector<void*> down(objects.rbegin(), objects.rend());
  EXPECT_DEATH(list.Give(c, down.data(), n), "double free of 0x.*object 2\\)");
  // Neither is beside the one before it.
  std::vector<void*> apart = {objects[0], objects[2]};
  EXPECT_DEATH(list.Give(c, apart.data(), 2), "double free of 0x.*object 2\\)");
  apart = {objects[0], objects[3], objects[0]};
  EXPECT_DEATH(list.Give(c, apart.data(), 3), "double free of 0x.*object 0\\)");
  std::vector<void*> twice = {objects[0], objects[1], objects[0]};
  EXPECT_DEATH(list.Give(c, twice.data(), 3), "double free of 0x.*object 0\\)");
  objects.erase(objects.begin() + 2);
  list.Give(c, objects.data(), n - 1);
}

TEST_P(CentralListDeathTest, MiddleOfABlock) {
  CentralList list;
  const unsigned c = GetParam();
  std::vector<void*> objects = TakeSome(list, c, 2);
  for (const size_t offset : {size_t{1}, ClassSize(c) / 2, ClassSize(c) - 1}) {
    EXPECT_DEATH(Give(list, c, Inside(objects[0], offset)),
                 "free of a pointer into the middle of a block");
  }
  list.Give(c, objects.data(), 2);
}

TEST_P(CentralListDeathTest, TailOfTheSpan) {
  CentralList list;
  const unsigned c = GetParam();
  std::vector<void*> objects = TakeSome(list, c, 1);
  const Span* span = SpanOf(objects[0]);
  const size_t used = ObjectsInASpan(c) * ClassSize(c);
  if (used < span->bytes()) {
    EXPECT_DEATH(Give(list, c, reinterpret_cast<void*>(span->start + used)),
                 "free of a pointer into the middle of a block");
  }
  list.Give(c, objects.data(), 1);
}

TEST_P(CentralListDeathTest, BlockOfAnotherClass) {
  CentralList list;
  const unsigned c = GetParam();
  std::vector<void*> objects = TakeSome(list, c, 1);
  EXPECT_DEATH(Give(list, c == 1 ? 2 : c - 1, objects[0]),
               "free of a pointer that was not allocated");
  list.Give(c, objects.data(), 1);
}

TEST_P(CentralListDeathTest, ForeignMemory) {
  CentralList list;
  int local = 0;
  EXPECT_DEATH(Give(list, GetParam(), &local), "free of a pointer that was not allocated");
  EXPECT_DEATH(Give(list, GetParam(), nullptr), "free of a pointer that was not allocated");
}

INSTANTIATE_TEST_SUITE_P(Classes, CentralListDeathTest,
                         ::testing::Values(1u, 3u, 7u, 64u, 65u, 100u, kNumClasses - 1));

// While a span is away nothing is taken from it, and what is given to it waits.
TEST(CentralList, ASpanThatIsAway) {
  CentralList list;
  const unsigned c = SizeClassOf(4096);
  const uint32_t n = ObjectsInASpan(c);
  std::vector<void*> objects = TakeSome(list, c, n);
  Span* const span = SpanOf(objects[0]);
  ASSERT_EQ(list.Give(c, objects.data(), n / 2), n / 2);
  const uint64_t returnable = list.Returnable(c, span, 1);
  EXPECT_GE(returnable, (n / 2 - 1) * ClassSize(c) / 2);
  EXPECT_EQ(list.Returnable(c + 1, span, 1), 0u) << "of another class";
  EXPECT_EQ(list.Returnable(c, span, span->bytes()), 0u);
  uint64_t units = 0;
  ASSERT_TRUE(list.Detach(c, span, 1, &units));
  EXPECT_NE(units, 0u);
  EXPECT_FALSE(list.Detach(c, span, 1, &units)) << "twice";

  const std::vector<void*> others = TakeSome(list, c, n);
  for (void* p : others) EXPECT_NE(SpanOf(p), span);
  const uint64_t idle = CentralList::IdleBytes();
  ASSERT_EQ(list.Give(c, objects.data() + n / 2, n - n / 2), n - n / 2);
  EXPECT_EQ(CentralList::IdleBytes(), idle + (n - n / 2) * ClassSize(c));
  EXPECT_EQ(span->state, SpanState::kSmall) << "it is needed still";
  EXPECT_EQ(list.spans(), 2u);
  list.Attach(span, 0);
  EXPECT_EQ(list.spans(), 1u) << "all of it is free";
  ASSERT_EQ(list.Give(c, others.data(), n), n);
  EXPECT_EQ(list.spans(), 0u);
  EXPECT_EQ(list.free_objects(), 0u);
  EXPECT_EQ(CentralList::IdleBytes(), 0u);
}

TEST(CentralList, ASpanThatWasAwayServesAgain) {
  CentralList list;
  const unsigned c = SizeClassOf(4096);
  const uint32_t n = ObjectsInASpan(c);
  std::vector<void*> objects = TakeSome(list, c, n);
  Span* const span = SpanOf(objects[0]);
  ASSERT_EQ(list.Give(c, objects.data(), n - 1), n - 1);
  uint64_t units = 0;
  ASSERT_TRUE(list.Detach(c, span, 1, &units));
  list.Attach(span, units);  // as if its memory had gone
  EXPECT_EQ(span->holes, units);
  EXPECT_EQ(list.Returnable(c, span, 1), 0u) << "it is gone already";
  const uint64_t holes = PageHeap::HoleBytes();
  EXPECT_GT(holes, 0u);
  const std::vector<void*> one = TakeSome(list, c, 1);
  EXPECT_EQ(SpanOf(one[0]), span);
  EXPECT_LT(PageHeap::HoleBytes(), holes);
  const std::vector<void*> rest = TakeSome(list, c, n - 2);
  for (void* p : rest) EXPECT_EQ(SpanOf(p), span);
  EXPECT_EQ(PageHeap::HoleBytes(), 0u);
  EXPECT_EQ(span->holes, 0u);
  ASSERT_EQ(list.Give(c, rest.data(), n - 2), n - 2);
  ASSERT_EQ(list.Give(c, one.data(), 1), 1u);
  ASSERT_EQ(list.Give(c, &objects[n - 1], 1), 1u);
  EXPECT_EQ(list.spans(), 0u);
}

// A fork from a handler that interrupted this list's owner does not get the lock: what the owner
// was changing, and goes on with in the child, is not to be touched.
TEST(CentralList, ASpanThatWasAwayComesBackToAListAtRestOnly) {
  CentralList list;
  const unsigned c = SizeClassOf(4096);
  const uint32_t n = ObjectsInASpan(c);
  std::vector<void*> objects = TakeSome(list, c, n);
  Span* const span = SpanOf(objects[0]);
  ASSERT_EQ(list.Give(c, objects.data(), n / 2), n / 2);
  uint64_t units = 0;
  ASSERT_TRUE(list.Detach(c, span, 1, &units));
  list.Recover(span);
  EXPECT_TRUE(span->away);
  ASSERT_TRUE(list.LockForFork(false));
  list.Recover(span);
  EXPECT_FALSE(span->away);
  list.UnlockAfterFork(true);
  ASSERT_EQ(list.Give(c, objects.data() + n / 2, n - n / 2), n - n / 2);
  EXPECT_EQ(list.spans(), 0u);
}

}  // namespace
}  // namespace pcmalloc
