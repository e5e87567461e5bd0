// SPDX-License-Identifier: Apache-2.0
//
// What happens when memory ends: limits of the process, a strict kernel, system calls that fail.
#include <errno.h>
#include <fcntl.h>
#include <malloc.h>
#include <stdlib.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <fstream>
#include <functional>
#include <new>
#include <string>
#include <thread>
#include <vector>

#include "gtest/gtest.h"
#include "tests/limits/faults.h"
#include "tests/support/allocator.h"
#include "tests/support/process.h"

namespace pcmalloc::testing {
namespace {

constexpr size_t kMiB = size_t{1} << 20;
constexpr size_t kGiB = size_t{1} << 30;

// Blocks in a list through themselves, so that nothing else is needed to keep them.
struct Blocks {
  void* head = nullptr;
  size_t count = 0;
  size_t bytes = 0;
  void Push(void* p, size_t size) {
    *static_cast<void**>(p) = head;
    static_cast<size_t*>(p)[1] = size;
    // The content must survive whatever fails afterwards.
    Fill(static_cast<char*>(p) + 16, size - 16, size);
    head = p;
    ++count;
    bytes += size;
  }
  // Frees all blocks, or every second one.
  void Free(bool half) {
    Blocks kept;
    for (bool keep = half; head != nullptr; keep = half && !keep) {
      void* p = head;
      size_t size = static_cast<size_t*>(p)[1];
      head = *static_cast<void**>(p);
      EXPECT_TRUE(Holds(static_cast<char*>(p) + 16, size - 16, size)) << size;
      if (keep) {
        kept.Push(p, size);
      } else {
        free(p);
      }
    }
    *this = kept;
  }
};

// Takes blocks of one size until there are no more, or `limit` bytes; true if the end was reached.
bool Exhaust(Blocks& blocks, size_t size, size_t limit) {
  while (blocks.bytes < limit) {
    errno = 0;
    void* p = malloc(size);
    if (p == nullptr) {
      EXPECT_EQ(errno, ENOMEM) << size;
      return true;
    }
    blocks.Push(p, size);
  }
  return false;
}

// The behaviour of every function for a request that cannot be met now, and afterwards a process
// that still works.
void ExpectCleanFailure(size_t impossible) {
  const struct {
    const char* name;
    std::function<void*()> take;
  } functions[] = {
      {"malloc", [=] { return malloc(impossible); }},
      {"calloc", [=] { return calloc(impossible / 8, 8); }},
      {"realloc", [=] { return realloc(nullptr, impossible); }},
      {"memalign", [=] { return memalign(1 << 16, impossible); }},
      {"aligned_alloc", [=] { return aligned_alloc(64, impossible); }},
      {"valloc", [=] { return valloc(impossible); }},
      {"pvalloc", [=] { return pvalloc(impossible); }},
  };
  for (const auto& function : functions) {
    errno = 0;
    EXPECT_EQ(Escape(function.take()), nullptr) << function.name;
    EXPECT_EQ(errno, ENOMEM) << function.name;
  }
  void* untouched = &errno;
  EXPECT_EQ(posix_memalign(&untouched, 64, impossible), ENOMEM);
  EXPECT_EQ(untouched, &errno);

  static int handled;
  handled = 0;
  std::set_new_handler([] {
    if (++handled == 2) std::set_new_handler(nullptr);
  });
  EXPECT_THROW(Escape(::operator new(impossible)), std::bad_alloc);
  EXPECT_EQ(handled, 2);
  std::set_new_handler([] { throw std::bad_alloc(); });
  EXPECT_EQ(Escape(::operator new(impossible, std::nothrow)), nullptr);
  EXPECT_EQ(Escape(::operator new[](impossible, std::align_val_t{64}, std::nothrow)), nullptr);
  EXPECT_THROW(Escape(::operator new[](impossible, std::align_val_t{64})), std::bad_alloc);
  std::set_new_handler(nullptr);
}

void ExpectFailedReallocKeeps(void* p, size_t size, size_t impossible) {
  Fill(p, size, 77);
  errno = 0;
  EXPECT_EQ(Escape(realloc(Escape(p), impossible)), nullptr) << size;
  EXPECT_EQ(errno, ENOMEM);
  EXPECT_TRUE(Holds(p, size, 77)) << size;
}

void SetLimit(decltype(RLIMIT_AS) which, size_t bytes) {
  rlimit limit = {bytes, bytes};
  if (setrlimit(which, &limit) != 0) _exit(125);
}

// Exhaustion, half freed, again, four times: neither crash nor a shrinking heap nor a leak.
void ExhaustAgainAndAgain(size_t size) {
  Blocks blocks;
  ASSERT_TRUE(Exhaust(blocks, size, 2 * kGiB)) << "the limit does not bind";
  size_t first = blocks.bytes;
  EXPECT_GE(first, 16 * kMiB) << size;
  for (int round = 0; round < 4; ++round) {
    blocks.Free(/*half=*/round % 2 == 0);
    ASSERT_TRUE(Exhaust(blocks, size, 2 * kGiB));
    ASSERT_GE(blocks.bytes, first - first / 4) << "round " << round << " of " << size;
  }
  // What small blocks filled can become one large block again.
  blocks.Free(false);
  malloc_trim(0);
  void* large = malloc(first / 4);
  EXPECT_NE(large, nullptr) << size << " " << first;
  free(large);
}

PCM_SCENARIO(SmallBlocksToTheEnd) { ExhaustAgainAndAgain(64); }
PCM_SCENARIO(MiddleBlocksToTheEnd) { ExhaustAgainAndAgain(5000); }
PCM_SCENARIO(LargeBlocksToTheEnd) { ExhaustAgainAndAgain(3 * kMiB); }
void FailOnEach(const std::vector<size_t>& requests) {
  void* small = malloc(100);
  void* middle = malloc(100000);
  void* large = malloc(4 * kMiB);
  ASSERT_TRUE(small && middle && large);
  for (size_t impossible : requests) {
    SCOPED_TRACE(impossible);
    ExpectCleanFailure(impossible);
    ExpectFailedReallocKeeps(small, 100, impossible);
    ExpectFailedReallocKeeps(middle, 100000, impossible);
    ExpectFailedReallocKeeps(large, 4 * kMiB, impossible);
  }
  free(small);
  free(middle);
  free(large);
}
const std::vector<size_t> kBeyondAddressSpace = {size_t{1} << 47, size_t{1} << 56,
                                                 size_t{PTRDIFF_MAX} - 4096};
PCM_SCENARIO(MixedFailures) {
  FailOnEach({8 * kGiB, 1024 * kGiB, size_t{1} << 46});
  FailOnEach(kBeyondAddressSpace);
}
TEST(WithoutLimit, WhatNoAddressSpaceHoldsIsRefused) { FailOnEach(kBeyondAddressSpace); }
PCM_SCENARIO(TwoGiBOfFour) {
  for (int i = 0; i < 3; ++i) {
    auto* p = static_cast<char*>(malloc(2 * kGiB));
    ASSERT_NE(p, nullptr);
    p[0] = p[2 * kGiB - 1] = 1;
    free(p);
  }
  ExpectCleanFailure(5 * kGiB);
}
PCM_SCENARIO(ThreadsAtTheEnd) {
  Blocks blocks;
  std::atomic<bool> full{false};
  std::vector<std::thread> threads;  // made now: later there is no room for their stacks
  for (int id = 0; id < 2; ++id) {
    threads.emplace_back([&full] {
      while (!full) std::this_thread::yield();
      for (int round = 0; round < 10; ++round) {
        Blocks own;
        Exhaust(own, 1000, 64 * kMiB);
        own.Free(false);
      }
    });
  }
  EXPECT_TRUE(Exhaust(blocks, 4000, 2 * kGiB));
  blocks.Free(/*half=*/true);
  full = true;
  for (std::thread& thread : threads) thread.join();
  blocks.Free(false);
}

struct Limited {
  const char* scenario;
  decltype(RLIMIT_AS) which;
  size_t bytes;
};

class ResourceLimit : public ::testing::TestWithParam<Limited> {};

TEST_P(ResourceLimit, IsLivedWith) {
  const Limited& limited = GetParam();
  FreshProcess options;
  options.before_exec = [&] { SetLimit(limited.which, limited.bytes); };
  EXPECT_TRUE(InFreshProcess(limited.scenario, options));
}

INSTANTIATE_TEST_SUITE_P(AddressSpace, ResourceLimit,
                         ::testing::Values(Limited{"SmallBlocksToTheEnd", RLIMIT_AS, 160 * kMiB},
                                           Limited{"MiddleBlocksToTheEnd", RLIMIT_AS, 160 * kMiB},
                                           Limited{"LargeBlocksToTheEnd", RLIMIT_AS, 160 * kMiB},
                                           Limited{"MixedFailures", RLIMIT_AS, 160 * kMiB},
                                           Limited{"ThreadsAtTheEnd", RLIMIT_AS, 256 * kMiB},
                                           Limited{"TwoGiBOfFour", RLIMIT_AS, 4 * kGiB}),
                         [](const auto& info) { return info.param.scenario; });
INSTANTIATE_TEST_SUITE_P(WritableData, ResourceLimit,
                         ::testing::Values(Limited{"SmallBlocksToTheEnd", RLIMIT_DATA, 128 * kMiB},
                                           Limited{"LargeBlocksToTheEnd", RLIMIT_DATA, 128 * kMiB},
                                           Limited{"MixedFailures", RLIMIT_DATA, 128 * kMiB},
                                           Limited{"TwoGiBOfFour", RLIMIT_DATA, 4 * kGiB}),
                         [](const auto& info) { return info.param.scenario; });

// A limit that comes while the program runs, below what it already reserved.
void LiveOnBelowALimit() {
  Blocks blocks;
  Exhaust(blocks, 1000, 32 * kMiB);
  SetLimit(RLIMIT_AS, 64 * kMiB);
  ExpectCleanFailure(64 * kGiB);
  blocks.Free(/*half=*/true);
  // What was freed is there to be used, without a further byte from the kernel.
  Blocks again;
  Exhaust(again, 1000, 8 * kMiB);
  EXPECT_GE(again.bytes, 8 * kMiB);
  again.Free(false);
  blocks.Free(false);
}

TEST(ResourceLimitLater, IsLivedWith) { EXPECT_TRUE(InChild(LiveOnBelowALimit)); }

bool CanMapMore() {
  void* const mapped = mmap(nullptr, kMiB, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (mapped == MAP_FAILED) return false;
  munmap(mapped, kMiB);
  std::thread([] { free(Escape(malloc(1000))); }).join();
  return true;
}

// A limit above what is in use, though not above what is reserved: the heap and the program's own
// mappings share what there is, as if it had been there from the start.
PCM_SCENARIO(MostOfALimitThatComesLater) {
  Blocks blocks;
  Exhaust(blocks, 1000, 32 * kMiB);
  SetLimit(RLIMIT_AS, kGiB);
  // A preloaded library is told; in an archive the heap has to be refused something first.
  if (Variant() != "linked") {
    EXPECT_TRUE(CanMapMore());
  }
  Exhaust(blocks, 300 * 1024, 256 * kMiB);
  EXPECT_TRUE(CanMapMore());
  Exhaust(blocks, 1000, 512 * kMiB);
  EXPECT_GE(blocks.bytes, 512 * kMiB);
  EXPECT_TRUE(CanMapMore());
  EXPECT_TRUE(Exhaust(blocks, 10 * kMiB, 2 * kGiB));
  EXPECT_GE(blocks.bytes, 750 * kMiB);
  blocks.Free(/*half=*/false);
}

TEST(ResourceLimitLater, LeavesMostOfItForUse) {
  EXPECT_TRUE(InFreshProcess("MostOfALimitThatComesLater"));
}

// Buffers that grow in each other's way are moved, which takes more address space for a moment than
// there may be, although the heap has room for all of them.
void GrowBelow(decltype(RLIMIT_AS) which, size_t bytes) {
  free(Escape(malloc(2 * kGiB)));
  char* buffers[4] = {};
  size_t size = 8 * kMiB;
  for (int i = 0; size < 160 * kMiB; ++i) {
    // The first moves find out what this kernel can do.
    if (i == 30) SetLimit(which, bytes);
    char*& buffer = buffers[i % 4];
    const size_t old = malloc_usable_size(buffer);
    char* const grown = static_cast<char*>(realloc(buffer, size));
    if (grown == nullptr) break;
    if (old != 0) {
      EXPECT_EQ(grown[0] + grown[old - 1], 2 * (1 + i % 4));
    }
    buffer = grown;
    buffer[0] = buffer[malloc_usable_size(buffer) - 1] = static_cast<char>(1 + i % 4);
    if (i % 4 == 3) size += size / 8;
  }
  for (char* buffer : buffers) free(buffer);
}

TEST(ResourceLimitLater, MayComeBetweenMoves) {
  EXPECT_TRUE(InChild([] { GrowBelow(RLIMIT_AS, 4 * kGiB); }));
  EXPECT_TRUE(InChild([] { GrowBelow(RLIMIT_AS, 64 * kMiB); }));
  EXPECT_TRUE(InChild([] { GrowBelow(RLIMIT_DATA, 64 * kMiB); }));
}

PCM_SCENARIO(StrictCommits) {
  Blocks blocks;
  Exhaust(blocks, 100, 128 * kMiB);
  EXPECT_GE(blocks.bytes, 128 * kMiB);
  Exhaust(blocks, 10 * kMiB, 512 * kMiB);
  EXPECT_GE(blocks.bytes, 512 * kMiB);
  blocks.Free(false);
  ExpectCleanFailure(64 * kGiB);
}

TEST(StrictOvercommit, SeemsToHoldForLargeRequests) {
  FreshProcess options;
  options.before_exec = [] {
    if (!RefuseLargeCommits()) _exit(125);
  };
  EXPECT_TRUE(InFreshProcess("StrictCommits", options));
}

size_t MeminfoBytes(const std::string& key) {
  std::ifstream meminfo("/proc/meminfo");
  std::string name;
  for (size_t value; meminfo >> name >> value; meminfo.ignore(100, '\n')) {
    if (name == key + ":") return value * 1024;
  }
  return 0;
}

// The real switch is one for the whole machine, hence only on request and for seconds.
TEST(StrictOvercommit, ReallyHolds) {
  constexpr char kSwitch[] = "/proc/sys/vm/overcommit_memory";
  if (getenv("PCM_TEST_OVERCOMMIT") == nullptr) {
    GTEST_SKIP() << "changes vm.overcommit_memory of the whole machine: set PCM_TEST_OVERCOMMIT=1";
  }
  int lock = open("/run/lock/pcmalloc-overcommit", O_RDWR | O_CREAT | O_CLOEXEC, 0600);
  ASSERT_GE(lock, 0);
  ASSERT_EQ(flock(lock, LOCK_EX), 0);
  std::string before;
  std::ifstream(kSwitch) >> before;
  if (MeminfoBytes("Committed_AS") + 2 * kGiB > MeminfoBytes("CommitLimit")) {
    GTEST_SKIP() << "other processes would feel the limit";
  }
  // A guard restores the switch even if this process dies.
  int ends[2];
  ASSERT_EQ(pipe(ends), 0);
  if (fork() == 0) {
    close(ends[1]);
    char byte;
    while (read(ends[0], &byte, 1) < 0 && errno == EINTR) {
    }
    std::ofstream(kSwitch) << before << std::endl;
    _exit(0);
  }
  close(ends[0]);
  fcntl(ends[1], F_SETFD, FD_CLOEXEC);
  bool set = static_cast<bool>(std::ofstream(kSwitch) << 2 << std::endl);
  ::testing::AssertionResult result =
      set ? InFreshProcess("StrictCommits") : ::testing::AssertionSuccess();
  std::ofstream(kSwitch) << before << std::endl;
  close(ends[1]);
  close(lock);
  if (!set) GTEST_SKIP() << "cannot write " << kSwitch;
  EXPECT_TRUE(result);
}

struct Fault {
  const char* name;
  std::vector<int> calls;
};

class Faults : public ::testing::TestWithParam<Fault> {};

// The allocator may still own enough to go on: it must not claim more than there is, lose what it
// handed out, or die.
void LiveOnWithout(const std::vector<int>& refused) {
  Blocks blocks;
  void* kept[] = {malloc(100), malloc(40000), malloc(8 * kMiB)};
  size_t sizes[] = {100, 40000, 8 * kMiB};
  for (int i = 0; i < 3; ++i) Fill(kept[i], sizes[i], 5);
  for (size_t size : {size_t{64}, size_t{3000}, size_t{100000}, 2 * kMiB}) {
    Exhaust(blocks, size, blocks.bytes + 8 * kMiB);
  }
  ASSERT_TRUE(RefuseSystemCalls(refused));
  ExpectCleanFailure(size_t{1} << 46);
  for (int i = 0; i < 3; ++i) {
    EXPECT_TRUE(Holds(kept[i], sizes[i], 5));
    ExpectFailedReallocKeeps(kept[i], sizes[i], size_t{1} << 46);
    void* grown = realloc(kept[i], sizes[i] * 3);
    kept[i] = grown != nullptr ? grown : kept[i];
    EXPECT_TRUE(HoldsPrefix(kept[i], sizes[i], sizes[i], 77)) << sizes[i];
    void* shrunk = realloc(kept[i], sizes[i] / 2);
    kept[i] = shrunk != nullptr ? shrunk : kept[i];
    EXPECT_TRUE(HoldsPrefix(kept[i], sizes[i] / 2, sizes[i], 77)) << sizes[i];
  }
  for (int round = 0; round < 4; ++round) {
    for (size_t size : {size_t{32}, size_t{1000}, size_t{20000}, size_t{300000}, 5 * kMiB}) {
      Exhaust(blocks, size, blocks.bytes + 16 * kMiB);
    }
    malloc_trim(0);
    blocks.Free(/*half=*/true);
  }
  size_t address_space = Measure().address_space;
  for (int round = 0; round < 50; ++round) {
    blocks.Free(false);
    Exhaust(blocks, 1000, 4 * kMiB);
    EXPECT_GE(blocks.bytes, 4 * kMiB) << "freed memory is lost";
    free(malloc(6 * kMiB));
  }
  EXPECT_LE(Measure().address_space, address_space + 16 * kMiB);
  blocks.Free(false);
  for (void* p : kept) free(p);
}

TEST_P(Faults, FromTheMiddleOfALife) {
  EXPECT_TRUE(InChild([] { LiveOnWithout(GetParam().calls); }));
}

// A thread whose first allocation fails, or does not.
void StartAThreadWithout(const std::vector<int>& refused) {
  std::atomic<int> stage{0};
  std::thread thread([&stage] {
    while (stage == 0) std::this_thread::yield();
    for (size_t size = 1; size < 4 * kMiB; size *= 3) {
      void* p = malloc(size);
      if (p != nullptr) Fill(p, size, 1);
      free(p);
    }
  });
  EXPECT_TRUE(RefuseSystemCalls(refused));
  stage = 1;
  thread.join();
}

TEST_P(Faults, InANewThread) {
  EXPECT_TRUE(InChild([] { StartAThreadWithout(GetParam().calls); }));
}

INSTANTIATE_TEST_SUITE_P(
    Of, Faults,
    ::testing::Values(
        Fault{"mmap", {__NR_mmap}}, Fault{"mprotect", {__NR_mprotect}},
        Fault{"madvise", {__NR_madvise}}, Fault{"mremap", {__NR_mremap}},
        Fault{"munmap", {__NR_munmap}}, Fault{"brk", {__NR_brk, __NR_mmap}},
        Fault{"all", {__NR_mmap, __NR_mprotect, __NR_madvise, __NR_mremap, __NR_munmap, __NR_brk}}),
    [](const auto& info) { return info.param.name; });

// Two blocks, each of which is in the other's way when it grows: what moves arrives.
void GrowTwo() {
  constexpr size_t kBefore = 10 * kMiB, kAfter = 300 * kMiB;
  char* blocks[2];
  uintptr_t were[2];
  for (int i = 0; i < 2; ++i) {
    blocks[i] = static_cast<char*>(malloc(kBefore));
    ASSERT_NE(blocks[i], nullptr);
    were[i] = reinterpret_cast<uintptr_t>(blocks[i]);
    for (size_t at = 0; at < kBefore; at += 512) blocks[i][at] = static_cast<char>(at / 512 + i);
  }
  for (char*& block : blocks) {
    block = static_cast<char*>(realloc(block, kAfter));
    ASSERT_NE(block, nullptr);
  }
  EXPECT_TRUE(reinterpret_cast<uintptr_t>(blocks[0]) != were[0] ||
              reinterpret_cast<uintptr_t>(blocks[1]) != were[1]);
  for (int i = 0; i < 2; ++i) {
    for (size_t at = 0; at < kBefore; at += 512) {
      ASSERT_EQ(blocks[i][at], static_cast<char>(at / 512 + i)) << at;
    }
    free(blocks[i]);
  }
}

// A sandbox that closes after it was found out that the kernel moves.
TEST(FaultsLater, LargeBlocksGrowWithoutMremapAndMincore) {
  EXPECT_TRUE(InChild([] {
    GrowTwo();
    ASSERT_TRUE(RefuseSystemCalls({__NR_mremap, __NR_mincore}));
    GrowTwo();
  }));
}

// From the very first system call that the allocator itself makes: it may find no memory, but says
// so.
PCM_SCENARIO(NoMemoryAtAll) {
  void* p = malloc(kGiB);
  free(p);
  ExpectCleanFailure(size_t{1} << 46);
}
// Without fences there is no stopping a CPU's slab: another way than per-CPU must be chosen.
TEST(FaultsFromTheStart, WithoutMembarrierTheProcessWorks) {
  FreshProcess options;
  if (getenv("PCM_EXPECT_MODE") != nullptr) options.environment = {"PCM_EXPECT_MODE=locked"};
  options.before_exec = [] {
    if (!RefuseSystemCalls({__NR_membarrier, __NR_prctl})) _exit(125);
  };
  EXPECT_TRUE(InFreshProcess("StrictCommits", options));
}
TEST(FaultsFromTheStart, WithoutMadviseOrMremapFromTheStart) {
  FreshProcess options;
  options.before_exec = [] {
    if (!RefuseSystemCalls({__NR_madvise, __NR_mremap})) _exit(125);
  };
  EXPECT_TRUE(InFreshProcess("NoMemoryAtAll", options));
}

}  // namespace
}  // namespace pcmalloc::testing
