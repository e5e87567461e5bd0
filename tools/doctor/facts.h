// SPDX-License-Identifier: Apache-2.0
//
// Purpose: what this machine, kernel and C library offer to a per-CPU allocator, asked for without
//   the allocator's own code: the doctor is a second opinion.
// Invariants: whatever cannot be found out reads as kUnknown or an empty optional, never as a
//   guess; nothing that others registered is changed.
// Cost: about 20 ms, nearly all of it spent watching threads run on the allowed CPUs.
#ifndef PCMALLOC_TOOLS_DOCTOR_FACTS_H_
#define PCMALLOC_TOOLS_DOCTOR_FACTS_H_

#include <cstdint>
#include <optional>
#include <string>

#include "absl/strings/string_view.h"
#include "tools/doctor/behaviour.h"

namespace pcmalloc::doctor {

inline constexpr absl::string_view kUnknown = "unknown";

struct Facts {
  std::string kernel;   // release
  std::string machine;  // x86_64, aarch64
  std::string libc;     // name and version

  bool libc_registers = false;                // the C library registered this thread's area
  std::optional<uint32_t> registered_length;  // bytes it registered; 0: nothing is registered
  uint32_t feature_size = 0;                  // AT_RSEQ_FEATURE_SIZE, 0: the kernel does not say
  uint32_t align = 0;                         // AT_RSEQ_ALIGN, 0: the kernel does not say
  int rseq_error = 0;  // why an own registration is refused where the C library made none

  // Lists as the kernel writes them: "0-3,8".
  std::string cpus_possible;
  std::string cpus_online;
  std::string cpus_allowed;
  std::string cpus_used;  // seen by threads of this process

  bool membarrier_rseq = false;  // the fence that aborts sections works
  bool membarrier_cpu = false;   // and takes a CPU number
  int membarrier_error = 0;      // why not

  std::optional<Behaviour> behaviour;  // set by the caller who wants the kernel probed

  uint64_t page_size = 0;
  std::string thp;         // always, madvise, never
  std::string overcommit;  // 0, 1, 2
};

// `root` stands in front of /proc and /sys; empty but in tests.
Facts GatherFacts(absl::string_view root);

// Number of CPUs in a list like "0-3,8"; nothing if it is no such list.
std::optional<int> CountCpus(absl::string_view list);

}  // namespace pcmalloc::doctor

#endif  // PCMALLOC_TOOLS_DOCTOR_FACTS_H_
