// SPDX-License-Identifier: Apache-2.0
#include "tests/support/mode.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <string>

#include "gtest/gtest.h"
#include "percpu/ops.h"
#include "rseq/detect/probe.h"
#include "rseq/rseq.h"

namespace pcmalloc::testing {
namespace {

constexpr char kRestarted[] = "PCM_TEST_LEGACY_RESTARTED";
constexpr char kTunables[] = "GLIBC_TUNABLES";

// Starts the program anew, without the C library's registration, unless that has been done.
void RestartForLegacy(char** argv) {
  if (getenv(kRestarted) != nullptr) return;
  setenv(kRestarted, "1", 1);
  const char* const others = getenv(kTunables);
  const std::string before = others == nullptr ? "" : std::string(others) + ":";
  setenv(kTunables, (before + "glibc.pthread.rseq=0").c_str(), 1);
  execv("/proc/self/exe", argv);
  fprintf(stderr, "FAILED: /proc/self/exe: %s\n", strerror(errno));
  exit(1);
}

// Empty: nothing is against it.
std::string WhyNotLegacy() {
  if (!percpu::kHasCachedOps) return "the legacy scheme is not for this architecture";
  if (!rseq::RequestLength32()) return "something has asked for rseq already";
  const rseq::Discovery& found = rseq::Discover();
  if (!found.cached_word) return std::string("no area of 32 bytes of our own: ") + found.reason;
  const rseq::Class32 kernel = rseq::ClassifyForLegacy();
  if (kernel == rseq::Class32::kCacheOk) return "";
  return std::string(
             "this kernel does not rewrite cpu_id_start at every preemption (the probe says ") +
         rseq::Name(kernel) + "): the legacy scheme is not safe on it";
}

std::string WhyNot(percpu::Mode mode) {
  if (mode == percpu::Mode::kLocked) return "";
  // Asks for the area that it needs before anything else asks for one.
  const std::string refusal = mode == percpu::Mode::kCached ? WhyNotLegacy() : "";
  const rseq::Discovery& found = rseq::Discover();
  if (found.owner == rseq::Owner::kNone || !found.fence_available) {
    return std::string("no sections here: ") + found.reason;
  }
  if (mode == percpu::Mode::kMmCid && !found.mm_cid_maintained)
    return "this kernel keeps no mm_cid";
  return refusal;
}

percpu::Mode ModeNamed(const std::string& argument) {
  if (argument == "--mode=cpu") return percpu::Mode::kCpuId;
  if (argument == "--mode=cid") return percpu::Mode::kMmCid;
  if (argument == "--mode=legacy") return percpu::Mode::kCached;
  if (argument == "--mode=locked") return percpu::Mode::kLocked;
  return percpu::Mode::kUnset;
}

}  // namespace

percpu::Mode InitForMode(int* argc, char** argv) {
  for (int i = 1; i < *argc; ++i) {
    if (ModeNamed(argv[i]) == percpu::Mode::kCached) RestartForLegacy(argv);
  }
  ::testing::InitGoogleTest(argc, argv);
  const percpu::Mode mode = *argc == 2 ? ModeNamed(argv[1]) : percpu::Mode::kUnset;
  if (mode == percpu::Mode::kUnset) {
    fprintf(stderr, "usage: %s --mode=cpu|cid|legacy|locked\n", argv[0]);
    exit(2);
  }
  const std::string refusal = WhyNot(mode);
  if (!refusal.empty()) {
    printf("SKIPPED: %s\n", refusal.c_str());
    exit(0);
  }
  return mode;
}

}  // namespace pcmalloc::testing
