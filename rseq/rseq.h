// SPDX-License-Identifier: Apache-2.0
//
// Purpose: the kernel's restartable-sequences contract, seen from one process: whose area is
//   registered, how a thread gets one, how to fence. Knows nothing of malloc.
// Invariants: of a registered area only rseq_cs is ever written (by the sections); what others
//   registered is never unregistered; errno is kept; nothing is allocated; everything here is
//   async-signal-safe.
// Cost: Discover() is a handful of system calls, once (below 200 us); the rest is said at each
//   function.
#ifndef PCMALLOC_RSEQ_RSEQ_H_
#define PCMALLOC_RSEQ_RSEQ_H_

#include <stddef.h>
#include <stdint.h>

#include <atomic>

namespace pcmalloc::rseq {

// The part of the area shared with the kernel that every kernel knows. Field offsets are
// Linux's ABI (include/uapi/linux/rseq.h).
struct Area {
  uint32_t cpu_id_start;
  uint32_t cpu_id;  // kUninitialized, kFailed, or the CPU that the thread runs on
  uint64_t rseq_cs;
  uint32_t flags;
  uint32_t node_id;
  uint32_t mm_cid;      // kept up to date where the feature size is >= 28
  uint32_t slice_ctrl;  // only where more than 32 bytes are registered
};
static_assert(sizeof(Area) == 32);
inline constexpr size_t kCpuIdOffset = 4;
inline constexpr size_t kRseqCsOffset = 8;
inline constexpr size_t kMmCidOffset = 24;
// The legacy scheme's word: the 8 bytes that begin here, seen from the area, so that
// cpu_id_start is the high half. It is the program's, and may be written, only where
// Discovery::cached_word is set:
//
//    -32                        -4         0              4        8
//     | 28 bytes, nobody's       | low half | cpu_id_start | cpu_id | rseq_cs ...    32 registered
//                                '------- the word -------'
//
// The word is 4-byte aligned and never crosses a cache line; all its bytes are 0 in a new thread.
inline constexpr ptrdiff_t kCachedWordOffset = -4;
inline constexpr uint32_t kUninitialized = 0xffffffffu;  // cpu_id of a thread never registered
inline constexpr uint32_t kFailed = 0xfffffffeu;         // cpu_id after a refused registration

enum class Owner : uint8_t {
  kNone,  // rseq cannot be used in this process: see Discovery::reason
  kLibc,  // the C library registered each thread's area and we share it
  kOwn,   // this library registers its own thread-local area, thread by thread
};

struct Discovery {
  Owner owner;
  int refused_error;           // error number of the refused rseq call when kNone, else 0
  uint32_t feature_size;       // AT_RSEQ_FEATURE_SIZE, 0 where the kernel does not say
  uint32_t alignment;          // AT_RSEQ_ALIGN, 0 where the kernel does not say
  uint32_t registered_length;  // bytes that are (kLibc) or will be (kOwn) registered; 0 unknown
  bool cached_word;            // an own area of exactly 32 bytes: see kCachedWordOffset
  bool mm_cid_maintained;      // the registered area's mm_cid can be used as an index
  bool fence_available;        // membarrier(PRIVATE_EXPEDITED_RSEQ) is there and registered for
  bool fence_one_cpu;          // and takes a CPU number
  int fence_error;             // error number when not available
  uint32_t cpu_bound;          // every cpu_id and mm_cid is below it
  char reason[192];            // in words, for an administrator: why this owner, or why none
};

// Offset of the rseq area from the thread pointer, the same in every thread; read by the sections.
// 0 until Discover() stores it: before that no section may run, arming it would overwrite the
// thread control block.
extern "C" __attribute__((visibility("hidden"))) ptrdiff_t pcmalloc_rseq_offset;

// Finds out, registers the process for fences and the calling thread for rseq (when kOwn); the same
// answer on every later call. Call it while single-threaded if possible; a race is harmless.
const Discovery& Discover();

// For the legacy scheme, before the first Discover(): let an area of our own have exactly 32 bytes,
// also where the kernel offers more, so that the kernel rewrites cpu_id_start and cached_word is
// set. No effect on a registration of the C library. False: too late, Discover() has chosen.
bool RequestLength32();

// The area of the calling thread that the sections use; before Discover() one that reads as not
// registered.
Area* ThisArea();

// Registers the calling thread's own area if it has none yet; true if its cpu_id is usable
// afterwards. Blocks signals for the duration. Four system calls the first time in a thread, a load
// afterwards; a refusal is remembered per thread (cpu_id = kFailed). False, with nothing changed,
// in a vfork or CLONE_VM child whose parent thread is not registered: it shares the parent's area.
bool EnsureThreadRegistered();

// Undoes EnsureThreadRegistered() for a thread about to end; the area then stays kFailed. Needed
// where the C library unmaps a thread's storage while it still runs (musl, detached threads): the
// kernel would write to the lost area and kill the process. Each thread registered by us does it by
// itself in its second pass of pthread key destructors. Does nothing unless the owner is kOwn.
void UnregisterThread();

// Writes 0 to the calling thread's rseq_cs. Before the library is unmapped, in each thread: the
// kernel reads the descriptor that rseq_cs names, and a lost one is a SIGSEGV.
void ForgetSections();

// The CPU the calling thread runs on by rseq, or by getcpu where there is no rseq; -1 where neither
// works. Only a hint.
int CurrentCpu();

// Waits until every section that runs on `cpu` now has committed or will be aborted, and every
// section that starts later sees all stores made before the call. False: the kernel refused (then
// nothing may be assumed). 4-9 us; a CPU number that does not exist is harmless.
[[nodiscard]] bool FenceCpu(int cpu);

// The same for all CPUs. Needed wherever the index is mm_cid, which is not tied to a CPU.
[[nodiscard]] bool FenceAll();

// Sections of this process that the kernel has aborted so far; counted by the abort stubs.
extern "C" __attribute__((visibility("hidden"))) uint64_t pcmalloc_rseq_aborts;
inline uint64_t Aborts() { return __atomic_load_n(&pcmalloc_rseq_aborts, __ATOMIC_RELAXED); }

}  // namespace pcmalloc::rseq

#endif  // PCMALLOC_RSEQ_RSEQ_H_
