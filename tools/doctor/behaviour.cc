// SPDX-License-Identifier: Apache-2.0
#include "tools/doctor/behaviour.h"

#include <string.h>

#include "absl/strings/str_cat.h"

namespace pcmalloc::doctor {
namespace {

using rseq::Class32;
using rseq::ClassV2;
using rseq::ProbeResult;

std::string Milliseconds(const ProbeResult& result) {
  return absl::StrCat(" (", result.nanoseconds / 100'000 / 10.0, " ms)");
}

std::string Obstacle(const ProbeResult& result) {
  std::string text = result.obstacle;
  if (result.error != 0) absl::StrAppend(&text, ": ", strerrorname_np(result.error));
  return text;
}

// Sections that are not aborted, as opposed to no rseq at all.
bool BreaksSections(const Behaviour& b) {
  return (b.exact32.value == Class32::kNoRseq && b.exact32.marked.registration_error == 0) ||
         b.longer.value == ClassV2::kNoRseq;
}

std::string Counts(const ProbeResult& result) {
  return absl::StrCat(result.aborted, " of ", ProbeResult::kRounds, " sections aborted");
}

}  // namespace

Behaviour ProbeKernel(rseq::FakeKernel fake) {
  Behaviour behaviour;
  behaviour.exact32 = rseq::FindClass32(fake);
  behaviour.longer_length = rseq::LongerLength();
  behaviour.longer = rseq::FindClassV2(behaviour.longer_length, fake);
  return behaviour;
}

rseq::FakeKernel FakeKernelByName(absl::string_view name) {
  if (name == "keeps-mark") return rseq::FakeKernel::kKeepsMark;
  if (name == "never-aborts") return rseq::FakeKernel::kNeverAborts;
  if (name == "kills") return rseq::FakeKernel::kKills;
  if (name == "hangs") return rseq::FakeKernel::kHangs;
  return rseq::FakeKernel::kNone;
}

std::string Words32(const Behaviour& behaviour) {
  const ProbeResult& result = behaviour.exact32.marked;
  const std::string name = absl::StrCat(rseq::Name(behaviour.exact32.value), ": ");
  switch (behaviour.exact32.value) {
    case Class32::kCacheOk:
      return absl::StrCat(name, "sections are aborted and cpu_id_start is rewritten",
                          Milliseconds(result));
    case Class32::kNoCache:
      return absl::StrCat(name, "sections are aborted, but ",
                          result.killed_by != 0 ? "whoever writes cpu_id_start is killed"
                                                : "cpu_id_start keeps what was written over it",
                          Milliseconds(result));
    case Class32::kNoRseq:
      if (result.registration_error != 0) {
        return absl::StrCat(
            name, "the kernel registers no area: ", strerrorname_np(result.registration_error));
      }
      return absl::StrCat(name, Counts(result), Milliseconds(result));
    case Class32::kUnknown:
      break;
  }
  return absl::StrCat(name, Obstacle(result));
}

std::string WordsV2(const Behaviour& behaviour) {
  const ProbeResult& result = behaviour.longer.result;
  const std::string name = absl::StrCat(rseq::Name(behaviour.longer.value), ": ");
  const std::string length = absl::StrCat(behaviour.longer_length, " bytes");
  switch (behaviour.longer.value) {
    case ClassV2::kOk:
      return absl::StrCat(name, length, " accepted, sections are aborted", Milliseconds(result));
    case ClassV2::kNoRseq:
      return absl::StrCat(name, length, " accepted, ", Counts(result), Milliseconds(result));
    case ClassV2::kNone:
      return absl::StrCat(name, length, " refused: ", strerrorname_np(result.registration_error));
    case ClassV2::kUnknown:
      break;
  }
  return absl::StrCat(name, Obstacle(result));
}

bool NeedsAction(const Behaviour& behaviour) {
  return BreaksSections(behaviour) || behaviour.exact32.value == Class32::kNoCache;
}

std::string Meaning(const Behaviour& behaviour, absl::string_view machine) {
  if (BreaksSections(behaviour)) {
    return absl::StrCat(
        machine == "aarch64" ? "arm64: " : "",
        "rseq must not be used on this kernel: it does not abort critical sections, "
        "so whatever is built on them corrupts memory. Set "
        "PCMALLOC_CONF=rseq:locked, keep other allocators out of their per-CPU "
        "modes, and update the kernel.");
  }
  if (behaviour.exact32.value == Class32::kNoCache && behaviour.exact32.marked.killed_by != 0) {
    return "This kernel kills whoever writes cpu_id_start (rseq_debug): google/tcmalloc before its "
           "fix dies here in per-CPU mode, and rseq:legacy must not be used. pcmalloc's v2safe "
           "modes "
           "write nothing there and are not affected.";
  }
  if (behaviour.exact32.value == Class32::kNoCache) {
    return "This kernel leaves cpu_id_start as a program wrote it: google/tcmalloc before its fix "
           "corrupts memory here in per-CPU mode, and rseq:legacy must not be used. pcmalloc's "
           "v2safe modes write nothing there and are not affected.";
  }
  if (behaviour.exact32.value == Class32::kUnknown || behaviour.longer.value == ClassV2::kUnknown) {
    return "The probe of the kernel's behaviour found no full answer: see above.";
  }
  if (behaviour.exact32.value == Class32::kNoRseq) return "There is no rseq to be probed.";
  return "The kernel keeps its promises to critical sections, those of the legacy scheme among "
         "them.";
}

}  // namespace pcmalloc::doctor
