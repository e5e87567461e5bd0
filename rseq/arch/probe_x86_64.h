// SPDX-License-Identifier: Apache-2.0
//
// Purpose: what the behaviour probe's two helper processes (rseq/detect) need in assembly on
//   x86_64: system calls that touch no errno, and a section that spins.
// Invariants: nothing here uses the thread pointer, which the helpers share with the program. The
//   spinning section is not in the table of sections and is not counted among the aborts: it is no
//   part of the allocator.
// Cost: none outside the probe.
#ifndef PCMALLOC_RSEQ_ARCH_PROBE_X86_64_H_
#define PCMALLOC_RSEQ_ARCH_PROBE_X86_64_H_

#include <stdint.h>

#include "rseq/arch/x86_64.h"
#include "rseq/rseq.h"

namespace pcmalloc::rseq {

// What the kernel returned: >= 0, or a negated error number.
inline long BareSyscall(long number, long a = 0, long b = 0, long c = 0, long d = 0) {
  long result;
  register long r10 __asm__("r10") = d;
  asm volatile("syscall"
               : "=a"(result)
               : "0"(number), "D"(a), "S"(b), "d"(c), "r"(r10)
               : "rcx", "r11", "memory");
  return result;
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
      ".long 0, 0\n\t"
      ".quad .Lprobe_start%=, .Lprobe_commit%= - .Lprobe_start%=, .Lprobe_abort%=\n\t"
      ".popsection\n\t"
      "leaq .Lprobe_cs%=(%%rip), %%rax\n\t"
      "andq %[armed], %%rax\n\t"
      "movq %%rax, 8(%[area])\n"
      ".Lprobe_start%=:\n\t"
      "movl (%[wakes]), %%ecx\n\t"
      "movl $1000000000, %%edx\n"
      ".Lprobe_again%=:\n\t"
      "cmpl (%[wakes]), %%ecx\n\t"
      "jne .Lprobe_commit%=\n\t"
      "decl %%edx\n\t"
      "jnz .Lprobe_again%=\n"
      ".Lprobe_commit%=:\n\t"
      ".pushsection .text.unlikely.pcmalloc_rseq_probe, \"ax?\"\n\t"
      ".byte 0x0f, 0xb9, 0x3d\n\t"
      ".long " PCM_RSEQ_SIGNATURE_TEXT "\n"
      ".Lprobe_abort%=:\n\t"
      "jmp %l[aborted]\n\t"
      ".popsection\n\t"
      :
      : [area] "r"(area), [wakes] "r"(wakes), [armed] "r"(armed)
      : "rax", "rcx", "rdx", "memory", "cc"
      : aborted);
  // clang-format on
  return false;
aborted:
  return true;
}

}  // namespace pcmalloc::rseq

#endif  // PCMALLOC_RSEQ_ARCH_PROBE_X86_64_H_
