// SPDX-License-Identifier: Apache-2.0
#include "allocator/api/boot.h"

#include <stdint.h>

#include <atomic>

// Functions of other libraries by their linker names: the compiler must not take for granted that
// they have an address.
#define PCM_IMPORT(name) \
  extern "C" const char pcmalloc_import_##name __asm__(#name) __attribute__((weak))
PCM_IMPORT(syscall);
PCM_IMPORT(memcpy);
PCM_IMPORT(memset);
PCM_IMPORT(getauxval);
PCM_IMPORT(__errno_location);

namespace pcmalloc {
namespace {

constexpr size_t kBootBytes = size_t{4} << 20;
constexpr size_t kHeaderBytes = 16;  // holds the block's size and keeps the alignment

alignas(16) constinit char region[kBootBytes] = {};
constinit std::atomic<size_t> used{0};

// Its own address, once the dynamic linker has added where it loaded us: until then the word holds
// zero or the address within the file, by linker.
const void* volatile self_address =
    const_cast<const void**>(reinterpret_cast<const void* const volatile*>(&self_address));

constinit bool relocated = false;

size_t* SizeField(const void* p) {
  return reinterpret_cast<size_t*>(reinterpret_cast<uintptr_t>(p) - kHeaderBytes);
}

}  // namespace

// The dynamic linker works through our relocations in an order of its own, and may call a resolver
// between any two of them: relative ones may be done while imported functions have no address yet.
bool Relocated() {
  if (relocated) return true;
  relocated = self_address == reinterpret_cast<const volatile void*>(&self_address) &&
              &pcmalloc_import_syscall != nullptr && &pcmalloc_import_memcpy != nullptr &&
              &pcmalloc_import_memset != nullptr && &pcmalloc_import_getauxval != nullptr &&
              &pcmalloc_import___errno_location != nullptr;
  return relocated;
}

void* BootTake(size_t size, size_t alignment) {
  if (size > kBootBytes || alignment > kBootBytes) return nullptr;
  if (alignment < 16) alignment = 16;
  size_t start = used.load(std::memory_order_relaxed);
  size_t block;
  size_t end;
  do {
    const uintptr_t base = reinterpret_cast<uintptr_t>(region);
    block = ((base + start + kHeaderBytes + alignment - 1) & ~(alignment - 1)) - base;
    end = block + ((size + 15) & ~size_t{15});
    if (end > kBootBytes) return nullptr;
  } while (!used.compare_exchange_weak(start, end, std::memory_order_relaxed));
  *SizeField(region + block) = size;
  return region + block;
}

bool BootOwns(const void* p) {
  return reinterpret_cast<uintptr_t>(p) - reinterpret_cast<uintptr_t>(region) < kBootBytes;
}

size_t BootSize(const void* p) { return *SizeField(p); }

void BootCopy(void* to, const void* from, size_t size) {
  // volatile: the compiler must not turn the loop into the call it is meant to avoid.
  volatile char* out = static_cast<volatile char*>(to);
  const char* in = static_cast<const char*>(from);
  for (size_t i = 0; i < size; ++i) out[i] = in[i];
}

}  // namespace pcmalloc
