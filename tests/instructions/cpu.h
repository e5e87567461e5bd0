// SPDX-License-Identifier: Apache-2.0
//
// Purpose: what the tracer must know of the processor: breakpoints, the program counter, the
//   instruction that hands the victim over.
// Invariants: the thread is in a ptrace stop whenever a function here is called. False with errno
//   set: ptrace refused.
// Cost: one or two system calls each.
#ifndef PCMALLOC_TESTS_INSTRUCTIONS_CPU_H_
#define PCMALLOC_TESTS_INSTRUCTIONS_CPU_H_

#include <stdint.h>
#include <sys/types.h>

namespace pcmalloc::instructions {

#if defined(__x86_64__)
#define PCM_HAND_OVER "int3"
inline constexpr char kJump[] = "jmp";
inline constexpr char kMmCidOperand[] = "%fs:0x18(";  // of the instruction that loads it
inline constexpr bool kStepsOverBreakpoints = true;   // by the resume flag, which the kernel sets
#elif defined(__aarch64__)
#define PCM_HAND_OVER "brk #1"
inline constexpr char kJump[] = "b\t";
inline constexpr char kMmCidOperand[] = ", #24]";
inline constexpr bool kStepsOverBreakpoints = false;
#endif

bool GetProgramCounter(pid_t thread, uintptr_t* counter);

// Stops the thread, and it alone, when it is about to execute the instruction there; 0: nowhere.
bool SetBreakpoint(pid_t thread, uintptr_t address);

// The thread may have been sent to another instruction than the one where it was stopped: a
// breakpoint there must not be passed over.
bool ForgetWhereItStopped(pid_t thread);

// Of a thread that stands at PCM_HAND_OVER: what it continues with is the next instruction.
bool PassHandOver(pid_t thread);

}  // namespace pcmalloc::instructions

#endif  // PCMALLOC_TESTS_INSTRUCTIONS_CPU_H_
