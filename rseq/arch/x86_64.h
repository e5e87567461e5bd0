// SPDX-License-Identifier: Apache-2.0
//
// Purpose: the assembly vocabulary of a restartable critical section on x86_64: descriptor, arming,
//   abort stub, and a table by which tools and tests find every section of a binary. Each macro is
//   a string for extended inline assembly.
//
//        PCM_RSEQ_DESCRIPTOR(cs, start, commit, abort)   anywhere, emits nothing into the code
//        PCM_RSEQ_ARM(cs, scratch, area)                 rseq_cs = &cs, a plain store
//     start:
//        ...  load the index, work, one store last
//     commit:                                            first instruction past that store
//        PCM_RSEQ_ABORT(abort, restart)                  out of line: signature, label, jump
//
//   All parameters are strings that the assembler reads as symbols or registers. Give each section
//   its own labels: inside inline functions end them with %= (".Lpop_start%="). Registers are
//   written as the surrounding asm needs them: "%%rdx", or "%[name]" for an operand.
//
// Invariants: the kernel compares the 4 bytes before the abort label with the signature that was
//   registered and kills the process if they differ; the abort label lies outside the section;
//   descriptors are 32-byte aligned. The abort stub clobbers nothing.
// Cost: PCM_RSEQ_ARM is two instructions; the rest is data and cold code.
#ifndef PCMALLOC_RSEQ_ARCH_X86_64_H_
#define PCMALLOC_RSEQ_ARCH_X86_64_H_

// The signature, as text for the assembler (kSignature in rseq/sections.h is the same number).
#define PCM_RSEQ_SIGNATURE_TEXT "0x53053053"

// One line of assembly a line:
// clang-format off

// struct rseq_cs {u32 version, flags; u64 start_ip, post_commit_offset, abort_ip} under the label
// `cs`, and one entry of the table (struct SectionEntry in rseq/sections.h). Distances to the place
// where they are stored need no relocation, so that a tool can read the table from the file.
// The flag ? puts both into the section group of the code, if it has one: where the linker drops a
// duplicate of an inline function, its descriptor goes too.
#define PCM_RSEQ_DESCRIPTOR(cs, start, commit, abort)             \
  ".pushsection .data.rel.ro.pcmalloc_rseq_cs, \"aw?\"\n\t"       \
  ".balign 32\n"                                                  \
  cs ":\n\t"                                                      \
  ".long 0, 0\n\t"                                                \
  ".quad " start ", " commit " - " start ", " abort "\n\t"        \
  ".popsection\n\t"                                               \
  ".pushsection pcmalloc_rseq_table, \"a?\"\n\t"                  \
  ".balign 8\n\t"                                                 \
  ".quad " cs " - .\n\t"                                          \
  ".quad " start " - .\n\t"                                       \
  ".quad " commit " - " start "\n\t"                              \
  ".quad " abort " - .\n\t"                                       \
  ".popsection\n\t"

// rseq_cs of the area at thread pointer + `area`. From `start` to `commit` the thread is restarted.
#define PCM_RSEQ_ARM(cs, scratch, area)                           \
  "leaq " cs "(%%rip), " scratch "\n\t"                           \
  "movq " scratch ", %%fs:8(" area ")\n\t"

// The field at `offset` of the area, sign-extended: -1 and -2 (no registration) stay negative.
#define PCM_RSEQ_LOAD_INDEX(offset, area, out)                    \
  "movslq %%fs:" offset "(" area "), " out "\n\t"

// Where the kernel sends an aborted thread, with rseq_cs = 0. `target` loads everything anew. The
// three bytes make the signature the operand of an instruction that traps (ud1), so that a
// disassembly stays readable and falling into it is noticed. Every abort is counted: it is rare,
// and the count is how a test sees that the kernel keeps its promise.
#define PCM_RSEQ_ABORT(abort, target)                             \
  ".pushsection .text.unlikely.pcmalloc_rseq_abort, \"ax?\"\n\t"  \
  ".byte 0x0f, 0xb9, 0x3d\n\t"                                    \
  ".long " PCM_RSEQ_SIGNATURE_TEXT "\n"                           \
  abort ":\n\t"                                                   \
  "lock incq pcmalloc_rseq_aborts(%%rip)\n\t"                     \
  "jmp " target "\n\t"                                            \
  ".popsection\n\t"

// clang-format on

#endif  // PCMALLOC_RSEQ_ARCH_X86_64_H_
