// SPDX-License-Identifier: Apache-2.0
//
// Purpose: from the first call to the mode in force: configuration, rseq, slabs, gates, fork
//   handlers.
//
//      cold --first slow path after libc is up, or our constructor--> busy --> ready
//
// Invariants: until ready, every request is served from the shared layers, so whoever calls while
//   another thread (or this one, further up its stack) is busy just goes on; ready is final.
// Cost: once, below 200 us; a load afterwards.
#ifndef PCMALLOC_ALLOCATOR_API_INIT_H_
#define PCMALLOC_ALLOCATOR_API_INIT_H_

#include <atomic>

#include "absl/base/optimization.h"
#include "allocator/observe/stats.h"

namespace pcmalloc {

enum class InitState : int { kCold, kBusy, kReady };
extern std::atomic<InitState> init_state;

void InitializeSlow();

inline void Initialize() {
  if (ABSL_PREDICT_FALSE(init_state.load(std::memory_order_acquire) != InitState::kReady)) {
    InitializeSlow();
  }
}

// The mode's name and why it was chosen; "starting" before the choice.
const char* ModeName();
const char* ModeReason();
observe::Identity WhoAmI();

}  // namespace pcmalloc

#endif  // PCMALLOC_ALLOCATOR_API_INIT_H_
