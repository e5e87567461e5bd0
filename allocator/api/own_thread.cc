// SPDX-License-Identifier: Apache-2.0
//
// Finds the C library's own pthread_create for the background thread.
//
// The first one of that name may be a wrapper of the program's or of a tool that is preloaded too.
// One that allocates under a lock of its own would meet itself: wrapper, malloc, our thread's
// start, the wrapper's lock. And what keeps lists of a program's threads should not find one there
// that the program never made.
//
// At the start, since a lookup takes the loader's lock, which malloc must not wait for: whoever
// holds it may be a constructor that waits for another thread.
//
// Only in libpcmalloc.so: in a static program there may be nothing to look names up with.
#include <dlfcn.h>

#include "allocator/release/background.h"

namespace pcmalloc {
namespace {

// Before the constructor that lets threads be started (init.cc).
__attribute__((constructor(101))) void Find() {
  void* const own = dlsym(RTLD_NEXT, "pthread_create");
  if (own != nullptr) release::CreateThreadBy(reinterpret_cast<release::CreateThread*>(own));
}

}  // namespace
}  // namespace pcmalloc
