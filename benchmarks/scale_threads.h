// SPDX-License-Identifier: Apache-2.0
// Purpose: runs a body on N threads that start together, and measures from the common start to the
//   common end; reports the memory held at the peak and after everything was freed.
// Invariants: creation and end of the threads lie outside the measurement (pthread_create's own
//   allocations too). Work is fixed in operations, not in time, so that runs are comparable.
// Cost: two barriers per run.
#ifndef PCMALLOC_BENCHMARKS_SCALE_THREADS_H_
#define PCMALLOC_BENCHMARKS_SCALE_THREADS_H_

#include <pthread.h>

#include <cstddef>
#include <cstdint>

#include "benchmarks/harness.h"

namespace pcmalloc::bench {

inline constexpr int kMaxThreads = 64;

using ThreadBody = void (*)(void* context, int index);

// What each thread does: `body` is measured; `prepare` before it and `finish` after it may be null.
// No thread finishes before all have done the body, so that all blocks live at the same time.
struct Phases {
  ThreadBody prepare;
  ThreadBody body;
  ThreadBody finish;
};

// Each phase as phase(context, 0 .. threads-1), all threads at once.
Cost RunThreads(int threads, const Phases& phases, void* context);

void MustCreate(pthread_t* thread, void* (*function)(void*), void* argument);

// Peak so far, then what is left some time after the last free.
void EmitMemory(const char* row, const Arguments& arguments);

// The N of a row named ".../<N>t".
int ThreadsOf(const char* row);

// Operations of a row after the scale= argument.
uint64_t Operations(const Arguments& arguments, uint64_t full);

// Rows of scale_transfer.cc.
void Transfer(const char* row, const Arguments& arguments);
void RemoteFree(const char* row, const Arguments& arguments);
void FalseSharingActive(const char* row, const Arguments& arguments);
void FalseSharingPassive(const char* row, const Arguments& arguments);

}  // namespace pcmalloc::bench

#endif  // PCMALLOC_BENCHMARKS_SCALE_THREADS_H_
