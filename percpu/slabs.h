// SPDX-License-Identifier: Apache-2.0
//
// Purpose: the life of slabs: made on first use of a CPU, stopped, drained, exchanged, started
//   again; and the operations of the slow paths in whatever mode the process runs.
//
//        first use           Stop                    fence done
//      closed ------> open --------> closing ------------------> owned by the stopper
//                      ^                                              |
//                      '------------------- Start --------------------'
//
// Invariants:
//   - Stop takes the CPU's lock, stores the closed slab into slab_of[cpu], then fences. A section
//     that had loaded the old pointer has committed or was aborted by then, and a new one meets the
//     closed slab: the stopper reads and writes the slab with plain accesses until Start.
//   - No word that a section reads and writes is written from outside before that fence.
//   - Who owns a slab changes a header by one store, after all that it stands for: a fork may leave
//     a child in the middle, which takes the slab over as it is.
//   - In locked mode slab_of stays closed for good and the same lock guards every access instead.
//   - Locks are taken in the order: creation lock, a CPU's lock, then those of the layers that
//     items are given to. A thread that holds one already (signal handler) is refused, never waits
//     for itself.
// Cost: Stop is a system call of 4-9 us; everything else is uncontended locks and copies.
#ifndef PCMALLOC_PERCPU_SLABS_H_
#define PCMALLOC_PERCPU_SLABS_H_

#include <stddef.h>
#include <stdint.h>

#include "percpu/slab.h"

namespace pcmalloc::percpu {

enum class Mode : uint8_t {
  kUnset,   // before Init: every operation misses
  kCpuId,   // sections, indexed by cpu_id
  kMmCid,   // sections, indexed by mm_cid
  kCached,  // sections by the cached pointer that the kernel invalidates (the legacy scheme)
  kLocked,  // no sections: a lock for each slab
};

// Fills the table with the closed slab for every index below `bound`. Before any section runs: no
// gate is open and no mode set.
void InitTable(unsigned bound);

// Chooses the mode for good; `geometry` is what new slabs get. Call once, after InitTable.
void Init(Mode mode, const Geometry& geometry);
Mode CurrentMode();
unsigned Bound();

// Where the calling thread's next operation will probably land: an index below Bound(), or -1 if
// the thread has no registered area. A hint, wrong after the next preemption.
int CurrentIndex();

// Removes what may keep the calling thread from having an index (an area not registered yet). False
// if it cannot have one: no mode chosen yet, or the kernel refused.
bool PrepareThread();

// Makes the slab of an index if it has none. False if there is no memory, if the index is stopped
// or another thread makes or moves a slab at the moment, or if this thread holds a lock that is
// needed (signal handler).
bool EnsureSlab(int index);

// The slab now in the table: never null, the closed slab when stopped or unused (always in locked
// mode).
Slab* OpenSlab(int index);

// The number of slabs that exist, and one past the highest index that has one.
unsigned PopulatedSlabs();
unsigned HighestUsed();

// The section of the mode in force. PopBatch/PushBatch return how many items moved (0: empty, full,
// closed, or in locked mode a lock that is not to be had soon) of `n`, which is at least 1.
uint32_t PopBatch(unsigned size_class, void** out, uint32_t n);
uint32_t PushBatch(unsigned size_class, void* const* in, uint32_t n);

// Slots in force and slots at most; both 0 for an index without a slab.
struct Capacity {
  uint32_t now;
  uint32_t most;
};
Capacity CapacityOf(int index, unsigned size_class);

// Objects of a class in the slab of an index now; a hint while sections run on it.
uint32_t HeldBy(int index, unsigned size_class);

// Sets the capacity in force of a class on the slab of `index` to `capacity` slots (cut to what the
// geometry allows), creating the class's stack on first use. The calling thread should be running
// on that index. Returns by how many slots the capacity changed: 0 also when the thread was moved
// away or the header changed meanwhile; then try again or leave it. Items above a lowered capacity
// stay and can be popped.
int32_t SetCapacity(int index, unsigned size_class, uint32_t capacity);

// Takes the slab of an index away from all sections and returns it: the caller owns it until Start.
// Null if the index has no slab, if the fence was refused, or if this thread holds the index
// already.
Slab* Stop(int index);

// Gives the index back with `slab`, the same or another one, as its slab. False, with no effect, if
// the calling thread has not stopped the index.
bool Start(int index, Slab* slab);

// Start with the slab that Stop returned.
bool Restart(int index);

// Receives items taken out of a slab.
using Receiver = void (*)(unsigned size_class, void* const* items, uint32_t n);

// Is told how many slots a class of an index has lost.
using Loser = void (*)(int index, unsigned size_class, uint32_t slots);

// Items that a drain or a move carries at a time: on the stack, which may be a signal handler's.
inline constexpr uint32_t kOwnedAtOnce = 16;

// Stops an index, hands all its items to `receiver`, starts it again. Returns the number of items.
// With `loser` every class loses its slots too, and `loser` is told of each that had any; not if
// the index could not be stopped.
size_t Drain(int index, Receiver receiver, Loser loser = nullptr);

// For telling an idle index from one at work: `state` is equal at two times if no section has
// committed in between, or if they undid each other's work. Costs a few cache lines of another CPU.
struct Activity {
  uint64_t state;
  bool holds_items;
};
Activity ActivityOf(int index);

// Moves an index to a slab of another geometry; items that do not fit go to `receiver`. False: no
// memory or the index could not be stopped.
bool Resize(int index, const Geometry& geometry, Receiver receiver);

// The same for the paths of malloc and free: never waits for a lock, so it also fails where the
// index is stopped or another slab is being made or moved; no effect if the geometry is in force.
bool TryResize(int index, const Geometry& geometry, Receiver receiver);

// Bytes of address space of all slabs, in use or kept.
size_t SlabBytes();

// fork: taken before, given back after in parent and child. Re-entrant in the sense of Lock. A
// fork in a signal handler waits for nobody; the child takes over what threads that are not
// there had locked.
void LockForFork();
void UnlockAfterFork(bool in_child);

}  // namespace pcmalloc::percpu

#endif  // PCMALLOC_PERCPU_SLABS_H_
