// SPDX-License-Identifier: Apache-2.0
//
// mlockall and munlockall, to know what the program wants of memory that it has not got yet.
//
// With MCL_FUTURE the kernel locks what is mapped from then on. This allocator maps its memory
// before it is needed and makes it accessible later, which is no new mapping: a program that must
// not wait for the disk, or has secrets, would get memory from malloc that is not locked. So the
// page heap locks what it takes into use, once the program has asked for it here.
//
// Only in libpcmalloc.so, like dlopen: an archive must not bring names that a program may define.
#include <sys/mman.h>

#include "allocator/api/exports.h"
#include "allocator/base/syscall.h"
#include "allocator/os/memory.h"

namespace pcmalloc {
namespace {

os::Locking LockingFor(int flags) {
  if ((flags & MCL_FUTURE) == 0) return os::Locking::kNone;  // which ends it, if there was any
  return (flags & MCL_ONFAULT) != 0 ? os::Locking::kWhenTouched : os::Locking::kAtOnce;
}

}  // namespace
}  // namespace pcmalloc

using pcmalloc::CResult;
using pcmalloc::RawSyscall;
using pcmalloc::os::Locking;
using pcmalloc::os::locking;

extern "C" {

PCM_EXPORT int mlockall(int flags) {
  // Before the call: what another thread takes while it runs is locked rather than not.
  const Locking before = locking.exchange(pcmalloc::LockingFor(flags));
  const int result = CResult(RawSyscall(SYS_mlockall, flags));
  if (result != 0) locking = before;
  return result;
}

PCM_EXPORT int munlockall() {
  const int result = CResult(RawSyscall(SYS_munlockall));
  if (result == 0) locking = Locking::kNone;
  return result;
}

}  // extern "C"
