// SPDX-License-Identifier: Apache-2.0
#include "tests/instructions/tracer.h"

#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#include "absl/strings/numbers.h"
#include "absl/strings/str_format.h"
#include "rseq/rseq.h"
#include "tests/instructions/cpu.h"
#include "tests/instructions/waiting.h"

namespace pcmalloc::instructions {
Disassembly::Disassembly() {
  char executable[4096] = {};
  if (readlink("/proc/self/exe", executable, sizeof(executable) - 1) < 0) return;
  // Where there is no objdump its output may lie beside the program.
  const std::string ready = absl::StrFormat("%s.listing", executable);
  const std::string command =
      absl::StrFormat("objdump --disassemble --wide --no-show-raw-insn '%s'", executable);
  const bool is_ready = access(ready.c_str(), R_OK) == 0;
  FILE* const listing = is_ready ? fopen(ready.c_str(), "re") : popen(command.c_str(), "r");
  if (listing == nullptr) return;
  char line[4096];
  while (fgets(line, sizeof(line), listing) != nullptr) {
    char* const colon = strstr(line, ":\t");
    if (colon == nullptr) continue;
    *colon = '\0';
    uint64_t address;
    if (absl::SimpleHexAtoi(line + strspn(line, " "), &address)) {
      instructions_[address + LoadBias()] = colon + 2;
    }
  }
  if ((is_ready ? fclose(listing) : pclose(listing)) != 0) instructions_.clear();
}

SectionCode Disassembly::CodeOf(const rseq::SectionEntry& entry) const {
  SectionCode code;
  for (auto it = instructions_.find(entry.StartAddress());
       it != instructions_.end() && it->first <= entry.CommitAddress(); ++it) {
    code.instructions.push_back(it->first);
    if (it->second.find(kMmCidOperand) != std::string::npos) code.by_mm_cid = true;
  }
  auto stub = instructions_.find(entry.AbortAddress());
  while (stub != instructions_.end() && stub->second.rfind(kJump, 0) != 0) ++stub;
  if (stub == instructions_.end()) return code;
  uint64_t restart = 0;
  const std::string& jump = stub->second;
  const size_t digits = jump.find_first_not_of(" \t", strlen(kJump));
  if (digits == std::string::npos ||
      !absl::SimpleHexAtoi(jump.substr(digits, jump.find(' ', digits) - digits), &restart)) {
    return code;
  }
  for (auto it = instructions_.find(restart + LoadBias());
       it != instructions_.end() && it->first < entry.StartAddress(); ++it) {
    code.prelude.push_back(it->first);
  }
  return code;
}

Tracer::Tracer(percpu::Mode mode, const int cpus[2], int sleepers) {
  void* const memory =
      mmap(nullptr, sizeof(Shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) Die("mmap");
  shared_ = new (memory) Shared();
  shared_->mode = mode;
  shared_->cpus[0] = cpus[0];
  shared_->cpus[1] = cpus[1];
  shared_->sleepers = sleepers;
  shared_->slabs = mode == percpu::Mode::kMmCid ? kMaxSlabs : 2;
  for (int s = 0; s < shared_->slabs; ++s) {
    shared_->indices[s] = mode == percpu::Mode::kMmCid ? s : cpus[s];
  }
  for (sem_t* s : {&shared_->ready, &shared_->attached, &shared_->go, &shared_->done}) {
    if (sem_init(s, 1, 0) != 0) Die("sem_init");
  }
  fflush(nullptr);
  subject_ = fork();
  if (subject_ < 0) Die("fork");
  if (subject_ == 0) RunSubject(shared_);
  WaitFor(&shared_->ready, "the subject did not start");
  victim_ = shared_->victim_id;
  if (ptrace(PTRACE_SEIZE, victim_, nullptr, nullptr) != 0) Die("PTRACE_SEIZE");
  sem_post(&shared_->attached);
  int status = 0;
  if (waitpid(victim_, &status, __WALL) != victim_ || !WIFSTOPPED(status)) Die("no first stop");
}

Tracer::~Tracer() {
  kill(subject_, SIGKILL);
  waitpid(victim_, nullptr, __WALL);
  waitpid(subject_, nullptr, 0);
  munmap(shared_, sizeof(Shared));
}

void Tracer::Tell(Command command) {
  shared_->command = command;
  sem_post(&shared_->go);
  WaitFor(&shared_->done, "the other thread did not answer");
}

void Tracer::Arm(uintptr_t address) {
  if (!SetBreakpoint(victim_, address)) Die("no hardware breakpoint can be set");
  armed_ = address;
}

uintptr_t Tracer::WaitForStop(int* signal) {
  int status = 0;
  if (waitpid(victim_, &status, __WALL) != victim_) Die("waitpid");
  if (!WIFSTOPPED(status)) Die(absl::StrFormat("the victim ended with status %#x", status));
  uintptr_t counter = 0;
  if (!GetProgramCounter(victim_, &counter)) Die("no program counter");
  *signal = WSTOPSIG(status);
  if (*signal != SIGTRAP && *signal != SIGUSR1) {
    Die(absl::StrFormat("signal %d at %#x", *signal, counter - LoadBias()));
  }
  return counter;
}

void Tracer::StepOffBreakpoint() {
  uintptr_t counter = 0;
  if (!GetProgramCounter(victim_, &counter)) Die("no program counter");
  if (kStepsOverBreakpoints || armed_ == 0 || counter != armed_) return;
  if (!SetBreakpoint(victim_, 0)) Die("no breakpoint can be taken away");
  if (ptrace(PTRACE_SINGLESTEP, victim_, nullptr, 0) != 0) Die("PTRACE_SINGLESTEP");
  int signal = 0;
  WaitForStop(&signal);
  if (signal != SIGTRAP) Die("a signal instead of a step");
  if (!SetBreakpoint(victim_, armed_)) Die("no breakpoint can be set again");
}

bool Tracer::Continue() {
  if (handed_over_ && !PassHandOver(victim_)) Die("no program counter can be set");
  handed_over_ = false;
  StepOffBreakpoint();
  int signal = 0;
  while (true) {
    if (ptrace(PTRACE_CONT, victim_, nullptr, signal) != 0) Die("PTRACE_CONT");
    const uintptr_t counter = WaitForStop(&signal);
    if (signal == SIGUSR1) continue;
    handed_over_ = armed_ == 0 || counter != armed_;
    return !handed_over_;
  }
}

bool Tracer::RunTo(int operation, uintptr_t address) {
  shared_->operation = operation;
  Arm(address);
  return Continue();
}

int Tracer::Finish(uintptr_t address) {
  Arm(address);
  if (!ForgetWhereItStopped(victim_)) Die("no flags can be set");
  int times = 0;
  while (Continue()) times += shared_->in_handler ? 0 : 1;
  Arm(0);
  return times;
}

int Tracer::VictimSlab() const {
  const size_t offset = shared_->mode == percpu::Mode::kMmCid ? offsetof(rseq::Area, mm_cid)
                                                              : offsetof(rseq::Area, cpu_id);
  int index = -1;
  iovec here = {&index, sizeof(index)};
  iovec there = {const_cast<char*>(static_cast<const char*>(shared_->victim_area)) + offset,
                 sizeof(index)};
  if (process_vm_readv(victim_, &here, 1, &there, 1, 0) != sizeof(index)) Die("process_vm_readv");
  for (int s = 0; s < shared_->slabs; ++s) {
    if (shared_->indices[s] == index) return s;
  }
  return -1;
}

void Tracer::MoveVictimTo(int cpu) {
  cpu_set_t one;
  CPU_ZERO(&one);
  CPU_SET(cpu, &one);
  if (sched_setaffinity(victim_, sizeof(one), &one) != 0) Die("sched_setaffinity");
}

void Tracer::SignalVictim() {
  if (syscall(SYS_tgkill, subject_, victim_, SIGUSR1) != 0) Die("tgkill");
}

}  // namespace pcmalloc::instructions
