// SPDX-License-Identifier: Apache-2.0
//
// Tests whatever malloc is linked or preloaded: does it hand a block out twice, lose, overlap or
// misalign one, while threads preempt each other, move between CPUs, take signals and fork, and
// while its per-CPU caches are drained, resized and stopped? Exit status 0: no; 1: it does, or it
// crashed or hung; 2: the run could not be made.
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "absl/flags/flag.h"
#include "absl/flags/parse.h"
#include "absl/flags/reflection.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_split.h"
#include "absl/strings/string_view.h"
#include "tests/stress/actor.h"
#include "tests/stress/disturb.h"
#include "tests/stress/hooks.h"
#include "tests/stress/options.h"
#include "tests/stress/registry.h"
#include "tests/stress/summary.h"
#include "tests/stress/violation.h"
#include "tests/stress/worker.h"

ABSL_FLAG(double, seconds, 10, "length of the run");
ABSL_FLAG(int, threads, 0, "threads that allocate; 0: four for each CPU");
ABSL_FLAG(uint64_t, seed, 1, "seed of all random numbers");
ABSL_FLAG(std::string, cpus, "", "CPUs to run on, such as 0-1,4; empty: all allowed ones");
ABSL_FLAG(uint32_t, max_size, 256 << 10, "largest block in bytes, up to 1048575");
ABSL_FLAG(bool, pin, true, "keep every other pair of threads on one CPU");
ABSL_FLAG(bool, aligned, true, "also call posix_memalign, aligned_alloc and memalign");
ABSL_FLAG(bool, full_stamps, false, "stamp and verify every byte of large blocks too");
ABSL_FLAG(bool, signals, true, "interrupt threads by signals whose handler allocates and frees");
ABSL_FLAG(uint32_t, signal_rate, 2000, "signals a second");
// "outside" leaves out the signals that interrupt a call of malloc; "auto" is "always" if the
// malloc has pcmalloc_mode(), else "outside".
ABSL_FLAG(std::string, handler_malloc, "auto",
          "malloc in handlers: always, outside (of malloc), never, auto (if safe)");
ABSL_FLAG(bool, migrate, true, "move threads to other CPUs at any instant");
ABSL_FLAG(uint32_t, migrate_rate, 2000, "migrations a second");
ABSL_FLAG(bool, forks, true, "fork children that verify, free and allocate");
ABSL_FLAG(uint32_t, fork_rate, 4, "forks a second");
ABSL_FLAG(double, fork_limit_seconds, 20, "a fork child that takes longer hangs, and is killed");
ABSL_FLAG(bool, respawn, true, "end threads and start others in their place");
ABSL_FLAG(uint32_t, respawn_rate, 4, "thread exits a second");
ABSL_FLAG(bool, drain, true, "drain, resize and stop per-CPU caches where the malloc offers that");
ABSL_FLAG(uint32_t, drain_rate, 0, "drains a second; 0: as many as one thread can do");
ABSL_FLAG(bool, trim, true, "call malloc_trim(0)");
ABSL_FLAG(uint32_t, trim_rate, 10, "trims a second");
ABSL_FLAG(double, stall_seconds, 30, "without any progress for that long, the malloc hangs");
ABSL_FLAG(bool, check_rss, false,
          "fail when RSS grows by half and 16 MiB after a quarter of the run");
ABSL_FLAG(uint32_t, reports, 10, "violations told in full; the rest is only counted");
ABSL_FLAG(bool, quiet, false, "print violations only");
ABSL_FLAG(bool, json, false, "print the summary as one JSON object");

namespace stress {

namespace {

constexpr uint64_t kTickNs = 20'000'000;
constexpr int kExitViolation = 1;
constexpr int kExitUsage = 2;

RunFacts facts;
bool quiet;
bool json;

void PrintHelp() {
  std::map<std::string, std::pair<std::string, std::string>> rows;
  for (const auto& [name, flag] : absl::GetAllFlags()) {
    if (!absl::StrContains(flag->Filename(), "double_alloc_stress")) continue;
    rows[std::string(name)] = {flag->DefaultValue(), flag->Help()};
  }
  printf(
      "Usage: double_alloc_stress [options]\n"
      "Tests the process's malloc (linked or LD_PRELOADed) for blocks handed out twice, lost,\n"
      "overlapping or misaligned. Exit status 0: none; 1: some, a crash or a hang; 2: wrong "
      "usage.\n"
      "A switch --x is turned off by --nox.\n\n");
  for (const auto& [name, row] : rows) {
    const std::string left = "--" + name + "=" + row.first;
    printf("  %-24s %s\n", left.c_str(), row.second.c_str());
  }
}

[[noreturn]] void UsageError(const char* text, const char* value) {
  fprintf(stderr, "double_alloc_stress: %s: %s (see --help)\n", text, value);
  exit(kExitUsage);
}

void ReadCpus(const std::string& list) {
  cpu_set_t allowed;
  if (sched_getaffinity(0, sizeof(allowed), &allowed) != 0) UsageError("no CPU mask", "affinity");
  CPU_ZERO(&options.cpu_set);
  if (list.empty()) {
    options.cpu_set = allowed;
  } else {
    for (absl::string_view range : absl::StrSplit(list, ',')) {
      const std::pair<absl::string_view, absl::string_view> ends =
          absl::StrSplit(range, absl::MaxSplits('-', 1));
      int first;
      int last;
      const bool single = ends.second.empty() && !absl::StrContains(range, "-");
      if (!absl::SimpleAtoi(ends.first, &first) ||
          !absl::SimpleAtoi(single ? ends.first : ends.second, &last) || first < 0 ||
          last < first || last >= CPU_SETSIZE) {
        UsageError("--cpus is not a list of CPU numbers", list.c_str());
      }
      for (int cpu = first; cpu <= last; ++cpu) {
        if (!CPU_ISSET(cpu, &allowed)) UsageError("--cpus names a CPU not allowed", list.c_str());
        CPU_SET(cpu, &options.cpu_set);
      }
    }
  }
  for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
    if (CPU_ISSET(cpu, &options.cpu_set)) options.cpus[options.cpu_count++] = cpu;
  }
  if (sched_setaffinity(0, sizeof(options.cpu_set), &options.cpu_set) != 0) {
    UsageError("cannot run on --cpus", list.c_str());
  }
}

void ReadOptions() {
  quiet = absl::GetFlag(FLAGS_quiet);
  json = absl::GetFlag(FLAGS_json);
  options.seconds = absl::GetFlag(FLAGS_seconds);
  if (!(options.seconds > 0)) UsageError("--seconds must be positive", "");
  ReadCpus(absl::GetFlag(FLAGS_cpus));
  const int threads = absl::GetFlag(FLAGS_threads);
  if (threads < 0 || threads > static_cast<int>(kMaxThreads)) {
    UsageError("--threads is out of range", "0 to 4000");
  }
  options.threads =
      threads != 0 ? static_cast<unsigned>(threads) : std::min(4 * options.cpu_count, kMaxThreads);
  options.seed = absl::GetFlag(FLAGS_seed);
  options.reports = absl::GetFlag(FLAGS_reports);
  options.max_size = absl::GetFlag(FLAGS_max_size);
  if (options.max_size < 1 || options.max_size > kMaxBlockSize) {
    UsageError("--max_size is out of range", "1 to 1048575");
  }
  options.pin = absl::GetFlag(FLAGS_pin);
  options.aligned = absl::GetFlag(FLAGS_aligned);
  options.dense = absl::GetFlag(FLAGS_full_stamps);
  options.signal_rate = absl::GetFlag(FLAGS_signals) ? absl::GetFlag(FLAGS_signal_rate) : 0;
  options.fork_rate = absl::GetFlag(FLAGS_forks) ? absl::GetFlag(FLAGS_fork_rate) : 0;
  options.fork_limit_seconds = absl::GetFlag(FLAGS_fork_limit_seconds);
  options.migrate_rate = absl::GetFlag(FLAGS_migrate) ? absl::GetFlag(FLAGS_migrate_rate) : 0;
  options.respawn_rate = absl::GetFlag(FLAGS_respawn) ? absl::GetFlag(FLAGS_respawn_rate) : 0;
  options.trim_rate = absl::GetFlag(FLAGS_trim) ? absl::GetFlag(FLAGS_trim_rate) : 0;
  options.drain = absl::GetFlag(FLAGS_drain);
  options.drain_rate = absl::GetFlag(FLAGS_drain_rate);
  const std::string where = absl::GetFlag(FLAGS_handler_malloc);
  if (where == "always" || (where == "auto" && hooks.mode != nullptr)) {
    options.handler_malloc = HandlerMalloc::kAlways;
  } else if (where == "outside" || where == "auto") {
    options.handler_malloc = HandlerMalloc::kOutside;
  } else if (where == "never") {
    options.handler_malloc = HandlerMalloc::kNever;
  } else {
    UsageError("--handler_malloc must be auto, always, outside or never", where.c_str());
  }
}

void PrintSummary() {
  if (quiet && !json) return;
  Message message;
  AddSummary(facts, json, message);
  message.Write(STDOUT_FILENO);
}

// The end of a run whose malloc crashed or hangs: nothing that asks it anything may hold up the
// exit.
[[noreturn]] void EndAtOnce() {
  struct sigaction action = {};
  action.sa_handler = [](int) { _exit(kExitViolation); };
  sigaction(SIGALRM, &action, nullptr);
  alarm(3);
  PrintSummary();
  _exit(kExitViolation);
}

const char* SignalName(int signal) {
  switch (signal) {
    case SIGSEGV:
      return "SIGSEGV";
    case SIGBUS:
      return "SIGBUS";
    case SIGABRT:
      return "SIGABRT";
    case SIGILL:
      return "SIGILL";
    case SIGFPE:
      return "SIGFPE";
    case SIGTRAP:
      return "SIGTRAP";
  }
  return "signal";
}

pid_t main_pid;

void OnCrash(int signal, siginfo_t* info, void*) {
  static std::atomic<pid_t> crashed{0};
  const bool in_child = getpid() != main_pid;
  const pid_t self = static_cast<pid_t>(syscall(SYS_gettid));
  pid_t first = 0;
  if (!crashed.compare_exchange_strong(first, self)) {
    Message()
        .Add("double_alloc_stress: another crash: %s at address %p%s\n", SignalName(signal),
             info->si_addr, first == self ? ", while the first was reported" : "")
        .Write(STDERR_FILENO);
    // Another thread gets the time to finish its report.
    if (first != self) usleep(500'000);
    _exit(kExitViolation);
  }
  char who[32] = "a thread of the tool";
  if (Worker::CurrentThread() >= 0)
    snprintf(who, sizeof(who), "thread %d", Worker::CurrentThread());
  Violations::Report(Kind::kCrash, "%s at address %p in %s, %s", SignalName(signal),
                     signal == SIGABRT ? nullptr : info->si_addr, who,
                     Worker::CurrentInsideMalloc() ? "inside a call of the malloc under test"
                                                   : "outside the malloc under test");
  if (in_child) _exit(kExitViolation);
  EndAtOnce();
}

void OnInterrupt(int) { stopping.store(true); }

void InstallHandlers() {
  main_pid = getpid();
  UseSignalStack(nullptr);
  struct sigaction action = {};
  action.sa_sigaction = &OnCrash;
  action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
  for (int signal : {SIGSEGV, SIGBUS, SIGABRT, SIGILL, SIGFPE, SIGTRAP}) {
    sigaction(signal, &action, nullptr);
  }
  struct sigaction interrupt = {};
  interrupt.sa_handler = &OnInterrupt;
  sigaction(SIGINT, &interrupt, nullptr);
  sigaction(SIGTERM, &interrupt, nullptr);
  Worker::InstallStormHandler();
}

// Watches the sum of all operations; ends the process when it stands still.
class StallWatch {
 public:
  void Check(const char* doing) {
    const Totals totals = CountTotals();
    const uint64_t progress = totals.operations + totals.forks + totals.failures +
                              totals.abandoned + DisturbancesRunning() + WorkersRunning();
    const uint64_t now = NowNs();
    if (progress != last_ || last_ns_ == 0) {
      last_ = progress;
      last_ns_ = now;
      return;
    }
    const double stalled = static_cast<double>(now - last_ns_) / 1e9;
    if (stalled < absl::GetFlag(FLAGS_stall_seconds)) return;
    Violations::Report(Kind::kStall, "no operation finished for %u s while %s; %u workers live",
                       static_cast<unsigned>(stalled), doing, WorkersRunning());
    EndAtOnce();
  }

  static unsigned WorkersRunning() {
    unsigned running = 0;
    for (unsigned i = 0; i < Worker::count(); ++i) running += Worker::At(i).running();
    return running;
  }

 private:
  uint64_t last_ = 0;
  uint64_t last_ns_ = 0;
};

void Progress(uint64_t passed_ns) {
  const Totals totals = CountTotals();
  Message()
      .Add("\r%4llu s  %llu operations  %llu forks  %llu violations   ",
           static_cast<unsigned long long>(passed_ns / 1'000'000'000),
           static_cast<unsigned long long>(totals.operations),
           static_cast<unsigned long long>(totals.forks),
           static_cast<unsigned long long>(Violations::Total()))
      .Write(STDERR_FILENO);
}

void SleepTick() {
  const timespec pause = {0, kTickNs};
  nanosleep(&pause, nullptr);
}

void Watch() {
  const uint64_t run_ns = static_cast<uint64_t>(options.seconds * 1e9);
  const bool progress = !quiet && !json && isatty(STDERR_FILENO);
  uint64_t next_progress = 1'000'000'000;
  StallWatch watch;
  while (!stopping.load()) {
    SleepTick();
    const uint64_t passed = NowNs() - facts.start_ns;
    if (facts.rss_quarter_kib == 0 && passed >= run_ns / 4) facts.rss_quarter_kib = ResidentKib();
    if (passed >= run_ns) break;
    if (progress && passed >= next_progress) {
      Progress(passed);
      next_progress += 1'000'000'000;
    }
    watch.Check("running");
  }
  if (progress) Message().Add("\r\033[K").Write(STDERR_FILENO);
  facts.rss_end_kib = ResidentKib();
  stopping.store(true);
  facts.end_ns = NowNs();
  while (DisturbancesRunning() != 0 || StallWatch::WorkersRunning() != 0) {
    SleepTick();
    watch.Check("ending");
  }
}

// Everything that was allocated is freed, given up after a violation, or still held; the rest of
// the blocks is verified and freed here.
void SettleAccounts() {
  const Totals totals = CountTotals();
  Actor actor;
  actor.Init(kMaxThreads, false, options.seed);
  facts.freed_at_end = Worker::FreeAll(actor);
  const uint64_t accounted = totals.frees + totals.abandoned + facts.freed_at_end;
  if (totals.allocations != accounted) {
    Violations::Report(Kind::kAccounting, "%llu blocks allocated, but %llu accounted for",
                       static_cast<unsigned long long>(totals.allocations),
                       static_cast<unsigned long long>(accounted));
  }
  if (const uint64_t claimed = Registry::CountClaimed(); claimed != 0) {
    Violations::Report(Kind::kAccounting, "%llu bytes are still claimed when all blocks are freed",
                       static_cast<unsigned long long>(claimed * 8));
  }
  if (totals.allocations == 0) {
    Violations::Report(Kind::kAccounting, "not one allocation succeeded");
  }
}

void CheckRss() {
  const uint64_t limit = facts.rss_quarter_kib + facts.rss_quarter_kib / 2 + (16 << 10);
  if (facts.rss_quarter_kib == 0) {
    fprintf(stderr,
            "double_alloc_stress: resident memory is unknown, --check_rss checks nothing\n");
    exit(kExitUsage);
  }
  if (facts.rss_end_kib > limit) {
    Violations::Report(Kind::kRssGrowth, "%llu KiB after a quarter of the run, %llu KiB at the end",
                       static_cast<unsigned long long>(facts.rss_quarter_kib),
                       static_cast<unsigned long long>(facts.rss_end_kib));
  }
}

int Run() {
  InstallHandlers();
  StartClock();
  Registry::Init();
  Worker::InitAll(options.threads);
  if (hooks.aborts != nullptr) facts.aborts_at_start = hooks.aborts();
  facts.start_ns = NowNs();
  bool started = true;
  for (unsigned i = 0; i < options.threads; ++i) started &= Worker::At(i).Start();
  started &= StartDisturbances();
  if (!started) {
    fprintf(stderr, "double_alloc_stress: cannot start %u threads\n", options.threads);
    _exit(kExitUsage);
  }
  Watch();
  SettleAccounts();
  if (absl::GetFlag(FLAGS_check_rss)) CheckRss();
  PrintSummary();
  return Violations::Total() == 0 ? 0 : kExitViolation;
}

}  // namespace
}  // namespace stress

int main(int argc, char** argv) {
  for (int i = 1; i < argc; ++i) {
    if (strcmp(argv[i], "--help") == 0 || strcmp(argv[i], "-h") == 0) {
      stress::PrintHelp();
      return 0;
    }
  }
  const std::vector<char*> rest = absl::ParseCommandLine(argc, argv);
  stress::FindHooks();
  if (rest.size() > 1) stress::UsageError("unexpected argument", rest[1]);
  stress::ReadOptions();
  const int status = stress::Run();
  fflush(stdout);
  // Not exit(): nothing is left to do, and a damaged heap might not survive the destructors.
  _exit(status);
}
