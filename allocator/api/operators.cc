// SPDX-License-Identifier: Apache-2.0
//
// The C++ operators: 8 forms of new, 12 of delete. Nothing here needs libstdc++ unless an
// allocation fails: what a failure calls are weak references, which a C++ program brings along.
#include <stddef.h>
#include <stdint.h>

#include <new>

#include "absl/base/optimization.h"
#include "allocator/api/blocks.h"
#include "allocator/api/coarse.h"
#include "allocator/api/exports.h"
#include "allocator/api/failure.h"
#include "allocator/api/hot.h"

namespace pcmalloc {
namespace {

ABSL_ATTRIBUTE_NOINLINE void* NewOtherwise(size_t size) {
  void* p = MallocBeyond(size);
  return ABSL_PREDICT_TRUE(p != nullptr) ? p : NewFailed(kMinAlignment, size);
}

// Without a frame of its own while it hits.
ABSL_ATTRIBUTE_NOINLINE void* NewSlow(size_t size) {
  void* p = PopCoarse(size);
  return ABSL_PREDICT_TRUE(p != nullptr) ? p : NewOtherwise(size);
}

ABSL_ATTRIBUTE_ALWAYS_INLINE inline void* New(size_t size) {
  void* p = PopSmall(size);
  return ABSL_PREDICT_TRUE(p != nullptr) ? p : NewSlow(size);
}

ABSL_ATTRIBUTE_NOINLINE void* NothrowOtherwise(size_t size) {
  void* p = MallocBeyond(size);
  return ABSL_PREDICT_TRUE(p != nullptr) ? p : NothrowNewFailed(kMinAlignment, size);
}

ABSL_ATTRIBUTE_NOINLINE void* NothrowSlow(size_t size) {
  void* p = PopCoarse(size);
  return ABSL_PREDICT_TRUE(p != nullptr) ? p : NothrowOtherwise(size);
}

ABSL_ATTRIBUTE_ALWAYS_INLINE inline void* NewNothrow(size_t size) {
  void* p = PopSmall(size);
  return ABSL_PREDICT_TRUE(p != nullptr) ? p : NothrowSlow(size);
}

void* NewAligned(std::align_val_t alignment, size_t size) {
  void* p = TakeAligned(static_cast<size_t>(alignment), size);
  return ABSL_PREDICT_TRUE(p != nullptr) ? p : NewFailed(static_cast<size_t>(alignment), size);
}

void* NewAlignedNothrow(std::align_val_t alignment, size_t size) {
  void* p = TakeAligned(static_cast<size_t>(alignment), size);
  return ABSL_PREDICT_TRUE(p != nullptr) ? p
                                         : NothrowNewFailed(static_cast<size_t>(alignment), size);
}

}  // namespace
}  // namespace pcmalloc

using pcmalloc::Free;

PCM_HOT_EXPORT void* operator new(size_t size) { return pcmalloc::New(size); }
PCM_HOT_EXPORT void* operator new[](size_t size) { return pcmalloc::New(size); }
PCM_EXPORT void* operator new(size_t size, const std::nothrow_t&) noexcept {
  return pcmalloc::NewNothrow(size);
}
PCM_EXPORT void* operator new[](size_t size, const std::nothrow_t&) noexcept {
  return pcmalloc::NewNothrow(size);
}
PCM_EXPORT void* operator new(size_t size, std::align_val_t alignment) {
  return pcmalloc::NewAligned(alignment, size);
}
PCM_EXPORT void* operator new[](size_t size, std::align_val_t alignment) {
  return pcmalloc::NewAligned(alignment, size);
}
PCM_EXPORT void* operator new(size_t size, std::align_val_t alignment,
                              const std::nothrow_t&) noexcept {
  return pcmalloc::NewAlignedNothrow(alignment, size);
}
PCM_EXPORT void* operator new[](size_t size, std::align_val_t alignment,
                                const std::nothrow_t&) noexcept {
  return pcmalloc::NewAlignedNothrow(alignment, size);
}

PCM_HOT_EXPORT void operator delete(void* p) noexcept { Free(p); }
PCM_HOT_EXPORT void operator delete[](void* p) noexcept { Free(p); }
PCM_EXPORT void operator delete(void* p, const std::nothrow_t&) noexcept { Free(p); }
PCM_EXPORT void operator delete[](void* p, const std::nothrow_t&) noexcept { Free(p); }
PCM_HOT_EXPORT void operator delete(void* p, size_t) noexcept { Free(p); }
PCM_HOT_EXPORT void operator delete[](void* p, size_t) noexcept { Free(p); }
PCM_EXPORT void operator delete(void* p, std::align_val_t) noexcept { Free(p); }
PCM_EXPORT void operator delete[](void* p, std::align_val_t) noexcept { Free(p); }
PCM_EXPORT void operator delete(void* p, std::align_val_t, const std::nothrow_t&) noexcept {
  Free(p);
}
PCM_EXPORT void operator delete[](void* p, std::align_val_t, const std::nothrow_t&) noexcept {
  Free(p);
}
PCM_EXPORT void operator delete(void* p, size_t, std::align_val_t) noexcept { Free(p); }
PCM_EXPORT void operator delete[](void* p, size_t, std::align_val_t) noexcept { Free(p); }

// What P0901 calls size feedback: the block and how much of it may be used.
extern "C" {

struct sized_ptr_t {
  void* p;
  size_t n;
};

PCM_EXPORT sized_ptr_t __size_returning_new(size_t size) {
  void* p = pcmalloc::New(size);
  return {p, pcmalloc::BlockSize(p)};
}

PCM_EXPORT sized_ptr_t __size_returning_new_aligned(size_t size, std::align_val_t alignment) {
  void* p = pcmalloc::NewAligned(alignment, size);
  return {p, pcmalloc::BlockSize(p)};
}

// The hint says how hot or cold the block will be (0 .. 255); every block is treated alike.
PCM_EXPORT sized_ptr_t __size_returning_new_hot_cold(size_t size, uint8_t) {
  return __size_returning_new(size);
}

PCM_EXPORT sized_ptr_t __size_returning_new_aligned_hot_cold(size_t size,
                                                             std::align_val_t alignment, uint8_t) {
  return __size_returning_new_aligned(size, alignment);
}

}  // extern "C"
