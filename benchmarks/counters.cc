// SPDX-License-Identifier: Apache-2.0
#include "benchmarks/counters.h"

#include <fcntl.h>
#include <linux/perf_event.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <initializer_list>
#if defined(__x86_64__)
#include <x86intrin.h>
#endif

namespace pcmalloc::bench {
namespace {

double ClockNs(clockid_t clock) {
  timespec ts;
  clock_gettime(clock, &ts);
  return static_cast<double>(ts.tv_sec) * 1e9 + static_cast<double>(ts.tv_nsec);
}

uint64_t TimeStamp() {
#if defined(__x86_64__)
  return __rdtsc();
#else
  return 0;
#endif
}

int PerfEventOpen(perf_event_attr* attr, int pid) {
  return static_cast<int>(syscall(SYS_perf_event_open, attr, pid, -1, -1, PERF_FLAG_FD_CLOEXEC));
}

// Reads a file of /proc without stdio, whose buffer would be malloc'ed.
size_t ReadProc(const char* path, char* buffer, size_t capacity) {
  const int fd = open(path, O_RDONLY | O_CLOEXEC);
  ssize_t n = fd < 0 ? -1 : read(fd, buffer, capacity - 1);
  if (n < 0) {
    perror(path);
    exit(1);
  }
  close(fd);
  buffer[n] = '\0';
  return static_cast<size_t>(n);
}

}  // namespace

int OpenHardwareCounter(uint64_t config, int pid, bool inherit, bool enable_on_exec,
                        bool* user_only) {
  perf_event_attr attr;
  memset(&attr, 0, sizeof(attr));
  attr.type = PERF_TYPE_HARDWARE;
  attr.size = sizeof(attr);
  attr.config = config;
  attr.disabled = 1;
  attr.inherit = inherit;
  attr.enable_on_exec = enable_on_exec;
  attr.exclude_hv = 1;
  attr.read_format = PERF_FORMAT_TOTAL_TIME_ENABLED | PERF_FORMAT_TOTAL_TIME_RUNNING;
  int fd = PerfEventOpen(&attr, pid);
  if (fd < 0 && (errno == EACCES || errno == EPERM)) {
    attr.exclude_kernel = 1;
    fd = PerfEventOpen(&attr, pid);
    *user_only |= fd >= 0;
  }
  return fd;
}

double ReadHardwareCounter(int fd) {
  uint64_t value[3];  // count, time enabled, time running
  if (fd < 0 || read(fd, value, sizeof(value)) != sizeof(value) || value[2] == 0) return -1;
  return static_cast<double>(value[0]) * static_cast<double>(value[1]) /
         static_cast<double>(value[2]);
}

Counters::Counters(Scope scope) : scope_(scope) {
  const bool inherit = scope == Scope::kProcess;
  cycles_fd_ = OpenHardwareCounter(PERF_COUNT_HW_CPU_CYCLES, 0, inherit, false, &user_only_);
  instructions_fd_ =
      OpenHardwareCounter(PERF_COUNT_HW_INSTRUCTIONS, 0, inherit, false, &user_only_);
}

Counters::~Counters() {
  if (cycles_fd_ >= 0) close(cycles_fd_);
  if (instructions_fd_ >= 0) close(instructions_fd_);
}

Counters::Reading Counters::Now() const {
  rusage usage;
  getrusage(scope_ == Scope::kThread ? RUSAGE_THREAD : RUSAGE_SELF, &usage);
  Reading now;
  now.faults = usage.ru_minflt + usage.ru_majflt;
  now.cpu_ns =
      ClockNs(scope_ == Scope::kThread ? CLOCK_THREAD_CPUTIME_ID : CLOCK_PROCESS_CPUTIME_ID);
  now.wall_ns = ClockNs(CLOCK_MONOTONIC);
  now.tsc = TimeStamp();
  return now;
}

void Counters::Start() {
  for (int fd : {cycles_fd_, instructions_fd_}) {
    if (fd < 0) continue;
    ioctl(fd, PERF_EVENT_IOC_RESET, 0);
    ioctl(fd, PERF_EVENT_IOC_ENABLE, 0);
  }
  begin_ = Now();
}

Cost Counters::Stop() {
  const Reading end = Now();
  Cost cost;
  for (int fd : {cycles_fd_, instructions_fd_}) {
    if (fd >= 0) ioctl(fd, PERF_EVENT_IOC_DISABLE, 0);
  }
  cost.cpu_ns = end.cpu_ns - begin_.cpu_ns;
  cost.wall_ns = end.wall_ns - begin_.wall_ns;
  cost.page_faults = static_cast<double>(end.faults - begin_.faults);
  cost.user_only = user_only_;
  cost.cycles = ReadHardwareCounter(cycles_fd_);
  cost.instructions = ReadHardwareCounter(instructions_fd_);
  if (cost.cycles < 0 && end.tsc != 0) {
    // CPU time times the stamp's rate, not the stamp's difference: time that other processes took
    // is not the allocator's.
    cost.cycles = cost.cpu_ns * static_cast<double>(end.tsc - begin_.tsc) / cost.wall_ns;
    cost.tsc = true;
  }
  return cost;
}

size_t ResidentBytes() {
  // statm is a sum of per-CPU counters and off by up to hundreds of KiB; this one walks the pages.
  char text[1024];
  ReadProc("/proc/self/smaps_rollup", text, sizeof(text));
  const char* line = strstr(text, "Rss:");
  return line == nullptr ? 0 : strtoull(line + 4, nullptr, 10) * 1024;
}

size_t PeakResidentBytes() {
  // Not ru_maxrss: that one survives exec and would show the parent's size.
  char text[4096];
  ReadProc("/proc/self/status", text, sizeof(text));
  const char* line = strstr(text, "VmHWM:");
  const size_t peak = line == nullptr ? 0 : strtoull(line + 6, nullptr, 10) * 1024;
  const size_t now = ResidentBytes();
  return peak > now ? peak : now;
}

void SleepSeconds(double seconds) {
  timespec ts;
  ts.tv_sec = static_cast<time_t>(seconds);
  ts.tv_nsec = static_cast<long>((seconds - static_cast<double>(ts.tv_sec)) * 1e9);
  while (nanosleep(&ts, &ts) != 0 && errno == EINTR) {
  }
}

uint64_t MonotonicNs() { return static_cast<uint64_t>(ClockNs(CLOCK_MONOTONIC)); }

}  // namespace pcmalloc::bench
