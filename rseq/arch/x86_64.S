// SPDX-License-Identifier: Apache-2.0
//
// pcmalloc_rseq_offset: from the thread pointer to the rseq area that the sections use. It must be
// right before any code of the library has run (an offset of 0 would make the first arming store
// overwrite the thread control block), so the loader fills it in: the word is relocated by the
// value that an indirect function returns, and that function returns the thread-pointer offset of
// this library's own area. A plain .quad own@tpoff would say the same, but GNU ld (2.40) knows that
// relocation of data in executables only, not in shared objects.
// musl's start-up code skips R_X86_64_IRELATIVE in static programs: there the word is 0 until
// Discover() stores it. musl's dynamic loader refuses the relocation: objects for it are built with
// PCMALLOC_NO_IFUNC, to the same effect. gold and lld put the address of a stub there instead.
#if defined(__x86_64__)

#if !defined(PCMALLOC_NO_IFUNC)
        .text
        .type   own_area_offset, @gnu_indirect_function
own_area_offset:
        .cfi_startproc
        endbr64
        movq    pcmalloc_rseq_own_area@gottpoff(%rip), %rax
        ret
        .cfi_endproc
        .size   own_area_offset, . - own_area_offset
#endif

        .section .data.pcmalloc_rseq_offset, "aw", @progbits
        .balign 8
        .globl  pcmalloc_rseq_offset
        .hidden pcmalloc_rseq_offset
        .type   pcmalloc_rseq_offset, @object
        .size   pcmalloc_rseq_offset, 8
pcmalloc_rseq_offset:
#if defined(PCMALLOC_NO_IFUNC)
        .quad   0
#else
        .quad   own_area_offset
#endif

#endif  // __x86_64__

        .section .note.GNU-stack, "", %progbits
