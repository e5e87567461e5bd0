// SPDX-License-Identifier: Apache-2.0
//
// Purpose: the way of a small block through malloc and free, for every entry point that hands one
//   out or takes one back: the hit path inline, everything else by a tail call.
//
//      Malloc(n)   n -> class (2 instructions) -> gate -> Pop      16 instructions to the return
//      Free(p)     p -> page -> gate -> class -> Push              19 instructions to the return
//
// Invariants: both gates (pcmalloc_small_gate, pcmalloc_primary_arena.fast_pages) are 0 until a
//   mode is chosen, and stay 0 in every mode but v2safe-cpu: neither "set up?" nor "which mode?"
//   costs a test. They are plain data without relocations, so even a call that comes before this
//   library is relocated takes the slow way.
// Cost: kept by tests/golden.
#ifndef PCMALLOC_ALLOCATOR_API_HOT_H_
#define PCMALLOC_ALLOCATOR_API_HOT_H_

#include <stddef.h>
#include <stdint.h>

#include "absl/base/attributes.h"
#include "absl/base/optimization.h"
#include "allocator/api/counted.h"
#include "allocator/pages/page_map.h"
#include "allocator/sizes/size_classes.h"
#include "percpu/ops.h"

namespace pcmalloc {

// One past the highest class that the inline path serves: 0, or kFineClasses + 1.
extern "C" __attribute__((visibility("hidden"))) size_t pcmalloc_small_gate;
// How many sizes above kFineLimit MallocBeyond's own hit path serves: 0, or all small ones.
extern "C" __attribute__((visibility("hidden"))) size_t pcmalloc_coarse_gate;

// Everything the hit path does not do: sizes above 1 KiB by a hit path of their own, 0 bytes, large
// blocks, other modes, misses, first call. Null on failure, errno = ENOMEM.
ABSL_ATTRIBUTE_NOINLINE void* MallocBeyond(size_t size);
// The general hit path: every cached class, in every mode that has sections; in v2safe-cpu above
// kFineLimit only. Null: not served.
ABSL_ATTRIBUTE_NOINLINE void* PopBeyond(size_t size);
// Also null, large and foreign pointers. Keeps errno.
ABSL_ATTRIBUTE_NOINLINE void FreeBeyond(void* p);

// A block of the fine class, or null: then call MallocBeyond.
ABSL_ATTRIBUTE_ALWAYS_INLINE inline void* PopSmall(size_t size) {
  const size_t size_class = (size + kMinAlignment - 1) / kMinAlignment;
  if (ABSL_PREDICT_FALSE(size_class >= pcmalloc_small_gate)) return nullptr;
  void* p = percpu::Pop<percpu::Index::kCpuId>(size_class);
  if (kCountOperations && p != nullptr) CountFast();
  return p;
}

// A block by either hit path, or null.
inline void* PopAny(size_t size) {
  void* p = PopSmall(size);
  return ABSL_PREDICT_TRUE(p != nullptr) ? p : PopBeyond(size);
}

ABSL_ATTRIBUTE_ALWAYS_INLINE inline bool PushSmall(void* p) {
  const PrimaryArena& arena = pcmalloc_primary_arena;
  const size_t page =
      (reinterpret_cast<uintptr_t>(p) - reinterpret_cast<uintptr_t>(arena.base)) >> kPageShift;
  if (ABSL_PREDICT_FALSE(page >= arena.fast_pages)) return false;
  const bool pushed = percpu::Push<percpu::Index::kCpuId>(arena.base[page], p);
  if (kCountOperations && pushed) CountFast();
  return pushed;
}

ABSL_ATTRIBUTE_ALWAYS_INLINE inline void* Malloc(size_t size) {
  void* p = PopSmall(size);
  if (ABSL_PREDICT_TRUE(p != nullptr)) return p;
  return MallocBeyond(size);
}

ABSL_ATTRIBUTE_ALWAYS_INLINE inline void Free(void* p) {
  if (ABSL_PREDICT_TRUE(PushSmall(p))) return;
  FreeBeyond(p);
}

}  // namespace pcmalloc

#endif  // PCMALLOC_ALLOCATOR_API_HOT_H_
