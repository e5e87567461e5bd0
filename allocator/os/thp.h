// SPDX-License-Identifier: Apache-2.0
//
// Purpose: whether the kernel serves transparent hugepages of 2 MiB to those who ask.
// Invariants: errno is kept; nothing is allocated; async-signal-safe. What cannot be found out
//   counts as "on request": asking for a hugepage in vain does no harm.
// Cost: up to four small files; to be asked once.
#ifndef PCMALLOC_ALLOCATOR_OS_THP_H_
#define PCMALLOC_ALLOCATOR_OS_THP_H_

#include <stddef.h>
#include <stdint.h>

namespace pcmalloc::os {

inline constexpr size_t kHugePage = size_t{2} << 20;

enum class HugePages : uint8_t {
  kNever,
  kOnRequest,  // madvise
  kAlways,     // also where nobody asked
};

inline constexpr char kHugePageFolder[] = "/sys/kernel/mm/transparent_hugepage";

// What holds for this process: the setting of the size of 2 MiB where the kernel has one for each
// size and it does not inherit, else the general one; prctl(PR_SET_THP_DISABLE) counts too. Never
// where hugepages have another size, as with kernel pages of 16 or 64 KiB.
HugePages FindHugePages(const char* folder = kHugePageFolder);

// The choice in brackets of a text such as "always [madvise] never\n".
HugePages ParseHugePages(const char* text, size_t length);

}  // namespace pcmalloc::os

#endif  // PCMALLOC_ALLOCATOR_OS_THP_H_
