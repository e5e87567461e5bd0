// SPDX-License-Identifier: Apache-2.0
#include "allocator/os/memory.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include "allocator/os/test_util.h"
#include "gtest/gtest.h"

namespace pcmalloc::os {
namespace {

constexpr size_t kMiB = size_t{1} << 20;

TEST(MemoryTest, PageSizeIsTheKernels) {
  EXPECT_EQ(KernelPageSize(), static_cast<size_t>(sysconf(_SC_PAGESIZE)));
}

TEST(MemoryTest, ReserveAlignsAndGivesNoAccess) {
  for (size_t alignment : {KernelPageSize(), 2 * kMiB, 64 * kMiB, 1024 * kMiB}) {
    void* start = Reserve(6 * kMiB, alignment);
    ASSERT_NE(start, nullptr);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(start) % alignment, 0u);
    EXPECT_EQ(PermissionsAt(start), "---p");
    EXPECT_EQ(PermissionsAt(static_cast<char*>(start) + 6 * kMiB - 1), "---p");
    Unreserve(start, 6 * kMiB);
    EXPECT_EQ(PermissionsAt(start), "");
  }
}

TEST(MemoryTest, SlackOfAlignmentIsUnmapped) {
  auto size_pages = [] {
    std::ifstream statm("/proc/self/statm");
    size_t pages;
    statm >> pages;
    return pages;
  };
  size_pages();  // the stream's own first allocation
  const size_t before = size_pages();
  void* start = Reserve(2 * kMiB, 512 * kMiB);
  ASSERT_NE(start, nullptr);
  EXPECT_EQ(size_pages() - before, 2 * kMiB / KernelPageSize());
  Unreserve(start, 2 * kMiB);
  EXPECT_EQ(size_pages(), before);
}

TEST(MemoryTest, ImpossibleReservationsAreRefusedAndErrnoKept) {
  errno = 77;
  EXPECT_EQ(Reserve(SIZE_MAX & ~(kMiB - 1), kMiB), nullptr);
  EXPECT_EQ(Reserve(size_t{1} << 50, kMiB), nullptr);
  EXPECT_EQ(Reserve(kMiB, size_t{1} << 62), nullptr);
  EXPECT_FALSE(Commit(reinterpret_cast<void*>(KernelPageSize()), KernelPageSize()));
  EXPECT_FALSE(Return(reinterpret_cast<void*>(KernelPageSize()), KernelPageSize()));
  EXPECT_EQ(errno, 77);
}

TEST(MemoryTest, CommitInStepsOnly) {
  const size_t page = KernelPageSize();
  char* start = static_cast<char*>(Reserve(16 * page, page));
  ASSERT_NE(start, nullptr);
  ASSERT_TRUE(Commit(start, 3 * page));
  ASSERT_TRUE(Commit(start + 3 * page, page));
  EXPECT_EQ(ResidentPages(start, 4 * page), 0u);
  for (size_t i = 0; i < 4 * page; ++i) ASSERT_EQ(start[i], 0);
  memset(start, 1, 4 * page);
  EXPECT_EQ(PermissionsAt(start + 4 * page), "---p");
  Unreserve(start, 16 * page);
}

TEST(MemoryTest, ReturnedMemoryReadsAsZeroAndIsNotResident) {
  const size_t page = KernelPageSize();
  char* start = Fresh(8 * page);
  memset(start, 7, 8 * page);
  ASSERT_TRUE(Return(start + 2 * page, 4 * page));
  EXPECT_EQ(ResidentPages(start, 8 * page), 4u);
  EXPECT_EQ(start[2 * page - 1], 7);
  for (size_t i = 2 * page; i < 6 * page; ++i) ASSERT_EQ(start[i], 0);
  EXPECT_EQ(start[6 * page], 7);
  Unreserve(start, 8 * page);
}

TEST(MemoryTest, LockedMemoryIsNotReturnedAndKept) {
  const size_t page = KernelPageSize();
  char* start = Fresh(page);
  memset(start, 7, page);
  ASSERT_EQ(mlock(start, page), 0);
  EXPECT_FALSE(Return(start, page));
  EXPECT_EQ(start[0], 7);
  Unreserve(start, page);
}

bool IsThere(char* page) {
  unsigned char resident = 0;
  EXPECT_EQ(mincore(page, KernelPageSize(), &resident), 0);
  return (resident & 1) != 0;
}

TEST(MemoryTest, UnusedMemoryIsReturnedThoughLocked) {
  const size_t page = KernelPageSize();
  char* start = Fresh(4 * page);
  memset(start, 7, 4 * page);
  ASSERT_EQ(mlock(start + page, page), 0);
  EXPECT_TRUE(ReturnUnused(start, 4 * page));
  for (size_t i = 0; i < 4; ++i) EXPECT_FALSE(IsThere(start + i * page)) << i;
  for (size_t i = 0; i < 4; ++i) EXPECT_EQ(start[i * page], 0) << i;
  EXPECT_FALSE(Return(start + page, page));  // it is locked again
  Unreserve(start, 4 * page);
}

TEST(MemoryTest, LocksWhatIsTakenIntoUseIfThatIsWanted) {
  const size_t page = KernelPageSize();
  char* start = Fresh(page);
  EXPECT_TRUE(LockForUse(start, page));
  EXPECT_FALSE(IsThere(start));
  locking = Locking::kAtOnce;
  EXPECT_TRUE(LockForUse(start, page));
  EXPECT_TRUE(IsThere(start));
  EXPECT_FALSE(Return(start, page));
  EXPECT_TRUE(ReturnUnused(start, page));
  EXPECT_FALSE(IsThere(start));
  EXPECT_TRUE(Return(start, page)) << "still locked";
  locking = Locking::kWhenTouched;
  EXPECT_TRUE(LockForUse(start, page));
  EXPECT_FALSE(IsThere(start));
  EXPECT_FALSE(Return(start, page));
  Unreserve(start, page);
  EXPECT_FALSE(LockForUse(start, page)) << "there is nothing";
  locking = Locking::kNone;
}

TEST(MemoryTest, AddressSpaceLimitIsTheSoftOne) {
  const pid_t child = fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    rlimit limit = {RLIM_INFINITY, RLIM_INFINITY};
    if (getrlimit(RLIMIT_AS, &limit) == 0 && limit.rlim_cur == RLIM_INFINITY &&
        AddressSpaceLimit() != SIZE_MAX) {
      _exit(1);
    }
    limit.rlim_cur = size_t{5} << 30;
    if (setrlimit(RLIMIT_AS, &limit) != 0) _exit(2);
    _exit(AddressSpaceLimit() == size_t{5} << 30 ? 0 : 3);
  }
  int status;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  EXPECT_TRUE(WIFEXITED(status));
  EXPECT_EQ(WEXITSTATUS(status), 0);
}

}  // namespace
}  // namespace pcmalloc::os
