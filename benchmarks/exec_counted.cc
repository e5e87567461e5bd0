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

void InstallPassOn() {
  struct sigaction action = {};
  action.sa_handler = PassOn;
  sigaction(SIGTERM, &action, nullptr);
  sigaction(SIGINT, &action, nullptr);
}

// In the child: becomes the program once the parent has closed its end of the gate.
[[noreturn]] void BecomeProgram(const int (&gate)[2], const char* preload, char** program) {
  char go;
  close(gate[1]);
  while (read(gate[0], &go, 1) < 0 && errno == EINTR) {
  }
  signal(SIGTERM, SIG_DFL);
  signal(SIGINT, SIG_DFL);
  if (strcmp(preload, "-") != 0) setenv("LD_PRELOAD", preload, 1);
  execvp(program[0], program);
  perror(program[0]);
  _exit(127);
}

// Waits for the child to end; false if that cannot be done.
bool Wait(int* status, rusage* usage) {
  while (wait4(child, status, 0, usage) < 0) {
    if (errno != EINTR) {
      perror("wait4");
      return false;
    }
  }
  return true;
}

// What the kernel's counters say of the child and its children, from their exec on.
class HardwareCounters {
 public:
  HardwareCounters()
      : cycles_(Open(PERF_COUNT_HW_CPU_CYCLES)), instructions_(Open(PERF_COUNT_HW_INSTRUCTIONS)) {}

  void Report(int fd) const {
    ReportOne(fd, cycles_, "cycles", "user cycles");
    ReportOne(fd, instructions_, "instructions", "user instructions");
  }

 private:
  int Open(uint64_t event) {
    return pcmalloc::bench::OpenHardwareCounter(event, child, true, true, &user_only_);
  }

  void ReportOne(int fd, int counter, const char* name, const char* name_of_user_part) const {
    const double count = pcmalloc::bench::ReadHardwareCounter(counter);
    if (count >= 0) ::Report(fd, name, user_only_ ? name_of_user_part : name, count);
  }

  bool user_only_ = false;
  int cycles_;
  int instructions_;
};

void ReportUsage(int fd, const rusage& usage, double wall_seconds) {
  Report(fd, "cpu_seconds", "s", Seconds(usage.ru_utime) + Seconds(usage.ru_stime));
  Report(fd, "wall_seconds", "s", wall_seconds);
  Report(fd, "max_rss_bytes", "B", static_cast<double>(usage.ru_maxrss) * 1024);
  Report(fd, "page_faults", "faults", static_cast<double>(usage.ru_minflt + usage.ru_majflt));
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
  InstallPassOn();
  child = fork();
  if (child < 0) {
    perror("fork");
    return 2;
  }
  if (child == 0) BecomeProgram(gate, argv[2], argv + 3);
  const HardwareCounters counters;
  const uint64_t begin = pcmalloc::bench::MonotonicNs();
  close(gate[1]);  // the counters are in place: let it exec
  int status;
  rusage usage;
  if (!Wait(&status, &usage)) return 2;
  const double wall = static_cast<double>(pcmalloc::bench::MonotonicNs() - begin) * 1e-9;
  ReportUsage(report, usage, wall);
  counters.Report(report);
  if (WIFSIGNALED(status)) return 128 + WTERMSIG(status);
  return WEXITSTATUS(status);
}
