// SPDX-License-Identifier: Apache-2.0
// Purpose: what one measured stretch of a benchmark cost: CPU time, wall time, cycles,
//   instructions, page faults; and what the process holds in memory.
// Invariants: nothing here calls malloc, so the allocator under test sees only the benchmark's own
//   calls. Where the machine has no hardware counters, cycles are CPU time multiplied by the rate
//   of the time stamp counter over the same stretch, and `tsc` says so; instructions are then
//   absent.
// Cost: Start and Stop make a handful of system calls each; they belong outside the loop.
#ifndef PCMALLOC_BENCHMARKS_COUNTERS_H_
#define PCMALLOC_BENCHMARKS_COUNTERS_H_

#include <cstddef>
#include <cstdint>

namespace pcmalloc::bench {

struct Cost {
  double cpu_ns = 0;
  double wall_ns = 0;
  double cycles = -1;        // < 0: neither a counter nor a time stamp counter
  double instructions = -1;  // < 0: no counter
  double page_faults = 0;
  bool tsc = false;        // cycles were derived from the time stamp counter
  bool user_only = false;  // the kernel's part was not permitted to be counted
};

enum class Scope { kThread, kProcess };  // kProcess: threads created after Open() are included

class Counters {
 public:
  explicit Counters(Scope scope);
  ~Counters();
  Counters(const Counters&) = delete;
  Counters& operator=(const Counters&) = delete;

  void Start();
  Cost Stop();

 private:
  struct Reading {
    double cpu_ns, wall_ns;
    uint64_t tsc;
    long faults;
  };
  Reading Now() const;

  Scope scope_;
  int cycles_fd_ = -1;
  int instructions_fd_ = -1;
  bool user_only_ = false;
  Reading begin_{};
};

// Opens one hardware counter for `pid` (0: the caller), or returns -1. Tries with the kernel's part
// first and sets *user_only if only the user's part may be counted.
int OpenHardwareCounter(uint64_t config, int pid, bool inherit, bool enable_on_exec,
                        bool* user_only);
// The counter's value scaled up for time it was not on the hardware; < 0 if it cannot be read.
double ReadHardwareCounter(int fd);

size_t ResidentBytes();      // now, exactly; walks the page tables (about 1 ms for 100 MB)
size_t PeakResidentBytes();  // since exec, as exact as the kernel keeps it
void SleepSeconds(double seconds);
uint64_t MonotonicNs();

}  // namespace pcmalloc::bench

#endif  // PCMALLOC_BENCHMARKS_COUNTERS_H_
