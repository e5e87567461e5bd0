// SPDX-License-Identifier: Apache-2.0
//
// Purpose: asks libpcmalloc.so itself, preloaded into a fresh copy of this program, which mode it
//   took and why.
// Invariants: reports what came back, or why nothing did; never waits longer than kTimeout.
// Cost: one exec.
#ifndef PCMALLOC_TOOLS_DOCTOR_PRELOAD_H_
#define PCMALLOC_TOOLS_DOCTOR_PRELOAD_H_

#include <string>

#include "absl/strings/string_view.h"

namespace pcmalloc::doctor {

// Argument that makes this program the fresh copy: it answers and ends.
inline constexpr char kAnswerFlag[] = "--internal_answer";

struct Answer {
  std::string mode;  // empty: no answer
  std::string reason;
  std::string messages;  // what the dynamic linker and the library wrote to stderr
  std::string error;     // why there is no answer
};

// Runs a copy of this program with `library` preloaded.
Answer AskLibrary(const std::string& library);

// Makes an answer of what the copy wrote; `ending` says how it ended, empty for status 0.
Answer ParseAnswer(absl::string_view output, absl::string_view messages, absl::string_view ending);

// The copy's side: writes mode and reason to stdout. The exit status.
int GiveAnswer();

}  // namespace pcmalloc::doctor

#endif  // PCMALLOC_TOOLS_DOCTOR_PRELOAD_H_
