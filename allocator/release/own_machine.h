// SPDX-License-Identifier: Apache-2.0
//
// Purpose: for tests: the real layers below malloc, on a machine whose files are the test's own.
// Invariants: the executable's main() is here. Times are made up by the tests; one clock for all
//   of a process, because the library remembers times.
// Cost: a temporary directory.
#ifndef PCMALLOC_ALLOCATOR_RELEASE_OWN_MACHINE_H_
#define PCMALLOC_ALLOCATOR_RELEASE_OWN_MACHINE_H_

#include <stddef.h>
#include <stdint.h>

#include <string>

#include "gtest/gtest.h"
#include "tests/support/affinity.h"

namespace pcmalloc::release {

inline constexpr uint64_t kMiB = uint64_t{1} << 20;
inline constexpr uint64_t kDecayMs = 8000;
inline constexpr uint64_t kPeriodMs = 1000;
inline constexpr unsigned kClass = 13;  // 208 bytes

extern uint64_t now_ms;

// Where a file of the machine really is.
std::string Real(const std::string& path);
void Write(const std::string& path, const std::string& content);
void SetPressure(const char* percent);

// Each test on one CPU, with nothing idle and without pressure at first.
class OwnMachine : public ::testing::Test {
 protected:
  void SetUp() override;

  // Takes and writes so many bytes of one class, then frees them all.
  static void Burst(size_t bytes);
  static bool SlabHolds();
  static uint64_t InTransfer();

 private:
  const testing::Pinned pinned_;
};

}  // namespace pcmalloc::release

#endif  // PCMALLOC_ALLOCATOR_RELEASE_OWN_MACHINE_H_
