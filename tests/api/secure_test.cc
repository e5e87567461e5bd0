// SPDX-License-Identifier: Apache-2.0
//
// A program that runs with other rights than its caller's (AT_SECURE) does not do what the caller's
// PCMALLOC_CONF says: stats_json would write files where he may not.
#include <fcntl.h>
#include <stdlib.h>
#include <sys/auxv.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <unistd.h>

#include <string>

#include "gtest/gtest.h"
#include "tests/support/allocator.h"
#include "tests/support/process.h"

namespace pcmalloc::testing {
namespace {

constexpr uid_t kNobody = 65534;

PCM_SCENARIO(Secure) {
  ASSERT_NE(getauxval(AT_SECURE), 0u);
  EXPECT_NE(Mode(), "locked") << "the environment of the caller was obeyed";
}

PCM_SCENARIO(NotSecure) { EXPECT_EQ(Mode(), "locked"); }

// Not under preload: the dynamic linker ignores LD_PRELOAD in such programs anyway.
TEST(Secure, ProgramsIgnoreTheEnvironment) {
  if (Variant() != "linked" || geteuid() != 0) GTEST_SKIP() << "needs root and a linked pcmalloc";
  char name[] = "/tmp/pcmalloc_secure_XXXXXX";
  const int to = mkstemp(name);
  const int from = open("/proc/self/exe", O_RDONLY | O_CLOEXEC);
  ASSERT_GE(to, 0);
  ASSERT_GE(from, 0);
  struct stat info;
  ASSERT_EQ(fstat(from, &info), 0);
  for (off_t done = 0; done < info.st_size;) {
    ASSERT_GT(sendfile(to, from, &done, static_cast<size_t>(info.st_size - done)), 0);
  }
  close(from);
  ASSERT_EQ(fchmod(to, 0755), 0);
  close(to);
  FreshProcess options;
  options.executable = name;
  options.environment = {"PCMALLOC_CONF=rseq:locked",
                         "PCM_EXPECT_MODE=locked,v2safe-cpu,v2safe-cid"};
  EXPECT_TRUE(InFreshProcess("NotSecure", options));
  if (chown(name, kNobody, kNobody) == 0 && chmod(name, 04755) == 0) {
    EXPECT_TRUE(InFreshProcess("Secure", options));
  }
  unlink(name);
}

}  // namespace
}  // namespace pcmalloc::testing
