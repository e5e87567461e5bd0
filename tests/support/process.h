// SPDX-License-Identifier: Apache-2.0
//
// Purpose: runs a piece of a test in a process of its own, bounded by a watchdog: a forked child,
//   or this very executable started again to run one named scenario from its first instruction on.
// Invariants: no child outlives the call (its process group is killed); failed expectations of the
//   child become a failure of the parent; one that the watchdog ended says where it was (hang.h).
// Cost: a fork (or fork and exec) each.
#ifndef PCMALLOC_TESTS_SUPPORT_PROCESS_H_
#define PCMALLOC_TESTS_SUPPORT_PROCESS_H_

#include <functional>
#include <string>
#include <vector>

#include "gtest/gtest.h"

namespace pcmalloc::testing {

// Success if `body`, run in a forked child, met its expectations and ended within the time.
::testing::AssertionResult InChild(const std::function<void()>& body, int seconds = 60);

// The path of this program: under valgrind, executing /proc/self/exe would execute valgrind.
std::string ThisExecutable();

// Success if the scenario, run in a fresh process, met its expectations and ended within the time.
// `before_exec` runs in the child just before the exec; `environment` entries are NAME=value.
struct FreshProcess {
  std::string executable = ThisExecutable();
  std::function<void()> before_exec = [] {};
  std::vector<std::string> environment = {};
  int seconds = 60;
};
::testing::AssertionResult InFreshProcess(const std::string& scenario,
                                          const FreshProcess& options = {});

// What `body` wrote to stdout and stderr, besides the outcome.
::testing::AssertionResult InChildWithOutput(const std::function<void()>& body, std::string* output,
                                             int seconds = 60);

// Registers `body` under a name for InFreshProcess().
struct Scenario {
  Scenario(const char* name, void (*body)());
};
#define PCM_SCENARIO(name)                                                      \
  static void Scenario_##name();                                                \
  static ::pcmalloc::testing::Scenario register_##name(#name, Scenario_##name); \
  static void Scenario_##name()

// The name of the running variant (tools/run_variant.py), empty if none.
std::string Variant();

}  // namespace pcmalloc::testing

#endif  // PCMALLOC_TESTS_SUPPORT_PROCESS_H_
