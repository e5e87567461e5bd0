// SPDX-License-Identifier: Apache-2.0
//
// Purpose: whether the process has one thread, as far as its C library tells.
// Invariants: kOne is sure for threads made by pthread_create; async-signal-safe.
// Cost: two loads.
#ifndef PCMALLOC_ALLOCATOR_BASE_THREADS_H_
#define PCMALLOC_ALLOCATOR_BASE_THREADS_H_

extern "C" {
// glibc from 2.32 on (sys/single_threaded.h): false from the first pthread_create on; it may be
// true again once the last of the others has been joined.
extern char __libc_single_threaded __attribute__((weak));
}

namespace pcmalloc {

enum class Threads {
  kOne,
  kSeveral,  // now, or there were
  kUnknown,  // another C library, or an older one
};

inline Threads KnownThreads() {
  if (&__libc_single_threaded == nullptr) return Threads::kUnknown;
  return __libc_single_threaded != 0 ? Threads::kOne : Threads::kSeveral;
}

}  // namespace pcmalloc

#endif  // PCMALLOC_ALLOCATOR_BASE_THREADS_H_
