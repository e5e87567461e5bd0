// SPDX-License-Identifier: Apache-2.0
//
// Purpose: the legacy scheme's critical sections, x86_64: the slab pointer is cached in a word
//   whose high half is the kernel's cpu_id_start. Pseudo-code of each stands in percpu/README.md
//   under the same name.
//
//      word    1 x x x ... slab pointer      bit 63 set: valid
//              0 c c c c | ...               the kernel wrote the CPU's number: not valid
//
// Invariants: used only where the probe has shown that the kernel rewrites cpu_id_start whenever it
//   preempts a thread, delivers a signal to it or fences it, and where Discovery::cached_word is
//   set; on any other kernel a cached pointer outlives Stop and blocks are handed out twice.
//   Everything but single pops and pushes goes by the sections of ops_x86_64.h, on the same slabs.
// Cost: the same number of instructions as the table's sections.
#ifndef PCMALLOC_PERCPU_OPS_CACHED_X86_64_H_
#define PCMALLOC_PERCPU_OPS_CACHED_X86_64_H_

#include <stdint.h>

#include "absl/base/attributes.h"
#include "percpu/slab.h"
#include "rseq/arch/x86_64.h"

namespace pcmalloc::percpu {

// clang-format off
#define PCM_CACHED_DESCRIPTOR \
  PCM_RSEQ_DESCRIPTOR(".Lpcm_cs%=", ".Lpcm_start%=", ".Lpcm_commit%=", ".Lpcm_abort%=")
#define PCM_CACHED_ABORT PCM_RSEQ_ABORT(".Lpcm_abort%=", ".Lpcm_restart%=")

#define PCM_CACHED_ARM                                    \
  ".Lpcm_restart%=:\n\t"                                  \
  "movq pcmalloc_rseq_offset(%%rip), %[area]\n\t"         \
  PCM_RSEQ_ARM(".Lpcm_cs%=", "%[scratch]", "%[area]")     \
  ".Lpcm_start%=:\n\t"

// The cached pointer in %[slab]; to `invalid` where the word's mark is gone.
#define PCM_CACHED_OPEN(invalid)                          \
  PCM_CACHED_ARM                                          \
  "movq %%fs:-4(%[area]), %[slab]\n\t"                    \
  "btrq $63, %[slab]\n\t"                                 \
  "jnc " invalid "\n\t"
// clang-format on

// Pop and Push by the cached pointer; a word that is not valid is a miss.
ABSL_ATTRIBUTE_ALWAYS_INLINE inline void* PopCached(uintptr_t size_class) {
  void* item;
  uintptr_t area, slab, scratch;
  asm volatile goto(PCM_CACHED_DESCRIPTOR PCM_CACHED_OPEN("%l[miss]")              //
                    "movl (%[slab], %[size_class], 8), %k[scratch]\n\t"            //
                    "movq -8(%[slab], %[scratch], 8), %[item]\n\t"                 //
                    "testb $1, %b[item]\n\t"                                       //
                    "jnz %l[miss]\n\t"                                             //
                    "decl (%[slab], %[size_class], 8)\n"                           //
                    ".Lpcm_commit%=:\n\t" PCM_CACHED_ABORT                         //
                    : [item] "=&a"(item), [area] "=&r"(area), [slab] "=&r"(slab),  //
                      [scratch] "=&r"(scratch)                                     //
                    : [size_class] "r"(size_class)                                 //
                    : "memory", "cc"                                               //
                    : miss);
  asm volatile("");  // see PCM_ASM_GOTO_BARRIER in ops_x86_64.h
  if (item == nullptr) __builtin_unreachable();
  return item;
miss:
  asm volatile("");
  return nullptr;
}

ABSL_ATTRIBUTE_ALWAYS_INLINE inline bool PushCached(uintptr_t size_class, void* item) {
  uintptr_t area, slab, scratch;
  asm volatile goto(PCM_CACHED_DESCRIPTOR PCM_CACHED_OPEN("%l[full]")                   //
                    "movl (%[slab], %[size_class], 8), %k[scratch]\n\t"                 //
                    "cmpl 4(%[slab], %[size_class], 8), %k[scratch]\n\t"                //
                    "jae %l[full]\n\t"                                                  //
                    "movq %[item], (%[slab], %[scratch], 8)\n\t"                        //
                    "incl (%[slab], %[size_class], 8)\n"                                //
                    ".Lpcm_commit%=:\n\t" PCM_CACHED_ABORT                              //
                    : [area] "=&r"(area), [slab] "=&r"(slab), [scratch] "=&r"(scratch)  //
                    : [size_class] "r"(size_class), [item] "r"(item)                    //
                    : "memory", "cc"                                                    //
                    : full);
  asm volatile("");
  return true;
full:
  asm volatile("");
  return false;
}

// Caches the pointer of the slab that this thread's CPU has now; false if that is the closed slab,
// which is never cached: nothing would invalidate it when the CPU is started again.
//
// The marker goes into cpu_id_start before the index is read, and the pointer is stored only if the
// marker is still there: had the kernel come in between, it would have written a CPU's number (and
// would have aborted the section besides).
inline bool CacheSlab() {
  uintptr_t area, slab, scratch;
  uint32_t done;
  asm volatile(
      PCM_CACHED_DESCRIPTOR PCM_CACHED_ARM                //
      "xorl %[done], %[done]\n\t"                         //
      "movl $0x7fffffff, %%fs:0(%[area])\n\t"             //
      "movslq %%fs:4(%[area]), %[slab]\n\t"               //
      "leaq pcmalloc_slab_of+16(%%rip), %[scratch]\n\t"   //
      "movq (%[scratch], %[slab], 8), %[slab]\n\t"        //
      "leaq pcmalloc_closed_slab(%%rip), %[scratch]\n\t"  //
      "cmpq %[scratch], %[slab]\n\t"                      //
      "je .Lpcm_commit%=\n\t"                             //
      "cmpl $0x7fffffff, %%fs:0(%[area])\n\t"             //
      "jne .Lpcm_commit%=\n\t"                            //
      "incl %[done]\n\t"                                  //
      "btsq $63, %[slab]\n\t"                             //
      "movq %[slab], %%fs:-4(%[area])\n"                  //
      ".Lpcm_commit%=:\n\t" PCM_CACHED_ABORT              //
      : [area] "=&r"(area), [slab] "=&r"(slab), [scratch] "=&r"(scratch), [done] "=&r"(done)
      :
      : "memory", "cc");
  return done != 0;
}

#undef PCM_CACHED_DESCRIPTOR
#undef PCM_CACHED_ABORT
#undef PCM_CACHED_ARM
#undef PCM_CACHED_OPEN

}  // namespace pcmalloc::percpu

#endif  // PCMALLOC_PERCPU_OPS_CACHED_X86_64_H_
