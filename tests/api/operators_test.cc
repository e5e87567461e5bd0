// SPDX-License-Identifier: Apache-2.0
//
// The C++ operators called by name, so that no compiler can leave a pair out.
#include <stdint.h>
#include <stdlib.h>

#include <functional>
#include <new>

#include "gtest/gtest.h"
#include "tests/support/allocator.h"

namespace pcmalloc::testing {
namespace {

using std::align_val_t;
using std::nothrow;

struct Pair {
  const char* name;
  std::function<void*(size_t)> take;
  std::function<void(void*, size_t)> give;
  size_t alignment;
};

constexpr align_val_t kAlign{256};

const Pair kPairs[] = {
    {"new, delete", [](size_t n) { return ::operator new(n); },
     [](void* p, size_t) { ::operator delete(p); }, 16},
    {"new, sized delete", [](size_t n) { return ::operator new(n); },
     [](void* p, size_t n) { ::operator delete(p, n); }, 16},
    {"nothrow", [](size_t n) { return ::operator new(n, nothrow); },
     [](void* p, size_t) { ::operator delete(p, nothrow); }, 16},
    {"array", [](size_t n) { return ::operator new[](n); },
     [](void* p, size_t) { ::operator delete[](p); }, 16},
    {"array, sized delete", [](size_t n) { return ::operator new[](n); },
     [](void* p, size_t n) { ::operator delete[](p, n); }, 16},
    {"array nothrow", [](size_t n) { return ::operator new[](n, nothrow); },
     [](void* p, size_t) { ::operator delete[](p, nothrow); }, 16},
    {"aligned", [](size_t n) { return ::operator new(n, kAlign); },
     [](void* p, size_t) { ::operator delete(p, kAlign); }, 256},
    {"aligned, sized delete", [](size_t n) { return ::operator new(n, kAlign); },
     [](void* p, size_t n) { ::operator delete(p, n, kAlign); }, 256},
    {"aligned nothrow", [](size_t n) { return ::operator new(n, kAlign, nothrow); },
     [](void* p, size_t) { ::operator delete(p, kAlign, nothrow); }, 256},
    {"aligned array", [](size_t n) { return ::operator new[](n, kAlign); },
     [](void* p, size_t) { ::operator delete[](p, kAlign); }, 256},
    {"aligned array, sized delete", [](size_t n) { return ::operator new[](n, kAlign); },
     [](void* p, size_t n) { ::operator delete[](p, n, kAlign); }, 256},
    {"aligned array nothrow", [](size_t n) { return ::operator new[](n, kAlign, nothrow); },
     [](void* p, size_t) { ::operator delete[](p, kAlign, nothrow); }, 256},
};

TEST(Operators, GiveDistinctAlignedBlocksThatHoldTheirContent) {
  for (const Pair& pair : kPairs) {
    SCOPED_TRACE(pair.name);
    pair.give(nullptr, 8);
    for (size_t size = 0; size < (size_t{4} << 20); size = size * 5 / 4 + 1) {
      void* p = pair.take(size);
      void* q = pair.take(size);
      ASSERT_TRUE(p != nullptr && q != nullptr && p != q) << size;
      EXPECT_EQ(reinterpret_cast<uintptr_t>(p) % pair.alignment, 0u) << size;
      EXPECT_EQ(reinterpret_cast<uintptr_t>(q) % pair.alignment, 0u) << size;
      EXPECT_GE(malloc_usable_size(p), size);
      Fill(p, size, 1);
      Fill(q, size, 2);
      EXPECT_TRUE(Holds(p, size, 1) && Holds(q, size, 2)) << size;
      pair.give(p, size);
      pair.give(q, size);
    }
  }
}

TEST(Operators, GiveBackWhatTheyTake) {
  size_t before = Measure().address_space;
  for (const Pair& pair : kPairs) {
    for (int i = 0; i < 4096; ++i) pair.give(pair.take(1 << 20), 1 << 20);
    for (int i = 0; i < 400000; ++i) pair.give(pair.take(1000), 1000);
  }
  EXPECT_LT(Measure().address_space, before + (size_t{1} << 30));
}

TEST(Operators, FailByBadAllocOrNull) {
  for (size_t size : {size_t{PTRDIFF_MAX} + 1, SIZE_MAX - 15, SIZE_MAX}) {
    for (const Pair& pair : kPairs) {
      SCOPED_TRACE(pair.name);
      bool thrown = false;
      void* p = nullptr;
      try {
        p = Escape(pair.take(size));
      } catch (const std::bad_alloc&) {
        thrown = true;
      }
      EXPECT_EQ(p, nullptr);
      EXPECT_EQ(thrown, std::string(pair.name).find("nothrow") == std::string::npos);
    }
  }
}

// A handler may free something and return, throw, or give up its place.
int handler_calls = 0;

TEST(NewHandler, IsCalledUntilThereIsNone) {
  for (const Pair& pair : kPairs) {
    SCOPED_TRACE(pair.name);
    bool is_nothrow = std::string(pair.name).find("nothrow") != std::string::npos;
    handler_calls = 0;
    std::set_new_handler([] {
      if (++handler_calls == 3) std::set_new_handler(nullptr);
    });
    if (is_nothrow) {
      EXPECT_EQ(Escape(pair.take(SIZE_MAX / 2 + 1)), nullptr);
    } else {
      EXPECT_THROW(Escape(pair.take(SIZE_MAX / 2 + 1)), std::bad_alloc);
    }
    EXPECT_EQ(handler_calls, 3);
    std::set_new_handler([] { throw std::bad_alloc(); });
    if (is_nothrow) {
      EXPECT_EQ(Escape(pair.take(SIZE_MAX / 2 + 1)), nullptr);
    } else {
      EXPECT_THROW(Escape(pair.take(SIZE_MAX / 2 + 1)), std::bad_alloc);
    }
    std::set_new_handler(nullptr);
  }
}

struct Sized {
  void* p;
  size_t size;
};

TEST(SizeReturningNew, TellsWhatCanBeUsed) {
  auto* plain = Lookup<Sized(size_t)>("__size_returning_new");
  auto* hot_cold = Lookup<Sized(size_t, uint8_t)>("__size_returning_new_hot_cold");
  auto* aligned = Lookup<Sized(size_t, align_val_t)>("__size_returning_new_aligned");
  auto* aligned_hot_cold =
      Lookup<Sized(size_t, align_val_t, uint8_t)>("__size_returning_new_aligned_hot_cold");
  if (plain == nullptr && !IsPcmalloc()) GTEST_SKIP() << "this malloc has no such function";
  ASSERT_TRUE(plain && hot_cold && aligned && aligned_hot_cold);
  for (size_t size = 0; size < (size_t{1} << 20); size = size * 3 / 2 + 1) {
    for (const Sized& got : {plain(size), hot_cold(size, 128), aligned(size, kAlign),
                             aligned_hot_cold(size, kAlign, 128)}) {
      ASSERT_NE(got.p, nullptr);
      EXPECT_GE(got.size, size);
      EXPECT_EQ(got.size, malloc_usable_size(got.p));
      Fill(got.p, got.size, size);
      EXPECT_TRUE(Holds(got.p, got.size, size));
    }
    Sized got = plain(size);
    ::operator delete(got.p, got.size);
    got = aligned(size, kAlign);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(got.p) % 256, 0u);
    ::operator delete(got.p, got.size, kAlign);
  }
  EXPECT_THROW(plain(SIZE_MAX), std::bad_alloc);
}

}  // namespace
}  // namespace pcmalloc::testing
