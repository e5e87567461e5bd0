// SPDX-License-Identifier: Apache-2.0
#include "allocator/release/cgroup.h"

#include <errno.h>
#include <stdlib.h>

#include <filesystem>
#include <fstream>
#include <string>

#include "gtest/gtest.h"

namespace pcmalloc::release {
namespace {

// A file system of our own below a directory of the test.
class CgroupTest : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string name = ::testing::TempDir() + "/cgroup.XXXXXX";
    ASSERT_NE(mkdtemp(name.data()), nullptr);
    root_ = name;
  }
  void TearDown() override { std::filesystem::remove_all(root_); }

  void Write(const std::string& path, const std::string& content) {
    std::filesystem::create_directories(std::filesystem::path(root_ + path).parent_path());
    std::ofstream(root_ + path) << content;
  }
  Cgroup Read() {
    Cgroup cgroup;
    EXPECT_TRUE(ReadCgroup(root_.c_str(), &cgroup));
    return cgroup;
  }
  uint64_t Limit() { return Read().limit_bytes; }

  std::string root_;
};

constexpr char kV2Mounts[] =
    "22 1 0:20 / / rw - ext4 /dev/vda1 rw\n"
    "30 22 0:25 / /sys/fs/cgroup rw,nosuid shared:4 master:1 - cgroup2 cgroup2 rw,nsdelegate\n";

TEST_F(CgroupTest, NothingThere) {
  errno = 77;
  EXPECT_EQ(Limit(), kNoLimit);
  EXPECT_STREQ(Read().pressure, "");
  EXPECT_EQ(errno, 77);
}

TEST_F(CgroupTest, TheSmallestLimitOfVersion2OnTheWayUpHolds) {
  Write("/proc/self/cgroup", "0::/a.slice/b.service\n");
  Write("/proc/self/mountinfo", kV2Mounts);
  Write("/sys/fs/cgroup/a.slice/b.service/memory.max", "max\n");
  EXPECT_EQ(Limit(), kNoLimit);
  Write("/sys/fs/cgroup/a.slice/memory.max", "209715200\n");
  EXPECT_EQ(Limit(), 200u << 20);
  Write("/sys/fs/cgroup/a.slice/b.service/memory.max", "314572800\n");
  EXPECT_EQ(Limit(), 200u << 20);
  Write("/sys/fs/cgroup/a.slice/b.service/memory.high", "104857600\n");
  EXPECT_EQ(Limit(), 100u << 20);
  Write("/sys/fs/cgroup/a.slice/b.serv/memory.max", "1\n");
  EXPECT_EQ(Limit(), 100u << 20) << "a directory whose name is a part of another's";
}

// A container with a cgroup namespace: the group is "/", its files lie at the mount.
TEST_F(CgroupTest, TheNamespacesTopOfVersion2) {
  Write("/proc/self/cgroup", "0::/\n");
  Write("/proc/self/mountinfo", kV2Mounts);
  Write("/sys/fs/cgroup/memory.max", "67108864\n");
  EXPECT_EQ(Limit(), 64u << 20);
}

// Moved out of the namespace's top: the path cannot be followed, the mount is what is known.
TEST_F(CgroupTest, AboveTheNamespace) {
  Write("/proc/self/cgroup", "0::/../other\n");
  Write("/proc/self/mountinfo", kV2Mounts);
  Write("/sys/fs/cgroup/memory.max", "67108864\n");
  EXPECT_EQ(Limit(), 64u << 20);
}

constexpr char kDockerV1[] =
    "500 480 0:28 /docker/abc /sys/fs/cgroup/cpu ro - cgroup cgroup rw,cpu,cpuacct\n"
    "501 480 0:29 /docker/abc /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory\n";

// A container without one: paths as the host sees them, the container's group mounted.
TEST_F(CgroupTest, Version1InAContainer) {
  Write("/proc/self/cgroup", "4:cpu,cpuacct:/docker/abc\n3:memory:/docker/abc\n0::/\n");
  Write("/proc/self/mountinfo", kDockerV1);
  Write("/sys/fs/cgroup/memory/memory.limit_in_bytes", "268435456\n");
  EXPECT_EQ(Limit(), 256u << 20);
  Write("/proc/self/cgroup", "3:memory:/docker/abc/deeper\n");
  Write("/sys/fs/cgroup/memory/deeper/memory.limit_in_bytes", "134217728\n");
  EXPECT_EQ(Limit(), 128u << 20);
  Write("/proc/self/cgroup", "3:memory:/docker/abcdef\n");
  EXPECT_EQ(Limit(), 256u << 20);
}

TEST_F(CgroupTest, Version1WithoutALimit) {
  Write("/proc/self/cgroup", "4:memory:/x\n0::/y\n");
  Write("/proc/self/mountinfo", "35 31 0:32 / /m\\040m rw - cgroup cgroup rw,memory\n");
  Write("/m m/x/memory.limit_in_bytes", "9223372036854771712\n");
  Write("/m m/memory.limit_in_bytes", "9223372036854771712\n");
  EXPECT_EQ(Limit(), kNoLimit);
  Write("/m m/x/memory.limit_in_bytes", "1048576\n");
  EXPECT_EQ(Limit(), 1u << 20);
}

TEST_F(CgroupTest, LongLinesAndOddOnesAreSkipped) {
  const std::string overlay =
      "40 22 0:40 / /merged rw - overlay overlay rw,lowerdir=" + std::string(9000, 'x') + "\n";
  Write("/proc/self/cgroup",
        "nonsense\n7:memory\n8:memory:\n:::\n\n" + std::string(5000, 'y') + "\n0::/g");
  for (const std::string& mounts :
       {overlay + kV2Mounts, kV2Mounts + overlay, overlay + overlay + kV2Mounts,
        std::string("short line\n\n - cgroup2\n1 2 3 4 - cgroup2 x\n") + kV2Mounts}) {
    Write("/proc/self/mountinfo", mounts);
    Write("/sys/fs/cgroup/g/memory.max", "5000000\n");
    EXPECT_EQ(Limit(), 5'000'000u) << mounts.substr(0, 100);
  }
  // A line that ends exactly where the buffer does, and around it.
  for (size_t length = 2040; length < 2056; ++length) {
    Write("/proc/self/mountinfo", std::string(length, 'z') + "\n" + kV2Mounts);
    EXPECT_EQ(Limit(), 5'000'000u) << length;
  }
  for (const char* odd : {"", "-5", "x", "99999999999999999999999"}) {
    Write("/sys/fs/cgroup/g/memory.max", odd);
    EXPECT_EQ(Limit(), kNoLimit) << odd;
  }
}

TEST_F(CgroupTest, ThePressureFileOfTheGroupComesFirst) {
  Write("/proc/self/cgroup", "0::/g\n");
  Write("/proc/self/mountinfo", kV2Mounts);
  Write("/proc/pressure/memory", "some avg10=1.00 avg60=0.00 avg300=0.00 total=1\n");
  EXPECT_EQ(Read().pressure, root_ + "/proc/pressure/memory");
  Write("/sys/fs/cgroup/g/memory.pressure", "some avg10=2.00 avg60=0.00 avg300=0.00 total=1\n");
  EXPECT_EQ(Read().pressure, root_ + "/sys/fs/cgroup/g/memory.pressure");
}

TEST_F(CgroupTest, PressureInHundredths) {
  const struct {
    const char* text;
    int hundredths;
  } kCases[] = {
      {"some avg10=0.00 avg60=9.00 avg300=0.00 total=0\nfull avg10=3.00\n", 0},
      {"some avg10=12.34 avg60=0.00", 1234},
      {"some avg10=7.5 avg60", 750},
      {"some avg10=3 ", 300},
      {"some avg10=100.00 ", 10000},
      {"some avg10=99999999999999 ", -1},
      {"some avg10= ", -1},
      {"full avg10=5.00 ", -1},
      {"", -1},
  };
  for (const auto& row : kCases) {
    Write("/p", row.text);
    EXPECT_EQ(ReadPressure((root_ + "/p").c_str()), row.hundredths) << row.text;
  }
  EXPECT_EQ(ReadPressure((root_ + "/none").c_str()), -1);
  EXPECT_EQ(ReadPressure(""), -1);
}

// Whatever this machine has, it is read without complaint, and no descriptor stays open.
TEST(RealCgroup, IsRead) {
  const auto count = [] {
    return std::distance(std::filesystem::directory_iterator("/proc/self/fd"),
                         std::filesystem::directory_iterator());
  };
  const auto before = count();
  Cgroup cgroup;
  ASSERT_TRUE(ReadCgroup("", &cgroup));
  EXPECT_GT(cgroup.limit_bytes, 1u << 20);
  if (cgroup.pressure[0] != '\0') {
    EXPECT_LE(ReadPressure(cgroup.pressure), 10'000);
  }
  EXPECT_EQ(count(), before);
}

}  // namespace
}  // namespace pcmalloc::release
