// SPDX-License-Identifier: Apache-2.0
#include "allocator/central/sweep.h"

#include "allocator/central/holes.h"
#include "allocator/config/config.h"
#include "allocator/pages/page_heap.h"
#include "allocator/pages/release_policy.h"
#include "allocator/sizes/size_classes.h"

namespace pcmalloc::central {
namespace {

constexpr size_t kShortest = size_t{8} << 10;     // because there is too much
constexpr size_t kShortestOld = size_t{4} << 10;  // because it is old
constexpr size_t kBreakAt = Stretch::kBytes / 8;  // bytes of a hugepage that can go

// What may be idle whatever the heap's size; and where nothing is to be.
constexpr uint64_t kLeastIdle = uint64_t{16} << 20;
constexpr uint64_t kMostIdle = uint64_t{64} << 20;
constexpr uint64_t kIdleWithoutDecay = uint64_t{1} << 20;

// Refusals (locked memory, for one) after which a round is over.
constexpr int kMostRefusals = 16;

struct Order {
  size_t shortest;  // bytes
  bool break_huge;  // whatever little it frees
};
constexpr Order kTooMuch = {kShortest, false};
constexpr Order kOld = {kShortestOld, false};
constexpr Order kAll = {1, true};

// One way round the heap.
struct Round {
  uintptr_t at = 0;      // goes on from here
  uintptr_t from = 0;    // began here
  bool wrapped = false;  // has been at the end of the heap
  bool on = false;       // it is not over
  uint64_t wanted = 0;   // bytes
  uint64_t returned = 0;
  int refusals = 0;

  constexpr void Begin(uint64_t bytes) { *this = {at, at, false, true, bytes, 0, 0}; }
  constexpr bool enough() const { return returned >= wanted; }
};

struct Sweep {
  RankedLock<LockRank::kSweep> lock;
  Round excess;
  bool watching = false;  // too much is idle: whether it stays so while memory is taken
  uint64_t taken = 0;     // CentralList::TakenBytes() when that began
  Round old;
  IdleBound bound{IdleBound::Reach::kPlaces, kLeastIdle, kMostIdle};
  uint64_t refilled = 0;  // CentralList::RefilledBytes() when the last round for excess ended
  IdleClock clock;
  // Set while a span is away, for a fork's child, and the class it is of.
  Span* away = nullptr;
  unsigned away_class = 0;
};
constinit Sweep sweep;
// The one that a round is at: too much for a stack. Needs the lock.
constinit Stretch stretch;

// Returns the memory of `units` of a span that is away; those that the kernel took.
uint64_t ReturnUnits(const Span* span, uint64_t units, int* refusals) {
  const unsigned shift = HoleShift(span);
  const uintptr_t base = HoleBase(span, shift);
  uint64_t returned = 0;
  while (units != 0 && *refusals < kMostRefusals) {
    const UnitRun run = FirstRun(units);
    if (PageHeap::ReturnInside(base + (uintptr_t{run.first} << shift),
                               size_t{run.length} << shift)) {
      returned |= run.units;
    } else {
      ++*refusals;
    }
    units &= ~run.units;
  }
  return returned;
}

uint64_t ReturnFrom(unsigned size_class, Span* span, size_t shortest, int* refusals) {
  CentralList& list = lists[size_class];
  uint64_t units;
  sweep.away_class = size_class;
  sweep.away = span;
  uint64_t bytes = 0;
  if (list.Detach(size_class, span, shortest, &units)) {
    const uint64_t returned = ReturnUnits(span, units, refusals);
    bytes = BytesOf(span, returned);
    list.Attach(span, returned);
  }
  sweep.away = nullptr;
  return bytes;
}

// How much of a hugepage could go.
uint64_t Returnable(size_t shortest) {
  uint64_t bytes = 0;
  for (unsigned i = 0; i < stretch.count; ++i) {
    const unsigned c = stretch.size_classes[i];
    bytes += lists[c].Returnable(c, stretch.spans[i], shortest);
  }
  return bytes;
}

// One stretch further, or a part of it if that is enough.
void Go(Round& round, const Order& order) {
  stretch.from = round.at;
  if (!PageHeap::Next(&stretch)) {
    if (round.wrapped || round.from == 0) round.on = false;
    round.wrapped = true;
    round.at = 0;
    return;
  }
  if (!stretch.huge || order.break_huge || Returnable(order.shortest) >= kBreakAt) {
    for (unsigned i = 0; i < stretch.count; ++i) {
      round.returned +=
          ReturnFrom(stretch.size_classes[i], stretch.spans[i], order.shortest, &round.refusals);
      if (round.enough() || round.refusals >= kMostRefusals) {
        round.on = false;
        return;
      }
    }
  }
  round.at = stretch.from;
  if (round.wrapped && round.at >= round.from) round.on = false;
}

uint64_t Bound() {
  return GetConfig().decay == 0 ? kIdleWithoutDecay : sweep.bound.For(UsedBytes());
}

void SetSweepIf(uint64_t low, uint64_t width) {
  sweep_if.low.store(low, std::memory_order_relaxed);
  sweep_if.width.store(width, std::memory_order_relaxed);
}

// What is too much and cannot go lies where it lies: the next round makes sense when there is more
// of it, or much less and then more.
void WaitForMore() {
  const uint64_t bound = Bound();
  const uint64_t idle = CentralList::IdleBytes();
  if (idle > bound) {
    SetSweepIf(idle - bound / 4, bound / 2);
  } else {
    SetSweepIf(0, bound);
  }
}

// What the round has to say about the bound.
void EndExcess() {
  const uint64_t refilled = CentralList::RefilledBytes();
  const uint64_t used = UsedBytes();
  sweep.bound.Taken(refilled - sweep.refilled, used);
  sweep.bound.Returned(sweep.excess.returned, used);
  sweep.refilled = refilled;
  if (sweep.excess.enough()) {
    SetSweepIf(0, Bound());
  } else {
    WaitForMore();
  }
}

// Whether there is too much that those who want memory have no use for, in which case
// a round begins.
void LookForExcess() {
  const uint64_t bound = Bound();
  const uint64_t idle = CentralList::IdleBytes();
  if (idle <= bound || idle < sweep_if.low.load(std::memory_order_relaxed)) {
    sweep.watching = false;
    WaitForMore();
    return;
  }
  const uint64_t taken = CentralList::TakenBytes();
  if (sweep.watching && taken - sweep.taken < bound) return;
  const uint64_t least = CentralList::TakeLeastIdleBytes(IdleWatcher::kExcess);
  const bool unwanted = sweep.watching && least > bound;
  sweep.watching = !unwanted;
  sweep.taken = taken;
  // Each batch from now on asks again.
  SetSweepIf(0, 0);
  // Half of the bound stays, so that the next round, which may be a way round the heap, is
  // as much away.
  if (unwanted) sweep.excess.Begin(least - bound / 2);
}

}  // namespace

constinit SweepIf sweep_if{0, kIdleWithoutDecay};

uint64_t UsedBytes() {
  const uint64_t small = PageHeap::SmallBytes();
  const uint64_t unused = CentralList::IdleBytes() + PageHeap::HoleBytes();
  return small > unused ? small - unused : 0;
}

void SweepSome() {
  if (!sweep.lock.TryAcquire()) return;
  if (!sweep.excess.on) {
    LookForExcess();
  } else if (CentralList::IdleBytes() <= Bound() / 2) {
    sweep.excess.on = false;  // it is needed again
    EndExcess();
  } else {
    Go(sweep.excess, kTooMuch);
    if (!sweep.excess.on) EndExcess();
  }
  sweep.lock.Release();
}

uint64_t DecayHoles(uint64_t now_ms, unsigned stretches) {
  const uint64_t decay_ms = GetConfig().decay;
  if (decay_ms == kNever) return UINT64_MAX;
  if (!sweep.lock.TryAcquire()) return IdleAges::SleepMs(decay_ms);
  uint64_t wait_ms = 0;
  if (!sweep.old.on) {
    sweep.clock.Note(CentralList::TakeLeastIdleBytes(IdleWatcher::kAge) >> kPageShift);
    const uint64_t idle = CentralList::IdleBytes() >> kPageShift;
    if (sweep.clock.Due(now_ms)) sweep.bound.Age(UsedBytes());
    const uint64_t due = sweep.clock.Step(now_ms, decay_ms, idle, &wait_ms);
    if (due != 0) sweep.old.Begin(due << kPageShift);
  }
  const bool was_on = sweep.old.on;
  for (; sweep.old.on && stretches > 0; --stretches) Go(sweep.old, kOld);
  if (was_on && !sweep.old.on && !sweep.old.enough()) {
    sweep.clock.Left((sweep.old.wanted - sweep.old.returned) >> kPageShift);
  }
  sweep.lock.Release();
  return wait_ms;
}

size_t ReturnHoles() {
  LockHolder held(sweep.lock);
  if (!held) return 0;
  Round all;
  all.Begin(UINT64_MAX);
  while (all.on) Go(all, kAll);
  return all.returned;
}

void RecoverSweep() {
  if (sweep.lock.HeldBySelf()) return;  // a handler forks; what it interrupted goes on
  if (sweep.away != nullptr && sweep.away->away) lists[sweep.away_class].Recover(sweep.away);
  sweep.away = nullptr;
  sweep.lock.FreeInChild();
}

}  // namespace pcmalloc::central
