// SPDX-License-Identifier: Apache-2.0
#include "rseq/sections.h"

// The linker makes these two for an output section whose name is a C identifier. Weak: a binary
// without a single section has neither.
extern "C" {
extern const pcmalloc::rseq::SectionEntry pcmalloc_rseq_table_begin[] __asm__(
    "__start_pcmalloc_rseq_table") __attribute__((weak, visibility("hidden")));
extern const pcmalloc::rseq::SectionEntry pcmalloc_rseq_table_end[] __asm__(
    "__stop_pcmalloc_rseq_table") __attribute__((weak, visibility("hidden")));
}

namespace pcmalloc::rseq {

const SectionEntry* SectionsBegin() { return pcmalloc_rseq_table_begin; }
const SectionEntry* SectionsEnd() { return pcmalloc_rseq_table_end; }

}  // namespace pcmalloc::rseq
