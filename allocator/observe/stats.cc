// SPDX-License-Identifier: Apache-2.0
#include "allocator/observe/stats.h"

#include <errno.h>
#include <fcntl.h>
#include <stddef.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <type_traits>

#include "absl/base/attributes.h"
#include "allocator/base/report.h"
#include "allocator/base/syscall.h"
#include "allocator/central/transfer_cache.h"
#include "allocator/config/config.h"
#include "allocator/pages/emergency.h"
#include "allocator/sizes/size_classes.h"
#include "percpu/slabs.h"
#include "rseq/rseq.h"

namespace pcmalloc::observe {
namespace {

// One list drives both forms, so that they cannot differ.
enum class Kind { kCount, kBytes, kCountIfAny };

// No limit, not counted: all ones in a snapshot, null in JSON, since 2^64 - 1 is no number to most
// readers of it.
constexpr uint64_t kNone = UINT64_MAX;
static_assert(kNone == release::kNoLimit && kNone == kNotCounted);
// No pointers: each would be a relocation, and the page of it a private one, in every process.
struct Row {
  char key[20];    // JSON
  char label[26];  // table
  Kind kind;
  uint16_t offset;  // of a uint64_t in the snapshot

  uint64_t Of(const Snapshot& snapshot) const {
    uint64_t value;
    memcpy(&value, reinterpret_cast<const char*>(&snapshot) + offset, sizeof(value));
    return value;
  }
};

template <typename Field>
constexpr uint16_t Checked(size_t offset) {
  static_assert(std::is_same_v<Field, uint64_t>);
  return static_cast<uint16_t>(offset);
}

#define PCM_ROW(key, label, kind, field) \
  { key, label, Kind::kind, Checked<decltype(Snapshot{}.field)>(offsetof(Snapshot, field)) }

constexpr Row kRows[] = {
    PCM_ROW("small_operations", "small operations", kCountIfAny, small_operations),
    PCM_ROW("fast_operations", "  served by sections", kCountIfAny, fast_operations),
    PCM_ROW("refills", "refills of slabs", kCount, front.refills),
    PCM_ROW("refill_objects", "  objects", kCount, front.refill_objects),
    PCM_ROW("flushes", "flushes of slabs", kCount, front.flushes),
    PCM_ROW("flush_objects", "  objects", kCount, front.flush_objects),
    PCM_ROW("direct", "served past the slabs", kCount, front.direct),
    PCM_ROW("steals", "capacity steals", kCount, front.steals),
    PCM_ROW("drains", "drains", kCount, front.drains),
    PCM_ROW("deferred", "deferred frees", kCount, front.deferred),
    PCM_ROW("emergency_blocks", "emergency blocks", kCount, emergency_blocks),
    PCM_ROW("aborts", "aborted sections", kCount, aborts),
    PCM_ROW("slabs", "slabs populated", kCount, slabs),
    PCM_ROW("cpu_bound", "CPU numbers below", kCount, cpu_bound),
    PCM_ROW("slab_bytes", "slabs (address space)", kBytes, slab_bytes),
    PCM_ROW("slab_held_bytes", "held in slabs", kBytes, front.held_bytes),
    PCM_ROW("capacity_bytes", "slab capacity in force", kBytes, front.capacity_bytes),
    PCM_ROW("transfer_bytes", "in transfer caches", kBytes, transfer_bytes),
    PCM_ROW("central_bytes", "free in spans", kBytes, central_bytes),
    PCM_ROW("small_bytes", "spans of small blocks", kBytes, pages.small_bytes),
    PCM_ROW("hole_bytes", "  of it returned", kBytes, pages.hole_bytes),
    PCM_ROW("large_bytes", "large blocks", kBytes, pages.large_bytes),
    PCM_ROW("free_bytes", "free pages, resident", kBytes, pages.free_bytes),
    PCM_ROW("returned_bytes", "free pages, returned", kBytes, pages.returned_bytes),
    PCM_ROW("metadata_bytes", "metadata", kBytes, pages.metadata_bytes),
    PCM_ROW("committed_bytes", "committed", kBytes, pages.committed_bytes),
    PCM_ROW("reserved_bytes", "reserved address space", kBytes, pages.reserved_bytes),
    PCM_ROW("spans", "spans in use", kCount, pages.spans),
    PCM_ROW("releases", "returns to the kernel", kCount, pages.releases),
    PCM_ROW("background_threads", "background threads so far", kCount, background.started),
    PCM_ROW("background_wakeups", "  wakeups", kCount, background.wakeups),
    PCM_ROW("idle_drains", "  idle slabs drained", kCount, maintenance.idle_drains),
    PCM_ROW("idle_trims", "  idle transfer caches", kCount, maintenance.idle_trims),
    PCM_ROW("idle_returns", "  returns of everything", kCount, maintenance.idle_returns),
    PCM_ROW("pressure_rounds", "  looks under pressure", kCount, limits.pressure_rounds),
    PCM_ROW("limit_relieves", "shrunk because of a limit", kCount, limits.relieves),
    PCM_ROW("limit_soft", "soft limit in force", kBytes, limits.soft_bytes),
    PCM_ROW("limit_hard", "hard limit", kBytes, limits.hard_bytes),
    PCM_ROW("limit_cgroup", "control group's limit", kBytes, limits.cgroup_bytes),
    PCM_ROW("percpu_cache", "cache of one CPU at most", kBytes, limits.percpu_bytes),
};
#undef PCM_ROW

constexpr size_t kColumn = 2 + sizeof(Row{}.label) + 2;  // where the values of the table begin

void AppendJsonString(const char* text, TextBuffer& out) {
  out.Str("\"");
  for (; *text != '\0'; ++text) {
    const char c = *text;
    if (c == '"' || c == '\\') out.Str("\\");
    const char shown = c >= ' ' ? c : ' ';
    out.Str(&shown, 1);
  }
  out.Str("\"");
}

void WriteJsonFile(const Path& prefix, const Snapshot& snapshot) {
  Text<512> name;
  name.Str(prefix.text).Str(".").Dec(snapshot.pid).Str(".json");
  // The name can be foreseen, so in a directory of everybody's a link may wait there.
  const long fd = RawSyscall(SYS_openat, AT_FDCWD, name.c_str(),
                             O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0644);
  if (fd < 0) {
    Text<> text;
    text.Str("stats_json: cannot write ").Str(name.c_str()).Str(" (");
    text.ErrorName(static_cast<int>(-fd)).Str("); no statistics are written");
    Warn(text);
    return;
  }
  Text<4096> json;
  PrintJson(snapshot, json);
  json.Str("\n");
  WriteAll(static_cast<int>(fd), json.c_str(), json.size());
  RawSyscall(SYS_close, fd);
}

}  // namespace

Snapshot TakeSnapshot(const Identity& identity) {
  Snapshot s = {};
  s.program = program_invocation_short_name;
  s.pid = static_cast<uint64_t>(RawSyscall(SYS_getpid));
  s.version = identity.version;
  s.mode = identity.mode;
  s.reason = identity.reason;
  s.fast_operations = identity.fast_operations;
  s.small_operations = identity.fast_operations == kNotCounted
                           ? kNotCounted
                           : identity.fast_operations + identity.slow_operations;
  s.aborts = rseq::Aborts();
  s.emergency_blocks = EmergencyBlocks();
  s.slabs = percpu::PopulatedSlabs();
  s.cpu_bound = percpu::Bound();
  s.slab_bytes = percpu::SlabBytes();
  for (unsigned c = 1; c < kNumClasses; ++c) {
    const central::Stats stats = central::ClassStats(c);
    s.transfer_bytes += stats.transfer_bytes;
    s.central_bytes += stats.central_bytes;
  }
  s.front = front::ReadStats();
  s.pages = PageHeap::Stats();
  s.background = release::ReadBackgroundStats();
  s.maintenance = release::ReadMaintenanceStats();
  s.limits = release::ReadLimitStats();
  return s;
}

void PrintTable(const Snapshot& snapshot, TextBuffer& out) {
  out.Str("pcmalloc ").Str(snapshot.version).Str(" statistics of ").Str(snapshot.program);
  out.Str(", PID ").Dec(snapshot.pid).Str("\n");
  out.Str("  mode").Pad(kColumn).Str(snapshot.mode).Str("\n");
  out.Str("  reason").Pad(kColumn).Str(snapshot.reason).Str("\n");
  out.Str("  background thread").Pad(kColumn).Str(snapshot.background.state).Str("\n");
  for (const Row& row : kRows) {
    const uint64_t value = row.Of(snapshot);
    if (row.kind == Kind::kCountIfAny && value == kNone) continue;
    out.Str("  ").Str(row.label).Pad(kColumn);
    if (value == kNone) {
      out.Str("none");
    } else if (row.kind == Kind::kBytes) {
      out.Bytes(value);
    } else {
      out.Dec(value);
    }
    out.Str("\n");
  }
}

void PrintJson(const Snapshot& snapshot, TextBuffer& out) {
  out.Str("{\"program\": ");
  AppendJsonString(snapshot.program, out);
  out.Str(", \"pid\": ").Dec(snapshot.pid).Str(", \"version\": ");
  AppendJsonString(snapshot.version, out);
  out.Str(", \"mode\": ");
  AppendJsonString(snapshot.mode, out);
  out.Str(", \"reason\": ");
  AppendJsonString(snapshot.reason, out);
  out.Str(", \"background_thread\": ");
  AppendJsonString(snapshot.background.state, out);
  for (const Row& row : kRows) {
    const uint64_t value = row.Of(snapshot);
    out.Str(", \"").Str(row.key).Str("\": ");
    if (value == kNone) {
      out.Str("null");
    } else {
      out.Dec(value);
    }
  }
  out.Str("}");
}

namespace {

// The file that stderr was at the start, and a descriptor of it that the program does not know. A
// program that closes all it finds may have opened another file by that number.
struct Stderr {
  int descriptor;
  dev_t device;
  ino_t inode;

  bool Is(int fd) const {
    struct stat now;
    return fstat(fd, &now) == 0 && now.st_dev == device && now.st_ino == inode;
  }
};
constinit Stderr kept_stderr = {-1, 0, 0};
constexpr int kOutOfTheWay = 100;  // programs may count on low numbers

ABSL_ATTRIBUTE_COLD ABSL_ATTRIBUTE_NOINLINE void Report(const Identity& identity) {
  const Config& config = GetConfig();
  const bool to_file = config.stats_json.text[0] != '\0';
  const Snapshot snapshot = TakeSnapshot(identity);
  if (to_file) WriteJsonFile(config.stats_json, snapshot);
  if (config.stats_print) {
    Text<4096> table;
    PrintTable(snapshot, table);
    for (const int descriptor : {kept_stderr.descriptor, STDERR_FILENO}) {
      if (!kept_stderr.Is(descriptor)) continue;
      WriteAll(descriptor, table.c_str(), table.size());
      break;
    }
  }
}

}  // namespace

ABSL_ATTRIBUTE_COLD void KeepStderr() {
  const ErrnoSaver saver;
  struct stat now;
  if (fstat(STDERR_FILENO, &now) != 0) return;
  kept_stderr = {fcntl(STDERR_FILENO, F_DUPFD_CLOEXEC, kOutOfTheWay), now.st_dev, now.st_ino};
}

void ReportAtExit(const Identity& identity) {
  const Config& config = GetConfig();
  if (config.stats_print || config.stats_json.text[0] != '\0') Report(identity);
}

}  // namespace pcmalloc::observe
