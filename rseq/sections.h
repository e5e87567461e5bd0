// SPDX-License-Identifier: Apache-2.0
//
// Purpose: the list of all critical sections linked into this binary, for tests that stop a thread
//   at every instruction and for tools that read the same table from the file (ELF section
//   pcmalloc_rseq_table).
// Invariants: read-only data made by the assembler; every field is a distance, so that the table
//   means the same in the file and in memory.
// Cost: 32 bytes a section, never touched by the sections themselves.
#ifndef PCMALLOC_RSEQ_SECTIONS_H_
#define PCMALLOC_RSEQ_SECTIONS_H_

#include <stdint.h>

namespace pcmalloc::rseq {

#if defined(__x86_64__)
inline constexpr uint32_t kSignature = 0x53053053;
#elif defined(__aarch64__)
inline constexpr uint32_t kSignature = 0xd428bc00;
#else
#error "pcmalloc knows the rseq signature of x86_64 and aarch64 only"
#endif

struct SectionEntry {
  int64_t descriptor;  // from this field to the struct rseq_cs
  int64_t start;       // from this field to the first instruction
  int64_t length;      // bytes from the first instruction to the one after the committing store
  int64_t abort;       // from this field to where the kernel sends an aborted thread

  uintptr_t DescriptorAddress() const { return Follow(&descriptor); }
  uintptr_t StartAddress() const { return Follow(&start); }
  uintptr_t CommitAddress() const { return StartAddress() + static_cast<uintptr_t>(length); }
  uintptr_t AbortAddress() const { return Follow(&abort); }

 private:
  static uintptr_t Follow(const int64_t* field) {
    return reinterpret_cast<uintptr_t>(field) + static_cast<uintptr_t>(*field);
  }
};
static_assert(sizeof(SectionEntry) == 32);

// for (const SectionEntry* s = SectionsBegin(); s != SectionsEnd(); ++s) ...
const SectionEntry* SectionsBegin();
const SectionEntry* SectionsEnd();

}  // namespace pcmalloc::rseq

#endif  // PCMALLOC_RSEQ_SECTIONS_H_
