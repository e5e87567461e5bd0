// SPDX-License-Identifier: Apache-2.0
#include "allocator/os/memory.h"

#include <errno.h>
#include <sys/auxv.h>
#include <sys/mman.h>
#include <sys/resource.h>

#include <atomic>

#include "allocator/base/round.h"
#include "allocator/base/syscall.h"

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif

#ifndef MADV_DONTNEED_LOCKED
#define MADV_DONTNEED_LOCKED 24
#endif

namespace pcmalloc::os {
namespace {

// The largest page of any Linux port this code runs on: a multiple of all the others, so safe to
// work with while the true size is not known.
constexpr size_t kLargestKernelPage = 65536;

std::atomic<size_t> cached_page_size{0};

// The kernel's addresses are positive as a long on 64-bit machines, its errors are not.
void* Map(void* where, size_t size, int protection, int flags) {
  const long result = RawSyscall(SYS_mmap, where, size, protection,
                                 MAP_PRIVATE | MAP_ANONYMOUS | flags, -1, long{0});
  return result < 0 ? nullptr : reinterpret_cast<void*>(result);
}

}  // namespace

size_t KernelPageSize() {
  size_t size = cached_page_size.load(std::memory_order_relaxed);
  if (__builtin_expect(size != 0, 1)) return size;
  ErrnoSaver saver;
  size = getauxval(AT_PAGESZ);
  if (size == 0) return kLargestKernelPage;  // asked before the C library saw the aux vector
  cached_page_size.store(size, std::memory_order_relaxed);
  return size;
}

void* Reserve(size_t size, size_t alignment) {
  // No MAP_NORESERVE: Commit is to be charged, and refused where the system's policy says so.
  char* start = static_cast<char*>(Map(nullptr, size, PROT_NONE, 0));
  if (start == nullptr) return nullptr;
  if ((reinterpret_cast<uintptr_t>(start) & (alignment - 1)) == 0) return start;
  Unreserve(start, size);

  // The exact size was tried first because the slack would break a tight RLIMIT_AS.
  if (size > SIZE_MAX - alignment) return nullptr;
  start = static_cast<char*>(Map(nullptr, size + alignment, PROT_NONE, 0));
  if (start == nullptr) return nullptr;
  char* aligned = reinterpret_cast<char*>(RoundUp(reinterpret_cast<uintptr_t>(start), alignment));
  const size_t head = static_cast<size_t>(aligned - start);
  if (head != 0) Unreserve(start, head);
  Unreserve(aligned + size, alignment - head);
  return aligned;
}

void Unreserve(void* start, size_t size) {
  // Cutting a mapping in two is refused at the limit on mappings. The part then stays reserved,
  // without memory behind it unless it had some: give at least that back.
  if (RawSyscall(SYS_munmap, start, size) < 0) Return(start, size);
}

bool Commit(void* start, size_t size) {
  return RawSyscall(SYS_mprotect, start, size, PROT_READ | PROT_WRITE) == 0;
}

bool LetRead(void* start, size_t size) {
  return RawSyscall(SYS_mprotect, start, size, PROT_READ) == 0;
}

bool Return(void* start, size_t size) {
  return RawSyscall(SYS_madvise, start, size, MADV_DONTNEED) == 0;
}

bool ReturnUnused(void* start, size_t size) {
  if (WantsLocking() && RawSyscall(SYS_munlock, start, size) == 0) {
    if (Return(start, size)) return true;
    (void)Lock(start, size);  // a sandbox refuses it; it is handed out as it is
    return false;
  }
  const long result = RawSyscall(SYS_madvise, start, size, MADV_DONTNEED);
  return result == 0 ||
         (result == -EINVAL && RawSyscall(SYS_madvise, start, size, MADV_DONTNEED_LOCKED) == 0);
}

bool WantHuge(void* start, size_t size, bool huge) {
  return RawSyscall(SYS_madvise, start, size, huge ? MADV_HUGEPAGE : MADV_NOHUGEPAGE) == 0;
}

bool Populate(void* start, size_t size) {
  return RawSyscall(SYS_madvise, start, size, MADV_POPULATE_WRITE) == 0;
}

constinit std::atomic<Locking> locking{Locking::kNone};

bool Lock(void* start, size_t size) {
  constexpr int kOnFault = 1;  // MLOCK_ONFAULT
  switch (locking.load(std::memory_order_relaxed)) {
    case Locking::kNone:
      return true;
    case Locking::kWhenTouched:
      return RawSyscall(SYS_mlock2, start, size, kOnFault) == 0;
    case Locking::kAtOnce:
      return RawSyscall(SYS_mlock, start, size) == 0;
  }
  return false;
}

size_t AddressSpaceLimit() {
  rlimit limit;  // the kernel's rlimit64 where long has 64 bits
  if (RawSyscall(SYS_prlimit64, 0, RLIMIT_AS, nullptr, &limit) < 0) return SIZE_MAX;
  return limit.rlim_cur;  // the kernel's "unlimited" is all ones, which is SIZE_MAX
}

}  // namespace pcmalloc::os
