// SPDX-License-Identifier: Apache-2.0
//
// Purpose: the critical sections on a slab, aarch64: the same five as in ops_x86_64.h, where each
//   has its comment.
// Invariants: the index is loaded inside the section; one store commits, last; an aborted section
//   starts anew and loads everything again; a section that did not commit has changed nothing that
//   anybody reads. What orders memory accesses, on a machine that keeps no order by itself:
//
//     entry of slab_of -> header -> item    each load's address comes from the load before: ordered
//                                           against Start, which publishes the slab by a release
//     item -> header (Push, PushBatch)      the commit is a store-release: whoever sees the new
//                                           `current` sees the items below it
//     item, header -> header (Pop)          the same store-release keeps the loads before it
//     rseq_cs, index, section               one thread with itself and with the kernel on its own
//                                           CPU: program order
//     slab_of = closed -> fence -> slab     membarrier: a commit before it is visible after it, and
//                                           a section that starts later sees the closed slab
//     from one thread to the next           on one CPU, or with one mm_cid: a context switch, which
//                                           is a full barrier
//
// Cost: hit path of Pop and Push: 19 instructions each, one of them a store-release.
#ifndef PCMALLOC_PERCPU_OPS_AARCH64_H_
#define PCMALLOC_PERCPU_OPS_AARCH64_H_

#include <stddef.h>
#include <stdint.h>

#include "absl/base/attributes.h"
#include "percpu/slab.h"
#include "rseq/arch/aarch64.h"

namespace pcmalloc::percpu {

// What the sections take as the index of slab_of.
enum class Index : uint8_t {
  kCpuId,  // the CPU's number
  kMmCid,  // the kernel's compact number among this process's running threads
};

#define PCM_SECTION_DESCRIPTOR \
  PCM_RSEQ_DESCRIPTOR(".Lpcm_cs%=", ".Lpcm_start%=", ".Lpcm_commit%=", ".Lpcm_abort%=")
#define PCM_SECTION_ABORT                                                                   \
  PCM_RSEQ_ABORT(".Lpcm_abort%=", ".Lpcm_count%=", ".Lpcm_restart%=", "%[area]", "%[slab]", \
                 "%w[scratch]")

// From the restart point to the slab in %[slab] and the address of the class's header in %[area].
// Uses %[scratch]. Of an area that the kernel does not maintain, mm_cid is no negative number: the
// sign of cpu_id is spread over it.
#define PCM_SECTION_OPEN(index_load)                                                      \
  ".Lpcm_restart%=:\n\t" PCM_RSEQ_AREA("%[area]", "%[scratch]")                           \
      PCM_RSEQ_ARM(".Lpcm_cs%=", "%[scratch]",                                            \
                   "%[area]") ".Lpcm_start%=:\n\t" index_load                             \
                              "adrp %[scratch], pcmalloc_slab_of+16\n\t"                  \
                              "add %[scratch], %[scratch], :lo12:pcmalloc_slab_of+16\n\t" \
                              "ldr %[slab], [%[scratch], %w[slab], sxtw #3]\n\t"          \
                              "add %[area], %[slab], %[size_class], lsl #3\n\t"
#define PCM_LOAD_CPU_ID "ldr %w[slab], [%[area], #4]\n\t"
#define PCM_LOAD_MM_CID                 \
  "ldr %w[slab], [%[area], #4]\n\t"     \
  "ldr %w[scratch], [%[area], #24]\n\t" \
  "orr %w[slab], %w[scratch], %w[slab], asr #31\n\t"

// See ops_x86_64.h.
#define PCM_ASM_GOTO_BARRIER() asm volatile("")

template <Index kIndex>
ABSL_ATTRIBUTE_ALWAYS_INLINE inline void* Pop(uintptr_t size_class) {
  void* item;
  uintptr_t area, slab, scratch;
#define PCM_POP(index_load) \
  asm volatile goto(PCM_SECTION_DESCRIPTOR PCM_SECTION_OPEN(index_load)               \
                    "ldr %w[scratch], [%[area]]\n\t"                                  \
                    "add %[item], %[slab], %[scratch], lsl #3\n\t"                    \
                    "ldur %[item], [%[item], #-8]\n\t"                                \
                    "tst %[item], #1\n\t"                                             \
                    "b.ne .Lpcm_miss%=\n\t"                                           \
                    "sub %w[scratch], %w[scratch], #1\n\t"                            \
                    "stlr %w[scratch], [%[area]]\n"                                   \
                    ".Lpcm_commit%=:\n\t" PCM_RSEQ_EXIT(".Lpcm_miss%=", "%l[miss]")   \
                        PCM_SECTION_ABORT                                             \
                    : [item] "=&r"(item), [area] "=&r"(area), [slab] "=&r"(slab),     \
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
  if (item == nullptr) __builtin_unreachable();
  return item;
miss:
  PCM_ASM_GOTO_BARRIER();  // as in ops_x86_64.h
  return nullptr;
}

// clang-format off
#ifndef PCMALLOC_SABOTAGE_TWO_COMMITS
#define PCM_PUSH_ITEM                                \
  "str %[item], [%[slab], %[scratch], lsl #3]\n\t"   \
  "add %w[scratch], %w[scratch], #1\n\t"             \
  "stlr %w[scratch], [%[area]]\n"
#else
// The fault, as in ops_x86_64.h.
#define PCM_PUSH_ITEM                                \
  "add %w[end], %w[scratch], #1\n\t"                 \
  "stlr %w[end], [%[area]]\n\t"                      \
  "str %[item], [%[slab], %[scratch], lsl #3]\n"
#endif
// clang-format on

template <Index kIndex>
ABSL_ATTRIBUTE_ALWAYS_INLINE inline bool Push(uintptr_t size_class, void* item) {
  uintptr_t area, slab, scratch, end;
#define PCM_PUSH(index_load) \
  asm volatile goto(PCM_SECTION_DESCRIPTOR PCM_SECTION_OPEN(index_load)                    \
                    "ldp %w[scratch], %w[end], [%[area]]\n\t"                              \
                    "cmp %w[scratch], %w[end]\n\t"                                         \
                    "b.hs .Lpcm_full%=\n\t"                                                \
                    PCM_PUSH_ITEM                                                          \
                    ".Lpcm_commit%=:\n\t" PCM_RSEQ_EXIT(".Lpcm_full%=", "%l[full]")        \
                        PCM_SECTION_ABORT                                                  \
                    : [area] "=&r"(area), [slab] "=&r"(slab), [scratch] "=&r"(scratch),    \
                      [end] "=&r"(end)                                                     \
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

template <Index kIndex>
inline uint32_t PopBatch(uintptr_t size_class, void** out, uint32_t n) {
  uintptr_t area, slab, scratch, item, taken;
#define PCM_POP_BATCH(index_load) \
  asm volatile(PCM_SECTION_DESCRIPTOR PCM_SECTION_OPEN(index_load)                            \
               "mov %w[taken], #0\n\t"                                                        \
               "ldr %w[scratch], [%[area]]\n"                                                 \
               ".Lpcm_next%=:\n\t"                                                            \
               "add %[item], %[slab], %[scratch], lsl #3\n\t"                                 \
               "ldur %[item], [%[item], #-8]\n\t"                                             \
               "tbnz %[item], #0, .Lpcm_copied%=\n\t"                                         \
               "str %[item], [%[out], %[taken], lsl #3]\n\t"                                  \
               "sub %w[scratch], %w[scratch], #1\n\t"                                         \
               "add %w[taken], %w[taken], #1\n\t"                                             \
               "cmp %w[taken], %w[n]\n\t"                                                     \
               "b.lo .Lpcm_next%=\n"                                                          \
               ".Lpcm_copied%=:\n\t"                                                          \
               "cbz %w[taken], .Lpcm_commit%=\n\t" /* closed slab: read-only */               \
               "stlr %w[scratch], [%[area]]\n"                                                \
               ".Lpcm_commit%=:\n\t" PCM_SECTION_ABORT                                        \
               : [area] "=&r"(area), [slab] "=&r"(slab), [scratch] "=&r"(scratch),            \
                 [item] "=&r"(item), [taken] "=&r"(taken)                                     \
               : [size_class] "r"(size_class), [out] "r"(out), [n] "r"(n)                     \
               : "memory", "cc")
  if constexpr (kIndex == Index::kCpuId) {
    PCM_POP_BATCH(PCM_LOAD_CPU_ID);
  } else {
    PCM_POP_BATCH(PCM_LOAD_MM_CID);
  }
#undef PCM_POP_BATCH
  return static_cast<uint32_t>(taken);
}

template <Index kIndex>
inline uint32_t PushBatch(uintptr_t size_class, void* const* in, uint32_t n) {
  uintptr_t area, slab, scratch, item, put, end;
#define PCM_PUSH_BATCH(index_load) \
  asm volatile(PCM_SECTION_DESCRIPTOR PCM_SECTION_OPEN(index_load)                            \
               "mov %w[put], #0\n\t"                                                          \
               "ldp %w[scratch], %w[end], [%[area]]\n"                                        \
               ".Lpcm_next%=:\n\t"                                                            \
               "cmp %w[scratch], %w[end]\n\t"                                                 \
               "b.hs .Lpcm_copied%=\n\t"                                                      \
               "ldr %[item], [%[in], %[put], lsl #3]\n\t"                                     \
               "str %[item], [%[slab], %[scratch], lsl #3]\n\t"                               \
               "add %w[scratch], %w[scratch], #1\n\t"                                         \
               "add %w[put], %w[put], #1\n\t"                                                 \
               "cmp %w[put], %w[n]\n\t"                                                       \
               "b.lo .Lpcm_next%=\n"                                                          \
               ".Lpcm_copied%=:\n\t"                                                          \
               "cbz %w[put], .Lpcm_commit%=\n\t" /* closed slab: read-only */                 \
               "stlr %w[scratch], [%[area]]\n"                                                \
               ".Lpcm_commit%=:\n\t" PCM_SECTION_ABORT                                        \
               : [area] "=&r"(area), [slab] "=&r"(slab), [scratch] "=&r"(scratch),            \
                 [item] "=&r"(item), [put] "=&r"(put), [end] "=&r"(end)                       \
               : [size_class] "r"(size_class), [in] "r"(in), [n] "r"(n)                       \
               : "memory", "cc")
  if constexpr (kIndex == Index::kCpuId) {
    PCM_PUSH_BATCH(PCM_LOAD_CPU_ID);
  } else {
    PCM_PUSH_BATCH(PCM_LOAD_MM_CID);
  }
#undef PCM_PUSH_BATCH
  return static_cast<uint32_t>(put);
}

template <Index kIndex>
inline bool ReplaceHeader(uintptr_t size_class, const Slab* expected_slab, uint64_t expected,
                          uint64_t desired) {
  uintptr_t area, slab, scratch;
  uint32_t done;
#define PCM_REPLACE_HEADER(index_load) \
  asm volatile(PCM_SECTION_DESCRIPTOR PCM_SECTION_OPEN(index_load)                            \
               "mov %w[done], #0\n\t"                                                         \
               "cmp %[slab], %[expected_slab]\n\t"                                            \
               "b.ne .Lpcm_commit%=\n\t"                                                      \
               "ldr %[scratch], [%[area]]\n\t"                                                \
               "cmp %[scratch], %[expected]\n\t"                                              \
               "b.ne .Lpcm_commit%=\n\t"                                                      \
               "mov %w[done], #1\n\t"                                                         \
               "stlr %[desired], [%[area]]\n"                                                 \
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
#undef PCM_PUSH_ITEM
#undef PCM_LOAD_CPU_ID
#undef PCM_LOAD_MM_CID
#undef PCM_ASM_GOTO_BARRIER

}  // namespace pcmalloc::percpu

#endif  // PCMALLOC_PERCPU_OPS_AARCH64_H_
