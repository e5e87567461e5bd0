// SPDX-License-Identifier: Apache-2.0
//
// Purpose: what the behaviour probe's two helper processes (rseq/detect) need in assembly on
//   aarch64: system calls that touch no errno, and a section that spins.
// Invariants: nothing here uses the thread pointer, which the helpers share with the program. The
//   spinning section is not in the table of sections and is not counted among the aborts: it is no
//   part of the allocator.
// Cost: none outside the probe.
#ifndef PCMALLOC_RSEQ_ARCH_PROBE_AARCH64_H_
#define PCMALLOC_RSEQ_ARCH_PROBE_AARCH64_H_

#include <stdint.h>

#include "rseq/rseq.h"

namespace pcmalloc::rseq {

// What the kernel returned: >= 0, or a negated error number.
inline long BareSyscall(long number, long a = 0, long b = 0, long c = 0, long d = 0) {
  register long x8 __asm__("x8") = number;
  register long x0 __asm__("x0") = a;
  register long x1 __asm__("x1") = b;
  register long x2 __asm__("x2") = c;
  register long x3 __asm__("x3") = d;
  asm volatile("svc #0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2), "r"(x3) : "memory");
  return x0;
}

// Spins in a section until *wakes changes (false), the kernel aborts it (true), or some 10^9 turns
// have passed (false). `armed` all ones, or 0: then the kernel is told of no section.
//
//   rseq_cs = descriptor & armed
//   section: seen = *wakes; while (*wakes == seen && turns-- != 0) {}; commit: (nothing)
__attribute__((noinline)) inline bool SpinInSection(Area* area, const uint32_t* wakes,
                                                    uint64_t armed) {
  // clang-format off
  asm goto volatile(
      ".pushsection .data.rel.ro.pcmalloc_rseq_probe, \"aw?\"\n\t"
      ".balign 32\n"
      ".Lprobe_cs%=:\n\t"
      ".word 0, 0\n\t"
      ".quad .Lprobe_start%=, .Lprobe_commit%= - .Lprobe_start%=, .Lprobe_abort%=\n\t"
      ".popsection\n\t"
      "adrp x9, .Lprobe_cs%=\n\t"
      "add x9, x9, :lo12:.Lprobe_cs%=\n\t"
      "and x9, x9, %[armed]\n\t"
      "str x9, [%[area], #8]\n"
      ".Lprobe_start%=:\n\t"
      "ldr w10, [%[wakes]]\n\t"
      "mov w11, #0x3b9a0000\n"
      ".Lprobe_again%=:\n\t"
      "ldr w12, [%[wakes]]\n\t"
      "cmp w10, w12\n\t"
      "b.ne .Lprobe_commit%=\n\t"
      "subs w11, w11, #1\n\t"
      "b.ne .Lprobe_again%=\n"
      ".Lprobe_commit%=:\n\t"
      ".pushsection .text.unlikely.pcmalloc_rseq_probe, \"ax?\"\n\t"
      ".word 0xd428bc00\n"
      ".Lprobe_abort%=:\n\t"
      "b %l[aborted]\n\t"
      ".popsection\n\t"
      :
      : [area] "r"(area), [wakes] "r"(wakes), [armed] "r"(armed)
      : "x9", "x10", "x11", "x12", "memory", "cc"
      : aborted);
  // clang-format on
  return false;
aborted:
  return true;
}

}  // namespace pcmalloc::rseq

#endif  // PCMALLOC_RSEQ_ARCH_PROBE_AARCH64_H_
