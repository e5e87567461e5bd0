// SPDX-License-Identifier: Apache-2.0
//
// Purpose: the kernel's memory interface as the allocator needs it: reserve, commit, return,
//   release.
// Invariants: errno is kept; every refusal is reported to the caller, none is ignored; sizes and
//   addresses are multiples of KernelPageSize() unless said otherwise; nothing is allocated.
// Cost: one system call each, except the cached constants.
#ifndef PCMALLOC_ALLOCATOR_OS_MEMORY_H_
#define PCMALLOC_ALLOCATOR_OS_MEMORY_H_

#include <stddef.h>
#include <stdint.h>

#include <atomic>

namespace pcmalloc::os {

// The kernel's page size in bytes (4, 16 or 64 KiB), from the aux vector.
size_t KernelPageSize();

// Address space without memory behind it (PROT_NONE, not counted by overcommit), aligned to
// `alignment` (a power of two). Null when refused.
void* Reserve(size_t size, size_t alignment);
void Unreserve(void* start, size_t size);

// Makes reserved memory readable and writable; pages arrive zeroed on first touch. False: refused.
bool Commit(void* start, size_t size);

// Makes reserved memory readable: it reads as zero, takes no memory and is not counted by
// overcommit. False: refused.
bool LetRead(void* start, size_t size);

// Gives the contents back; the range stays committed and reads as zero afterwards. False: refused,
// which locked memory is; each page is as before or, if the range is several mappings, reads as
// zero.
bool Return(void* start, size_t size);

// The same of memory that nobody uses, locked or not: not for what is in use, even where its
// contents are in nobody's way, because who has locked memory does not want page faults. Where the
// program's memory is to be locked it is unlocked (LockForUse locks it again), so that it does not
// count for RLIMIT_MEMLOCK; else what was locked stays so, and is again when it is touched (Linux
// 5.18).
bool ReturnUnused(void* start, size_t size);

// Asks for hugepages in a range (MADV_HUGEPAGE), or for none: also not where the system would give
// them unasked. Takes effect on pages that are touched later. False: refused.
bool WantHuge(void* start, size_t size, bool huge);

// Brings the pages of a committed range in at once instead of fault by fault, what is there stays.
// False where the kernel cannot (before Linux 5.14) or has no memory.
bool Populate(void* start, size_t size);

// What the program has asked for by mlockall(MCL_FUTURE). The kernel then locks new mappings; but
// what is committed of a reserve that was there before it does not lock, so that is for whoever
// takes memory without contents into use. Of no meaning to the child of a fork.
enum class Locking : uint8_t {
  kNone,
  kWhenTouched,  // MCL_ONFAULT
  kAtOnce,
};
extern std::atomic<Locking> locking;
inline bool WantsLocking() { return locking.load(std::memory_order_relaxed) != Locking::kNone; }

// Locks committed memory as it was asked for. False: refused (RLIMIT_MEMLOCK, or there is no
// memory).
bool Lock(void* start, size_t size);
// The same for memory that is taken into use: a load, for all but those who have asked.
inline bool LockForUse(void* start, size_t size) {
  return __builtin_expect(!WantsLocking(), 1) || Lock(start, size);
}

// RLIMIT_AS in bytes, SIZE_MAX when unlimited.
size_t AddressSpaceLimit();

}  // namespace pcmalloc::os

#endif  // PCMALLOC_ALLOCATOR_OS_MEMORY_H_
