// SPDX-License-Identifier: Apache-2.0
//
// The malloc family as C programs see it: every name is there, comes from one allocator, and
// returns what the manual pages (and glibc, where they leave a choice) say.
#include <errno.h>
#include <malloc.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <string>
#include <thread>
#include <vector>

#include "gtest/gtest.h"
#include "tests/support/allocator.h"
#include "tests/support/process.h"

namespace pcmalloc::testing {
namespace {

bool Aligned(const void* p, size_t alignment) {
  return reinterpret_cast<uintptr_t>(p) % alignment == 0;
}

// Too large for any object; one of them would wrap around when rounded up.
const size_t kTooLarge[] = {size_t{PTRDIFF_MAX} + 1, SIZE_MAX - 4096, SIZE_MAX - 15, SIZE_MAX};

class Names : public ::testing::TestWithParam<const char*> {};

TEST_P(Names, ComeFromTheAllocatorThatHasMalloc) {
  void* here = dlsym(RTLD_DEFAULT, GetParam());
  if (here == nullptr && !IsPcmalloc()) GTEST_SKIP() << "this malloc has no such function";
  ASSERT_NE(here, nullptr) << GetParam();
  Dl_info of_this, of_malloc;
  ASSERT_NE(dladdr(here, &of_this), 0);
  ASSERT_NE(dladdr(dlsym(RTLD_DEFAULT, "malloc"), &of_malloc), 0);
  EXPECT_STREQ(of_this.dli_fname, of_malloc.dli_fname) << GetParam();
}

INSTANTIATE_TEST_SUITE_P(
    C, Names,
    ::testing::Values("malloc", "calloc", "realloc", "free", "aligned_alloc", "memalign",
                      "posix_memalign", "valloc", "pvalloc", "malloc_usable_size", "reallocarray",
                      "free_sized", "free_aligned_sized", "mallinfo", "mallinfo2", "malloc_trim",
                      "malloc_stats", "malloc_info", "mallopt", "cfree", "__libc_malloc",
                      "__libc_calloc", "__libc_realloc", "__libc_free", "__libc_memalign",
                      "__libc_valloc", "__libc_pvalloc", "nallocx", "sdallocx", "mallocx",
                      "rallocx", "xallocx", "sallocx", "dallocx", "__size_returning_new",
                      "__size_returning_new_hot_cold", "__size_returning_new_aligned",
                      "__size_returning_new_aligned_hot_cold"));
INSTANTIATE_TEST_SUITE_P(OperatorNew, Names,
                         ::testing::Values("_Znwm", "_Znam", "_ZnwmRKSt9nothrow_t",
                                           "_ZnamRKSt9nothrow_t", "_ZnwmSt11align_val_t",
                                           "_ZnamSt11align_val_t",
                                           "_ZnwmSt11align_val_tRKSt9nothrow_t",
                                           "_ZnamSt11align_val_tRKSt9nothrow_t"));
INSTANTIATE_TEST_SUITE_P(OperatorDelete, Names,
                         ::testing::Values("_ZdlPv", "_ZdaPv", "_ZdlPvm", "_ZdaPvm",
                                           "_ZdlPvRKSt9nothrow_t", "_ZdaPvRKSt9nothrow_t",
                                           "_ZdlPvSt11align_val_t", "_ZdaPvSt11align_val_t",
                                           "_ZdlPvmSt11align_val_t", "_ZdaPvmSt11align_val_t",
                                           "_ZdlPvSt11align_val_tRKSt9nothrow_t",
                                           "_ZdaPvSt11align_val_tRKSt9nothrow_t"));

TEST(Malloc, OfZeroIsUniqueAndFreeable) {
  std::vector<void*> blocks;
  for (int i = 0; i < 1000; ++i) blocks.push_back(i % 2 == 0 ? malloc(0) : calloc(0, 8));
  std::vector<void*> sorted = blocks;
  std::sort(sorted.begin(), sorted.end());
  EXPECT_NE(sorted[0], nullptr);
  EXPECT_EQ(std::unique(sorted.begin(), sorted.end()), sorted.end());
  for (void* p : blocks) free(p);
}

TEST(Malloc, AlignsToSixteenAndUsableBytesAreWritable) {
  for (size_t size = 1; size <= (size_t{64} << 20); size += 1 + size / 50) {
    void* p = malloc(size);
    ASSERT_NE(p, nullptr) << size;
    EXPECT_TRUE(Aligned(p, 16)) << size;
    size_t usable = malloc_usable_size(p);
    ASSERT_GE(usable, size);
    Fill(p, usable, size);
    ASSERT_TRUE(Holds(p, usable, size)) << size;
    free(p);
  }
  EXPECT_EQ(malloc_usable_size(nullptr), 0u);
}

TEST(Malloc, WastesLittleInside) {
  if (!IsPcmalloc()) GTEST_SKIP() << "a promise of pcmalloc alone";
  for (size_t size = 129; size <= 262144; ++size) {
    void* p = malloc(size);
    size_t usable = malloc_usable_size(p);
    free(p);
    ASSERT_LE(usable, size + size / 8 + 15) << size;
    ASSERT_GE(usable, size);
  }
}

TEST(Malloc, RefusesWhatNoObjectCanBe) {
  for (size_t size : kTooLarge) {
    struct {
      const char* name;
      void* got;
      int error;
    } results[] = {
        {"malloc", (errno = 0, malloc(size)), errno},
        {"calloc", (errno = 0, calloc(1, size)), errno},
        {"realloc", (errno = 0, realloc(nullptr, size)), errno},
        {"aligned_alloc", (errno = 0, aligned_alloc(64, size)), errno},
        {"memalign", (errno = 0, memalign(4096, size)), errno},
        {"valloc", (errno = 0, valloc(size)), errno},
        {"pvalloc", (errno = 0, pvalloc(size)), errno},
        {"reallocarray", (errno = 0, reallocarray(nullptr, 1, size)), errno},
    };
    for (const auto& result : results) {
      EXPECT_EQ(result.got, nullptr) << result.name << " " << size;
      EXPECT_EQ(result.error, ENOMEM) << result.name << " " << size;
    }
    void* p = this;
    errno = 7;
    EXPECT_EQ(posix_memalign(&p, 64, size), ENOMEM) << size;
    EXPECT_EQ(p, this);
    EXPECT_EQ(errno, 7);
  }
}

TEST(Calloc, RefusesOverflow) {
  const size_t pairs[][2] = {{SIZE_MAX / 2 + 1, 2},   {2, SIZE_MAX / 2 + 1},
                             {SIZE_MAX, SIZE_MAX},    {size_t{1} << 32, size_t{1} << 32},
                             {SIZE_MAX / 16 + 1, 16}, {17, SIZE_MAX / 16}};
  for (const auto& [count, size] : pairs) {
    errno = 0;
    EXPECT_EQ(calloc(count, size), nullptr) << count << " " << size;
    EXPECT_EQ(errno, ENOMEM);
    void* p = malloc(100);
    Fill(p, 100, 1);
    errno = 0;
    EXPECT_EQ(reallocarray(Escape(p), count, size), nullptr) << count << " " << size;
    EXPECT_EQ(errno, ENOMEM);
    EXPECT_TRUE(Holds(p, 100, 1));
    free(p);
  }
}

TEST(Calloc, ZeroesUsedMemory) {
  for (size_t size = 1; size <= (size_t{4} << 20); size = size * 5 / 4 + 1) {
    for (int round = 0; round < 3; ++round) {
      auto* dirty = static_cast<uint8_t*>(malloc(size));
      memset(dirty, 0xff, malloc_usable_size(dirty));
      free(dirty);
      auto* p = static_cast<uint8_t*>(calloc(size, 1));
      ASSERT_NE(p, nullptr);
      EXPECT_TRUE(Aligned(p, 16));
      EXPECT_EQ(std::find_if(p, p + size, [](uint8_t byte) { return byte != 0; }), p + size)
          << size;
      free(p);
    }
  }
}

TEST(Realloc, ToZeroFreesAndFromNullAllocates) {
  void* p = realloc(nullptr, 40);
  ASSERT_NE(p, nullptr);
  EXPECT_EQ(realloc(p, 0), nullptr);
  p = realloc(nullptr, 0);
  EXPECT_NE(p, nullptr);
  free(p);
  // Were the block kept, this would take 4 GiB.
  size_t before = Measure().address_space;
  for (int i = 0; i < 4096; ++i) EXPECT_EQ(realloc(malloc(1 << 20), 0), nullptr);
  EXPECT_LT(Measure().address_space, before + (size_t{1} << 30));
}

TEST(Realloc, FailureKeepsTheBlock) {
  for (size_t size : {size_t{1}, size_t{1000}, size_t{300000}, size_t{5} << 20}) {
    void* p = malloc(size);
    Fill(p, size, size);
    for (size_t too_large : kTooLarge) {
      errno = 0;
      EXPECT_EQ(realloc(p, too_large), nullptr);
      EXPECT_EQ(errno, ENOMEM);
    }
    EXPECT_TRUE(Holds(p, size, size)) << size;
    free(p);
  }
}

TEST(PosixMemalign, ChecksTheAlignmentAndLeavesErrnoAlone) {
  for (size_t alignment : {size_t{0}, size_t{1}, size_t{2}, size_t{4}, size_t{3}, size_t{12},
                           size_t{24}, size_t{4095}, SIZE_MAX}) {
    void* p = this;
    errno = 7;
    EXPECT_EQ(posix_memalign(&p, alignment, 64), EINVAL) << alignment;
    EXPECT_EQ(p, this) << alignment;
    EXPECT_EQ(errno, 7);
  }
  for (size_t alignment = sizeof(void*); alignment <= (size_t{4} << 20); alignment *= 2) {
    for (size_t size : {size_t{0}, size_t{1}, size_t{100}, size_t{70000}}) {
      void* p = nullptr;
      errno = 7;
      ASSERT_EQ(posix_memalign(&p, alignment, size), 0) << alignment << " " << size;
      EXPECT_EQ(errno, 7);
      ASSERT_NE(p, nullptr);
      EXPECT_TRUE(Aligned(p, std::max(alignment, size_t{16}))) << alignment << " " << size;
      EXPECT_GE(malloc_usable_size(p), size);
      Fill(p, malloc_usable_size(p), alignment);
      EXPECT_TRUE(Holds(p, malloc_usable_size(p), alignment));
      free(p);
    }
  }
}

TEST(AlignedAlloc, ChecksForPowersOfTwo) {
  for (size_t alignment : {size_t{0}, size_t{3}, size_t{24}, size_t{4095}, SIZE_MAX}) {
    errno = 0;
    EXPECT_EQ(aligned_alloc(alignment, 64), nullptr) << alignment;
    EXPECT_EQ(errno, EINVAL) << alignment;
  }
  for (void* (*function)(size_t, size_t) : {&aligned_alloc, &memalign}) {
    for (size_t alignment = 1; alignment <= (size_t{64} << 20); alignment *= 2) {
      void* p = function(alignment, 123);
      ASSERT_NE(p, nullptr) << alignment;
      EXPECT_TRUE(Aligned(p, std::max(alignment, size_t{16}))) << alignment;
      Fill(p, 123, alignment);
      free(p);
    }
  }
}

// As glibc does, for callers of old.
TEST(Memalign, RoundsAlignmentsUp) {
  const struct {
    size_t asked;
    size_t got;
  } kAlignments[] = {{0, 16},       {1, 16},         {3, 16},           {15, 16},     {17, 32},
                     {24, 32},      {100, 128},      {4095, 4096},      {4097, 8192}, {8191, 8192},
                     {9000, 16384}, {65537, 131072}, {3 << 20, 4 << 20}};
  for (size_t size : {size_t{0}, size_t{100}, size_t{5000}, size_t{2} << 20}) {
    for (const auto& alignment : kAlignments) {
      void* blocks[5];
      errno = 7;
      for (void*& p : blocks) {
        p = Escape(memalign(alignment.asked, size));
        ASSERT_NE(p, nullptr) << alignment.asked << " " << size;
        EXPECT_TRUE(Aligned(p, alignment.got)) << alignment.asked << " " << size;
        EXPECT_GE(malloc_usable_size(p), size);
        Fill(p, size, alignment.asked);
      }
      EXPECT_EQ(errno, 7);
      for (void* p : blocks) free(p);
    }
  }
  for (size_t alignment : {SIZE_MAX, SIZE_MAX / 2 + 2}) {
    errno = 0;
    EXPECT_EQ(Escape(memalign(alignment, 64)), nullptr) << alignment;
    EXPECT_EQ(errno, EINVAL) << alignment;
  }
}

TEST(Valloc, AlignsToPages) {
  size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  for (size_t size : {size_t{0}, size_t{1}, page - 1, page, page + 1, 100 * page}) {
    void* v = valloc(size);
    void* pv = pvalloc(size);
    EXPECT_TRUE(v != nullptr && Aligned(v, page)) << size;
    EXPECT_TRUE(pv != nullptr && Aligned(pv, page)) << size;
    EXPECT_GE(malloc_usable_size(pv), (size + page - 1) / page * page) << size;
    free(v);
    free(pv);
  }
}

TEST(Free, KeepsErrno) {
  for (size_t size : {size_t{0}, size_t{16}, size_t{5000}, size_t{200000}, size_t{40} << 20}) {
    void* p = malloc(size);
    errno = 4711;
    free(p);
    EXPECT_EQ(errno, 4711) << size;
  }
  errno = 4711;
  free(nullptr);
  EXPECT_EQ(errno, 4711);
}

TEST(SizedFree, TakesWhatWasAskedFor) {
  auto* free_sized = Lookup<void(void*, size_t)>("free_sized");
  auto* free_aligned_sized = Lookup<void(void*, size_t, size_t)>("free_aligned_sized");
  auto* sdallocx = Lookup<void(void*, size_t, int)>("sdallocx");
  auto* nallocx = Lookup<size_t(size_t, int)>("nallocx");
  if (!IsPcmalloc() && (free_sized == nullptr || sdallocx == nullptr)) GTEST_SKIP();
  ASSERT_TRUE(free_sized && free_aligned_sized && sdallocx && nallocx);
  free_sized(nullptr, 8);
  free_aligned_sized(nullptr, 64, 8);
  size_t before = Measure().address_space;
  for (size_t size = 1; size < (size_t{8} << 20); size = size * 9 / 8 + 1) {
    size_t usable = nallocx(size, 0);
    EXPECT_GE(usable, size);
    for (int i = 0; i < 20; ++i) {
      void* p = malloc(size);
      EXPECT_EQ(malloc_usable_size(p), usable) << size;
      free_sized(p, size);
      free_aligned_sized(aligned_alloc(256, size), 256, size);
      sdallocx(malloc(size), size, 0);
    }
  }
  EXPECT_LT(Measure().address_space, before + (size_t{1} << 30));
  EXPECT_EQ(nallocx(SIZE_MAX, 0), 0u);
}

// What nallocx says is what mallocx with the same flags gives, which it aligns.
TEST(WithFlags, AreAnsweredForWithTheirAlignment) {
  auto* nallocx = Lookup<size_t(size_t, int)>("nallocx");
  auto* mallocx = Lookup<void*(size_t, int)>("mallocx");
  if (!IsPcmalloc() && (nallocx == nullptr || mallocx == nullptr)) GTEST_SKIP();
  ASSERT_TRUE(nallocx && mallocx);
  EXPECT_EQ(nallocx(100, 12), 4096u);
  for (int log = 0; log <= 24; ++log) {
    for (size_t size = 1; size < (size_t{4} << 20); size = size * 9 / 8 + 1) {
      void* p = mallocx(size, log);
      ASSERT_NE(p, nullptr);
      ASSERT_TRUE(Aligned(p, size_t{1} << log)) << size << " " << log;
      ASSERT_EQ(nallocx(size, log), malloc_usable_size(p)) << size << " " << log;
      free(p);
    }
  }
  constexpr size_t kTiB = size_t{1} << 40;
  for (int log : {0, 4, 12, 20}) {
    for (size_t size : {17 * kTiB, size_t{1} << 50, size_t{PTRDIFF_MAX} - 4096, SIZE_MAX / 2 + 1,
                        SIZE_MAX - 4096, SIZE_MAX}) {
      EXPECT_EQ(nallocx(size, log), 0u) << size << " " << log;
      EXPECT_EQ(mallocx(size, log), nullptr) << size << " " << log;
    }
  }
  for (int log : {45, 47, 55, 63}) {
    EXPECT_EQ(nallocx(1, log), 0u) << log;
    EXPECT_EQ(mallocx(1, log), nullptr) << log;
  }
}

// A program that was built with jemalloc frees by one of these what another one gave.
TEST(WithFlags, AreTheSameHeap) {
  auto* mallocx = Lookup<void*(size_t, int)>("mallocx");
  auto* rallocx = Lookup<void*(void*, size_t, int)>("rallocx");
  auto* xallocx = Lookup<size_t(void*, size_t, size_t, int)>("xallocx");
  auto* sallocx = Lookup<size_t(const void*, int)>("sallocx");
  auto* dallocx = Lookup<void(void*, int)>("dallocx");
  auto* sdallocx = Lookup<void(void*, size_t, int)>("sdallocx");
  if (!IsPcmalloc() && mallocx == nullptr) GTEST_SKIP();
  ASSERT_TRUE(mallocx && rallocx && xallocx && sallocx && dallocx && sdallocx);
  constexpr int kZero = 0x40;
  const auto all_zero = [](const char* p, size_t from, size_t to) {
    return std::all_of(p + from, p + to, [](char c) { return c == 0; });
  };
  for (size_t size = 1; size < (size_t{8} << 20); size = size * 11 / 8 + 1) {
    for (int alignment = 0; alignment < 22; alignment += 3) {
      void* dirty = malloc(size * 3);
      memset(dirty, 0xff, size * 3);
      free(dirty);
      // The higher bits name an arena and a thread cache.
      const int flags = alignment | kZero | 0x300100;
      char* p = static_cast<char*>(mallocx(size, flags));
      ASSERT_NE(p, nullptr);
      EXPECT_EQ(reinterpret_cast<uintptr_t>(p) % (size_t{1} << alignment), 0u);
      const size_t usable = sallocx(p, 0);
      EXPECT_GE(usable, size);
      EXPECT_EQ(usable, malloc_usable_size(p));
      EXPECT_GE(xallocx(p, size, size, 0), size);
      EXPECT_TRUE(all_zero(p, 0, usable)) << size << " " << alignment;
      memset(p, 1, size);
      p = static_cast<char*>(rallocx(p, size * 2, flags));
      ASSERT_NE(p, nullptr);
      EXPECT_EQ(reinterpret_cast<uintptr_t>(p) % (size_t{1} << alignment), 0u);
      EXPECT_TRUE(std::all_of(p, p + size, [](char c) { return c == 1; }));
      EXPECT_TRUE(all_zero(p, size, sallocx(p, 0))) << size << " " << alignment;
      p = static_cast<char*>(rallocx(p, size, alignment));
      ASSERT_NE(p, nullptr);
      EXPECT_TRUE(std::all_of(p, p + size, [](char c) { return c == 1; }));
      if (alignment % 2 == 0) {
        dallocx(p, 0);
      } else {
        sdallocx(p, size, alignment);
      }
    }
  }
  EXPECT_EQ(mallocx(SIZE_MAX - 100, kZero), nullptr);
  EXPECT_EQ(mallocx(100, 62), nullptr);
  void* kept = mallocx(100, 0);
  EXPECT_EQ(rallocx(kept, SIZE_MAX / 2, 0), nullptr);
  free(kept);
}

TEST(LibcNames, AreTheSameHeap) {
  auto* libc_malloc = Lookup<void*(size_t)>("__libc_malloc");
  auto* libc_calloc = Lookup<void*(size_t, size_t)>("__libc_calloc");
  auto* libc_realloc = Lookup<void*(void*, size_t)>("__libc_realloc");
  auto* libc_memalign = Lookup<void*(size_t, size_t)>("__libc_memalign");
  auto* libc_free = Lookup<void(void*)>("__libc_free");
  auto* cfree = Lookup<void(void*)>("cfree");
  if (!IsPcmalloc()) GTEST_SKIP() << "a promise of pcmalloc alone";
  ASSERT_TRUE(libc_malloc && libc_calloc && libc_realloc && libc_memalign && libc_free && cfree);
  free(libc_malloc(100));
  free(libc_calloc(10, 10));
  free(libc_realloc(malloc(10), 1000));
  free(libc_memalign(128, 1000));
  libc_free(malloc(100));
  cfree(malloc(100));
}

TEST(Statistics, ArePlausible) {
  constexpr size_t kHeld = size_t{32} << 20;
  struct mallinfo2 before = mallinfo2();
  std::vector<void*> blocks;
  for (size_t i = 0; i < kHeld / 4096; ++i) {
    blocks.push_back(malloc(4096));
    memset(blocks.back(), 1, 4096);
  }
  struct mallinfo2 held = mallinfo2();
  struct mallinfo old = mallinfo();
  size_t used_before = before.uordblks + before.hblkhd;
  size_t used = held.uordblks + held.hblkhd;
  if (IsPcmalloc()) {
    // What a CPU's cache held before may have been counted then, and be in use now.
    EXPECT_GE(used, used_before + kHeld - kHeld / 64);
    EXPECT_LE(used, used_before + kHeld + kHeld / 4);
    EXPECT_GE(held.arena + held.hblkhd, used);
    EXPECT_EQ(static_cast<size_t>(old.uordblks), held.uordblks);
  }
  for (void* p : blocks) free(p);
  if (IsPcmalloc()) {
    EXPECT_LT(mallinfo2().uordblks + mallinfo2().hblkhd, used_before + kHeld / 4);
  }
}

// The figures are read one after another while others change them.
TEST(Statistics, DoNotUnderflowWhileOthersWork) {
  std::atomic<bool> stop{false};
  std::vector<std::thread> threads;
  for (uint64_t id = 0; id < 3; ++id) {
    threads.emplace_back([&stop, id] {
      Random random(id);
      void* blocks[64];
      while (!stop) {
        for (void*& p : blocks) p = Escape(malloc(300'000 + random.Below(700'000)));
        for (void* p : blocks) free(p);
        if (random.Below(4) == 0) malloc_trim(0);
      }
    });
  }
  constexpr size_t kImpossible = size_t{1} << 60;
  const auto end = std::chrono::steady_clock::now() + std::chrono::milliseconds(1500);
  while (std::chrono::steady_clock::now() < end) {
    const struct mallinfo2 info = mallinfo2();
    EXPECT_LT(info.arena, kImpossible);
    EXPECT_LT(info.hblkhd, kImpossible);
    EXPECT_LT(info.uordblks, kImpossible);
    EXPECT_LT(info.fordblks, kImpossible);
    if (HasFailure()) break;
  }
  stop = true;
  for (std::thread& thread : threads) thread.join();
}

// What a trim took out of spans in use is free no more than what it took of whole ones.
TEST(Statistics, WhatWasReturnedDoesNotCount) {
  constexpr size_t kHeld = size_t{32} << 20;
  std::vector<void*> blocks(kHeld / 4096);
  malloc_trim(0);
  const struct mallinfo2 before = mallinfo2();
  for (void*& p : blocks) p = memset(malloc(4096), 1, 4096);
  for (size_t i = 0; i < blocks.size(); ++i) {
    if (i % 8 != 0) free(blocks[i]);
  }
  malloc_trim(0);
  if (IsPcmalloc()) {
    EXPECT_LT(mallinfo2().fordblks, before.fordblks + kHeld / 8);
    EXPECT_LT(mallinfo2().arena, before.arena + kHeld / 4);
  }
  for (size_t i = 0; i < blocks.size(); i += 8) free(blocks[i]);
}

TEST(MallocTrim, GivesMemoryBack) {
  constexpr size_t kHeld = size_t{64} << 20;
  std::vector<void*> blocks(kHeld / 256);
  malloc_trim(0);
  size_t before = Measure().resident;
  for (void*& p : blocks) p = memset(malloc(256), 1, 256);
  size_t held = Measure().resident;
  EXPECT_GE(held, before + kHeld / 2);
  for (void* p : blocks) free(p);
  EXPECT_EQ(malloc_trim(0), 1);
  EXPECT_LT(Measure().resident, before + kHeld / 8);
  EXPECT_LE(malloc_trim(0), 1);
}

TEST(MallocInfo, WritesXml) {
  char* text = nullptr;
  size_t length = 0;
  FILE* stream = open_memstream(&text, &length);
  EXPECT_EQ(malloc_info(0, stream), 0);
  fclose(stream);
  std::string xml(text, length);
  free(text);
  EXPECT_EQ(xml.rfind("<malloc", 0), 0u) << xml;
  EXPECT_NE(xml.find("</malloc>"), std::string::npos) << xml;
  EXPECT_EQ(std::count(xml.begin(), xml.end(), '<'), std::count(xml.begin(), xml.end(), '>'));
  errno = 0;
  EXPECT_NE(malloc_info(1, stdout), 0) << "options other than 0 are invalid";
}

TEST(MallocStats, WritesToStderr) {
  std::string output;
  EXPECT_TRUE(InChildWithOutput([] { malloc_stats(); }, &output));
  EXPECT_FALSE(output.empty());
}

TEST(Mallopt, SaysWhatItTook) {
  EXPECT_EQ(mallopt(M_TRIM_THRESHOLD, 128 * 1024), 1);
  if (IsPcmalloc()) {
    EXPECT_EQ(mallopt(-4711, 1), 0) << "an unknown parameter";
  }
}

}  // namespace
}  // namespace pcmalloc::testing
