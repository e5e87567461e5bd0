// SPDX-License-Identifier: Apache-2.0
//
// A library with a RUNPATH of its own that opens others by bare names.
#include <dlfcn.h>

extern "C" void* OpenLibrary(const char* name) {
  void* library = dlopen(name, RTLD_NOW | RTLD_LOCAL);
  // Not a tail call: the caller is this library.
  __asm__ volatile("" : : "r"(library) : "memory");
  return library;
}
