// SPDX-License-Identifier: Apache-2.0
//
// Purpose: one restartable section for the tests that judge a kernel, on both architectures and
//   independent of the library: what it depends on must not be what is judged.
// Invariants: the section writes nothing but `entered`; it commits by falling out at its end.
// Cost: none that matters.
#ifndef PCMALLOC_TESTS_KERNELS_SECTION_H_
#define PCMALLOC_TESTS_KERNELS_SECTION_H_

#include <errno.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/syscall.h>
#include <unistd.h>

namespace kernels {

struct Area {
  uint32_t cpu_id_start;
  uint32_t cpu_id;
  uint64_t rseq_cs;
  uint32_t flags;
  uint32_t node_id;
  uint32_t mm_cid;
  uint32_t slice_ctrl;
  uint8_t reserved[96];
};
static_assert(sizeof(Area) == 128 && offsetof(Area, rseq_cs) == 8);

#if defined(__x86_64__)
inline constexpr long kRseqCall = 334;
inline constexpr uint32_t kSignature = 0x53053053;
#elif defined(__aarch64__)
inline constexpr long kRseqCall = 293;
inline constexpr uint32_t kSignature = 0xd428bc00;
#else
#error "no section for this architecture"
#endif

// 0, or the error number.
inline int Register(Area* area, uint32_t length) {
  return syscall(kRseqCall, area, length, 0, kSignature) == 0 ? 0 : errno;
}

enum class Ended {
  kQuiet,    // `turns` looks, or `stop` set: nothing changed meanwhile
  kChanged,  // *watched is not what it was when the section began, and the section still runs
  kAborted,  // by the kernel
};

// entered = 1; seen = *watched; up to `turns` times: leave if *watched != seen or *stop != 0.
__attribute__((noinline)) inline Ended Watch(Area* area, uint32_t* entered, const uint32_t* watched,
                                             const uint32_t* stop, uint64_t turns) {
  uint32_t seen;
  uint32_t now;
  uint64_t scratch;
#if defined(__x86_64__)
  asm goto volatile(
      ".pushsection .data.rel.ro.kernels_cs, \"aw\"\n\t"
      ".balign 32\n"
      ".Lk_cs%=:\n\t"
      ".long 0, 0\n\t"
      ".quad .Lk_start%=, .Lk_commit%= - .Lk_start%=, .Lk_abort%=\n\t"
      ".popsection\n\t"
      "leaq .Lk_cs%=(%%rip), %[scratch]\n\t"
      "movq %[scratch], 8(%[area])\n"
      ".Lk_start%=:\n\t"
      "movl $1, (%[entered])\n\t"
      "movl (%[watched]), %[seen]\n\t"
      "movq %[turns], %[scratch]\n"
      ".Lk_again%=:\n\t"
      "movl (%[watched]), %[now]\n\t"
      "cmpl %[seen], %[now]\n\t"
      "jne %l[changed]\n\t"
      "cmpl $0, (%[stop])\n\t"
      "jne .Lk_commit%=\n\t"
      "decq %[scratch]\n\t"
      "jnz .Lk_again%=\n"
      ".Lk_commit%=:\n\t"
      ".pushsection .text.unlikely.kernels_abort, \"ax\"\n\t"
      ".byte 0x0f, 0xb9, 0x3d\n\t"
      ".long 0x53053053\n"
      ".Lk_abort%=:\n\t"
      "jmp %l[aborted]\n\t"
      ".popsection"
      : [seen] "=&r"(seen), [now] "=&r"(now), [scratch] "=&r"(scratch)
      : [area] "r"(area), [entered] "r"(entered), [watched] "r"(watched), [stop] "r"(stop),
        [turns] "r"(turns)
      : "memory", "cc"
      : changed, aborted);
#else
  asm goto volatile(
      ".pushsection .data.rel.ro.kernels_cs, \"aw\"\n\t"
      ".balign 32\n"
      ".Lk_cs%=:\n\t"
      ".long 0, 0\n\t"
      ".quad .Lk_start%=, .Lk_commit%= - .Lk_start%=, .Lk_abort%=\n\t"
      ".popsection\n\t"
      "adrp %[scratch], .Lk_cs%=\n\t"
      "add %[scratch], %[scratch], :lo12:.Lk_cs%=\n\t"
      "str %[scratch], [%[area], #8]\n"
      ".Lk_start%=:\n\t"
      "mov %w[now], #1\n\t"
      "str %w[now], [%[entered]]\n\t"
      "ldr %w[seen], [%[watched]]\n\t"
      "mov %[scratch], %[turns]\n"
      ".Lk_again%=:\n\t"
      "ldr %w[now], [%[watched]]\n\t"
      "cmp %w[seen], %w[now]\n\t"
      "b.ne %l[changed]\n\t"
      "ldr %w[now], [%[stop]]\n\t"
      "cbnz %w[now], .Lk_commit%=\n\t"
      "subs %[scratch], %[scratch], #1\n\t"
      "b.ne .Lk_again%=\n"
      ".Lk_commit%=:\n\t"
      "b 1f\n\t"
      ".inst 0xd428bc00\n"
      ".Lk_abort%=:\n\t"
      "b %l[aborted]\n"
      "1:"
      : [seen] "=&r"(seen), [now] "=&r"(now), [scratch] "=&r"(scratch)
      : [area] "r"(area), [entered] "r"(entered), [watched] "r"(watched), [stop] "r"(stop),
        [turns] "r"(turns)
      : "memory", "cc"
      : changed, aborted);
#endif
  return Ended::kQuiet;
changed:
  return Ended::kChanged;
aborted:
  return Ended::kAborted;
}

}  // namespace kernels

#endif  // PCMALLOC_TESTS_KERNELS_SECTION_H_
