// SPDX-License-Identifier: Apache-2.0
//
// Purpose: the critical sections on a slab, x86_64. Pseudo-code of each stands in percpu/README.md
//   under the same name.
// Invariants: the index is loaded inside the section; one store commits, last; an aborted section
//   starts anew and loads everything again; a section that did not commit has changed nothing that
//   anybody reads. x86 keeps the order of stores, so the item is in its slot before the header says
//   so.
// Cost: hit path of Pop and Push: 12 instructions each, no call, no lock prefix. The commit is one
//   read-modify-write instruction: nothing but an interruption, which aborts, could come between.
#ifndef PCMALLOC_PERCPU_OPS_X86_64_H_
#define PCMALLOC_PERCPU_OPS_X86_64_H_

#include <stddef.h>
#include <stdint.h>

#include "absl/base/attributes.h"
#include "percpu/slab.h"
#include "rseq/arch/x86_64.h"

namespace pcmalloc::percpu {

// What the sections take as the index of slab_of.
enum class Index : uint8_t {
  kCpuId,  // the CPU's number
  kMmCid,  // the kernel's compact number among this process's running threads
};

#define PCM_SECTION_DESCRIPTOR \
  PCM_RSEQ_DESCRIPTOR(".Lpcm_cs%=", ".Lpcm_start%=", ".Lpcm_commit%=", ".Lpcm_abort%=")
#define PCM_SECTION_ABORT PCM_RSEQ_ABORT(".Lpcm_abort%=", ".Lpcm_restart%=")

// From the restart point to the slab in %[slab]. Uses %[area] and %[scratch].
//
// mm_cid of an area that the kernel does not maintain is no negative number, so the sign of cpu_id
// is spread over it: a thread without registration gets index -1 whatever its mm_cid field holds.
// clang-format off
#define PCM_SECTION_RESTART                             \
  ".Lpcm_restart%=:\n\t"                                \
  "movq pcmalloc_rseq_offset(%%rip), %[area]\n\t"
#define PCM_SECTION_ARM                                 \
  PCM_RSEQ_ARM(".Lpcm_cs%=", "%[scratch]", "%[area]")   \
  ".Lpcm_start%=:\n\t"
#define PCM_SECTION_TABLE                               \
  "leaq pcmalloc_slab_of+16(%%rip), %[scratch]\n\t"     \
  "movq (%[scratch], %[slab], 8), %[slab]\n\t"
#ifndef PCMALLOC_SABOTAGE_STALE_INDEX
#define PCM_SECTION_OPEN(index_load) \
  PCM_SECTION_RESTART PCM_SECTION_ARM index_load PCM_SECTION_TABLE
#else
// The fault: the index may be another CPU's by the time the section starts. The pauses give the
// scheduler the time that a slower machine would.
#define PCM_SECTION_OPEN(index_load)              \
  PCM_SECTION_RESTART index_load                  \
  ".rept 16\n\tpause\n\t.endr\n\t"                \
  PCM_SECTION_ARM PCM_SECTION_TABLE
#endif
// clang-format on
#define PCM_LOAD_CPU_ID PCM_RSEQ_LOAD_INDEX("4", "%[area]", "%[slab]")
#define PCM_LOAD_MM_CID                \
  "movl %%fs:4(%[area]), %k[slab]\n\t" \
  "sarl $31, %k[slab]\n\t"             \
  "orl %%fs:24(%[area]), %k[slab]\n\t" \
  "movslq %k[slab], %[slab]\n\t"

// GCC 12 may lose an output of asm goto on its jump edges unless the statement is volatile and
// followed by a barrier; nothing reads the output there, the barrier costs nothing. It copies the
// outputs on the jump edges too, behind what a phi has put there: a constant that is returned at
// the label would be overwritten by the output, hence a barrier behind a label that returns one.
#define PCM_ASM_GOTO_BARRIER() asm volatile("")

// Takes the newest item of a class off the stack of the slab in use; null if there is none or the
// slab is closed. Async-signal-safe.
template <Index kIndex>
ABSL_ATTRIBUTE_ALWAYS_INLINE inline void* Pop(uintptr_t size_class) {
  void* item;
  uintptr_t area, slab, scratch;
#define PCM_POP(index_load) \
  asm volatile goto(PCM_SECTION_DESCRIPTOR PCM_SECTION_OPEN(index_load)               \
                    "movl (%[slab], %[size_class], 8), %k[scratch]\n\t"               \
                    "movq -8(%[slab], %[scratch], 8), %[item]\n\t"                    \
                    "testb $1, %b[item]\n\t"                                          \
                    "jnz %l[miss]\n\t"                                                \
                    "decl (%[slab], %[size_class], 8)\n"                                 \
                    ".Lpcm_commit%=:\n\t" PCM_SECTION_ABORT                           \
                    : [item] "=&a"(item), [area] "=&r"(area), [slab] "=&r"(slab),     \
                      [scratch] "=&r"(scratch)                                        \
                    : [size_class] "r"(size_class)                                    \
                    : "memory", "cc"                                                  \
                    : miss)
  if constexpr (kIndex == Index::kCpuId) {
    PCM_POP(PCM_LOAD_CPU_ID);
  } else {
    PCM_POP(PCM_LOAD_MM_CID);
  }
#undef PCM_POP
  PCM_ASM_GOTO_BARRIER();
  if (item == nullptr) __builtin_unreachable();  // never pushed: spares the caller a second test
  return item;
miss:
  PCM_ASM_GOTO_BARRIER();
  return nullptr;
}

#ifndef PCMALLOC_SABOTAGE_TWO_COMMITS
#define PCM_PUSH_ITEM                          \
  "movq %[item], (%[slab], %[scratch], 8)\n\t" \
  "incl (%[slab], %[size_class], 8)\n"
#else
// The fault: between the two stores the header counts an item that is not there yet.
#define PCM_PUSH_ITEM                    \
  "incl (%[slab], %[size_class], 8)\n\t" \
  "movq %[item], (%[slab], %[scratch], 8)\n"
#endif

// Puts an item (bit 0 clear) on the stack of its class; false if the stack is full or the slab
// closed. Async-signal-safe.
template <Index kIndex>
ABSL_ATTRIBUTE_ALWAYS_INLINE inline bool Push(uintptr_t size_class, void* item) {
  uintptr_t area, slab, scratch;
#define PCM_PUSH(index_load) \
  asm volatile goto(PCM_SECTION_DESCRIPTOR PCM_SECTION_OPEN(index_load)                    \
                    "movl (%[slab], %[size_class], 8), %k[scratch]\n\t"                    \
                    "cmpl 4(%[slab], %[size_class], 8), %k[scratch]\n\t"                   \
                    "jae %l[full]\n\t"                                                     \
                    PCM_PUSH_ITEM                                                          \
                    ".Lpcm_commit%=:\n\t" PCM_SECTION_ABORT                                \
                    : [area] "=&r"(area), [slab] "=&r"(slab), [scratch] "=&r"(scratch)     \
                    : [size_class] "r"(size_class), [item] "r"(item)                       \
                    : "memory", "cc"                                                       \
                    : full)
  if constexpr (kIndex == Index::kCpuId) {
    PCM_PUSH(PCM_LOAD_CPU_ID);
  } else {
    PCM_PUSH(PCM_LOAD_MM_CID);
  }
#undef PCM_PUSH
  PCM_ASM_GOTO_BARRIER();
  return true;
full:
  return false;
}

// The batches copy four items at a time. %[area] counts them: armed, the section has no other use
// for it. What follows `to` is where they go, what follows `from` where they come from.
// clang-format off
#define PCM_SECTION_COPY(count, four, one)              \
  "xorl %k[area], %k[area]\n\t"                         \
  "subl $4, %k[" count "]\n\t"                          \
  "jb .Lpcm_rest%=\n"                                   \
  ".Lpcm_four%=:\n\t"                                   \
  four                                                  \
  "addl $4, %k[area]\n\t"                               \
  "cmpl %k[" count "], %k[area]\n\t"                    \
  "jbe .Lpcm_four%=\n"                                  \
  ".Lpcm_rest%=:\n\t"                                   \
  "addl $4, %k[" count "]\n\t"                          \
  "jmp .Lpcm_more%=\n"                                  \
  ".Lpcm_one%=:\n\t"                                    \
  one                                                   \
  "incl %k[area]\n"                                     \
  ".Lpcm_more%=:\n\t"                                   \
  "cmpl %k[" count "], %k[area]\n\t"                    \
  "jb .Lpcm_one%=\n\t"
// clang-format on

// Takes up to `n` (>= 1) items, newest first, into `out`; returns how many. What an aborted attempt
// left in `out` is overwritten or beyond the result. Async-signal-safe.
template <Index kIndex>
inline uint32_t PopBatch(uintptr_t size_class, void** out, uint32_t n) {
  uintptr_t area, slab, scratch, item, taken;
#define PCM_POP_BATCH(index_load) \
  asm volatile(PCM_SECTION_DESCRIPTOR PCM_SECTION_OPEN(index_load)                            \
               "movl (%[slab], %[size_class], 8), %k[scratch]\n\t"                            \
               "movl %k[scratch], %k[taken]\n\t"                                              \
               "subl %c[begin](%[slab], %[size_class], 4), %k[taken]\n\t"                     \
               "jbe .Lpcm_none%=\n\t" /* also of a class that has not been used */            \
               "cmpl %[n], %k[taken]\n\t"                                                     \
               "cmoval %[n], %k[taken]\n\t"                                                   \
               "leaq (%[slab], %[scratch], 8), %[item]\n\t"                                   \
               "subl %k[taken], %k[scratch]\n\t"                                              \
               PCM_SECTION_COPY("taken",                                                      \
                                "movups -16(%[item]), %%xmm0\n\t"                             \
                                "movups -32(%[item]), %%xmm1\n\t"                             \
                                "pshufd $0x4e, %%xmm0, %%xmm0\n\t"                            \
                                "pshufd $0x4e, %%xmm1, %%xmm1\n\t"                            \
                                "movups %%xmm0, (%[out], %[area], 8)\n\t"                     \
                                "movups %%xmm1, 16(%[out], %[area], 8)\n\t"                   \
                                "subq $32, %[item]\n\t",                                      \
                                "subq $8, %[item]\n\t"                                        \
                                "movq (%[item]), %%xmm0\n\t"                                  \
                                "movq %%xmm0, (%[out], %[area], 8)\n\t")                      \
               "movl %k[scratch], (%[slab], %[size_class], 8)\n"                              \
               ".Lpcm_commit%=:\n\t"                                                          \
               "jmp .Lpcm_done%=\n"                                                           \
               ".Lpcm_none%=:\n\t" /* closed slab: read-only */                               \
               "xorl %k[taken], %k[taken]\n"                                                  \
               ".Lpcm_done%=:\n\t" PCM_SECTION_ABORT                                          \
               : [area] "=&r"(area), [slab] "=&r"(slab), [scratch] "=&r"(scratch),            \
                 [item] "=&r"(item), [taken] "=&r"(taken)                                     \
               : [size_class] "r"(size_class), [out] "r"(out), [n] "r"(n),                    \
                 [begin] "i"(offsetof(Slab, begin))                                           \
               : "memory", "cc", "xmm0", "xmm1")
  if constexpr (kIndex == Index::kCpuId) {
    PCM_POP_BATCH(PCM_LOAD_CPU_ID);
  } else {
    PCM_POP_BATCH(PCM_LOAD_MM_CID);
  }
#undef PCM_POP_BATCH
  return static_cast<uint32_t>(taken);
}

// Puts up to `n` (>= 1) items on the stack, in[0] first; returns how many fitted. The slots above
// `current` that an aborted attempt wrote hold nothing that anybody reads. Async-signal-safe.
template <Index kIndex>
inline uint32_t PushBatch(uintptr_t size_class, void* const* in, uint32_t n) {
  uintptr_t area, slab, scratch, item, put;
#define PCM_PUSH_BATCH(index_load) \
  asm volatile(PCM_SECTION_DESCRIPTOR PCM_SECTION_OPEN(index_load)                            \
               "movl (%[slab], %[size_class], 8), %k[scratch]\n\t"                            \
               "movl 4(%[slab], %[size_class], 8), %k[put]\n\t"                               \
               "subl %k[scratch], %k[put]\n\t"                                                \
               "jbe .Lpcm_none%=\n\t"                                                         \
               "cmpl %[n], %k[put]\n\t"                                                       \
               "cmoval %[n], %k[put]\n\t"                                                     \
               "leaq (%[slab], %[scratch], 8), %[item]\n\t"                                   \
               "addl %k[put], %k[scratch]\n\t"                                                \
               PCM_SECTION_COPY("put",                                                        \
                                "movups (%[in], %[area], 8), %%xmm0\n\t"                      \
                                "movups 16(%[in], %[area], 8), %%xmm1\n\t"                    \
                                "movups %%xmm0, (%[item], %[area], 8)\n\t"                    \
                                "movups %%xmm1, 16(%[item], %[area], 8)\n\t",                 \
                                "movq (%[in], %[area], 8), %%xmm0\n\t"                        \
                                "movq %%xmm0, (%[item], %[area], 8)\n\t")                     \
               "movl %k[scratch], (%[slab], %[size_class], 8)\n"                              \
               ".Lpcm_commit%=:\n\t"                                                          \
               "jmp .Lpcm_done%=\n"                                                           \
               ".Lpcm_none%=:\n\t" /* closed slab: read-only */                               \
               "xorl %k[put], %k[put]\n"                                                      \
               ".Lpcm_done%=:\n\t" PCM_SECTION_ABORT                                          \
               : [area] "=&r"(area), [slab] "=&r"(slab), [scratch] "=&r"(scratch),            \
                 [item] "=&r"(item), [put] "=&r"(put)                                         \
               : [size_class] "r"(size_class), [in] "r"(in), [n] "r"(n)                       \
               : "memory", "cc", "xmm0", "xmm1")
  if constexpr (kIndex == Index::kCpuId) {
    PCM_PUSH_BATCH(PCM_LOAD_CPU_ID);
  } else {
    PCM_PUSH_BATCH(PCM_LOAD_MM_CID);
  }
#undef PCM_PUSH_BATCH
  return static_cast<uint32_t>(put);
}

// Replaces the header of a class if this thread runs on a CPU whose slab is `expected_slab` and the
// header still reads `expected`: how a slab's capacity changes without stopping its CPU. False if
// not. Async-signal-safe.
template <Index kIndex>
inline bool ReplaceHeader(uintptr_t size_class, const Slab* expected_slab, uint64_t expected,
                          uint64_t desired) {
  uintptr_t area, slab, scratch;
  uint32_t done;
#define PCM_REPLACE_HEADER(index_load) \
  asm volatile(PCM_SECTION_DESCRIPTOR PCM_SECTION_OPEN(index_load)                            \
               "xorl %[done], %[done]\n\t"                                                    \
               "cmpq %[expected_slab], %[slab]\n\t"                                           \
               "jne .Lpcm_commit%=\n\t"                                                       \
               "cmpq %[expected], (%[slab], %[size_class], 8)\n\t"                            \
               "jne .Lpcm_commit%=\n\t"                                                       \
               "incl %[done]\n\t"                                                             \
               "movq %[desired], (%[slab], %[size_class], 8)\n"                               \
               ".Lpcm_commit%=:\n\t" PCM_SECTION_ABORT                                        \
               : [area] "=&r"(area), [slab] "=&r"(slab), [scratch] "=&r"(scratch),            \
                 [done] "=&r"(done)                                                           \
               : [size_class] "r"(size_class), [expected_slab] "r"(expected_slab),            \
                 [expected] "r"(expected), [desired] "r"(desired)                             \
               : "memory", "cc")
  if constexpr (kIndex == Index::kCpuId) {
    PCM_REPLACE_HEADER(PCM_LOAD_CPU_ID);
  } else {
    PCM_REPLACE_HEADER(PCM_LOAD_MM_CID);
  }
#undef PCM_REPLACE_HEADER
  return done != 0;
}

#undef PCM_SECTION_DESCRIPTOR
#undef PCM_SECTION_ABORT
#undef PCM_SECTION_OPEN
#undef PCM_SECTION_RESTART
#undef PCM_SECTION_ARM
#undef PCM_SECTION_TABLE
#undef PCM_SECTION_COPY
#undef PCM_PUSH_ITEM
#undef PCM_LOAD_CPU_ID
#undef PCM_LOAD_MM_CID
#undef PCM_ASM_GOTO_BARRIER

}  // namespace pcmalloc::percpu

#endif  // PCMALLOC_PERCPU_OPS_X86_64_H_
