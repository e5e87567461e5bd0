// SPDX-License-Identifier: Apache-2.0
//
// Purpose: the doctor's findings as a table for people and as JSON for programs, and its advice.
// Invariants: pure functions of their arguments; the JSON's keys are stable (null: not asked for).
// Cost: none to speak of.
#ifndef PCMALLOC_TOOLS_DOCTOR_REPORT_H_
#define PCMALLOC_TOOLS_DOCTOR_REPORT_H_

#include <string>

#include "absl/strings/string_view.h"
#include "tools/doctor/facts.h"
#include "tools/doctor/preload.h"

namespace pcmalloc::doctor {

// Whether a preloaded program has per-CPU caches driven by rseq.
bool PerCpuActive(const Answer& answer);

// What to do about it, in one or two sentences.
std::string Advice(const Facts& facts, const Answer& answer);

std::string Table(const Facts& facts, const Answer& answer, bool colour);
std::string Json(const Facts& facts, const Answer& answer);

// `text` as a JSON string, quotes included. Bytes that are not UTF-8 become U+FFFD.
std::string JsonString(absl::string_view text);

}  // namespace pcmalloc::doctor

#endif  // PCMALLOC_TOOLS_DOCTOR_REPORT_H_
