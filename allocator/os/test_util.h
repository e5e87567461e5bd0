// SPDX-License-Identifier: Apache-2.0
//
// Purpose: committed ranges for tests, and what the kernel says of them.
// Invariants: none.
// Cost: for tests.
#ifndef PCMALLOC_ALLOCATOR_OS_TEST_UTIL_H_
#define PCMALLOC_ALLOCATOR_OS_TEST_UTIL_H_

#include <inttypes.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/mman.h>

#include <fstream>
#include <string>
#include <vector>

#include "allocator/os/memory.h"
#include "gtest/gtest.h"

namespace pcmalloc::os {

// The permissions ("rw-p") of each mapping that has a byte of the range.
inline std::vector<std::string> PermissionsIn(const void* start, size_t size) {
  const uintptr_t from = reinterpret_cast<uintptr_t>(start);
  std::vector<std::string> result;
  std::ifstream maps("/proc/self/maps");
  for (std::string line; std::getline(maps, line);) {
    uintptr_t begin, end;
    char permissions[5];
    EXPECT_EQ(sscanf(line.c_str(), "%" SCNxPTR "-%" SCNxPTR " %4s", &begin, &end, permissions), 3);
    if (begin < from + size && end > from) result.push_back(permissions);
  }
  return result;
}

// Those of one address, "" where nothing is mapped.
inline std::string PermissionsAt(const void* p) {
  const std::vector<std::string> found = PermissionsIn(p, 1);
  return found.empty() ? "" : found[0];
}

inline size_t ResidentPages(const void* start, size_t size) {
  std::vector<unsigned char> states(size / KernelPageSize());
  EXPECT_EQ(mincore(const_cast<void*>(start), size, states.data()), 0);
  size_t resident = 0;
  for (unsigned char state : states) resident += state & 1;
  return resident;
}

// Committed memory that nobody has touched. Give it back by Unreserve.
inline char* Fresh(size_t size) {
  char* start = static_cast<char*>(Reserve(size, KernelPageSize()));
  EXPECT_NE(start, nullptr);
  EXPECT_TRUE(Commit(start, size));
  return start;
}

}  // namespace pcmalloc::os

#endif  // PCMALLOC_ALLOCATOR_OS_TEST_UTIL_H_
