// SPDX-License-Identifier: Apache-2.0
#include "allocator/front/locality.h"

#include <stdint.h>

#include <atomic>

#include "absl/base/attributes.h"
#include "absl/base/optimization.h"
#include "allocator/central/transfer_cache.h"
#include "allocator/config/config.h"
#include "allocator/os/cache_domain.h"
#include "percpu/slabs.h"
#include "rseq/rseq.h"

namespace pcmalloc::front {
namespace {

using central::kMaxShards;

// A process that has run on no more CPUs than these is served by one shard whatever they share.
constexpr unsigned kFewCpus = 4;

// And one; 0: not known yet. Who reads a number must find that shard open: released and acquired.
constinit std::atomic<uint8_t> shard_of[percpu::kMaxCpus] = {};
constinit std::atomic<uint64_t> domain_of[kMaxShards] = {};  // and one; 0: none yet

// In the order in which domains are met.
unsigned ShardOfDomain(uint64_t domain) {
  for (unsigned shard = 0; shard < kMaxShards; ++shard) {
    uint64_t known = domain_of[shard].load(std::memory_order_relaxed);
    if (known == 0 &&
        domain_of[shard].compare_exchange_strong(known, domain + 1, std::memory_order_relaxed)) {
      return shard;
    }
    if (known == domain + 1) return shard;
  }
  return static_cast<unsigned>(domain % kMaxShards);
}

ABSL_ATTRIBUTE_NOINLINE unsigned Find(unsigned cpu) {
  const uint64_t forced = GetConfig().cache_domains;
  unsigned shard;
  if (forced != 0) {
    shard = static_cast<unsigned>(cpu % forced);
  } else {
    if (percpu::PopulatedSlabs() <= kFewCpus) return 0;
    const uint64_t domain = os::CacheDomainHere();
    if (rseq::CurrentCpu() != static_cast<int>(cpu)) return 0;  // moved meanwhile: another time
    shard = ShardOfDomain(domain);
  }
  // Refused, it is not tried again: at every batch that would cost more than a shard can save.
  if (!central::OpenShard(shard)) shard = 0;
  shard_of[cpu].store(static_cast<uint8_t>(shard + 1), std::memory_order_release);
  return shard;
}

}  // namespace

unsigned NearShard() {
  const auto cpu = static_cast<unsigned>(rseq::CurrentCpu());
  if (ABSL_PREDICT_FALSE(cpu >= percpu::kMaxCpus)) return 0;
  const uint8_t known = shard_of[cpu].load(std::memory_order_acquire);
  return ABSL_PREDICT_TRUE(known != 0) ? known - 1u : Find(cpu);
}

}  // namespace pcmalloc::front
