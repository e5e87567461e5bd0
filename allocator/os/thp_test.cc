// SPDX-License-Identifier: Apache-2.0
#include "allocator/os/thp.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <string>

#include "allocator/os/memory.h"
#include "gtest/gtest.h"

namespace pcmalloc::os {
namespace {

HugePages Parse(const char* text) { return ParseHugePages(text, strlen(text)); }

TEST(ThpTest, ParsesTheChoice) {
  EXPECT_EQ(Parse("[always] madvise never\n"), HugePages::kAlways);
  EXPECT_EQ(Parse("always [madvise] never\n"), HugePages::kOnRequest);
  EXPECT_EQ(Parse("always madvise [never]\n"), HugePages::kNever);
  // What it does not understand does not keep it from asking.
  for (const char* text :
       {"", "never", "[never", "]never[", "[]", "[nev]", "[never ]", "[neverr]"}) {
    EXPECT_EQ(Parse(text), HugePages::kOnRequest) << text;
  }
}

// A folder as the kernel has it.
class FakeFolder {
 public:
  FakeFolder() {
    char name[] = "/tmp/thp_test.XXXXXX";
    EXPECT_NE(mkdtemp(name), nullptr);
    path_ = name;
  }
  ~FakeFolder() { std::filesystem::remove_all(path_); }
  void Write(const std::string& name, const std::string& text) {
    std::filesystem::create_directories(std::filesystem::path(path_ + "/" + name).parent_path());
    std::ofstream(path_ + "/" + name) << text;
  }
  HugePages Find() const { return FindHugePages(path_.c_str()); }

 private:
  std::string path_;
};

TEST(ThpTest, ReadsTheFolder) {
  if (KernelPageSize() != 4096) GTEST_SKIP() << "no hugepages of 2 MiB here";
  if (prctl(PR_GET_THP_DISABLE, 0, 0, 0, 0) != 0) GTEST_SKIP() << "switched off for this process";
  FakeFolder folder;
  errno = 77;
  EXPECT_EQ(folder.Find(), HugePages::kOnRequest) << "nothing there";
  EXPECT_EQ(errno, 77);
  folder.Write("enabled", "always madvise [never]\n");
  EXPECT_EQ(folder.Find(), HugePages::kNever);
  folder.Write("hpage_pmd_size", "2097152\n");
  folder.Write("enabled", "[always] madvise never\n");
  EXPECT_EQ(folder.Find(), HugePages::kAlways);
  // Kernels with a setting for each size.
  folder.Write("hugepages-2048kB/enabled", "always [inherit] madvise never\n");
  EXPECT_EQ(folder.Find(), HugePages::kAlways);
  folder.Write("hugepages-2048kB/enabled", "always inherit madvise [never]\n");
  EXPECT_EQ(folder.Find(), HugePages::kNever);
  folder.Write("enabled", "always madvise [never]\n");
  folder.Write("hugepages-2048kB/enabled", "always inherit [madvise] never\n");
  EXPECT_EQ(folder.Find(), HugePages::kOnRequest);
  // Another architecture's hugepages.
  folder.Write("hpage_pmd_size", "33554432\n");
  EXPECT_EQ(folder.Find(), HugePages::kNever);
}

TEST(ThpTest, ProcessesMaySwitchThemOff) {
  if (KernelPageSize() != 4096) GTEST_SKIP() << "no hugepages of 2 MiB here";
  const pid_t child = fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    FakeFolder folder;
    folder.Write("enabled", "[always] madvise never\n");
    if (prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0) != 0) _exit(2);
    if (folder.Find() != HugePages::kNever) _exit(1);
    if (prctl(PR_SET_THP_DISABLE, 0, 0, 0, 0) != 0) _exit(2);
    _exit(folder.Find() == HugePages::kAlways ? 0 : 3);
  }
  int status;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  EXPECT_TRUE(WIFEXITED(status));
  EXPECT_EQ(WEXITSTATUS(status), 0);
}

}  // namespace
}  // namespace pcmalloc::os
