// SPDX-License-Identifier: Apache-2.0
//
// Purpose: what the running kernel really does with restartable sequences, and what that means
//   to an administrator.
// Invariants: the words are pure functions of the finding; what could not be found out is "unknown"
//   and says what was in the way.
// Cost: ProbeKernel() 1 ms on an idle machine, below 3 s on any.
#ifndef PCMALLOC_TOOLS_DOCTOR_BEHAVIOUR_H_
#define PCMALLOC_TOOLS_DOCTOR_BEHAVIOUR_H_

#include <cstdint>
#include <string>

#include "absl/strings/string_view.h"
#include "rseq/detect/probe.h"

namespace pcmalloc::doctor {

struct Behaviour {
  rseq::Finding32 exact32;
  rseq::FindingV2 longer;
  uint32_t longer_length = 0;
};

// Asks the kernel. `fake` makes it look like another one, for tests.
Behaviour ProbeKernel(rseq::FakeKernel fake);

// "keeps-mark", "never-aborts", "kills" or "hangs"; anything else is the real kernel.
rseq::FakeKernel FakeKernelByName(absl::string_view name);

// The class and what it says, for the table.
std::string Words32(const Behaviour& behaviour);
std::string WordsV2(const Behaviour& behaviour);

// Whether an administrator should act on it.
bool NeedsAction(const Behaviour& behaviour);

// What it means for allocators on a machine of this kind ("aarch64"), as one or more sentences.
std::string Meaning(const Behaviour& behaviour, absl::string_view machine);

}  // namespace pcmalloc::doctor

#endif  // PCMALLOC_TOOLS_DOCTOR_BEHAVIOUR_H_
