// SPDX-License-Identifier: Apache-2.0
//
// Purpose: what the tests need to know of the malloc under test, whichever it is: where a function
//   of it is found, whether it is pcmalloc and in which mode, and blocks whose content is checked.
// Invariants: the functions on blocks neither allocate nor print; safe in a signal handler.
// Cost: content is written and verified in full up to 4 KiB, above that at both ends and per page.
#ifndef PCMALLOC_TESTS_SUPPORT_ALLOCATOR_H_
#define PCMALLOC_TESTS_SUPPORT_ALLOCATOR_H_

#include <dlfcn.h>
#include <fcntl.h>
#include <malloc.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include <string>

extern "C" const char* pcmalloc_mode(void) __attribute__((weak));

namespace pcmalloc::testing {

// The function that a program gets under this name, or null. The executable must be linked with
// -rdynamic when the allocator is linked into it.
template <typename Function>
Function* Lookup(const char* name) {
  return reinterpret_cast<Function*>(dlsym(RTLD_DEFAULT, name));
}

// The mode of pcmalloc; empty for any other malloc.
inline std::string Mode() {
  auto* mode =
      pcmalloc_mode != nullptr ? &pcmalloc_mode : Lookup<const char*(void)>("pcmalloc_mode");
  return mode == nullptr ? "" : mode();
}
inline bool IsPcmalloc() { return !Mode().empty(); }

// False if PCM_EXPECT_MODE names modes and this process is in none of them.
inline bool InExpectedMode() {
  const char* expected = getenv("PCM_EXPECT_MODE");
  return expected == nullptr ||
         (',' + std::string(expected) + ',').find(',' + Mode() + ',') != std::string::npos;
}

// Keeps the compiler from reasoning about an allocation.
inline void* Escape(void* p) {
  asm volatile("" : "+r"(p) : : "memory");
  return p;
}

// A fast generator without state elsewhere: usable in signal handlers.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed * 0x9e3779b97f4a7c15u + 1) {}
  uint64_t Next() {
    state_ ^= state_ << 13;
    state_ ^= state_ >> 7;
    state_ ^= state_ << 17;
    return state_ * 0x2545f4914f6cdd1du;
  }
  size_t Below(size_t bound) { return static_cast<size_t>((Next() >> 11) % bound); }
  // As many sizes of 2^k as of 2^(k+1), up to 2^max_bits.
  size_t Size(int max_bits) {
    return Below(size_t{1} << (1 + Below(static_cast<size_t>(max_bits)))) + 1;
  }

 private:
  uint64_t state_;
};

// Fill writes a pattern that depends on `seed` and the place within the block; Holds checks it for
// the first `size` bytes.
inline uint8_t PatternAt(uint64_t seed, size_t i) {
  return static_cast<uint8_t>((seed + i) * 0x9e3779b97f4a7c15u >> 56);
}
inline size_t NextChecked(size_t i, size_t size) {
  if (i < 2048 || i + 2048 >= size) return i + 1;
  size_t next = i + 4096 - i % 4096;
  return next + 2048 >= size ? size - 2048 : next;
}
inline void Fill(void* p, size_t size, uint64_t seed) {
  auto* bytes = static_cast<uint8_t*>(p);
  for (size_t i = 0; i < size; i = NextChecked(i, size)) bytes[i] = PatternAt(seed, i);
}
inline bool Holds(const void* p, size_t size, uint64_t seed) {
  auto* bytes = static_cast<const uint8_t*>(p);
  for (size_t i = 0; i < size; i = NextChecked(i, size)) {
    if (bytes[i] != PatternAt(seed, i)) return false;
  }
  return true;
}
// For a block of `filled` bytes that realloc cut or grew: what both sizes check.
inline bool HoldsPrefix(const void* p, size_t kept, size_t filled, uint64_t seed) {
  auto* bytes = static_cast<const uint8_t*>(p);
  for (size_t i = 0; i < kept; i = NextChecked(i, filled)) {
    if (bytes[i] != PatternAt(seed, i)) return false;
  }
  return true;
}

// Bytes of this process in memory and of its address space, without allocating.
struct Footprint {
  size_t resident;
  size_t address_space;
};
inline Footprint Measure() {
  // Without a stream: that would allocate, and some callers have just used up the heap.
  unsigned long pages = 0, resident = 0;
  char text[128] = {};
  if (const int file = open("/proc/self/statm", O_RDONLY | O_CLOEXEC); file >= 0) {
    if (read(file, text, sizeof(text) - 1) > 0) sscanf(text, "%lu %lu", &pages, &resident);
    close(file);
  }
  size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  return {resident * page, pages * page};
}

}  // namespace pcmalloc::testing

#endif  // PCMALLOC_TESTS_SUPPORT_ALLOCATOR_H_
