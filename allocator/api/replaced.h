// SPDX-License-Identifier: Apache-2.0
//
// Purpose: programs that bring a malloc or some of the C++ operators of their own. The standard
//   makes each operator that they leave out call one that they have:
//
//      delete[](p, n) -> delete[](p) -> delete(p) -> free(p)        new[](n) -> new(n) -> malloc(n)
//
//   Where each of these is ours they are all the same function, and nobody looks here.
// Invariants: Replaced() is final once the dynamic linker has done its work on this library.
// Cost: in a program that replaces something the inline paths stay closed, also those of malloc and
//   free; in all others a load and a test on slow paths of operators.
#ifndef PCMALLOC_ALLOCATOR_API_REPLACED_H_
#define PCMALLOC_ALLOCATOR_API_REPLACED_H_

#include <stddef.h>

#include <new>

namespace pcmalloc {

// Whether malloc, free or an operator that others are to call is not ours.
bool Replaced();

// What operator new gets its memory from: ours, or the program's malloc. Null: no memory.
void* TakeForNew(size_t alignment, size_t size);

// What the standard says of each form; the last step of each is TakeForNew or free.
namespace forward {
void* New(size_t size);
void* NewArray(size_t size);
void* NewAligned(size_t size, std::align_val_t alignment);
void* NewArrayAligned(size_t size, std::align_val_t alignment);
void* NewNothrow(size_t size) noexcept;
void* NewArrayNothrow(size_t size) noexcept;
void* NewAlignedNothrow(size_t size, std::align_val_t alignment) noexcept;
void* NewArrayAlignedNothrow(size_t size, std::align_val_t alignment) noexcept;
// delete(p) and delete(p, alignment)
void Delete(void* p);
// The others: delete[](p); delete(p, n or nothrow); delete[](p, n or nothrow); the same, aligned.
void DeleteArray(void* p);
void DeleteToPlain(void* p);
void DeleteArrayToPlain(void* p);
void DeleteArrayAligned(void* p, std::align_val_t alignment);
void DeleteToAligned(void* p, std::align_val_t alignment);
void DeleteArrayToAligned(void* p, std::align_val_t alignment);
}  // namespace forward

}  // namespace pcmalloc

// A second, hidden name for what `symbol` means in the file that defines it. It is never called, so
// it need not have what gcc knows of malloc.
#define PCM_OWN_NAME(name, symbol, returned, ...)                  \
  PCM_ALIASES_LACK_ATTRIBUTES                                      \
  extern "C" __attribute__((alias(#symbol), visibility("hidden"))) \
  returned pcmalloc_own_##name(__VA_ARGS__);
#if defined(__clang__)
#define PCM_ALIASES_LACK_ATTRIBUTES
#else
#define PCM_ALIASES_LACK_ATTRIBUTES _Pragma("GCC diagnostic ignored \"-Wmissing-attributes\"")
#endif

#endif  // PCMALLOC_ALLOCATOR_API_REPLACED_H_
