// SPDX-License-Identifier: Apache-2.0
//
// What one pop and one push cost in each scheme: legacy (cached pointer), v2safe-cpu,
// v2safe-cid and locked, each in processes of its own (the mode of a process is final), in turn
// A B C D A B C D.
//
//   schemes [--rounds=15] [--pairs=5000000] [--json]
#include <fcntl.h>
#include <sched.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

#include "absl/flags/flag.h"
#include "absl/flags/parse.h"
#include "absl/strings/str_format.h"
#include "benchmarks/counters.h"
#include "percpu/ops.h"
#include "percpu/slabs.h"
#include "rseq/rseq.h"

ABSL_FLAG(int, rounds, 15, "processes measured for each scheme");
ABSL_FLAG(int64_t, pairs, 5'000'000, "pops and pushes in each process");
ABSL_FLAG(bool, json, false, "print one JSON array instead of a table");
ABSL_FLAG(std::string, scheme, "", "measure this one in this process (what the driver starts)");

namespace pcmalloc::percpu {
namespace {

constexpr unsigned kClass = 2;

struct Scheme {
  const char* name;
  Mode mode;
};
constexpr Scheme kSchemes[] = {{"legacy", Mode::kCached},
                               {"v2safe-cpu", Mode::kCpuId},
                               {"v2safe-cid", Mode::kMmCid},
                               {"locked", Mode::kLocked}};

// Out of line, as malloc and free are.
template <Mode kMode>
__attribute__((noinline)) void* PopOne(unsigned size_class) {
  if constexpr (kMode == Mode::kCached) return PopCached(size_class);
  if constexpr (kMode == Mode::kCpuId) return Pop<Index::kCpuId>(size_class);
  if constexpr (kMode == Mode::kMmCid) return Pop<Index::kMmCid>(size_class);
  void* item = nullptr;
  PopBatch(size_class, &item, 1);
  return item;
}

template <Mode kMode>
__attribute__((noinline)) bool PushOne(unsigned size_class, void* item) {
  if constexpr (kMode == Mode::kCached) return PushCached(size_class, item);
  if constexpr (kMode == Mode::kCpuId) return Push<Index::kCpuId>(size_class, item);
  if constexpr (kMode == Mode::kMmCid) return Push<Index::kMmCid>(size_class, item);
  return PushBatch(size_class, &item, 1) == 1;
}

// Pairs that found the slab; the others are counted, not hidden.
template <Mode kMode>
int64_t Pairs(int64_t pairs) {
  int64_t done = 0;
  for (int64_t i = 0; i < pairs; ++i) {
    void* item = PopOne<kMode>(kClass);
    if (item == nullptr) {
      // Moved to another CPU, or the cached pointer was invalidated: what a slow path would do.
      if (kMode == Mode::kCached) CacheSlab();
      continue;
    }
    done += PushOne<kMode>(kClass, item);
  }
  return done;
}

int Measure(Mode mode) {
  cpu_set_t one;
  CPU_ZERO(&one);
  CPU_SET(sched_getcpu(), &one);
  sched_setaffinity(0, sizeof(one), &one);
  rseq::RequestLength32();
  const rseq::Discovery& found = rseq::Discover();
  if (found.owner == rseq::Owner::kNone || (mode == Mode::kCached && !found.cached_word)) return 2;
  Geometry geometry = {};
  geometry.capacity[kClass] = 64;
  InitTable(found.cpu_bound);
  Init(mode, geometry);
  const int index = CurrentIndex();
  if (index < 0 || !EnsureSlab(index) || SetCapacity(index, kClass, 64) == 0) return 3;
  static uint64_t objects[32];
  for (uint64_t& object : objects) {
    void* item = &object;
    if (PushBatch(kClass, &item, 1) != 1) return 4;
  }
  const auto run = [mode](int64_t pairs) {
    switch (mode) {
      case Mode::kCached:
        return Pairs<Mode::kCached>(pairs);
      case Mode::kCpuId:
        return Pairs<Mode::kCpuId>(pairs);
      case Mode::kMmCid:
        return Pairs<Mode::kMmCid>(pairs);
      default:
        return Pairs<Mode::kLocked>(pairs);
    }
  };
  const int64_t pairs = absl::GetFlag(FLAGS_pairs);
  run(pairs / 10);
  bench::Counters counters(bench::Scope::kThread);
  counters.Start();
  const int64_t done = run(pairs);
  const bench::Cost cost = counters.Stop();
  if (done < pairs - pairs / 100) return 5;
  absl::PrintF("%g %g %d\n", cost.cycles / static_cast<double>(pairs),
               cost.instructions / static_cast<double>(pairs), cost.tsc);
  return 0;
}

// One process; false with a message if it could not measure.
bool Start(const char* name, std::vector<double>* cycles, double* instructions, bool* tsc) {
  // glibc's own registration would be in the way of an area of exactly 32 bytes.
  const std::string command =
      absl::StrFormat("GLIBC_TUNABLES=glibc.pthread.rseq=0 /proc/%d/exe --scheme=%s --pairs=%d",
                      getpid(), name, absl::GetFlag(FLAGS_pairs));
  FILE* pipe = popen(command.c_str(), "r");
  double c = 0;
  int from_tsc = 0;
  const bool read = pipe != nullptr && fscanf(pipe, "%lf %lf %d", &c, instructions, &from_tsc) == 3;
  const int status = pipe != nullptr ? pclose(pipe) : -1;
  if (!read || status != 0) {
    absl::FPrintF(stderr, "schemes: %s cannot be measured here (status %d)\n", name,
                  WEXITSTATUS(status));
    return false;
  }
  cycles->push_back(c);
  *tsc = from_tsc != 0;
  return true;
}

int Drive() {
  std::vector<double> cycles[std::size(kSchemes)];
  double instructions[std::size(kSchemes)] = {};
  bool tsc = false;
  for (int round = 0; round < absl::GetFlag(FLAGS_rounds); ++round) {
    for (size_t i = 0; i < std::size(kSchemes); ++i) {
      if (!Start(kSchemes[i].name, &cycles[i], &instructions[i], &tsc)) return 1;
    }
  }
  const bool json = absl::GetFlag(FLAGS_json);
  if (json) {
    absl::PrintF("[");
  } else {
    absl::PrintF("One pop and one push, hot, pinned; cycles%s\n",
                 tsc ? " (time stamp counter)" : "");
    absl::PrintF("%-12s %8s %8s %8s %14s %10s\n", "scheme", "median", "min", "max", "instructions",
                 "to legacy");
  }
  double legacy = 0;
  for (size_t i = 0; i < std::size(kSchemes); ++i) {
    std::sort(cycles[i].begin(), cycles[i].end());
    const double median = cycles[i][cycles[i].size() / 2];
    if (i == 0) legacy = median;
    if (json) {
      absl::PrintF(
          "%s{\"scheme\": \"%s\", \"cycles\": %.2f, \"min\": %.2f, \"max\": %.2f, "
          "\"instructions\": %.1f}",
          i == 0 ? "" : ", ", kSchemes[i].name, median, cycles[i].front(), cycles[i].back(),
          instructions[i]);
      continue;
    }
    const std::string count =
        instructions[i] < 0 ? "no counter" : absl::StrFormat("%.1f", instructions[i]);
    absl::PrintF("%-12s %8.2f %8.2f %8.2f %14s %9.2fx\n", kSchemes[i].name, median,
                 cycles[i].front(), cycles[i].back(), count, median / legacy);
  }
  if (json) absl::PrintF("]\n");
  return 0;
}

}  // namespace
}  // namespace pcmalloc::percpu

int main(int argc, char** argv) {
  absl::ParseCommandLine(argc, argv);
  const std::string scheme = absl::GetFlag(FLAGS_scheme);
  if (scheme.empty()) return pcmalloc::percpu::Drive();
  for (const auto& each : pcmalloc::percpu::kSchemes) {
    if (scheme == each.name) return pcmalloc::percpu::Measure(each.mode);
  }
  absl::FPrintF(stderr, "schemes: no scheme %s\n", scheme);
  return 2;
}
