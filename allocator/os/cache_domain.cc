// SPDX-License-Identifier: Apache-2.0
#include "allocator/os/cache_domain.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif

#include "allocator/base/syscall.h"

namespace pcmalloc::os {

#if defined(__x86_64__)

namespace {

struct Registers {
  uint32_t a, b, c, d;
};

bool Ask(uint32_t leaf, uint32_t subleaf, Registers* r) {
  return __get_cpuid_count(leaf, subleaf, &r->a, &r->b, &r->c, &r->d) != 0;
}

// By how many bits APIC ids of the CPUs that share the last of the caches differ at most; 0 if the
// leaf says nothing, or that no CPU shares it.
unsigned SharedBits(uint32_t leaf) {
  constexpr uint32_t kMostCaches = 8;
  unsigned bits = 0;
  uint32_t last_level = 0;
  Registers r;
  for (uint32_t cache = 0; cache < kMostCaches && Ask(leaf, cache, &r); ++cache) {
    const uint32_t type = r.a & 0x1f;  // 0: no further cache, 2: instructions
    if (type == 0) break;
    const uint32_t level = (r.a >> 5) & 7;
    if (type == 2 || level < last_level) continue;
    last_level = level;
    const uint32_t sharing = (r.a >> 14) & 0xfff;  // less one
    bits = sharing == 0 ? 0 : 32 - static_cast<unsigned>(__builtin_clz(sharing));
  }
  return bits;
}

}  // namespace

uint64_t CacheDomainHere() {
  constexpr uint32_t kIntel = 4;
  constexpr uint32_t kAmd = 0x8000001d;
  unsigned bits = SharedBits(kIntel);
  if (bits == 0) bits = SharedBits(kAmd);
  // A hypervisor that tells nothing of caches, or makes a socket of each CPU: not to be taken for
  // as many caches.
  if (bits == 0) return 0;
  Registers r = {};
  constexpr uint32_t kTopology = 0xb;
  if (Ask(kTopology, 0, &r) && r.b != 0) return r.d >> bits;
  return Ask(1, 0, &r) ? (r.b >> 24) >> bits : 0;
}

#else

uint64_t CacheDomainHere() {
  unsigned cpu = 0;
  unsigned node = 0;
  return RawSyscall(SYS_getcpu, &cpu, &node, nullptr) == 0 ? node : 0;
}

#endif

}  // namespace pcmalloc::os
