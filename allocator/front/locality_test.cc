// SPDX-License-Identifier: Apache-2.0
//
// Which CPUs share the transfer caches' shards.
#include "allocator/front/locality.h"

#include <sched.h>
#include <stdint.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <vector>

#include "allocator/central/central_list.h"
#include "allocator/central/transfer_cache.h"
#include "allocator/config/config.h"
#include "allocator/front/front.h"
#include "allocator/front/test_util.h"
#include "gtest/gtest.h"

namespace pcmalloc::front {
namespace {

using Locality = Front;

// A shard that there is no memory for is asked for once and not at every batch. In a child, since
// what is known of a CPU is known for good.
TEST_F(Locality, AShardThatIsRefusedIsNotAskedForAgain) {
  cpu_set_t allowed;
  ASSERT_EQ(sched_getaffinity(0, sizeof(allowed), &allowed), 0);
  int cpu = 1;
  while (cpu < CPU_SETSIZE && (cpu % 8 == 0 || !CPU_ISSET(cpu, &allowed))) ++cpu;
  if (cpu == CPU_SETSIZE) GTEST_SKIP() << "one CPU";
  const pid_t child = fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    ParseConfig("cache_domains:8");
    cpu_set_t one;
    CPU_ZERO(&one);
    CPU_SET(cpu, &one);
    if (sched_setaffinity(0, sizeof(one), &one) != 0) _exit(2);
    rlimit before;
    if (getrlimit(RLIMIT_AS, &before) != 0) _exit(3);
    const rlimit none = {1 << 20, before.rlim_max};
    if (setrlimit(RLIMIT_AS, &none) != 0) _exit(4);
    if (NearShard() != 0 || central::OpenShards() != 1) _exit(5);
    if (setrlimit(RLIMIT_AS, &before) != 0) _exit(6);
    if (NearShard() != 0 || central::OpenShards() != 1) _exit(7);
    _exit(0);
  }
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  EXPECT_EQ(status, 0);
}

// Last, since what is known of a CPU is known for good.
TEST_F(Locality, CpusOfADomainShareAShard) {
  cpu_set_t allowed;
  ASSERT_EQ(sched_getaffinity(0, sizeof(allowed), &allowed), 0);
  EXPECT_EQ(NearShard(), 0u) << "few CPUs";
  EXPECT_EQ(central::OpenShards(), 1u);
  ParseConfig("cache_domains:2");
  constexpr unsigned kClass = 5;
  int cpus = 0;
  for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
    if (!CPU_ISSET(cpu, &allowed)) continue;
    cpu_set_t one;
    CPU_ZERO(&one);
    CPU_SET(cpu, &one);
    ASSERT_EQ(sched_setaffinity(0, sizeof(one), &one), 0);
    EXPECT_EQ(NearShard(), static_cast<unsigned>(cpu) % 2);
    EXPECT_EQ(NearShard(), static_cast<unsigned>(cpu) % 2);
    // Objects that go down here come up here again, and on no other shard.
    Trim();
    std::vector<void*> blocks;
    for (int i = 0; i < 3000; ++i) blocks.push_back(Allocate(kClass));
    for (void* p : blocks) Deallocate(kClass, p);
    const uint64_t waiting = central::ClassStats(kClass).transfer_objects;
    ASSERT_GT(waiting, 0u);
    const unsigned other = 1 - static_cast<unsigned>(cpu) % 2;
    ASSERT_TRUE(central::OpenShard(other));
    void* items[2];
    Shortage shortage;
    ASSERT_EQ(central::Take(kClass, &items[0], 1, &shortage, other), 1u);
    EXPECT_EQ(central::ClassStats(kClass).transfer_objects, waiting) << "of the other shard";
    ASSERT_EQ(central::Take(kClass, &items[1], 1, &shortage, NearShard()), 1u);
    EXPECT_EQ(central::ClassStats(kClass).transfer_objects, waiting - 1);
    for (void* item : items) Deallocate(kClass, item);
    if (++cpus == 2) break;
  }
  ASSERT_EQ(sched_setaffinity(0, sizeof(allowed), &allowed), 0);
  EXPECT_EQ(central::OpenShards(), 2u);
}

}  // namespace
}  // namespace pcmalloc::front
