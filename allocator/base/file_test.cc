// SPDX-License-Identifier: Apache-2.0
#include "allocator/base/file.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <unistd.h>

#include <string>

#include "gtest/gtest.h"

namespace pcmalloc {
namespace {

constexpr int kErrno = 4711;  // no call sets it

// The number that the next descriptor gets.
int NextDescriptor() {
  const int fd = open("/dev/null", O_RDONLY);
  close(fd);
  return fd;
}

class FileTest : public testing::Test {
 protected:
  void SetUp() override {
    ASSERT_NE(mkdtemp(folder_), nullptr);
    path_ = std::string(folder_) + "/file";
  }
  void TearDown() override {
    unlink(path_.c_str());
    rmdir(folder_);
  }

  void Write(const std::string& text) {
    const int fd = open(path_.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0600);
    ASSERT_GE(fd, 0);
    ASSERT_EQ(write(fd, text.data(), text.size()), static_cast<ssize_t>(text.size()));
    close(fd);
  }

  char folder_[32] = "/tmp/pcm-file-XXXXXX";
  std::string path_;
};

TEST_F(FileTest, FindsWhatFollowsATextWhereverItLies) {
  for (size_t before = 0; before < 600; ++before) {
    Write(std::string(before, 'k') + "key:7\nkey:8");
    ASSERT_EQ(File(path_.c_str()).ByteAfter("key:"), '7') << before;
  }
  Write(std::string(1000, 'k') + "key:");
  EXPECT_EQ(File(path_.c_str()).ByteAfter("key:"), File::kAbsent);
  Write("");
  EXPECT_EQ(File(path_.c_str()).ByteAfter("key:"), File::kNothing);
  EXPECT_EQ(File("/no/such/file").ByteAfter("key:"), File::kNothing);
}

TEST_F(FileTest, ReadsOnFromWhereItStopped) {
  Write("abcdefgh");
  File file(path_.c_str());
  ASSERT_TRUE(file.opened());
  char text[5];
  ASSERT_EQ(file.Read(text, sizeof(text)), 5u);
  EXPECT_EQ(std::string(text, 5), "abcde");
  ASSERT_EQ(file.Read(text, sizeof(text)), 3u);
  EXPECT_EQ(std::string(text, 3), "fgh");
  EXPECT_EQ(file.Read(text, sizeof(text)), 0u);
}

TEST_F(FileTest, WhatIsNotThereIsEmpty) {
  errno = kErrno;
  File file(path_.c_str());
  EXPECT_FALSE(file.opened());
  char text[8] = "before";
  EXPECT_EQ(file.Read(text, sizeof(text)), 0u);
  EXPECT_STREQ(text, "before");
  EXPECT_EQ(errno, kErrno);
}

TEST_F(FileTest, WhatCannotBeReadIsEmpty) {
  File file(folder_);  // read says EISDIR
  ASSERT_TRUE(file.opened());
  char text[8];
  errno = kErrno;
  EXPECT_EQ(file.Read(text, sizeof(text)), 0u);
  EXPECT_EQ(errno, kErrno);
}

TEST_F(FileTest, TheDescriptorGoesWithTheObjectOrByExec) {
  Write("x");
  const int next = NextDescriptor();
  {
    File file(path_.c_str());
    ASSERT_TRUE(file.opened());
    EXPECT_EQ(fcntl(next, F_GETFD), FD_CLOEXEC);
    errno = kErrno;
  }
  EXPECT_EQ(errno, kErrno);
  EXPECT_EQ(NextDescriptor(), next);
}

volatile sig_atomic_t interruptions = 0;
int writer = -1;

TEST_F(FileTest, SignalsDoNotCutReadingShort) {
  ASSERT_EQ(mkfifo(path_.c_str(), 0600), 0);
  writer = open(path_.c_str(), O_RDWR);  // both ways: neither open has to wait for the other
  ASSERT_GE(writer, 0);
  struct sigaction action = {};
  action.sa_handler = [](int) {  // and no SA_RESTART
    interruptions = interruptions + 1;
    if (interruptions == 3 && write(writer, "late", 4) != 4) abort();
  };
  struct sigaction before;
  ASSERT_EQ(sigaction(SIGALRM, &action, &before), 0);
  File file(path_.c_str());
  ASSERT_TRUE(file.opened());
  const itimerval soon = {{0, 20'000}, {0, 20'000}};
  ASSERT_EQ(setitimer(ITIMER_REAL, &soon, nullptr), 0);
  char text[8];
  errno = kErrno;
  const size_t got = file.Read(text, sizeof(text));
  EXPECT_EQ(errno, kErrno);
  const itimerval never = {};
  setitimer(ITIMER_REAL, &never, nullptr);
  sigaction(SIGALRM, &before, nullptr);
  close(writer);
  EXPECT_EQ(std::string(text, got), "late");
  EXPECT_GE(interruptions, 3);
}

TEST(File, ReadsWhatTheKernelMakesUp) {
  File file("/proc/self/status");
  char text[8];
  ASSERT_EQ(file.Read(text, sizeof(text)), sizeof(text));
  EXPECT_EQ(memcmp(text, "Name:\t", 6), 0);
}

}  // namespace
}  // namespace pcmalloc
