// SPDX-License-Identifier: Apache-2.0
//
// Purpose: the other side: starts the subject, stops its victim at an address by a hardware
//   breakpoint (a software one would change the code that other threads execute), lets it go on.
// Invariants: the victim stands still whenever a function here has returned.
// Cost: a few system calls and context switches a stop.
#ifndef PCMALLOC_TESTS_INSTRUCTIONS_TRACER_H_
#define PCMALLOC_TESTS_INSTRUCTIONS_TRACER_H_

#include <stdint.h>

#include <map>
#include <string>
#include <vector>

#include "rseq/sections.h"
#include "tests/instructions/subject.h"

namespace pcmalloc::instructions {

// The code of a section, by objdump on this very executable.
struct SectionCode {
  std::vector<uintptr_t> prelude;       // from where an aborted thread begins anew to the start
  std::vector<uintptr_t> instructions;  // from the start to the one behind the commit
  bool by_mm_cid = false;               // its index is the mm_cid
};

class Disassembly {
 public:
  Disassembly();
  // Empty parts are what could not be found.
  SectionCode CodeOf(const rseq::SectionEntry& entry) const;

 private:
  std::map<uintptr_t, std::string> instructions_;
};

class Tracer {
 public:
  Tracer(percpu::Mode mode, const int cpus[2], int sleepers);
  ~Tracer();
  Tracer(const Tracer&) = delete;
  Tracer& operator=(const Tracer&) = delete;

  Shared& shared() { return *shared_; }

  // Has the other thread do something and waits for it.
  void Tell(Command command);

  // Lets the victim, which stands between two rounds, execute an operation until it is about to
  // execute the instruction at `address`; false if it finished without coming there.
  bool RunTo(int operation, uintptr_t address);

  // Lets it finish the round; returns how often it came by `address` (0: do not look) on the way,
  // not counting what a signal handler did.
  int Finish(uintptr_t address);

  // The slab, as a number in `Shared`, of the index that the kernel gave the victim when it last
  // ran; -1: none of them.
  int VictimSlab() const;

  void MoveVictimTo(int cpu);
  void SignalVictim();

 private:
  void Arm(uintptr_t address);  // 0: nothing
  // True at the armed address, false between rounds.
  bool Continue();
  void StepOffBreakpoint();
  uintptr_t WaitForStop(int* signal);  // the program counter there

  Shared* shared_;
  pid_t subject_ = -1;
  pid_t victim_ = -1;
  uintptr_t armed_ = 0;
  bool handed_over_ = true;  // it stands between two rounds
};

}  // namespace pcmalloc::instructions

#endif  // PCMALLOC_TESTS_INSTRUCTIONS_TRACER_H_
