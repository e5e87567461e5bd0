// SPDX-License-Identifier: Apache-2.0
#include "tests/instructions/cpu.h"

#include <elf.h>
#include <stddef.h>
#include <sys/ptrace.h>
#include <sys/uio.h>
#include <sys/user.h>

namespace pcmalloc::instructions {

#if defined(__x86_64__)

namespace {

constexpr uint64_t kResumeFlag = 1u << 16;  // of eflags: no breakpoint at the next instruction

bool Poke(pid_t thread, int number, uintptr_t value) {
  const size_t offset = offsetof(user, u_debugreg) + static_cast<size_t>(number) * sizeof(long);
  return ptrace(PTRACE_POKEUSER, thread, offset, value) == 0;
}

}  // namespace

bool GetProgramCounter(pid_t thread, uintptr_t* counter) {
  user_regs_struct registers;
  if (ptrace(PTRACE_GETREGS, thread, nullptr, &registers) != 0) return false;
  *counter = registers.rip;
  return true;
}

bool SetBreakpoint(pid_t thread, uintptr_t address) {
  if (!Poke(thread, 7, 0)) return false;
  if (address == 0) return true;
  // Enable register 0 for this thread: execution, one byte.
  return Poke(thread, 0, address) && Poke(thread, 7, 1);
}

bool ForgetWhereItStopped(pid_t thread) {
  user_regs_struct registers;
  if (ptrace(PTRACE_GETREGS, thread, nullptr, &registers) != 0) return false;
  registers.eflags &= ~kResumeFlag;
  return ptrace(PTRACE_SETREGS, thread, nullptr, &registers) == 0;
}

bool PassHandOver(pid_t) { return true; }

#elif defined(__aarch64__)

namespace {

// As the kernel defines it for NT_ARM_HW_BREAK, with one register.
struct Breakpoints {
  uint32_t info;
  uint32_t padding;
  uint64_t address;
  uint32_t control;
  uint32_t padding2;
};
constexpr uint32_t kFourBytesInUserSpace = 0xf << 5 | 2 << 1 | 1;

bool Registers(__ptrace_request request, pid_t thread, user_regs_struct* registers) {
  iovec vector = {registers, sizeof(*registers)};
  return ptrace(request, thread, NT_PRSTATUS, &vector) == 0;
}

}  // namespace

bool GetProgramCounter(pid_t thread, uintptr_t* counter) {
  user_regs_struct registers;
  if (!Registers(PTRACE_GETREGSET, thread, &registers)) return false;
  *counter = registers.pc;
  return true;
}

bool SetBreakpoint(pid_t thread, uintptr_t address) {
  Breakpoints breakpoints = {0, 0, address, address == 0 ? 0 : kFourBytesInUserSpace, 0};
  iovec vector = {&breakpoints, sizeof(breakpoints)};
  return ptrace(PTRACE_SETREGSET, thread, NT_ARM_HW_BREAK, &vector) == 0;
}

bool ForgetWhereItStopped(pid_t) { return true; }

bool PassHandOver(pid_t thread) {
  user_regs_struct registers;
  if (!Registers(PTRACE_GETREGSET, thread, &registers)) return false;
  registers.pc += 4;
  return Registers(PTRACE_SETREGSET, thread, &registers);
}

#endif

}  // namespace pcmalloc::instructions
