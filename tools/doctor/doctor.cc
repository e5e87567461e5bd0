// SPDX-License-Identifier: Apache-2.0
//
// What this machine offers to pcmalloc, which mode the library takes here, and why.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <string>
#include <vector>

#include "absl/flags/flag.h"
#include "absl/flags/parse.h"
#include "absl/flags/usage.h"
#include "tools/doctor/facts.h"
#include "tools/doctor/preload.h"
#include "tools/doctor/report.h"

ABSL_FLAG(bool, json, false, "write JSON instead of a table");
ABSL_FLAG(bool, probe, false, "try out what the kernel does with restartable sequences");
ABSL_FLAG(std::string, fake_kernel, "", "a kernel that the probe plays (for tests)");
ABSL_FLAG(std::string, library, "out/libpcmalloc.so", "the library to preload and ask");
ABSL_FLAG(std::string, root, "", "stands in front of /proc and /sys (for tests)");

int main(int argc, char** argv) {
  namespace doctor = pcmalloc::doctor;
  if (argc == 2 && strcmp(argv[1], doctor::kAnswerFlag) == 0) return doctor::GiveAnswer();

  absl::SetProgramUsageMessage(
      "says what this machine offers to pcmalloc, which mode the library takes here, and why\n"
      "Usage: ./pcm doctor [FLAG...]; ./pcm doctor --help explains the flags that users need.");
  const std::vector<char*> arguments = absl::ParseCommandLine(argc, argv);
  if (arguments.size() > 1) {
    fprintf(stderr, "doctor: unexpected argument: %s\n", arguments[1]);
    return 2;
  }

  doctor::Facts facts = doctor::GatherFacts(absl::GetFlag(FLAGS_root));
  if (absl::GetFlag(FLAGS_probe)) {
    facts.behaviour =
        doctor::ProbeKernel(doctor::FakeKernelByName(absl::GetFlag(FLAGS_fake_kernel)));
  }
  const doctor::Answer answer = doctor::AskLibrary(absl::GetFlag(FLAGS_library));
  const char* no_colour = getenv("NO_COLOR");
  const bool colour = isatty(STDOUT_FILENO) != 0 && (no_colour == nullptr || no_colour[0] == '\0');
  const std::string text = absl::GetFlag(FLAGS_json) ? doctor::Json(facts, answer)
                                                     : doctor::Table(facts, answer, colour);
  if (fwrite(text.data(), 1, text.size(), stdout) != text.size() || fflush(stdout) != 0) {
    perror("doctor");
    return 1;
  }
  return answer.mode.empty() ? 1 : 0;
}
