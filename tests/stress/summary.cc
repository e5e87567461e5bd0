// SPDX-License-Identifier: Apache-2.0
#include "tests/stress/summary.h"

#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "tests/stress/disturb.h"
#include "tests/stress/hooks.h"
#include "tests/stress/options.h"
#include "tests/stress/violation.h"
#include "tests/stress/worker.h"

namespace stress {
namespace {

using ull = unsigned long long;

// Writes each fact once, in whichever of the two forms.
class Printer {
 public:
  Printer(Message& message, bool json) : message_(message), json_(json) {
    if (json_) message_.Add("{");
  }

  void Number(const char* key, uint64_t value) {
    if (json_) {
      message_.Add("%s\"%s\": %llu", separator_, key, static_cast<ull>(value));
    } else {
      message_.Add("%-20s %14llu\n", key, static_cast<ull>(value));
    }
    separator_ = ", ";
  }
  void Seconds(const char* key, uint64_t ns) {
    const ull ms = ns / 1'000'000;
    if (json_) {
      message_.Add("%s\"%s\": %llu.%03llu", separator_, key, ms / 1000, ms % 1000);
    } else {
      message_.Add("%-20s %10llu.%03llu\n", key, ms / 1000, ms % 1000);
    }
    separator_ = ", ";
  }
  void Text(const char* key, const char* value) {
    if (!json_) {
      message_.Add("%-20s %14s\n", key, value);
    } else {
      message_.Add("%s\"%s\": \"", separator_, key);
      for (const char* c = value; *c != '\0'; ++c) {
        if (*c == '"' || *c == '\\') message_.Add("\\");
        if (static_cast<unsigned char>(*c) >= 0x20) message_.Add("%c", *c);
      }
      message_.Add("\"");
    }
    separator_ = ", ";
  }
  void ViolationCounts() {
    if (!json_) {
      Number("violations", Violations::Total());
    } else {
      message_.Add(", \"violations\": {\"total\": %llu", static_cast<ull>(Violations::Total()));
    }
    for (int i = 0; i < static_cast<int>(Kind::kCount); ++i) {
      const Kind kind = static_cast<Kind>(i);
      const ull count = Violations::Count(kind);
      if (count == 0) continue;
      if (json_) {
        message_.Add(", \"%s\": %llu", KindName(kind), count);
      } else {
        message_.Add("  %-18s %14llu\n", KindName(kind), count);
      }
    }
    if (json_) message_.Add("}}\n");
  }

 private:
  Message& message_;
  const bool json_;
  const char* separator_ = "";
};

void AddCounters(const Counters& counters, Totals& totals) {
  totals.operations += counters.Operations();
  totals.allocations += counters.allocations.Get();
  totals.frees += counters.frees.Get();
  totals.reallocs += counters.reallocs.Get();
  totals.handovers += counters.handovers.Get();
  totals.failures += counters.failures.Get();
  totals.abandoned += counters.abandoned.Get();
}

}  // namespace

Totals CountTotals() {
  Totals totals;
  for (unsigned i = 0; i < Worker::count(); ++i) {
    const Worker& worker = Worker::At(i);
    AddCounters(worker.main_counters(), totals);
    AddCounters(worker.handler_counters(), totals);
    totals.handler_operations += worker.handler_counters().Operations();
    totals.signals += worker.signals();
    totals.forks += worker.forks();
  }
  return totals;
}

uint64_t ResidentKib() {
  const int fd = open("/proc/self/statm", O_RDONLY | O_CLOEXEC);
  if (fd < 0) return 0;
  char text[128];
  const ssize_t n = read(fd, text, sizeof(text) - 1);
  close(fd);
  if (n <= 0) return 0;
  text[n] = '\0';
  ull size_pages = 0;
  ull resident_pages = 0;
  if (sscanf(text, "%llu %llu", &size_pages, &resident_pages) != 2) return 0;
  return resident_pages * (static_cast<uint64_t>(sysconf(_SC_PAGESIZE)) / 1024);
}

void AddSummary(const RunFacts& facts, bool json, Message& message) {
  const Totals totals = CountTotals();
  const DisturbanceCounts disturbed = CountDisturbances();
  const uint64_t end_ns = facts.end_ns != 0 ? facts.end_ns : NowNs();
  const uint64_t ns = end_ns > facts.start_ns ? end_ns - facts.start_ns : 1;
  Printer printer(message, json);
  printer.Text("malloc", MallocFile());
  printer.Text("mode", hooks.mode != nullptr ? hooks.mode() : "-");
  printer.Number("threads", options.threads);
  printer.Number("cpus", options.cpu_count);
  printer.Number("seed", options.seed);
  printer.Seconds("seconds", ns);
  printer.Number("operations", totals.operations);
  printer.Number("ops_per_second", static_cast<uint64_t>(static_cast<double>(totals.operations) *
                                                         1e9 / static_cast<double>(ns)));
  printer.Number("allocations", totals.allocations);
  printer.Number("frees", totals.frees);
  printer.Number("reallocs", totals.reallocs);
  printer.Number("handovers", totals.handovers);
  printer.Number("drains", disturbed.drains);
  printer.Number("resizes", disturbed.resizes);
  printer.Number("stops", disturbed.stops);
  printer.Number("trims", disturbed.trims);
  printer.Number("migrations", disturbed.migrations);
  printer.Number("signals", totals.signals);
  printer.Number("handler_operations", totals.handler_operations);
  printer.Number("forks", totals.forks);
  printer.Number("respawns", disturbed.respawns);
  printer.Number("aborts", hooks.aborts != nullptr ? hooks.aborts() - facts.aborts_at_start : 0);
  printer.Number("failed_allocations", totals.failures);
  printer.Number("freed_at_end", facts.freed_at_end);
  printer.Number("rss_quarter_kib", facts.rss_quarter_kib);
  printer.Number("rss_end_kib", facts.rss_end_kib);
  printer.ViolationCounts();
}

}  // namespace stress
