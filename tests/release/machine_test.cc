// SPDX-License-Identifier: Apache-2.0
//
// Limits that the kernel sets: control groups as this machine has them.
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <string>

#include "gtest/gtest.h"
#include "tests/release/extension.h"
#include "tests/support/process.h"

namespace pcmalloc::testing {
namespace {

bool WriteFile(const std::string& path, const std::string& text) {
  std::ofstream file(path);
  return static_cast<bool>(file << text << std::flush);
}

// A group below the one this process is in, so that whatever holds for that one goes on to hold.
class Group {
 public:
  explicit Group(size_t limit) {
    std::string line;
    for (std::ifstream groups("/proc/self/cgroup"); std::getline(groups, line);) {
      const size_t second = line.find(':', line.find(':') + 1);
      const std::string controllers = line.substr(line.find(':') + 1, second - line.find(':') - 1);
      const std::string path = line.substr(second + 1);
      if (controllers == "memory") {
        limit_file_ = "memory.limit_in_bytes";
        directory_ = "/sys/fs/cgroup/memory" + path;
        break;
      }
      if (controllers.empty()) {
        limit_file_ = "memory.max";
        directory_ = "/sys/fs/cgroup" + path;
      }
    }
    directory_ += "/pcmalloc-test-" + std::to_string(getpid());
    std::error_code error;
    made_ = !limit_file_.empty() && std::filesystem::create_directory(directory_, error);
    usable_ = made_ && WriteFile(directory_ + "/" + limit_file_, std::to_string(limit));
  }
  ~Group() {
    // Its last process may still be on its way out.
    if (made_) Soon([this] { return rmdir(directory_.c_str()) == 0; });
  }
  bool usable() const { return usable_; }
  bool Enter() const { return WriteFile(directory_ + "/cgroup.procs", std::to_string(getpid())); }

 private:
  std::string directory_, limit_file_;
  bool made_ = false;
  bool usable_ = false;
};

constexpr size_t kGroup = 256 * kMiB;

PCM_SCENARIO(InAGroup) {
  EXPECT_EQ(Statistic("limit_cgroup"), -1);  // not read before it matters
  // 200 MiB at a time in blocks that are never the same size: without a limit what is free but does
  // not fit would pile up.
  for (size_t size : {size_t{300}, size_t{5000}, size_t{70'000}, size_t{3'000'000}}) {
    ASSERT_TRUE(Burst(200 * kMiB, size));
  }
  EXPECT_EQ(Statistic("limit_cgroup"), static_cast<int64_t>(kGroup));
  EXPECT_EQ(Statistic("limit_soft"), static_cast<int64_t>(kGroup / 10 * 9));
  EXPECT_LE(Ask("pcmalloc_percpu_cache"), kGroup / 8);
  EXPECT_LE(Footprint(), kGroup / 10 * 9);
}

TEST(Machine, TheGroupsLimitIsHonoured) {
  Group group(kGroup);
  if (!group.usable()) GTEST_SKIP() << "no control group can be made here";
  FreshProcess options;
  options.environment = {Conf("decay:never")};
  options.before_exec = [&] {
    if (!group.Enter()) _exit(125);
  };
  EXPECT_TRUE(InFreshProcess("InAGroup", options));
}

PCM_SCENARIO(Unbothered) {
  ASSERT_TRUE(Burst(200 * kMiB, 300));
  EXPECT_EQ(Statistic("limit_cgroup"), -1);
}
TEST(Machine, TheGroupsLimitCanBeIgnored) {
  Group group(kGroup);
  if (!group.usable()) GTEST_SKIP() << "no control group can be made here";
  FreshProcess options;
  options.environment = {Conf("cgroup:false")};
  options.before_exec = [&] {
    if (!group.Enter()) _exit(125);
  };
  EXPECT_TRUE(InFreshProcess("Unbothered", options));
}

}  // namespace
}  // namespace pcmalloc::testing
