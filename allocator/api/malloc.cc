// SPDX-License-Identifier: Apache-2.0
//
// The C family. Each function is its hit path and a tail call.
#include <errno.h>
#include <malloc.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "absl/base/optimization.h"
#include "allocator/api/blocks.h"
#include "allocator/api/boot.h"
#include "allocator/api/coarse.h"
#include "allocator/api/exports.h"
#include "allocator/api/hot.h"
#include "allocator/api/replaced.h"
#include "allocator/central/large_blocks.h"
#include "allocator/os/memory.h"
#include "percpu/slabs.h"

namespace pcmalloc {

extern "C" {
constinit size_t pcmalloc_small_gate = 0;
constinit size_t pcmalloc_coarse_gate = 0;
}

constinit OperationCounts operation_counts;

namespace {

ABSL_ATTRIBUTE_NOINLINE void* Refused(int error) {
  // Where errno is only the dynamic linker can say, and it has not yet.
  if (Relocated()) errno = error;
  return nullptr;
}

void* NoMemory() { return Refused(ENOMEM); }

void* OrNoMemory(void* p) { return ABSL_PREDICT_TRUE(p != nullptr) ? p : NoMemory(); }

bool IsPowerOfTwo(size_t n) { return n != 0 && (n & (n - 1)) == 0; }

// The least one that is not below `n`, which is none itself; 0 if that would be 2^64.
size_t NextPowerOfTwo(size_t n) {
  if (n == 0) return 1;
  const int bits = 64 - __builtin_clzl(n);
  return bits == 64 ? 0 : size_t{1} << bits;
}

ABSL_ATTRIBUTE_NOINLINE void* MallocSlow(size_t size) { return OrNoMemory(TakeBlock(size)); }

ABSL_ATTRIBUTE_NOINLINE void* MallocOtherwise(size_t size) {
  void* p = PopBeyond(size);
  return ABSL_PREDICT_TRUE(p != nullptr) ? p : MallocSlow(size);
}

void* Aligned(size_t alignment, size_t size) {
  // Up to the alignment that every block has anyway, the hit path serves.
  if (alignment <= kMinAlignment) return Malloc(size);
  if (alignment <= kPageSize && size <= kMaxSmallSize - kPageSize) {
    return Malloc(AlignedSize(alignment, size));
  }
  return OrNoMemory(TakeAligned(alignment, size));
}

// What posix_memalign does on a miss: errno stays as it is.
ABSL_ATTRIBUTE_NOINLINE int AlignedInto(void** out, size_t alignment, size_t size) {
  const int saved = errno;
  void* p = Aligned(alignment, size);
  errno = saved;
  if (p == nullptr) return ENOMEM;
  *out = p;
  return 0;
}

ABSL_ATTRIBUTE_NOINLINE void* ReallocOtherwise(void* p, size_t size) {
  if (p == nullptr) return Malloc(size);
  if (size == 0) {
    Free(p);
    return nullptr;
  }
  return OrNoMemory(ResizeBlock(p, size));
}

void* PageAligned(size_t size) { return Aligned(os::KernelPageSize(), size); }

}  // namespace

void* PopBeyond(size_t size) {
  if (size - 1 >= kMaxCachedSize) return nullptr;
  const unsigned size_class = SizeClassOf(size);
  void* p = nullptr;
  switch (percpu::CurrentMode()) {
    case percpu::Mode::kCpuId:
      // Up to kFineLimit the inline path has just missed, unless it is closed (replaced.h).
      if (size > kFineLimit || pcmalloc_small_gate == 0)
        p = percpu::Pop<percpu::Index::kCpuId>(size_class);
      break;
    case percpu::Mode::kMmCid:
      p = percpu::Pop<percpu::Index::kMmCid>(size_class);
      break;
    case percpu::Mode::kCached:
      p = percpu::PopCached(size_class);
      break;
    case percpu::Mode::kLocked:
    case percpu::Mode::kUnset:
      return nullptr;
  }
  if (p == nullptr) return nullptr;
  if (size_class >= kNumClasses) central::MarkTaken(p);
  if (kCountOperations) CountFast();
  return p;
}

void* MallocBeyond(size_t size) {
  if (ABSL_PREDICT_TRUE(IsCoarse(size))) {
    void* p = PopCoarse(size);
    return ABSL_PREDICT_TRUE(p != nullptr) ? p : MallocSlow(size);
  }
  return MallocOtherwise(size);
}

void FreeBeyond(void* p) {
  unsigned size_class = PrimaryClassOf(p);
  Span* large = nullptr;
  if (size_class == 0) {
    large = central::MarkCached(p);
    if (large == nullptr) return GiveBlock(p);
    size_class = large->size_class;
  }
  bool pushed = false;
  switch (percpu::CurrentMode()) {
    case percpu::Mode::kCpuId:
      // Small blocks have just missed, unless the inline path is closed (replaced.h).
      pushed = (large != nullptr || pcmalloc_small_gate == 0) &&
               percpu::Push<percpu::Index::kCpuId>(size_class, p);
      break;
    case percpu::Mode::kMmCid:
      pushed = percpu::Push<percpu::Index::kMmCid>(size_class, p);
      break;
    case percpu::Mode::kCached:
      pushed = percpu::PushCached(size_class, p);
      break;
    case percpu::Mode::kLocked:
    case percpu::Mode::kUnset:
      break;
  }
  if (!pushed) return GiveCached(size_class, p);
  if (kCountOperations) CountFast();
}

}  // namespace pcmalloc

using pcmalloc::Free;
using pcmalloc::Malloc;

extern "C" {

PCM_HOT_EXPORT void* malloc(size_t size) { return Malloc(size); }

PCM_HOT_EXPORT void free(void* p) { Free(p); }

// What these names mean here, whatever they mean in the process.
#define PCM_ONLY_C
#define PCM_NAME PCM_OWN_NAME
#include "allocator/api/replaced.inc"
#undef PCM_NAME

PCM_EXPORT void cfree(void* p) { Free(p); }

PCM_EXPORT void free_sized(void* p, size_t) { Free(p); }

PCM_EXPORT void free_aligned_sized(void* p, size_t, size_t) { Free(p); }

PCM_EXPORT void sdallocx(void* p, size_t, int) { Free(p); }

PCM_EXPORT void* calloc(size_t count, size_t size) {
  size_t bytes;
  if (ABSL_PREDICT_FALSE(__builtin_mul_overflow(count, size, &bytes))) return pcmalloc::NoMemory();
  void* p = pcmalloc::PopSmall(bytes);
  if (ABSL_PREDICT_TRUE(p != nullptr)) return memset(p, 0, bytes);
  return pcmalloc::OrNoMemory(pcmalloc::TakeZeroed(bytes));
}

PCM_EXPORT void* realloc(void* p, size_t size) {
  // 0 for null, too.
  const unsigned size_class = pcmalloc::PrimaryClassOf(p);
  if (size_class != 0 && size != 0 &&
      pcmalloc::StaysInPlace(pcmalloc::kClasses[size_class].size, size)) {
    return p;
  }
  return pcmalloc::ReallocOtherwise(p, size);
}

PCM_EXPORT void* reallocarray(void* p, size_t count, size_t size) {
  size_t bytes;
  if (ABSL_PREDICT_FALSE(__builtin_mul_overflow(count, size, &bytes))) return pcmalloc::NoMemory();
  return realloc(p, bytes);
}

// Like glibc's it rounds the alignment up, of which callers of old make use.
PCM_EXPORT void* memalign(size_t alignment, size_t size) {
  if (ABSL_PREDICT_FALSE(!pcmalloc::IsPowerOfTwo(alignment))) {
    alignment = pcmalloc::NextPowerOfTwo(alignment);
    if (alignment == 0) return pcmalloc::Refused(EINVAL);
  }
  return pcmalloc::Aligned(alignment, size);
}

PCM_EXPORT void* aligned_alloc(size_t alignment, size_t size) {
  if (ABSL_PREDICT_FALSE(!pcmalloc::IsPowerOfTwo(alignment))) return pcmalloc::Refused(EINVAL);
  return pcmalloc::Aligned(alignment, size);
}

PCM_EXPORT int posix_memalign(void** out, size_t alignment, size_t size) {
  if (alignment % sizeof(void*) != 0 || !pcmalloc::IsPowerOfTwo(alignment)) return EINVAL;
  // A hit sets no errno that would have to be kept.
  if (alignment <= pcmalloc::kPageSize && size <= pcmalloc::kFineLimit) {
    void* p = pcmalloc::PopSmall(pcmalloc::AlignedSize(alignment, size));
    if (ABSL_PREDICT_TRUE(p != nullptr)) {
      *out = p;
      return 0;
    }
  }
  return pcmalloc::AlignedInto(out, alignment, size);
}

PCM_EXPORT void* valloc(size_t size) { return pcmalloc::PageAligned(size); }

PCM_EXPORT void* pvalloc(size_t size) {
  const size_t page = pcmalloc::os::KernelPageSize();
  if (size > PTRDIFF_MAX) return pcmalloc::NoMemory();
  return pcmalloc::PageAligned(size == 0 ? page : (size + page - 1) & ~(page - 1));
}

PCM_EXPORT size_t malloc_usable_size(void* p) { return pcmalloc::BlockSize(p); }

PCM_EXPORT size_t nallocx(size_t size, int flags) {
  return pcmalloc::BlockSizeFor(size, pcmalloc::AlignmentOf(flags));
}

// glibc's internal names: programs and libraries that were written for its hooks call them.
PCM_EXPORT void* __libc_malloc(size_t size) { return Malloc(size); }
PCM_EXPORT void __libc_free(void* p) { Free(p); }
PCM_EXPORT void __libc_cfree(void* p) { Free(p); }
PCM_EXPORT void* __libc_calloc(size_t count, size_t size) { return calloc(count, size); }
PCM_EXPORT void* __libc_realloc(void* p, size_t size) { return realloc(p, size); }
PCM_EXPORT void* __libc_reallocarray(void* p, size_t count, size_t size) {
  return reallocarray(p, count, size);
}
PCM_EXPORT void* __libc_memalign(size_t alignment, size_t size) {
  return memalign(alignment, size);
}
PCM_EXPORT void* __libc_valloc(size_t size) { return valloc(size); }
PCM_EXPORT void* __libc_pvalloc(size_t size) { return pvalloc(size); }
PCM_EXPORT int __posix_memalign(void** out, size_t alignment, size_t size) {
  return posix_memalign(out, alignment, size);
}

}  // extern "C"
