// SPDX-License-Identifier: Apache-2.0
//
// Programs that lock their memory: mlockall, mlock, and the limit on both.
#include <errno.h>
#include <fcntl.h>
#include <malloc.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <vector>

#include "gtest/gtest.h"
#include "tests/support/allocator.h"
#include "tests/support/process.h"

#ifndef MCL_ONFAULT
#define MCL_ONFAULT 4
#endif

namespace pcmalloc::testing {
namespace {

constexpr size_t kMiB = size_t{1} << 20;
constexpr size_t kPage = 4096;
constexpr int kSkipped = 77;

// A line of /proc/self/status, in bytes, without allocating.
size_t Status(const char* key) {
  char text[4096] = {};
  const int file = open("/proc/self/status", O_RDONLY | O_CLOEXEC);
  if (read(file, text, sizeof(text) - 1) <= 0) _exit(125);
  close(file);
  const char* const line = strstr(text, key);
  return line == nullptr ? 0 : strtoull(line + strlen(key), nullptr, 10) * 1024;
}
size_t Locked() { return Status("\nVmLck:"); }
size_t Resident() { return Status("\nVmRSS:"); }

// Pages of a block that are in memory.
size_t PagesThere(void* block, size_t size) {
  static unsigned char there[64 * kMiB / kPage];
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(block) + kPage - 1) / kPage * kPage;
  const size_t pages = (reinterpret_cast<uintptr_t>(block) + size - begin) / kPage;
  if (mincore(reinterpret_cast<void*>(begin), pages * kPage, there) != 0) return 0;
  return static_cast<size_t>(
      std::count_if(there, there + pages, [](int byte) { return byte & 1; }));
}

void Skip(const char* why) {
  printf("skipped: %s: %s\n", why, strerror(errno));
  _exit(kSkipped);
}

struct Blocks {
  static constexpr size_t kCount = 100;
  void* p[kCount];
  void Take(size_t size) {
    for (void*& block : p) block = Escape(malloc(size));
  }
  void Free() {
    for (void* block : p) free(block);
  }
};

// All that is taken after mlockall(MCL_FUTURE) is locked and there.
PCM_SCENARIO(LockedInFuture) {
  if (mlockall(MCL_FUTURE) != 0) Skip("mlockall");
  const size_t before = Locked();
  void* const large = Escape(malloc(40 * kMiB));
  ASSERT_NE(large, nullptr);
  EXPECT_EQ(PagesThere(large, 40 * kMiB), 40 * kMiB / kPage);
  EXPECT_GE(Locked(), before + 40 * kMiB);
  Blocks blocks;
  for (size_t size : {size_t{10'000}, size_t{300'000}, kMiB}) {
    blocks.Take(size);
    // The first may come from what was there before the call.
    for (size_t i = Blocks::kCount / 2; i < Blocks::kCount; ++i) {
      EXPECT_GE(PagesThere(blocks.p[i], size), size / kPage - 1) << size;
    }
    EXPECT_GE(Locked(), before + 40 * kMiB + Blocks::kCount / 2 * size) << size;
    blocks.Free();
    malloc_trim(0);
  }
  // In place, and to another place.
  void* grown = Escape(realloc(large, 50 * kMiB));
  EXPECT_GE(PagesThere(grown, 50 * kMiB), 50 * kMiB / kPage - 1);
  void* const in_the_way = Escape(malloc(4 * kMiB));
  grown = Escape(realloc(grown, 60 * kMiB));
  EXPECT_GE(PagesThere(grown, 60 * kMiB), 60 * kMiB / kPage - 1);
  void* const in_the_old_place = Escape(malloc(45 * kMiB));
  EXPECT_GE(PagesThere(in_the_old_place, 45 * kMiB), 45 * kMiB / kPage - 1);
  free(in_the_way);
  free(in_the_old_place);
  free(grown);
  malloc_trim(0);
  EXPECT_LT(Resident(), 32 * kMiB);
  // What came back is locked and there again.
  void* const again = Escape(calloc(1, 40 * kMiB));
  EXPECT_EQ(PagesThere(again, 40 * kMiB), 40 * kMiB / kPage);

  // A child has no locks.
  const pid_t child = fork();
  if (child == 0) {
    const size_t at_first = Locked();
    Escape(malloc(40 * kMiB));
    _exit(at_first == 0 && Locked() == 0 ? 0 : 1);
  }
  int status = -1;
  waitpid(child, &status, 0);
  EXPECT_EQ(status, 0);

  ASSERT_EQ(munlockall(), 0);
  void* const free_again = Escape(malloc(60 * kMiB));
  EXPECT_LT(PagesThere(free_again, 60 * kMiB), 55 * kMiB / kPage);
  EXPECT_LT(Locked(), kMiB);
}

// The place that a block leaves is locked when it is used again, too.
PCM_SCENARIO(LockedAfterAMove) {
  mallopt(M_TRIM_THRESHOLD, 1 << 30);
  void* const warm = memset(Escape(malloc(60 * kMiB)), 1, 60 * kMiB);
  free(warm);
  if (mlockall(MCL_FUTURE) != 0) Skip("mlockall");
  void* const for_a_while = Escape(malloc(40 * kMiB));
  void* block = Escape(malloc(40 * kMiB));
  void* const in_the_way = Escape(malloc(30 * kMiB));
  memset(block, 2, 40 * kMiB);
  free(for_a_while);
  void* const place = block;
  block = Escape(realloc(block, 50 * kMiB));
  ASSERT_NE(block, place);
  void* const next = Escape(malloc(40 * kMiB));
  EXPECT_EQ(next, place);
  EXPECT_EQ(PagesThere(next, 40 * kMiB), 40 * kMiB / kPage);
  free(in_the_way);
}

PCM_SCENARIO(LockedWhenTouched) {
  if (mlockall(MCL_FUTURE | MCL_ONFAULT) != 0) Skip("mlockall");
  const size_t before = Locked();
  auto* const p = static_cast<char*>(Escape(malloc(40 * kMiB)));
  EXPECT_GE(Locked(), before + 40 * kMiB);
  EXPECT_LT(PagesThere(p, 40 * kMiB), 4 * kMiB / kPage);
  // Without MCL_FUTURE that ends.
  if (mlockall(MCL_CURRENT | MCL_ONFAULT) != 0 || munlockall() != 0) return;
  Escape(malloc(60 * kMiB));
  EXPECT_LT(Locked(), kMiB);
}

// A limit on locked memory is one on memory.
PCM_SCENARIO(LockedUpToALimit) {
  rlimit limit;
  getrlimit(RLIMIT_MEMLOCK, &limit);
  limit.rlim_cur = limit.rlim_max = std::min<rlim_t>(limit.rlim_max, 64 * kMiB);
  if (limit.rlim_max < 4 * kMiB) Skip("RLIMIT_MEMLOCK");
  if (setrlimit(RLIMIT_MEMLOCK, &limit) != 0) Skip("setrlimit");
  const size_t most = limit.rlim_max;
  mallopt(M_TRIM_THRESHOLD, 1 << 30);  // nothing goes back for another reason
  if (geteuid() == 0 && setuid(65534) != 0) Skip("setuid");
  if (mlockall(MCL_FUTURE) != 0) Skip("mlockall");
  for (size_t size : {size_t{1000}, size_t{300'000}, 3 * kMiB}) {
    void* head = nullptr;
    size_t taken = 0;
    errno = 0;
    while (taken < 256 * kMiB) {
      void* const p = Escape(malloc(size));
      if (p == nullptr) break;
      *static_cast<void**>(p) = head;
      head = p;
      taken += size;
    }
    // To be looked at when there is memory again.
    const int error = errno;
    const size_t locked = Locked();
    while (head != nullptr) {
      void* const next = *static_cast<void**>(head);
      free(head);
      head = next;
    }
    // What is idle makes room for what cannot use it.
    void* const large = Escape(aligned_alloc(64 * kMiB, most - 2 * kMiB));
    EXPECT_NE(large, nullptr) << size;
    free(large);
    malloc_trim(0);
    EXPECT_EQ(error, ENOMEM) << size;
    EXPECT_GE(taken, most / 4) << size;
    EXPECT_LE(taken, most + 4 * kMiB) << size;
    EXPECT_LE(locked, most) << size;
  }
  EXPECT_EQ(Escape(realloc(Escape(malloc(most / 4)), 4 * most)), nullptr);
}

// What is free goes back although it is locked, be it all of the process.
PCM_SCENARIO(LockedGoesBack) {
  if (geteuid() != 0 || mlockall(MCL_CURRENT | MCL_FUTURE) != 0) Skip("mlockall");
  const size_t before = Resident();
  Blocks blocks;
  blocks.Take(kMiB);
  ASSERT_GE(Resident(), before + 80 * kMiB);
  for (void* p : blocks.p) memset(p, 1, kMiB);
  blocks.Free();
  malloc_trim(0);
  EXPECT_LT(Resident(), before + 40 * kMiB);
  // It reads as zero, of course.
  auto* const p = static_cast<char*>(Escape(calloc(1, 40 * kMiB)));
  EXPECT_EQ(std::count(p, p + 40 * kMiB, 0), static_cast<ptrdiff_t>(40 * kMiB));
}

// A part that the program has locked itself and not unlocked.
PCM_SCENARIO(LockedInPart) {
  constexpr size_t kLocked = kMiB;
  const size_t before = Resident();
  auto* const p = static_cast<char*>(Escape(malloc(64 * kMiB)));
  memset(p, 1, 64 * kMiB);
  if (mlock(p + 8 * kMiB, kLocked) != 0) Skip("mlock");
  free(p);
  malloc_trim(0);
  EXPECT_LT(Resident(), before + 4 * kMiB);
  auto* const again = static_cast<char*>(Escape(calloc(1, 64 * kMiB)));
  EXPECT_EQ(std::count(again, again + 64 * kMiB, 0), static_cast<ptrdiff_t>(64 * kMiB));
}

class LockedMemory : public ::testing::TestWithParam<const char*> {};

TEST_P(LockedMemory, IsLivedWith) {
  if (!IsPcmalloc()) GTEST_SKIP();
  const auto result = InFreshProcess(GetParam());
  if (std::string(result.message()).find("exited with 77") != std::string::npos) {
    GTEST_SKIP() << "memory cannot be locked here";
  }
  EXPECT_TRUE(result);
}

// The shared object alone sees what the program says of the future.
INSTANTIATE_TEST_SUITE_P(Future, LockedMemory,
                         ::testing::Values("LockedInFuture", "LockedAfterAMove",
                                           "LockedWhenTouched", "LockedUpToALimit"),
                         [](const auto& info) { return info.param; });
INSTANTIATE_TEST_SUITE_P(Now, LockedMemory, ::testing::Values("LockedGoesBack", "LockedInPart"),
                         [](const auto& info) { return info.param; });

}  // namespace
}  // namespace pcmalloc::testing
