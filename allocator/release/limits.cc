// SPDX-License-Identifier: Apache-2.0
#include "allocator/release/limits.h"

#include <errno.h>

#include <atomic>

#include "allocator/base/syscall.h"
#include "allocator/base/text.h"
#include "allocator/central/sweep.h"
#include "allocator/central/transfer_cache.h"
#include "allocator/config/config.h"
#include "allocator/front/budget.h"
#include "allocator/front/front.h"
#include "allocator/os/clock.h"
#include "allocator/pages/page_heap.h"
#include "percpu/slabs.h"

namespace pcmalloc::release {
namespace {

// A process smaller than this is not worth reading files for.
constexpr uint64_t kWorthReading = uint64_t{64} << 20;

constexpr uint64_t kCgroupEveryMs = 10'000;
constexpr uint64_t kPressureEveryMs = 1'000;
constexpr uint64_t kMarkEveryMs = 1'000;

// Hundredths of a percent of the last ten seconds.
constexpr int kPressureBegins = 500;
constexpr int kPressureEnds = 100;

using Bytes = std::atomic<uint64_t>;
constinit Bytes soft{kNoLimit};
constinit Bytes hard{kNoLimit};
constinit Bytes percpu_cache{front::kBudgetBytes};
constinit Bytes cgroup_limit{kNoLimit};
constinit std::atomic<bool> pressed{false};
constinit Bytes read_at{0};  // the footprint at which the files were read last
constinit std::atomic<uint64_t> relieves{0};
constinit std::atomic<uint64_t> pressure_rounds{0};

// Of the background thread alone.
constinit uint64_t next_cgroup_ms = 0;

// Of whoever has the turn: the background thread or, where there is none, slow paths.
constinit std::atomic<bool> turn_taken{false};
constinit char pressure_file[kPathBytes] = "";
constinit std::atomic<uint64_t> next_pressure_ms{0};  // read without the turn, too

// Of slow paths where there is no thread.
constinit std::atomic<bool> look_owed{false};  // the heap grew too soon after the last look
constinit std::atomic<uint64_t> next_mark_ms{0};
constinit Bytes marked_at{0};  // the footprint that growth is measured from

constinit char files_root[kPathBytes] = "";

constinit std::atomic<bool> files_forbidden{false};
constinit std::atomic<bool> watched{false};

bool ReadsFiles() { return GetConfig().cgroup && !files_forbidden.load(std::memory_order_relaxed); }

// Without decay there are no ticks, on which pressure would end.
bool SlowPathsLook() {
  return !watched.load(std::memory_order_relaxed) && GetConfig().decay != kNever && ReadsFiles();
}

// The right to read files and to change what the next reader finds, for a scope. Never waits: who
// finds it taken, by another thread or by what a signal interrupted, does without.
class Turn {
 public:
  Turn() : mine_(!turn_taken.exchange(true, std::memory_order_acquire)) {}
  ~Turn() {
    if (mine_) turn_taken.store(false, std::memory_order_release);
  }
  Turn(const Turn&) = delete;
  Turn& operator=(const Turn&) = delete;
  explicit operator bool() const { return mine_; }

 private:
  const bool mine_;
};

uint64_t Least(uint64_t a, uint64_t b) { return a < b ? a : b; }

uint64_t LimitInForce() {
  const uint64_t cgroup = cgroup_limit.load(std::memory_order_relaxed);
  return Least(soft.load(std::memory_order_relaxed),
               cgroup == kNoLimit ? kNoLimit : cgroup / 10 * 9);
}

// CPUs that the calling thread may use: a hint for dividing memory among them.
unsigned CpuCount() {
  uint64_t mask[32] = {};  // 2048 CPUs
  const long bytes = RawSyscall(SYS_sched_getaffinity, 0, sizeof(mask), mask);
  if (bytes == -EINVAL) return percpu::Bound();  // more than those
  unsigned cpus = 0;
  for (long i = 0; i < bytes / 8; ++i) cpus += static_cast<unsigned>(__builtin_popcountll(mask[i]));
  return cpus == 0 ? 1 : cpus;
}

// All that is set or found out, at one time.
struct Wanted {
  uint64_t soft = LimitInForce();
  uint64_t hard = pcmalloc::release::hard.load(std::memory_order_relaxed);
  uint64_t percpu_cache = pcmalloc::release::percpu_cache.load(std::memory_order_relaxed);
  bool pressed = UnderPressure();

  bool operator==(const Wanted&) const = default;
};

uint64_t BudgetFor(const Wanted& wanted) {
  uint64_t budget = wanted.percpu_cache;
  const uint64_t limit = Least(wanted.soft, wanted.hard);
  if (limit != kNoLimit) {
    const uint64_t share = limit / 8 / CpuCount();
    budget = Least(budget, share < kLeastPercpuCache ? kLeastPercpuCache : share);
  }
  return wanted.pressed ? budget / 4 : budget;
}

// The footprint at which the group's limit is read next.
uint64_t ReadingDue() {
  const uint64_t reading = read_at.load(std::memory_order_relaxed);
  return reading == 0 ? kWorthReading : reading * 2;
}

// Where the heap's growth is looked at next.
void SetMark(uint64_t footprint) {
  const uint64_t limit = LimitInForce();
  const uint64_t step = footprint / 16 < (1 << 20) ? 1 << 20 : footprint / 16;
  const uint64_t further = footprint + step;
  uint64_t mark = footprint > limit ? further : limit;
  if (ReadsFiles()) mark = Least(mark, ReadingDue());
  if (SlowPathsLook()) mark = Least(mark, further < kWorthReading ? kWorthReading : further);
  marked_at.store(footprint, std::memory_order_relaxed);
  PageHeap::SetMark(mark);
}

// Objects that caches hold beyond the present budget go down, everything free goes out.
void Relieve() {
  relieves.fetch_add(1, std::memory_order_relaxed);
  for (unsigned i = 0; i < percpu::HighestUsed(); ++i) {
    const int index = static_cast<int>(i);
    if (front::BudgetUsed(index) > front::Budget()) {
      front::ShrinkIndex(index);
    } else if (percpu::ActivityOf(index).holds_items) {
      front::DrainIndex(index);
    }
  }
  central::Trim();
  PageHeap::Release(SIZE_MAX);
  central::ReturnHoles();
}

// Puts in force what is wanted; returns whether CPUs may hold less than before. Who sets something,
// another thread or a signal handler, comes here after it, and may be done before this call stores
// what it has read earlier: so it looks again afterwards. The fences see to it that of two that
// store one sees what the other has set.
bool PutInForce(Wanted* wanted) {
  bool lowered = false;
  do {
    std::atomic_thread_fence(std::memory_order_seq_cst);
    *wanted = Wanted();
    const uint64_t budget = BudgetFor(*wanted);
    lowered |= budget < front::Budget();
    front::SetBudget(budget);
    PageHeap::SetLimits(wanted->pressed ? 0 : wanted->soft, wanted->hard);
    std::atomic_thread_fence(std::memory_order_seq_cst);
  } while (Wanted() != *wanted);
  return lowered;
}

void Apply() {
  Wanted wanted;
  const bool lowered = PutInForce(&wanted);
  const uint64_t limit = wanted.pressed ? 0 : wanted.soft;
  const uint64_t most = wanted.hard;
  const uint64_t footprint = PageHeap::Footprint();
  const bool too_much = footprint > limit || footprint > most;
  if (too_much) Relieve();
  SetMark(PageHeap::Footprint());
  for (unsigned i = 0; lowered && !too_much && i < percpu::HighestUsed(); ++i) {
    const int index = static_cast<int>(i);
    if (front::BudgetUsed(index) > front::Budget()) front::ShrinkIndex(index);
  }
}

// Returns whether the limit is another than before.
bool ReadFiles(uint64_t footprint) {
  read_at.store(footprint < kWorthReading ? kWorthReading : footprint, std::memory_order_relaxed);
  Turn turn;
  static constinit Cgroup cgroup;  // of whoever has the turn
  if (!turn || !ReadCgroup(files_root, &cgroup)) return false;
  TextBuffer(pressure_file, sizeof(pressure_file)).Str(cgroup.pressure);
  const uint64_t before = cgroup_limit.exchange(cgroup.limit_bytes, std::memory_order_relaxed);
  return before != cgroup.limit_bytes;
}

enum class Pressure {
  kNothing,    // there is none, or it is too early to look
  kGoesOn,     // there was some and still is
  kOtherwise,  // it has begun, or ended
};

Pressure LookAtPressure(uint64_t now_ms) {
  Turn turn;
  if (!turn ||
      !os::IsDue(next_pressure_ms.load(std::memory_order_relaxed), now_ms, kPressureEveryMs)) {
    return Pressure::kNothing;
  }
  next_pressure_ms.store(now_ms + kPressureEveryMs, std::memory_order_relaxed);
  look_owed.store(false, std::memory_order_relaxed);
  const int stalled = ReadPressure(pressure_file);
  const bool was = pressed.load(std::memory_order_relaxed);
  const bool is = stalled >= (was ? kPressureEnds : kPressureBegins);
  pressed.store(is, std::memory_order_relaxed);
  if (is) pressure_rounds.fetch_add(1, std::memory_order_relaxed);
  return is != was ? Pressure::kOtherwise : is ? Pressure::kGoesOn : Pressure::kNothing;
}

// What follows from a look, and from another limit than before.
void Act(bool limit_changed, Pressure pressure) {
  if (limit_changed || pressure == Pressure::kOtherwise) {
    Apply();
  } else if (pressure == Pressure::kGoesOn) {
    Relieve();
  }
}

}  // namespace

void ConfigureLimits() {
  const Config& config = GetConfig();
  soft.store(config.limit_soft == 0 ? kNoLimit : config.limit_soft, std::memory_order_relaxed);
  hard.store(config.limit_hard == 0 ? kNoLimit : config.limit_hard, std::memory_order_relaxed);
  percpu_cache.store(config.percpu_cache, std::memory_order_relaxed);
  // Nothing is held yet that would have to go: no need to ask who uses what.
  const Wanted wanted;
  front::SetBudget(BudgetFor(wanted));
  PageHeap::SetLimits(wanted.soft, wanted.hard);
  SetMark(0);
}

void SetSoftLimit(uint64_t bytes) {
  soft.store(bytes, std::memory_order_relaxed);
  Apply();
}

void SetHardLimit(uint64_t bytes) {
  hard.store(bytes, std::memory_order_relaxed);
  Apply();
}

void SetPercpuCache(uint64_t bytes) {
  if (bytes < kLeastPercpuCache) bytes = kLeastPercpuCache;
  percpu_cache.store(Least(bytes, kMostPercpuCache), std::memory_order_relaxed);
  Apply();
}

uint64_t SoftLimit() { return soft.load(std::memory_order_relaxed); }
uint64_t HardLimit() { return hard.load(std::memory_order_relaxed); }

void OnGrowth(uint64_t now_ms) {
  const uint64_t footprint = PageHeap::Footprint();
  const bool changed = ReadsFiles() && footprint >= ReadingDue() && ReadFiles(footprint);
  Pressure pressure = Pressure::kNothing;
  if (footprint >= kWorthReading && SlowPathsLook()) {
    look_owed.store(true, std::memory_order_relaxed);
    pressure = LookAtPressure(now_ms);
  }
  if (changed || pressure == Pressure::kOtherwise) {
    Apply();
    return;
  }
  if (pressure == Pressure::kGoesOn || footprint > LimitInForce()) Relieve();
  SetMark(PageHeap::Footprint());
}

void OnTick(uint64_t now_ms) {
  if (read_at.load(std::memory_order_relaxed) == 0 || !SlowPathsLook()) return;
  if (UnderPressure() || look_owed.load(std::memory_order_relaxed)) {
    if (!os::IsDue(next_pressure_ms.load(std::memory_order_relaxed), now_ms, kPressureEveryMs))
      return;
    Act(/*limit_changed=*/false, LookAtPressure(now_ms));
  } else if (os::IsDue(next_mark_ms.load(std::memory_order_relaxed), now_ms, kMarkEveryMs)) {
    // A heap that has become smaller grows from there.
    next_mark_ms.store(now_ms + kMarkEveryMs, std::memory_order_relaxed);
    const uint64_t footprint = PageHeap::Footprint();
    if (footprint < marked_at.load(std::memory_order_relaxed)) SetMark(footprint);
  }
}

void WatchMachine(uint64_t now_ms) {
  if (!ReadsFiles()) return;
  bool changed = false;
  if (now_ms >= next_cgroup_ms) {
    next_cgroup_ms = now_ms + kCgroupEveryMs;
    changed = ReadFiles(PageHeap::Footprint());
  }
  Act(changed, LookAtPressure(now_ms));
}

void SetWatched(bool by_thread) {
  watched.store(by_thread, std::memory_order_relaxed);
  SetMark(PageHeap::Footprint());
}

void ForgetWatchers() {
  turn_taken.store(false, std::memory_order_relaxed);
  ForgetReaders();
}

void LeaveFilesAlone() {
  files_forbidden.store(true, std::memory_order_relaxed);
  // Nobody would see the end of it.
  if (pressed.load(std::memory_order_relaxed)) Apply();
}

bool UnderPressure() { return pressed.load(std::memory_order_relaxed) && ReadsFiles(); }

void SetFilesRoot(const char* root) { TextBuffer(files_root, sizeof(files_root)).Str(root); }

LimitStats ReadLimitStats() {
  return {LimitInForce(),
          hard.load(std::memory_order_relaxed),
          cgroup_limit.load(std::memory_order_relaxed),
          front::Budget(),
          relieves.load(std::memory_order_relaxed),
          pressure_rounds.load(std::memory_order_relaxed)};
}

}  // namespace pcmalloc::release
