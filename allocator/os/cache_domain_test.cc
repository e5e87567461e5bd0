// SPDX-License-Identifier: Apache-2.0
#include "allocator/os/cache_domain.h"

#include <errno.h>
#include <sched.h>
#include <stdio.h>

#include <map>
#include <string>

#include "gtest/gtest.h"

namespace pcmalloc::os {
namespace {

// What the kernel says: the CPUs that share the highest level of cache, as text.
std::string SharedWith(int cpu) {
  std::string shared;
  for (int level = 0; level < 8; ++level) {
    char path[128];
    snprintf(path, sizeof(path), "/sys/devices/system/cpu/cpu%d/cache/index%d/shared_cpu_list", cpu,
             level);
    FILE* const file = fopen(path, "re");
    if (file == nullptr) break;
    char text[256] = "";
    if (fgets(text, sizeof(text), file) != nullptr) shared = text;
    fclose(file);
  }
  return shared;
}

TEST(CacheDomain, IsWhatTheKernelSays) {
#if !defined(__x86_64__)
  GTEST_SKIP() << "the domain is the NUMA node here";
#endif
  cpu_set_t allowed;
  ASSERT_EQ(sched_getaffinity(0, sizeof(allowed), &allowed), 0);
  std::map<std::string, uint64_t> domains;
  std::map<uint64_t, std::string> names;
  for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
    if (!CPU_ISSET(cpu, &allowed)) continue;
    const std::string shared = SharedWith(cpu);
    if (shared.empty()) GTEST_SKIP() << "/sys does not tell";
    // No list and no range: a CPU of its own, which counts as not known.
    if (shared.find_first_of(",-") == std::string::npos) GTEST_SKIP() << "no cache is shared";
    cpu_set_t one;
    CPU_ZERO(&one);
    CPU_SET(cpu, &one);
    ASSERT_EQ(sched_setaffinity(0, sizeof(one), &one), 0);
    errno = 4711;
    const uint64_t domain = CacheDomainHere();
    EXPECT_EQ(errno, 4711);
    EXPECT_EQ(CacheDomainHere(), domain);
    EXPECT_EQ(domains.emplace(shared, domain).first->second, domain) << "CPU " << cpu;
    EXPECT_EQ(names.emplace(domain, shared).first->second, shared) << "CPU " << cpu;
  }
  ASSERT_EQ(sched_setaffinity(0, sizeof(allowed), &allowed), 0);
  printf("%zu domains\n", domains.size());
}

}  // namespace
}  // namespace pcmalloc::os
