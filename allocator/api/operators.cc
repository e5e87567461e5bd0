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
#include "allocator/api/replaced.h"

namespace pcmalloc {
namespace {

// Where a form goes in a program that replaces another one.
using Forward = void* (*)(size_t);

template <Forward kForward, bool kThrows>
ABSL_ATTRIBUTE_NOINLINE void* NewOtherwise(size_t size) {
  if (ABSL_PREDICT_FALSE(Replaced())) return kForward(size);
  void* p = MallocBeyond(size);
  if (ABSL_PREDICT_TRUE(p != nullptr)) return p;
  return kThrows ? NewFailed(kMinAlignment, size) : NothrowNewFailed(kMinAlignment, size);
}

// Without a frame of its own while it hits.
template <Forward kForward, bool kThrows>
ABSL_ATTRIBUTE_NOINLINE void* NewSlow(size_t size) {
  void* p = PopCoarse(size);
  return ABSL_PREDICT_TRUE(p != nullptr) ? p : NewOtherwise<kForward, kThrows>(size);
}

template <Forward kForward, bool kThrows = true>
ABSL_ATTRIBUTE_ALWAYS_INLINE inline void* New(size_t size) {
  void* p = PopSmall(size);
  return ABSL_PREDICT_TRUE(p != nullptr) ? p : NewSlow<kForward, kThrows>(size);
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

// `alignment` is what aligned forms are given.
template <auto kForward, typename... Alignment>
ABSL_ATTRIBUTE_NOINLINE void DeleteBeyond(void* p, Alignment... alignment) {
  if (ABSL_PREDICT_FALSE(Replaced())) return kForward(p, alignment...);
  FreeBeyond(p);
}

template <auto kForward, typename... Alignment>
ABSL_ATTRIBUTE_ALWAYS_INLINE inline void Delete(void* p, Alignment... alignment) {
  if (ABSL_PREDICT_TRUE(PushSmall(p))) return;
  DeleteBeyond<kForward>(p, alignment...);
}

}  // namespace
}  // namespace pcmalloc

namespace forward = pcmalloc::forward;
using std::align_val_t;
using std::nothrow_t;

PCM_HOT_EXPORT void* operator new(size_t n) { return pcmalloc::New<forward::New>(n); }
PCM_HOT_EXPORT void* operator new[](size_t n) { return pcmalloc::New<forward::NewArray>(n); }
PCM_EXPORT void* operator new(size_t n, const nothrow_t&) noexcept {
  return pcmalloc::New<forward::NewNothrow, false>(n);
}
PCM_EXPORT void* operator new[](size_t n, const nothrow_t&) noexcept {
  return pcmalloc::New<forward::NewArrayNothrow, false>(n);
}
PCM_EXPORT void* operator new(size_t n, align_val_t a) {
  return pcmalloc::Replaced() ? forward::NewAligned(n, a) : pcmalloc::NewAligned(a, n);
}
PCM_EXPORT void* operator new[](size_t n, align_val_t a) {
  return pcmalloc::Replaced() ? forward::NewArrayAligned(n, a) : pcmalloc::NewAligned(a, n);
}
PCM_EXPORT void* operator new(size_t n, align_val_t a, const nothrow_t&) noexcept {
  return pcmalloc::Replaced() ? forward::NewAlignedNothrow(n, a)
                              : pcmalloc::NewAlignedNothrow(a, n);
}
PCM_EXPORT void* operator new[](size_t n, align_val_t a, const nothrow_t&) noexcept {
  return pcmalloc::Replaced() ? forward::NewArrayAlignedNothrow(n, a)
                              : pcmalloc::NewAlignedNothrow(a, n);
}

PCM_HOT_EXPORT void operator delete(void* p) noexcept { pcmalloc::Delete<forward::Delete>(p); }
PCM_HOT_EXPORT void operator delete[](void* p) noexcept {
  pcmalloc::Delete<forward::DeleteArray>(p);
}
PCM_EXPORT void operator delete(void* p, const nothrow_t&) noexcept {
  pcmalloc::Delete<forward::DeleteToPlain>(p);
}
PCM_EXPORT void operator delete[](void* p, const nothrow_t&) noexcept {
  pcmalloc::Delete<forward::DeleteArrayToPlain>(p);
}
PCM_HOT_EXPORT void operator delete(void* p, size_t) noexcept {
  pcmalloc::Delete<forward::DeleteToPlain>(p);
}
PCM_HOT_EXPORT void operator delete[](void* p, size_t) noexcept {
  pcmalloc::Delete<forward::DeleteArrayToPlain>(p);
}
PCM_EXPORT void operator delete(void* p, align_val_t) noexcept {
  pcmalloc::Delete<forward::Delete>(p);
}
PCM_EXPORT void operator delete[](void* p, align_val_t a) noexcept {
  pcmalloc::Delete<forward::DeleteArrayAligned>(p, a);
}
PCM_EXPORT void operator delete(void* p, align_val_t a, const nothrow_t&) noexcept {
  pcmalloc::Delete<forward::DeleteToAligned>(p, a);
}
PCM_EXPORT void operator delete[](void* p, align_val_t a, const nothrow_t&) noexcept {
  pcmalloc::Delete<forward::DeleteArrayToAligned>(p, a);
}
PCM_EXPORT void operator delete(void* p, size_t, align_val_t a) noexcept {
  pcmalloc::Delete<forward::DeleteToAligned>(p, a);
}
PCM_EXPORT void operator delete[](void* p, size_t, align_val_t a) noexcept {
  pcmalloc::Delete<forward::DeleteArrayToAligned>(p, a);
}

// What these names mean here, whatever they mean in the process.
#define PCM_ONLY_OPERATORS
#define PCM_NAME PCM_OWN_NAME
#include "allocator/api/replaced.inc"
#undef PCM_NAME

// What P0901 calls size feedback: the block and how much of it may be used.
extern "C" {

struct sized_ptr_t {
  void* p;
  size_t n;
};

PCM_EXPORT sized_ptr_t __size_returning_new(size_t size) {
  void* p = pcmalloc::New<forward::New>(size);
  return {p, pcmalloc::Replaced() ? size : pcmalloc::BlockSize(p)};
}

PCM_EXPORT sized_ptr_t __size_returning_new_aligned(size_t size, std::align_val_t alignment) {
  void* p = pcmalloc::NewAligned(alignment, size);
  return {p, pcmalloc::Replaced() ? size : pcmalloc::BlockSize(p)};
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
