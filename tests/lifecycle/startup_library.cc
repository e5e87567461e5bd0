// SPDX-License-Identifier: Apache-2.0
//
// Compiled three times into a library that allocates before main(): in the resolver of an exported
// indirect function (run when its user is relocated), in that of a local one (run when the library
// itself is relocated, which is before the allocator is), and in constructors.
#include <dlfcn.h>
#include <malloc.h>
#include <stdlib.h>
#include <string.h>

namespace {

// 0, or the line of the first thing that was wrong. No relocated data, no calls but to the
// allocator.
__attribute__((always_inline)) inline int UseEverything() {
  auto* p = static_cast<volatile char*>(malloc(10));
  if (p == nullptr) return __LINE__;
  p[0] = 42;
  p = static_cast<volatile char*>(realloc(const_cast<char*>(p), 5000));
  if (p == nullptr || p[0] != 42) return __LINE__;
  auto* q = static_cast<volatile char*>(calloc(300, 7));
  if (q == nullptr || q == p) return __LINE__;
  for (int i = 0; i < 2100; ++i) {
    if (q[i] != 0) return __LINE__;
  }
  auto* large = static_cast<volatile char*>(malloc(3 << 20));
  if (large == nullptr) return __LINE__;
  large[(3 << 20) - 1] = 1;
  free(const_cast<char*>(large));
  free(const_cast<char*>(q));
  free(const_cast<char*>(p));
  return 0;
}

[[maybe_unused]] int result = -1;

}  // namespace

#if defined(STARTUP_IFUNC) || defined(STARTUP_IFUNC_LOCAL)

extern "C" {
static int Implementation() { return result; }
// Must not be optimised into calls that need further relocations; clang does not here.
#ifdef __clang__
__attribute__((used))
#else
__attribute__((used, optimize("no-tree-loop-distribute-patterns")))
#endif
static int (*Resolve())() {
  result = UseEverything();
  return &Implementation;
}
#ifdef STARTUP_IFUNC
__attribute__((ifunc("Resolve"))) int StartupResult();
#else
__attribute__((ifunc("Resolve"))) static int Local();
int StartupResult() { return Local(); }
#endif
}

#else

namespace {

int constructors_run = 0;

__attribute__((constructor(101))) void Earliest() {
  result = UseEverything();
  ++constructors_run;
}

// dlsym before main, which allocates in some C libraries, of what is interposed.
__attribute__((constructor(102))) void LooksUp() {
  auto* found = reinterpret_cast<void* (*)(size_t)>(dlsym(RTLD_NEXT, "malloc"));
  auto* missing = dlsym(RTLD_DEFAULT, "no_such_function_anywhere");
  (void)dlerror();
  if (result == 0 && (found == nullptr || missing != nullptr)) result = __LINE__;
  ++constructors_run;
}

struct Object {
  Object() : block(static_cast<char*>(memset(malloc(777), 7, 777))) { ++constructors_run; }
  ~Object() { free(block); }
  char* block;
} object;

}  // namespace

extern "C" int StartupResult() {
  if (result != 0) return result;
  return constructors_run == 3 && object.block[776] == 7 ? 0 : __LINE__;
}

#endif
