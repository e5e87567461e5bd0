// SPDX-License-Identifier: Apache-2.0
//
// setrlimit and prlimit that make room below a new limit on address space.
//
// The kernel counts what is only reserved against RLIMIT_AS. A limit that comes while the program
// runs is below what the arena has reserved from the start, so every mmap and every new thread of
// the program would be refused, however little memory is in use. The page heap finds out by itself
// when it needs address space next; here it is told at once.
//
// System calls, not the next library's functions: most who call these are children between fork and
// exec, where looking up a symbol may wait for a lock of the loader that nobody will release.
//
// Only in libpcmalloc.so, like dlopen: an archive must not bring names that a program may define.
#include <sys/resource.h>

#include "allocator/api/exports.h"
#include "allocator/base/syscall.h"
#include "allocator/pages/page_heap.h"

// Debuggers know no types of a function that has become another name of one like it.
#if defined(__clang__)
#define PCM_OWN_BODY
#else
#define PCM_OWN_BODY __attribute__((no_icf))
#endif

namespace pcmalloc {
namespace {

using Limit = rlimit;  // rlimit64 is the same, and the kernel's, where long has 64 bits

int SetLimit(int pid, int resource, const Limit* limit, Limit* old) {
  const long result = RawSyscall(SYS_prlimit64, pid, resource, limit, old);
  const bool own = pid == 0 || pid == RawSyscall(SYS_getpid);
  if (result == 0 && own && resource == RLIMIT_AS && limit != nullptr) PageHeap::FitAddressSpace();
  return CResult(result);
}

}  // namespace
}  // namespace pcmalloc

using pcmalloc::Limit;
using pcmalloc::SetLimit;

// By other names here: the headers' declarations have enumerations for `resource` in C++ alone.
extern "C" {

PCM_EXPORT int pcmalloc_setrlimit(int resource, const Limit* limit) __asm__("setrlimit");
PCM_EXPORT int pcmalloc_setrlimit(int resource, const Limit* limit) {
  return SetLimit(0, resource, limit, nullptr);
}

PCM_EXPORT int pcmalloc_setrlimit64(int resource, const Limit* limit) __asm__("setrlimit64");
PCM_EXPORT PCM_OWN_BODY int pcmalloc_setrlimit64(int resource, const Limit* limit) {
  return SetLimit(0, resource, limit, nullptr);
}

PCM_EXPORT int pcmalloc_prlimit(int pid, int resource, const Limit* limit,
                                Limit* old) __asm__("prlimit");
PCM_EXPORT int pcmalloc_prlimit(int pid, int resource, const Limit* limit, Limit* old) {
  return SetLimit(pid, resource, limit, old);
}

PCM_EXPORT int pcmalloc_prlimit64(int pid, int resource, const Limit* limit,
                                  Limit* old) __asm__("prlimit64");
PCM_EXPORT PCM_OWN_BODY int pcmalloc_prlimit64(int pid, int resource, const Limit* limit,
                                               Limit* old) {
  return SetLimit(pid, resource, limit, old);
}

}  // extern "C"
