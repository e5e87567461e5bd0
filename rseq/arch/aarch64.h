// SPDX-License-Identifier: Apache-2.0
//
// Purpose: the assembly vocabulary of a restartable critical section on aarch64: descriptor,
//   arming, abort stub, and a table by which tools and tests find every section of a binary. Each
//   macro is a string for extended inline assembly.
//
//     restart:
//        PCM_RSEQ_AREA(area, scratch)                    the calling thread's area
//        PCM_RSEQ_ARM(cs, scratch, area)                 rseq_cs = &cs, a plain store
//     start:
//        ...  load the index, work, one store last
//     commit:                                            first instruction past that store
//        PCM_RSEQ_ABORT(abort, count, restart, a, b, w)  out of line: signature, label, jump
//
//   PCM_RSEQ_DESCRIPTOR(cs, start, commit, abort) stands anywhere and emits nothing into the code.
//   Labels and registers are strings, as in rseq/arch/x86_64.h.
//
// Invariants: the kernel compares the 4 bytes before the abort label with the signature that was
//   registered and kills the process if they differ; the abort label lies outside the section;
//   descriptors are 32-byte aligned. The abort stub clobbers the registers named in it, which
//   therefore hold nothing that outlives a restart.
// Cost: PCM_RSEQ_AREA is four instructions, PCM_RSEQ_ARM three; the rest is data and cold code.
#ifndef PCMALLOC_RSEQ_ARCH_AARCH64_H_
#define PCMALLOC_RSEQ_ARCH_AARCH64_H_

// The signature, as text for the assembler (kSignature in rseq/sections.h is the same number).
#define PCM_RSEQ_SIGNATURE_TEXT "0xd428bc00"

// One line of assembly a line:
// clang-format off

// As on x86_64: struct rseq_cs under the label `cs`, and one struct SectionEntry.
#define PCM_RSEQ_DESCRIPTOR(cs, start, commit, abort)             \
  ".pushsection .data.rel.ro.pcmalloc_rseq_cs, \"aw?\"\n\t"       \
  ".balign 32\n"                                                  \
  cs ":\n\t"                                                      \
  ".word 0, 0\n\t"                                                \
  ".quad " start ", " commit " - " start ", " abort "\n\t"        \
  ".popsection\n\t"                                               \
  ".pushsection pcmalloc_rseq_table, \"a?\"\n\t"                  \
  ".balign 8\n\t"                                                 \
  ".quad " cs " - .\n\t"                                          \
  ".quad " start " - .\n\t"                                       \
  ".quad " commit " - " start "\n\t"                              \
  ".quad " abort " - .\n\t"                                       \
  ".popsection\n\t"

// The address of the calling thread's area.
#define PCM_RSEQ_AREA(area, scratch)                              \
  "adrp " area ", pcmalloc_rseq_offset\n\t"                       \
  "ldr " area ", [" area ", :lo12:pcmalloc_rseq_offset]\n\t"      \
  "mrs " scratch ", tpidr_el0\n\t"                                \
  "add " area ", " area ", " scratch "\n\t"

// rseq_cs of the area. From `start` to `commit` the thread is restarted.
#define PCM_RSEQ_ARM(cs, scratch, area)                           \
  "adrp " scratch ", " cs "\n\t"                                  \
  "add " scratch ", " scratch ", :lo12:" cs "\n\t"                \
  "str " scratch ", [" area ", #8]\n\t"

// Where the kernel sends an aborted thread, with rseq_cs = 0. The signature is a brk instruction,
// so falling into it is noticed. Stubs stand at the end of the function's own section (subsection
// 1): conditional branches reach no further than 1 MiB, so they must not lead to another section.
// Every abort is counted; `a`, `b` are 64-bit registers, `w` the 32-bit name of a third.
#define PCM_RSEQ_ABORT(abort, count, target, a, b, w)             \
  ".subsection 1\n\t"                                             \
  ".inst " PCM_RSEQ_SIGNATURE_TEXT "\n"                           \
  abort ":\n\t"                                                   \
  "adrp " a ", pcmalloc_rseq_aborts\n\t"                          \
  "add " a ", " a ", :lo12:pcmalloc_rseq_aborts\n"                \
  count ":\n\t"                                                   \
  "ldxr " b ", [" a "]\n\t"                                       \
  "add " b ", " b ", #1\n\t"                                      \
  "stxr " w ", " b ", [" a "]\n\t"                                \
  "cbnz " w ", " count "\n\t"                                     \
  "b " target "\n\t"                                              \
  ".subsection 0\n\t"

// A way out of a section, to be reached by a conditional branch to `label`.
#define PCM_RSEQ_EXIT(label, target)                              \
  ".subsection 1\n"                                               \
  label ":\n\t"                                                   \
  "b " target "\n\t"                                              \
  ".subsection 0\n\t"

// clang-format on

#endif  // PCMALLOC_RSEQ_ARCH_AARCH64_H_
