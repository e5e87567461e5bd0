// SPDX-License-Identifier: Apache-2.0
//
// dlopen without RTLD_DEEPBIND, which would split a process between two mallocs.
//
// That flag makes a library look names up in its own dependencies before it looks in the program
// and what is preloaded: its malloc and free are then libc's, while strdup of the same libc, the
// program and every other library keep to ours, and whatever one side hands the other to be freed
// brings the process down. PHP opens its extensions so. C libraries that lack the flag, as musl,
// show that programs get by without it.
//
// Only in libpcmalloc.so: an archive that defined dlopen would take it away from static programs.
#include <dlfcn.h>

#include <atomic>

#include "allocator/api/exports.h"

// The caller's return address tells libc whose RUNPATH, $ORIGIN and name space count: it has to be
// the next dlopen's return address too, in every kind of build.
#if defined(__clang__)
#define PCM_TAIL_CALLS
#define PCM_TAIL_RETURN [[clang::musttail]] return
#else
#define PCM_TAIL_CALLS __attribute__((optimize("optimize-sibling-calls")))
#define PCM_TAIL_RETURN return
#endif

namespace pcmalloc {
namespace {

using Dlopen = void*(const char*, int) noexcept;

std::atomic<Dlopen*> next_dlopen{nullptr};

Dlopen* NextDlopen() {
  Dlopen* next = next_dlopen.load(std::memory_order_relaxed);
  if (next == nullptr) {
    next = reinterpret_cast<Dlopen*>(dlsym(RTLD_NEXT, "dlopen"));
    next_dlopen.store(next, std::memory_order_relaxed);
  }
  return next;
}

}  // namespace
}  // namespace pcmalloc

extern "C" PCM_EXPORT PCM_TAIL_CALLS void* dlopen(const char* file, int mode) noexcept {
  PCM_TAIL_RETURN pcmalloc::NextDlopen()(file, mode & ~RTLD_DEEPBIND);
}
