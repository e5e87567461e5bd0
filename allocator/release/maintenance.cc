// SPDX-License-Identifier: Apache-2.0
#include "allocator/release/maintenance.h"

#include <string.h>

#include <atomic>

#include "allocator/central/sweep.h"
#include "allocator/central/transfer_cache.h"
#include "allocator/config/config.h"
#include "allocator/front/front.h"
#include "allocator/os/clock.h"
#include "allocator/pages/page_heap.h"
#include "allocator/release/limits.h"
#include "allocator/sizes/size_classes.h"
#include "percpu/slabs.h"

namespace pcmalloc::release {
namespace {

// Looks in a row that must find the same before it counts as idle.
constexpr uint8_t kIdleLooks = 2;

// Where most of what spans have is free, it may be what caches hold that keeps the spans: caches
// are emptied once they have been the same for a short while. Two such looks a period: what
// slabs held lies in transfer caches after the first. More, and caches that are in use would
// keep us awake.
constexpr uint8_t kIdleLooksInHurry = 1;
constexpr uint64_t kHurryMs = 100;
constexpr int kHurriesInAPeriod = 2;
constexpr uint64_t kWorthHurry = uint64_t{4} << 20;
// The pause after slow paths have emptied caches and few spans became whole: blocks in
// use keep them.
constexpr uint64_t kGatherInVainMs = 500;

constexpr uint64_t kLeastWaitMs = 10;

// Of something that is drained when it does not change.
struct Watched {
  uint64_t state;
  uint8_t looks;  // that found `state`; kGivenUp: draining it changed nothing
  static constexpr uint8_t kGivenUp = 0xff;

  // Whether it is time to drain it, after so many looks. `pending` becomes true if it will be,
  // unless it changes.
  bool Look(uint64_t now, bool holds, uint8_t enough, bool* changed, bool* pending) {
    if (now != state) {
      *this = {now, 0};
      *changed = true;
    } else if (looks < kIdleLooks) {
      ++looks;
    }
    if (!holds || looks == kGivenUp) return false;
    *pending = true;
    return looks >= enough;
  }
  void Drained(uint64_t now) { *this = {now, now == state ? kGivenUp : uint8_t{0}}; }
};

constinit Watched slabs[percpu::kMaxCpus] = {};
constinit Watched transfers[kNumClasses] = {};

struct Rest {
  uint64_t heap;      // the page heap's figures in one number
  uint64_t since_ms;  // when something last changed
  bool returned;      // all that was free since then
};
constinit Rest rest = {};
constinit uint64_t next_look_ms = 0;
constinit int hurries = 0;  // looks on end that made the next one come soon

// Of slow paths where there is no thread, for each CPU.
constinit std::atomic<uint64_t> next_gather_ms[percpu::kMaxCpus] = {};

struct Counters {
  std::atomic<uint64_t> rounds{0};
  std::atomic<uint64_t> idle_drains{0};
  std::atomic<uint64_t> idle_trims{0};
  std::atomic<uint64_t> idle_returns{0};
};
constinit Counters counters;

void Count(std::atomic<uint64_t>& counter) { counter.fetch_add(1, std::memory_order_relaxed); }

void LookAtSlabs(uint8_t enough, bool* changed, bool* pending) {
  for (unsigned i = 0; i < percpu::HighestUsed(); ++i) {
    const int index = static_cast<int>(i);
    const percpu::Activity now = percpu::ActivityOf(index);
    if (!slabs[i].Look(now.state, now.holds_items, enough, changed, pending)) continue;
    if (front::DrainIndex(index) > 0) {
      Count(counters.idle_drains);
      *changed = true;
    }
    slabs[i].Drained(percpu::ActivityOf(index).state);
  }
}

void LookAtTransferCaches(uint8_t enough, bool* changed, bool* pending) {
  for (unsigned c = 1; c < kNumClasses; ++c) {
    const uint64_t now = central::ClassStats(c).transfer_objects;
    if (!transfers[c].Look(now, now != 0, enough, changed, pending)) continue;
    if (central::TrimClass(c) > 0) {
      Count(counters.idle_trims);
      *changed = true;
    }
    transfers[c].Drained(central::ClassStats(c).transfer_objects);
  }
}

uint64_t HeapState() {
  const PageStats stats = PageHeap::Stats();
  uint64_t state = 0;
  for (const uint64_t figure :
       {stats.small_bytes, stats.large_bytes, stats.committed_bytes, stats.spans}) {
    state = (state ^ figure) * 0x9e3779b97f4a7c15u;
  }
  return state;
}

// Whether less is in use, or in caches, of what spans have than is free.
bool MostlyFree() {
  const uint64_t free = CentralList::IdleBytes();
  return free >= kWorthHurry && central::UsedBytes() < free;
}

enum class Next {
  kInAPeriod,
  kSoon,   // caches may be all that keeps spans
  kNever,  // nothing is left that could be given back
};

Next Look(uint64_t now_ms, uint64_t decay_ms, uint64_t period) {
  Count(counters.rounds);
  WatchMachine(now_ms);
  const bool mostly_free = MostlyFree();
  const uint8_t enough = mostly_free ? kIdleLooksInHurry : kIdleLooks;
  bool changed = false;
  bool pending = false;
  LookAtSlabs(enough, &changed, &pending);
  LookAtTransferCaches(enough, &changed, &pending);
  const uint64_t heap = HeapState();
  if (changed || heap != rest.heap || rest.since_ms == 0 || now_ms < rest.since_ms) {
    rest = {heap, now_ms, false};
  }
  // What changed last may have done so right after the look before.
  if (!pending && !rest.returned && now_ms - rest.since_ms + period >= decay_ms) {
    const size_t holes = central::ReturnHoles();
    if (PageHeap::ReleaseIdle() + holes > 0) Count(counters.idle_returns);
    rest.heap = HeapState();
    rest.returned = true;
  }
  if (!pending && rest.returned && !UnderPressure()) return Next::kNever;
  return mostly_free && pending ? Next::kSoon : Next::kInAPeriod;
}

}  // namespace

uint64_t Maintain(uint64_t now_ms) {
  const uint64_t decay_ms = GetConfig().decay;
  const uint64_t period = PeriodMs(decay_ms);
  const uint64_t pages_wait = PageHeap::Decay(now_ms);
  const uint64_t holes_wait = central::DecayHoles(now_ms);
  const uint64_t decay_wait = pages_wait < holes_wait ? pages_wait : holes_wait;
  if (os::IsDue(next_look_ms, now_ms, period)) {
    const Next next = Look(now_ms, decay_ms, period);
    const bool hurry = next == Next::kSoon && kHurryMs < period && hurries < kHurriesInAPeriod;
    hurries = hurry ? hurries + 1 : 0;
    next_look_ms = now_ms + (hurry ? kHurryMs : period);
    if (next == Next::kNever) return UINT64_MAX;
  }
  const uint64_t wait = next_look_ms - now_ms;
  return decay_wait >= wait ? wait : decay_wait < kLeastWaitMs ? kLeastWaitMs : decay_wait;
}

void GatherOnTick(uint64_t now_ms) {
  if (!MostlyFree()) return;
  const int index = percpu::CurrentIndex();
  if (index < 0) return;
  std::atomic<uint64_t>& next = next_gather_ms[index];
  uint64_t next_ms = next.load(std::memory_order_relaxed);
  if (!os::IsDue(next_ms, now_ms, kGatherInVainMs)) return;
  if (!next.compare_exchange_strong(next_ms, now_ms + kHurryMs)) return;
  const uint64_t before = PageHeap::SmallBytes();
  if (front::DrainHere() > 0) Count(counters.idle_drains);
  if (central::Trim() > 0) Count(counters.idle_trims);
  if (PageHeap::SmallBytes() + before / 16 > before) {
    next.store(now_ms + kGatherInVainMs, std::memory_order_relaxed);
  }
}

void ForgetMaintenance() {
  memset(static_cast<void*>(slabs), 0, percpu::HighestUsed() * sizeof(Watched));
  memset(static_cast<void*>(transfers), 0, sizeof(transfers));
  rest = {};
  next_look_ms = 0;
  hurries = 0;
}

MaintenanceStats ReadMaintenanceStats() {
  return {counters.rounds.load(std::memory_order_relaxed),
          counters.idle_drains.load(std::memory_order_relaxed),
          counters.idle_trims.load(std::memory_order_relaxed),
          counters.idle_returns.load(std::memory_order_relaxed)};
}

}  // namespace pcmalloc::release
