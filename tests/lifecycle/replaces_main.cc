// SPDX-License-Identifier: Apache-2.0
//
// A program with operators of its own, or with a malloc of its own, and nothing more: the
// forms that it leaves out have to come to the ones it has. Every block bears a header that
// its free checks.
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <new>
#include <string>
#include <vector>

namespace {

struct alignas(64) Header {
  void* start;
  uint64_t magic;
};
constexpr uint64_t kMagic = 0x6d796f776e626c6b;

[[maybe_unused]] long live = 0;

void* WithHeader(void* start, size_t alignment) {
  if (start == nullptr) return nullptr;
  const uintptr_t unit = alignment < sizeof(Header) ? sizeof(Header) : alignment;
  auto* block = reinterpret_cast<char*>(
      (reinterpret_cast<uintptr_t>(start) + sizeof(Header) + unit - 1) & -unit);
  Header header{start, kMagic};
  memcpy(block - sizeof(Header), &header, sizeof(header));
  ++live;
  return block;
}

void* Check(void* p) {
  Header header;
  memcpy(&header, static_cast<char*>(p) - sizeof(Header), sizeof(header));
  if (header.magic != kMagic) {
    fputs("a block that this program did not give out\n", stderr);
    _Exit(3);
  }
  --live;
  return header.start;
}

}  // namespace

#ifdef REPLACES_OPERATORS
#ifndef __clang__  // which knows no such warning
#pragma GCC diagnostic ignored "-Wsized-deallocation"
#endif

void* operator new(size_t size) {
  void* p = WithHeader(malloc(size + 128), 1);
  if (p == nullptr) throw std::bad_alloc();
  return p;
}
void operator delete(void* p) noexcept {
  if (p != nullptr) free(Check(p));
}
void* operator new(size_t size, std::align_val_t alignment) {
  const auto unit = static_cast<size_t>(alignment);
  void* p = WithHeader(malloc(size + 2 * unit + 128), unit);
  if (p == nullptr) throw std::bad_alloc();
  return p;
}
void operator delete(void* p, std::align_val_t) noexcept { operator delete(p); }
#endif

#ifdef REPLACES_MALLOC
// What lies here is never used again: the program is short.
alignas(64) char memory[size_t{512} << 20];
size_t used = 0;

extern "C" {
void* aligned_alloc(size_t alignment, size_t size) {
  const size_t begin =
      __atomic_fetch_add(&used, (size + 2 * alignment + 191) & -64, __ATOMIC_RELAXED);
  if (begin + size + 2 * alignment + 191 > sizeof(memory)) return nullptr;
  return WithHeader(memory + begin, alignment);
}
void* memalign(size_t alignment, size_t size) { return aligned_alloc(alignment, size); }
int posix_memalign(void** out, size_t alignment, size_t size) {
  *out = aligned_alloc(alignment, size);
  return 0;
}
void* malloc(size_t size) { return aligned_alloc(16, size); }
void* calloc(size_t count, size_t size) { return malloc(count * size); }
void free(void* p) {
  if (p != nullptr) Check(p);
}
void* realloc(void* p, size_t size) {
  void* moved = malloc(size);
  if (p != nullptr && moved != nullptr) {
    memmove(moved, p, size);  // reads what lies behind a smaller block: it is all `memory`
    free(p);
  }
  return moved;
}
}
#endif

struct alignas(256) Wide {
  char bytes[700];
};

int main() {
  const long before = live;
  for (size_t size : {1, 24, 300, 5000, 100000, 400000}) {
    for (int i = 0; i < 20; ++i) {
      constexpr std::align_val_t kUnit{512};
      operator delete(operator new(size));
      operator delete(operator new(size), size);
      operator delete[](operator new[](size));
      operator delete[](operator new[](size), size);
      operator delete(operator new(size, std::nothrow), std::nothrow);
      operator delete[](operator new[](size, std::nothrow), std::nothrow);
      operator delete(operator new(size, kUnit), kUnit);
      operator delete(operator new(size, kUnit), size, kUnit);
      operator delete[](operator new[](size, kUnit), kUnit);
      operator delete[](operator new[](size, kUnit), size, kUnit);
      operator delete(operator new(size, kUnit, std::nothrow), kUnit, std::nothrow);
      operator delete[](operator new[](size, kUnit, std::nothrow), kUnit, std::nothrow);
#ifdef REPLACES_MALLOC
      // As where one side was compiled inline, in terms of malloc.
      operator delete(malloc(size), size);
      free(operator new[](size));
#endif
      free(malloc(size));
    }
  }
  {
    std::vector<std::string> words(300, std::string(100, 'x'));
    std::vector<Wide> wide(20);
    words.push_back(std::to_string(wide.size()));
  }
  if (live != before) {
    fputs("blocks of this program went to somebody else\n", stderr);
    return 4;
  }
  try {
    operator delete[](operator new[](SIZE_MAX / 4));
    return 5;
  } catch (const std::bad_alloc&) {
  }
  return operator new(SIZE_MAX / 4, std::nothrow) == nullptr ? 0 : 6;
}
