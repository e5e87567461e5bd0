// SPDX-License-Identifier: Apache-2.0
//
// Purpose: the hit path of small blocks above kFineLimit, for whoever comes from the inline one
//   (hot.h) without a block.
//
//      size -> gate -> class (6 instructions) -> Pop
//
// Invariants: as in hot.h; the gate is 0 in every mode but v2safe-cpu.
// Cost: 20 instructions to the block.
#ifndef PCMALLOC_ALLOCATOR_API_COARSE_H_
#define PCMALLOC_ALLOCATOR_API_COARSE_H_

#include <stddef.h>

#include "absl/base/attributes.h"
#include "absl/base/optimization.h"
#include "allocator/api/counted.h"
#include "allocator/api/hot.h"
#include "allocator/sizes/size_classes.h"
#include "percpu/ops.h"

namespace pcmalloc {

inline bool IsCoarse(size_t size) { return size - (kFineLimit + 1) < pcmalloc_coarse_gate; }

// A block of the coarse class, or null: another size, another mode, a miss.
ABSL_ATTRIBUTE_ALWAYS_INLINE inline void* PopCoarse(size_t size) {
  if (ABSL_PREDICT_FALSE(!IsCoarse(size))) return nullptr;
  void* p = percpu::Pop<percpu::Index::kCpuId>(CoarseClassOf(size));
  if (kCountOperations && p != nullptr) CountFast();
  return p;
}

}  // namespace pcmalloc

#endif  // PCMALLOC_ALLOCATOR_API_COARSE_H_
