// SPDX-License-Identifier: Apache-2.0
//
// Uses startup_library.cc, and allocates itself as early as an executable can. Exits with 0 if all
// was well.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

extern "C" int StartupResult();

namespace {

char* from_preinit;
char* from_constructor;

void Preinit() { from_preinit = strdup("before every constructor of a library"); }
__attribute__((section(".preinit_array"), used)) void (*preinit_entry)() = &Preinit;

__attribute__((constructor(101))) void Constructor() {
  from_constructor = static_cast<char*>(realloc(from_preinit, 100000));
}

}  // namespace

int main() {
  int result = StartupResult();
  if (result != 0) {
    fprintf(stderr, "startup_library.cc:%d\n", result);
    return 1;
  }
  if (strcmp(from_constructor, "before every constructor of a library") != 0) return 2;
  free(from_constructor);
  return 0;
}
