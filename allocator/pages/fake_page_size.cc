// SPDX-License-Identifier: Apache-2.0
//
// Makes the program it is linked into believe that the kernel has 64 KiB pages. All that the page
// heap does is allowed on shorter ones too, so the same tests must pass.
#include <errno.h>
#include <sys/auxv.h>

extern "C" unsigned long getauxval(unsigned long type) noexcept {
  if (type == AT_PAGESZ) return 65536;
  errno = ENOENT;
  return 0;
}
