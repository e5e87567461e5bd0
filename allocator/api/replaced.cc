// SPDX-License-Identifier: Apache-2.0
#include "allocator/api/replaced.h"

#include <dlfcn.h>
#include <link.h>
#include <stdint.h>
#include <stdlib.h>

#include <atomic>

#include "absl/base/optimization.h"
#include "allocator/api/blocks.h"
#include "allocator/api/boot.h"
#include "allocator/api/failure.h"
#include "allocator/api/hot.h"
#include "allocator/sizes/size_classes.h"

extern "C" {
// What a name means in this process, and what it means here (aliases in malloc.cc and
// operators.cc). Weak, so that an address which the dynamic linker has not filled in yet
// reads as null.
#define PCM_NAME(name, symbol, ...)                                              \
  extern const char pcmalloc_seen_##name __asm__(#symbol) __attribute__((weak)); \
  extern const char pcmalloc_own_##name __attribute__((weak, visibility("hidden")));
#include "allocator/api/replaced.inc"
#undef PCM_NAME
}

extern __typeof(dladdr1) dladdr1 __attribute__((weak));

namespace pcmalloc {
namespace {

enum class State : uint8_t { kUnknown, kOurs, kReplaced };
constinit std::atomic<State> state{State::kUnknown};
constinit bool malloc_replaced = false;

// A program that is linked to a fixed address and takes the address of a function gives it that of
// its own jump to it, everywhere in the process.
bool IsJumpOfProgram(const char* seen) {
  if (dladdr1 == nullptr) return false;
  Dl_info info;
  const ElfW(Sym)* symbol = nullptr;
  return dladdr1(seen, &info, const_cast<void**>(reinterpret_cast<const void**>(&symbol)),
                 RTLD_DL_SYMENT) != 0 &&
         symbol != nullptr && symbol->st_shndx == SHN_UNDEF;
}

bool IsOther(const char* seen, const char* own) {
  return seen != nullptr && own != nullptr && seen != own && !IsJumpOfProgram(seen);
}

State Look() {
  if (!Relocated() || &pcmalloc_seen_free == nullptr) return State::kOurs;
  const bool other_malloc = IsOther(&pcmalloc_seen_malloc, &pcmalloc_own_malloc) ||
                            IsOther(&pcmalloc_seen_free, &pcmalloc_own_free);
  bool other = false;
#define PCM_NAME(name, symbol, ...) \
  other = other || IsOther(&pcmalloc_seen_##name, &pcmalloc_own_##name);
#include "allocator/api/replaced.inc"
#undef PCM_NAME
  malloc_replaced = other_malloc;
  const State found = other ? State::kReplaced : State::kOurs;
  state.store(found, std::memory_order_release);
  return found;
}

}  // namespace

bool Replaced() {
  State now = state.load(std::memory_order_acquire);
  if (ABSL_PREDICT_FALSE(now == State::kUnknown)) now = Look();
  return now == State::kReplaced;
}

void* TakeForNew(size_t alignment, size_t size) {
  if (!Replaced() || !malloc_replaced) {
    return alignment <= kMinAlignment ? MallocBeyond(size) : TakeAligned(alignment, size);
  }
  if (size == 0) size = 1;
  return alignment <= kMinAlignment ? ::malloc(size) : ::aligned_alloc(alignment, size);
}

// Calls of operators here go where the whole process's calls go: this file defines none of them.
namespace forward {

void* New(size_t size) {
  void* p = TakeForNew(kMinAlignment, size);
  return ABSL_PREDICT_TRUE(p != nullptr) ? p : NewFailed(kMinAlignment, size);
}

void* NewArray(size_t size) { return ::operator new(size); }

void* NewAligned(size_t size, std::align_val_t alignment) {
  void* p = TakeForNew(static_cast<size_t>(alignment), size);
  return ABSL_PREDICT_TRUE(p != nullptr) ? p : NewFailed(static_cast<size_t>(alignment), size);
}

void* NewArrayAligned(size_t size, std::align_val_t alignment) {
  return ::operator new(size, alignment);
}

void Delete(void* p) {
  if (malloc_replaced) {
    ::free(p);
  } else {
    FreeBeyond(p);
  }
}

void DeleteArray(void* p) { ::operator delete(p); }
void DeleteToPlain(void* p) { ::operator delete(p); }
void DeleteArrayToPlain(void* p) { ::operator delete[](p); }
void DeleteArrayAligned(void* p, std::align_val_t alignment) { ::operator delete(p, alignment); }
void DeleteToAligned(void* p, std::align_val_t alignment) { ::operator delete(p, alignment); }
void DeleteArrayToAligned(void* p, std::align_val_t alignment) {
  ::operator delete[](p, alignment);
}

}  // namespace forward
}  // namespace pcmalloc
