// SPDX-License-Identifier: Apache-2.0
//
// Purpose: the thread that gives memory back while the application does nothing, and when there is
//   one.
//
//      watching --the process has a second thread--> running --nothing left to give back--.
//         ^                                             | looks about every second          |
//         |---------- child of a fork ------------------'                                   |
//         '---------------------------------------------------------------------------------'
//
// Invariants: a process that never had a second thread never gets one from us (background_thread:on
//   apart). pthread_create is called with no lock of ours held, not by a thread that a signal
//   handler interrupted inside the allocator, not by one whose signal mask looks like a handler's,
//   not before our constructor, not in a vfork child. The thread blocks every signal but those that
//   the C library itself sends. It ends rather than sleeps for ever: a process whose main thread
//   has called pthread_exit ends with its last thread, and must not wait for ours.
// Cost: one load on each slow path, and a comparison while there is no such thread.
#ifndef PCMALLOC_ALLOCATOR_RELEASE_BACKGROUND_H_
#define PCMALLOC_ALLOCATOR_RELEASE_BACKGROUND_H_

#include <pthread.h>
#include <stdint.h>

#include <atomic>

namespace pcmalloc::release {

// What a slow path has to do for the background thread.
enum class Attention : uint32_t {
  kNone,   // nothing: there is a thread, or nothing that it could do
  kNote,   // say that something happened: the thread is about to end
  kTick,   // return what is due: there will be no thread
  kWatch,  // the same, and see whether it is time to start one
};
extern std::atomic<Attention> attention;

// Begins to watch, as the configuration says. Once, by the thread that starts the library.
void WatchForThreads();

// Whom to ask for the thread, instead of the first pthread_create that the loader finds.
using CreateThread = int(pthread_t*, const pthread_attr_t*, void* (*)(void*), void*);
void CreateThreadBy(CreateThread* create);

// From now on constructors have run far enough for threads to be started.
void AllowThread();

// On slow paths, when attention is not kNone and no lock is held.
void PayAttention(bool may_start);

// In the child of a fork: there is no thread, and the calling one is the only one.
void ForgetThread();

struct BackgroundStats {
  const char* state;  // "watching", "running", "off: ..."
  uint64_t wakeups;   // returns from sleep
  uint64_t started;   // threads so far, one at a time
};
BackgroundStats ReadBackgroundStats();

}  // namespace pcmalloc::release

#endif  // PCMALLOC_ALLOCATOR_RELEASE_BACKGROUND_H_
