// SPDX-License-Identifier: Apache-2.0
#include "allocator/os/move.h"

#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "allocator/os/memory.h"
#include "allocator/os/test_util.h"
#include "gtest/gtest.h"

namespace pcmalloc::os {
namespace {

constexpr size_t kMiB = size_t{1} << 20;

// Every second cache line is zero, as a target must not keep what it had.
char Mark(size_t at) {
  return at / 64 % 2 == 0 ? static_cast<char>(at * 31 + at / 4096 + 1) : '\0';
}

void Write(char* p, size_t size) {
  for (size_t i = 0; i < size; ++i) p[i] = Mark(i);
}

bool IsWritten(const char* p, size_t size) {
  for (size_t i = 0; i < size; ++i) {
    if (p[i] != Mark(i)) return false;
  }
  return true;
}

// Every second run of `run` bytes becomes a mapping of its own, still readable and writable.
void Split(char* p, size_t size, size_t run) {
  for (size_t at = 0; at + run <= size; at += 2 * run) {
    ASSERT_EQ(madvise(p + at, run, MADV_DONTDUMP), 0);
  }
}

// From Linux 5.7 on.
bool KernelMoves() {
  constexpr int kMayMove = 1, kDontUnmap = 4;
  const size_t page = KernelPageSize();
  char* p = Fresh(page);
  const long moved = syscall(SYS_mremap, p, page, page, kMayMove | kDontUnmap, nullptr);
  Unreserve(p, page);
  if (moved == -1) return false;
  Unreserve(reinterpret_cast<void*>(moved), page);
  return true;
}

class MoveTest : public ::testing::TestWithParam<bool (*)(void*, void*, size_t)> {
 protected:
  void SetUp() override {
    if (KernelMoves()) return;
    char* p = Fresh(8 * KernelPageSize());
    Write(p, 8 * KernelPageSize());
    EXPECT_FALSE(GetParam()(p, p + 4 * KernelPageSize(), 4 * KernelPageSize()));
    EXPECT_TRUE(IsWritten(p, 8 * KernelPageSize()));
    Unreserve(p, 8 * KernelPageSize());
    GTEST_SKIP() << "this kernel moves nothing";
  }
};

TEST_P(MoveTest, CarriesContents) {
  const size_t page = KernelPageSize();
  const size_t size = 64 * page;
  char* from = Fresh(size);
  char* to = Fresh(80 * page);
  Write(from, size);
  memset(to, 9, 80 * page);
  ASSERT_TRUE(GetParam()(from, to, size));
  EXPECT_TRUE(IsWritten(to, size));
  EXPECT_EQ(ResidentPages(from, size), 0u);  // so nothing was copied
  EXPECT_EQ(to[size], 9);
  from[5] = 1;  // still ours, and writable
  Unreserve(from, size);
  Unreserve(to, 80 * page);
}

// Mappings that begin and end anywhere: most of the pages are moved, what lies around the ends is
// copied.
TEST_P(MoveTest, SeveralMappings) {
  const size_t page = KernelPageSize();
  const size_t size = 16 * kMiB;
  for (size_t run : {page, kMiB / 4, 3 * kMiB + page, 5 * kMiB - 7 * page}) {
    char* from = Fresh(size);
    char* to = Fresh(size);
    Write(from, size);
    memset(to, 9, size);
    Split(from, size, run);
    ASSERT_TRUE(GetParam()(from, to, size));
    EXPECT_TRUE(IsWritten(to, size)) << run;
    if (run > kMiB) {
      EXPECT_LT(ResidentPages(from, size) * page, 2 * kMiB) << run;
    }
    memset(from, 1, size);
    memset(to, 2, size);
    Unreserve(from, size);
    Unreserve(to, size);
  }
}

TEST_P(MoveTest, WhatWasMovedInPiecesIsOneMappingAgain) {
  const size_t page = KernelPageSize();
  char* first = Fresh(16 * kMiB);
  char* block = Fresh(16 * kMiB);
  char* second = Fresh(16 * kMiB);
  Write(first, 9 * kMiB);
  ASSERT_TRUE(GetParam()(first, block, 9 * kMiB));
  for (size_t i = 9 * kMiB; i < 11 * kMiB + page; ++i) block[i] = Mark(i);  // grown in place
  ASSERT_TRUE(GetParam()(block, second, 11 * kMiB + page));
  EXPECT_TRUE(IsWritten(second, 11 * kMiB + page));
  EXPECT_LE(PermissionsIn(second, 16 * kMiB).size(), 5u);
  for (char* p : {first, block, second}) Unreserve(p, 16 * kMiB);
}

// A move in a child that may make `left` mappings more. It ends with 0 where the contents arrived
// or stayed, 1 where some were lost, 2 where there is no limit to be met.
int MoveWithRoomFor(bool (*move)(void*, void*, size_t), size_t left) {
  const size_t page = KernelPageSize();
  const size_t size = 8 * kMiB;
  const pid_t child = fork();
  if (child == 0) {
    char* from = Fresh(size);
    char* to = Fresh(size);
    Write(from, size);
    memset(to, 9, size);
    Split(from, size, kMiB);
    // Every second page can be used, so each is a mapping, up to the limit.
    const size_t stretch = 4 * page * 65536;
    char* filler = static_cast<char*>(Reserve(stretch, page));
    if (filler == nullptr) _exit(2);
    size_t at = page;
    while (at < stretch && Commit(filler + at, page)) at += 2 * page;
    if (at >= stretch) _exit(2);
    Unreserve(filler, left * page);
    const bool moved = move(from, to, size);
    _exit(IsWritten(moved ? to : from, size) ? 0 : 1);
  }
  int status = 0;
  EXPECT_EQ(waitpid(child, &status, 0), child);
  return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

// The kernel gives up at the first mapping, or in the middle with some of them moved.
TEST_P(MoveTest, KeepsContentsAtTheLimitOfMappings) {
  for (size_t left : {0, 1, 2, 4, 6, 8, 11, 14, 18, 23}) {
    const int result = MoveWithRoomFor(GetParam(), left);
    if (result == 2) GTEST_SKIP() << "no limit of mappings here";
    EXPECT_EQ(result, 0) << left;
  }
}

INSTANTIATE_TEST_SUITE_P(Ways, MoveTest, ::testing::Values(&Move, &MoveByPieces),
                         [](const auto& info) {
                           return info.index == 0 ? "Move" : "MoveByPieces";
                         });

}  // namespace
}  // namespace pcmalloc::os
