// SPDX-License-Identifier: Apache-2.0
#include "tests/support/hang.h"

#include <pthread.h>
#include <unistd.h>

#include <string>
#include <thread>

#include "gtest/gtest.h"
#include "tests/support/process.h"

namespace pcmalloc::testing {
namespace {

// Found by its name where stacks are shown.
extern "C" __attribute__((noinline)) void WaitForWhatNeverComes() {
  while (true) pause();
}

TEST(Watchdog, SaysWhereEachThreadAndChildIs) {
  const ::testing::AssertionResult ended = InChild(
      [] {
        if (fork() == 0) {
          pthread_setname_np(pthread_self(), "grandchild");
          WaitForWhatNeverComes();
        }
        std::thread busy([] {
          pthread_setname_np(pthread_self(), "spins");
          while (true) asm volatile("");
        });
        WaitForWhatNeverComes();
      },
      1);
  ASSERT_FALSE(ended);
  const std::string text = ended.message();
  SCOPED_TRACE(text);
  EXPECT_NE(text.find("killed by the watchdog"), std::string::npos);
  EXPECT_NE(text.find("spins: R"), std::string::npos);
  EXPECT_NE(text.find("grandchild: S"), std::string::npos);
  size_t processes = 0;
  for (size_t at = 0; (at = text.find("process ", at)) != std::string::npos; ++at) {
    processes += at == 0 || text[at - 1] == '\n';
  }
  EXPECT_EQ(processes, 3u) << "the line of the watchdog, and one for each process";
  // A place in a file, unless only root may know.
  if (geteuid() == 0) {
    EXPECT_NE(text.find("libc.so.6+0x"), std::string::npos);
  }
  // Where gdb is there and may attach.
  if (text.find("Thread 1") != std::string::npos) {
    EXPECT_NE(text.find("WaitForWhatNeverComes"), std::string::npos);
  }
}

}  // namespace
}  // namespace pcmalloc::testing
