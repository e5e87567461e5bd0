// SPDX-License-Identifier: Apache-2.0
#include "tools/doctor/report.h"

#include <errno.h>
#include <string.h>

#include <algorithm>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"

namespace pcmalloc::doctor {
namespace {

constexpr char kNotAsked[] = "not tried out; --probe does";
constexpr absl::string_view kBold = "\033[1m";
constexpr absl::string_view kGreen = "\033[32m";
constexpr absl::string_view kYellow = "\033[33m";
constexpr absl::string_view kRed = "\033[31m";
constexpr absl::string_view kPlain = "\033[0m";

std::string ErrorName(int error) {
  const char* name = strerrorname_np(error);
  return name != nullptr ? name : absl::StrCat("error ", error);
}

std::string Registered(const Facts& facts) {
  if (!facts.registered_length.has_value()) return "yes, by the C library; length unknown";
  if (facts.libc_registers) {
    return absl::StrCat(*facts.registered_length, " bytes, by the C library");
  }
  if (facts.rseq_error != 0) {
    return absl::StrCat("none; the kernel refuses: ", ErrorName(facts.rseq_error));
  }
  return "none; the kernel would accept one";
}

std::string Said(uint32_t value) {
  return value == 0 ? "the kernel does not say" : absl::StrCat(value, " bytes");
}

std::string Cpus(const std::string& list) {
  const std::optional<int> count = CountCpus(list);
  return count.has_value() ? absl::StrCat(*count, " (", list, ")") : list;
}

std::string Membarrier(const Facts& facts) {
  if (!facts.membarrier_rseq) return absl::StrCat("no: ", ErrorName(facts.membarrier_error));
  if (!facts.membarrier_cpu) return "all CPUs at once only";
  return "yes, one CPU at a time";
}

std::string Overcommit(const std::string& mode) {
  if (mode == "0") return "0 (heuristic)";
  if (mode == "1") return "1 (always)";
  if (mode == "2") return "2 (strict)";
  return mode;
}

// A part of a JSON object that is a number where it is one.
std::string NumberOr(const std::string& text) {
  const bool digits = !text.empty() && text.find_first_not_of("0123456789") == std::string::npos;
  return digits ? text : JsonString(text);
}

// Length of the UTF-8 sequence at the front of `text`, 0 if there is none.
size_t Utf8Length(absl::string_view text) {
  const auto byte = [text](size_t i) { return static_cast<unsigned char>(text[i]); };
  const unsigned char first = byte(0);
  const size_t length = first < 0x80                    ? 1
                        : first >= 0xc2 && first < 0xe0 ? 2
                        : first >= 0xe0 && first < 0xf0 ? 3
                        : first >= 0xf0 && first < 0xf5 ? 4
                                                        : 0;
  if (length > text.size()) return 0;
  for (size_t i = 1; i < length; ++i) {
    if ((byte(i) & 0xc0) != 0x80) return 0;
  }
  return length;
}

}  // namespace

bool PerCpuActive(const Answer& answer) {
  return absl::StartsWith(answer.mode, "v2safe-") || answer.mode == "legacy";
}

std::string Advice(const Facts& facts, const Answer& answer) {
  const bool probed = facts.behaviour.has_value();
  const std::string meaning = probed ? Meaning(*facts.behaviour, facts.machine) : "";
  if (answer.mode.empty()) {
    return absl::StrCat(
        "The library could not be asked: build it with ./pcm build, and see the error above.",
        probed ? " " : "", meaning);
  }
  std::string advice;
  if (probed && NeedsAction(*facts.behaviour)) {
    advice = meaning;
  } else if (answer.mode == "legacy") {
    advice =
        "Per-CPU caches are on in the legacy scheme, which is meant for comparison: take "
        "rseq:legacy out of PCMALLOC_CONF.";
  } else if (PerCpuActive(answer)) {
    advice = "Nothing to do: per-CPU caches are on.";
  } else if (!facts.libc_registers && facts.rseq_error == ENOSYS) {
    advice =
        "The system call rseq is missing: an emulator (qemu-user, valgrind), a sandbox (gVisor, "
        "seccomp) or a kernel without it. Run outside of it, or allow rseq and membarrier.";
  } else if (!facts.libc_registers && facts.rseq_error != 0) {
    advice = absl::StrCat("rseq is refused with ", ErrorName(facts.rseq_error),
                          ": allow rseq and membarrier in the seccomp profile of the container.");
  } else if (!facts.membarrier_rseq) {
    advice =
        "There is no fence for critical sections: it takes Linux 5.10 or later, and a seccomp "
        "profile that allows membarrier.";
  } else {
    advice =
        "Per-CPU caches are off though rseq works here: see the reason above, and whether "
        "PCMALLOC_CONF asks for rseq:locked.";
  }
  if (probed && !NeedsAction(*facts.behaviour)) absl::StrAppend(&advice, " ", meaning);
  if (facts.thp == "never") {
    absl::StrAppend(&advice,
                    " Transparent hugepages are off: large heaps take more page faults; consider "
                    "madvise.");
  }
  return advice;
}

std::string Table(const Facts& facts, const Answer& answer, bool colour) {
  const bool active = PerCpuActive(answer);
  const absl::string_view mode_colour = answer.mode.empty() ? kRed : active ? kGreen : kYellow;
  const std::string nothing(kUnknown);
  std::vector<std::pair<std::string, std::string>> rows = {
      {"mode", answer.mode.empty() ? nothing : answer.mode},
      {"reason", answer.mode.empty() ? answer.error : answer.reason},
      {"preloaded program",
       answer.mode.empty() ? nothing : absl::StrCat("per-CPU caches ", active ? "on" : "off")},
      {"kernel", facts.kernel},
      {"machine", facts.machine},
      {"C library", facts.libc},
      {"registered area", Registered(facts)},
      {"feature size", Said(facts.feature_size)},
      {"alignment", Said(facts.align)},
      {"fence (membarrier)", Membarrier(facts)},
      {"kernel, 32 bytes", facts.behaviour ? Words32(*facts.behaviour) : kNotAsked},
      {"kernel, longer", facts.behaviour ? WordsV2(*facts.behaviour) : kNotAsked},
      {"CPUs possible", Cpus(facts.cpus_possible)},
      {"CPUs online", Cpus(facts.cpus_online)},
      {"CPUs allowed", Cpus(facts.cpus_allowed)},
      {"CPUs seen in use", Cpus(facts.cpus_used)},
      {"page size", absl::StrCat(facts.page_size, " bytes")},
      {"hugepages", facts.thp},
      {"overcommit", Overcommit(facts.overcommit)},
  };
  if (!answer.messages.empty()) rows.emplace_back("messages", answer.messages);

  const auto paint = [colour](absl::string_view how, absl::string_view text) {
    return colour ? absl::StrCat(how, text, kPlain) : std::string(text);
  };
  size_t width = 0;
  for (const auto& [name, value] : rows) width = std::max(width, name.size());
  std::string table = absl::StrCat(paint(kBold, "pcmalloc on this machine"), "\n\n");
  for (const auto& [name, value] : rows) {
    absl::StrAppend(&table, "  ", absl::StrFormat("%-*s", static_cast<int>(width), name), "  ",
                    name == "mode" ? paint(mode_colour, value) : value, "\n");
  }
  absl::StrAppend(&table, "\n", Advice(facts, answer), "\n");
  return table;
}

std::string JsonString(absl::string_view text) {
  std::string json = "\"";
  while (!text.empty()) {
    const size_t length = Utf8Length(text);
    const char c = text.front();
    if (length == 0) {
      json += "\\ufffd";
    } else if (c == '"' || c == '\\') {
      absl::StrAppend(&json, "\\", text.substr(0, 1));
    } else if (static_cast<unsigned char>(c) < 0x20) {
      absl::StrAppendFormat(&json, "\\u%04x", static_cast<unsigned>(c));
    } else {
      absl::StrAppend(&json, text.substr(0, length));
    }
    text.remove_prefix(std::max<size_t>(length, 1));
  }
  return json + "\"";
}

std::string Json(const Facts& facts, const Answer& answer) {
  const auto truth = [](bool value) { return value ? "true" : "false"; };
  const std::string unknown(kUnknown);
  const std::vector<std::pair<std::string, std::string>> members = {
      {"mode", JsonString(answer.mode.empty() ? unknown : answer.mode)},
      {"reason", JsonString(answer.mode.empty() ? answer.error : answer.reason)},
      {"per_cpu_caches", truth(PerCpuActive(answer))},
      {"messages", JsonString(answer.messages)},
      {"kernel", JsonString(facts.kernel)},
      {"machine", JsonString(facts.machine)},
      {"libc", JsonString(facts.libc)},
      {"registered_length", facts.registered_length.has_value()
                                ? absl::StrCat(*facts.registered_length)
                                : JsonString(unknown)},
      {"feature_size", absl::StrCat(facts.feature_size)},
      {"align", absl::StrCat(facts.align)},
      {"rseq_error", JsonString(facts.rseq_error == 0 ? "" : ErrorName(facts.rseq_error))},
      {"cpus_possible", JsonString(facts.cpus_possible)},
      {"cpus_online", JsonString(facts.cpus_online)},
      {"cpus_allowed", JsonString(facts.cpus_allowed)},
      {"cpus_used", JsonString(facts.cpus_used)},
      {"membarrier_rseq", truth(facts.membarrier_rseq)},
      {"membarrier_cpu", truth(facts.membarrier_cpu)},
      {"class_32_bytes",
       facts.behaviour ? JsonString(rseq::Name(facts.behaviour->exact32.value)) : "null"},
      {"class_longer",
       facts.behaviour ? JsonString(rseq::Name(facts.behaviour->longer.value)) : "null"},
      {"page_size", absl::StrCat(facts.page_size)},
      {"thp", JsonString(facts.thp)},
      {"overcommit", NumberOr(facts.overcommit)},
      {"advice", JsonString(Advice(facts, answer))},
  };
  return absl::StrCat("{\n",
                      absl::StrJoin(members, ",\n",
                                    [](std::string* out, const auto& member) {
                                      absl::StrAppend(out, "  ", JsonString(member.first), ": ",
                                                      member.second);
                                    }),
                      "\n}\n");
}

}  // namespace pcmalloc::doctor
