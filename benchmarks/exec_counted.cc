// SPDX-License-Identifier: Apache-2.0
// Purpose: runs a program with an allocator preloaded and tells what it and its children cost.
// Usage: exec_counted REPORT_FILE PRELOAD|- PROGRAM [ARG ...]; PRELOAD is set for PROGRAM alone.
// A small parent of its own, because ru_maxrss of a child starts at its parent's size, and Python's
// is larger than some of the programs measured. SIGTERM and SIGINT are passed on to the program.
#include <fcntl.h>
#include <linux/perf_event.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "benchmarks/counters.h"

namespace {

volatile pid_t child = 0;

void PassOn(int signal) {
  if (child > 0) kill(child, signal);
}

double Seconds(const timeval& time) {
  return static_cast<double>(time.tv_sec) + static_cast<double>(time.tv_usec) * 1e-6;
}

void Report(int fd, const char* metric, const char* unit, double value) {
  dprintf(fd, "{\"metric\":\"%s\",\"unit\":\"%s\",\"value\":%.10g}\n", metric, unit, value);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 4) {
    dprintf(2, "usage: %s REPORT_FILE PRELOAD|- PROGRAM [ARG ...]\n", argv[0]);
    return 2;
  }
  const int report = open(argv[1], O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  int gate[2];
  if (report < 0 || pipe2(gate, O_CLOEXEC) != 0) {
    perror(argv[1]);
    return 2;
  }
  struct sigaction action = {};
  action.sa_handler = PassOn;
  sigaction(SIGTERM, &action, nullptr);
  sigaction(SIGINT, &action, nullptr);
  child = fork();
  if (child < 0) {
    perror("fork");
    return 2;
  }
  if (child == 0) {
    char go;
    close(gate[1]);
    while (read(gate[0], &go, 1) < 0 && errno == EINTR) {
    }
    signal(SIGTERM, SIG_DFL);
    signal(SIGINT, SIG_DFL);
    if (strcmp(argv[2], "-") != 0) setenv("LD_PRELOAD", argv[2], 1);
    execvp(argv[3], argv + 3);
    perror(argv[3]);
    _exit(127);
  }
  bool user_only = false;
  const int cycles =
      pcmalloc::bench::OpenHardwareCounter(PERF_COUNT_HW_CPU_CYCLES, child, true, true, &user_only);
  const int instructions = pcmalloc::bench::OpenHardwareCounter(PERF_COUNT_HW_INSTRUCTIONS, child,
                                                                true, true, &user_only);
  const uint64_t begin = pcmalloc::bench::MonotonicNs();
  close(gate[1]);  // the counters are in place: let it exec
  int status;
  rusage usage;
  while (wait4(child, &status, 0, &usage) < 0) {
    if (errno != EINTR) {
      perror("wait4");
      return 2;
    }
  }
  const double wall = static_cast<double>(pcmalloc::bench::MonotonicNs() - begin) * 1e-9;
  Report(report, "cpu_seconds", "s", Seconds(usage.ru_utime) + Seconds(usage.ru_stime));
  Report(report, "wall_seconds", "s", wall);
  Report(report, "max_rss_bytes", "B", static_cast<double>(usage.ru_maxrss) * 1024);
  Report(report, "page_faults", "faults", static_cast<double>(usage.ru_minflt + usage.ru_majflt));
  const double cycle_count = pcmalloc::bench::ReadHardwareCounter(cycles);
  const double instruction_count = pcmalloc::bench::ReadHardwareCounter(instructions);
  if (cycle_count >= 0) Report(report, "cycles", user_only ? "user cycles" : "cycles", cycle_count);
  if (instruction_count >= 0) {
    Report(report, "instructions", user_only ? "user instructions" : "instructions",
           instruction_count);
  }
  if (WIFSIGNALED(status)) return 128 + WTERMSIG(status);
  return WEXITSTATUS(status);
}
