// SPDX-License-Identifier: Apache-2.0
//
// Purpose: decides when memory inside of spans goes back, which is what fragmentation costs:
//   objects here and there keep spans, most of which nobody uses.
//
//      heap, by address   | span | span | large | span | span | ...
//                                    ^ the sweep goes round, some spans at a time
//
//   Three occasions, as for whole spans (allocator/pages):
//   - too much is idle inside of spans, above a 32nd of what is in use or 16 MiB (more where what
//     was returned is needed again), and as much has been taken meanwhile without making use of it:
//     runs of 8 KiB or more go, down to half of that. Memory that a program breathes with stays;
//   - it has been idle for long: by age, runs of 4 KiB or more;
//   - somebody asks for all of it.
//   A hugepage is broken up only if an eighth of it can go, or for who asks for all.
//
// Invariants: one sweep at a time; a thread that finds another at it goes on without. No lock
//   is held during the system calls but the sweep's own, which malloc and free wait for only
//   above a limit.
// Cost: SweepIfDue: two loads if nothing is due. A span looked at: some 100 ns; a run returned: a
//   system call.
#ifndef PCMALLOC_ALLOCATOR_CENTRAL_SWEEP_H_
#define PCMALLOC_ALLOCATOR_CENTRAL_SWEEP_H_

#include <stddef.h>
#include <stdint.h>

#include <atomic>

#include "absl/base/optimization.h"
#include "allocator/central/central_list.h"

namespace pcmalloc::central {

// The range of idle bytes in which there is nothing to do; it begins at `low`.
struct SweepIf {
  std::atomic<uint64_t> low;
  std::atomic<uint64_t> width;
};
extern SweepIf sweep_if;

void SweepSome();

// To be called after objects came back to their spans, with no lock of this layer held.
inline void SweepIfDue() {
  const uint64_t above = CentralList::IdleBytes() - sweep_if.low.load(std::memory_order_relaxed);
  if (ABSL_PREDICT_FALSE(above > sweep_if.width.load(std::memory_order_relaxed))) SweepSome();
}

// What is due by age, as PageHeap::Decay, looking at most at so many stretches of 2 MiB; the next
// call goes on from there. Async-signal-safe.
uint64_t DecayHoles(uint64_t now_ms, unsigned stretches = UINT32_MAX);

// Bytes of the spans of small blocks that are in use or in caches.
uint64_t UsedBytes();

// Returns all that is idle inside of spans; the number of bytes.
size_t ReturnHoles();

// In the child of a fork, with the central lists' locks held: the parent's sweep is not there.
void RecoverSweep();

}  // namespace pcmalloc::central

#endif  // PCMALLOC_ALLOCATOR_CENTRAL_SWEEP_H_
