// SPDX-License-Identifier: Apache-2.0
//
// How idle memory goes back to the operating system. A range leaves the page heap for the time of
// the system call (kReturning), so that nobody waits for the kernel who only wants pages:
//
//      lock      Pick    warm --> kReturning, a batch of the longest ranges
//      (no lock) Call    madvise
//      lock      Settle  kReturning --> cold, merged
//
// Of a hugepage that is in use in part nothing goes, unless the order is to break it: then the
// kernel splits it, and it is not asked for again before it was cold altogether.
//
// return_lock is held throughout, so there is one such batch at a time. fork does not wait for it:
// the child puts the ranges back.
#include "absl/base/attributes.h"
#include "allocator/base/report.h"
#include "allocator/base/round.h"
#include "allocator/config/config.h"
#include "allocator/os/clock.h"
#include "allocator/os/memory.h"
#include "allocator/os/thp.h"
#include "allocator/pages/heap.h"
#include "allocator/pages/huge_policy.h"
#include "allocator/pages/page_heap.h"

namespace pcmalloc::pages {
namespace {

// Of one batch: enough to make the locks cheap beside the system calls, and not so much that others
// have to grow the heap meanwhile.
constexpr int kBatchRanges = 16;
constexpr uint64_t kBatchBytes = uint64_t{16} << 20;

// Refusals (locked memory, for one) after which a pass gives up.
constexpr int kMostRefusals = 16;

// Ranges that only a request for one block can have made.
constexpr uint64_t kLong = uint64_t{4} << 20;

// The lengths that a range is cut to when less than all of it has to go.
constexpr uintptr_t kCut = uintptr_t{64} << 10;
constexpr uintptr_t kHugePage = os::kHugePage;

class Returning {
 public:
  explicit Returning(const Order& order) : order_(order) {}

  // False: nothing more to do.
  bool Pick();
  void Call();
  void Settle();
  // Puts the refused ranges back, which stay out until then so that they are not picked again.
  void Finish();

  uint64_t returned() const { return returned_; }

 private:
  bool PickFrom(Span* span, uint64_t most);

  const Order order_;
  uint64_t returned_ = 0;
  Span* picked_ = nullptr;  // linked through next
  Span* refused_ = nullptr;
  uint64_t picked_bytes_ = 0;
  int refusals_ = 0;
};

// Takes the upper end of a warm span out of the heap, `most` bytes or a little more. False: there
// is nothing that can go, or no Span object.
bool Returning::PickFrom(Span* span, uint64_t most) {
  Arena& arena = ArenaOf(span);
  const uintptr_t unit = Bytes(PagesPerKernelPage());
  uintptr_t start = RoundUp(span->start, unit);
  uintptr_t end = RoundDown(span->end(), unit);
  if (start >= end) return false;
  if (!order_.break_huge && arena.huge_count() != 0) {
    if (start % kHugePage != 0 && arena.huge(start)) start = RoundUp(start, kHugePage);
    if (end % kHugePage != 0 && arena.huge(end - 1)) end = RoundDown(end, kHugePage);
    if (start >= end || end - start < order_.shortest) return false;
  }
  const bool whole =
      order_.may_be_more && heap.idle_kept == 0 && end - start >= kLong && end - start < 2 * most;
  if (end - start > most && !whole) {
    // Along the borders of hugepages as far as that is possible.
    uintptr_t cut = RoundUp(end - most, kHugePage);
    if (cut >= end) {
      cut = RoundDown(end - most, arena.huge(end - 1) && !order_.break_huge ? kHugePage : kCut);
    }
    if (cut > start) start = cut;
  }
  if (!heap.store.Reserve(kSpansPerCarve)) return false;
  // A refusal only means that the kernel may make a hugepage of it again.
  for (const uintptr_t border : {start, end}) {
    const uintptr_t huge = RoundDown(border, kHugePage);
    if (border != huge && arena.huge(huge)) (void)arena.WantHuge(huge, huge + kHugePage, false);
  }
  CarveOut(arena, span, start, (end - start) >> kPageShift, Fill::kPages);
  span->state = SpanState::kReturning;
  ++arena.spans_in_use;
  heap.returning_pages += span->pages;
  span->next = picked_;
  picked_ = span;
  picked_bytes_ += end - start;
  return true;
}

bool Returning::Pick() {
  picked_bytes_ = 0;
  if (returned_ >= order_.bytes || refusals_ >= kMostRefusals) return false;
  const uint64_t missing = order_.bytes - returned_;
  const uint64_t most = missing < kBatchBytes ? missing : kBatchBytes;
  const int lowest_bin = FreeSpans::BinOf(order_.shortest >> kPageShift);
  int ranges = 0;
  for (FreeSpans* list : {&heap.warm, &heap.fresh}) {
    for (int bin = list->HighestBin(); bin >= lowest_bin; bin = list->HighestBin(bin - 1)) {
      Span* next;
      for (Span* span = list->First(bin); span != nullptr; span = next) {
        next = span->next;
        if (picked_bytes_ >= most || ranges == kBatchRanges) return true;
        if (PickFrom(span, most - picked_bytes_)) ++ranges;
      }
    }
  }
  return ranges > 0;
}

void Returning::Call() {
  for (Span* span = picked_; span != nullptr; span = span->next) {
    span->returned = os::ReturnUnused(reinterpret_cast<void*>(span->start), span->bytes());
  }
}

void Returning::Settle() {
  for (Span* span = picked_; span != nullptr;) {
    Span* const next = span->next;
    if (span->returned) {
      Arena& arena = ArenaOf(span);
      --arena.spans_in_use;
      heap.returning_pages -= span->pages;
      returned_ += span->bytes();
      ++heap.releases;
      MakeFreeMerged(arena, span, span->start, span->pages, kCold);
    } else {
      ++refusals_;
      span->next = refused_;
      refused_ = span;
    }
    span = next;
  }
  picked_ = nullptr;
  NoteIdle();
}

void Returning::Finish() {
  while (refused_ != nullptr) {
    Span* const span = refused_;
    refused_ = span->next;
    Arena& arena = ArenaOf(span);
    --arena.spans_in_use;
    heap.returning_pages -= span->pages;
    MakeFreeMerged(arena, span, span->start, span->pages, kUsed);
  }
}

// Whole hugepages first. What is left then lies in those that are in use in part, which pay as long
// as it is little. With return_lock held.
uint64_t ReturnSparingly(Order order) {
  const uint64_t returned = ReturnLongest(order);
  if (returned >= order.bytes || order.break_huge) return returned;
  {
    LockHolder held(heap.lock);
    if (!held) return returned;
    order.bytes = HugePolicy::BytesToBreak(order.bytes - returned, UsedBytes());
  }
  if (order.bytes == 0) return returned;
  order.break_huge = true;
  return returned + ReturnLongest(order);
}

// With return_lock held.
ABSL_ATTRIBUTE_NOINLINE uint64_t DecayStep(uint64_t now_ms) {
  const uint64_t decay_ms = GetConfig().decay;
  if (decay_ms == kNever) return UINT64_MAX;
  uint64_t due;
  uint64_t wait_ms;
  {
    LockHolder held(heap.lock);
    if (!held) return IdleAges::SleepMs(decay_ms);
    if (heap.idle_clock.Due(now_ms)) bounds.idle.Age(UsedBytes());
    due = Bytes(heap.idle_clock.Step(now_ms, decay_ms, IdlePages(), &wait_ms));
    const uint64_t most = DisposableBytes();
    if (due > most) due = most;
  }
  if (due == 0) return wait_ms;
  const uint64_t returned = ReturnSparingly({due, ReleasePolicy::kShortestOldRange, false});
  if (returned < due) {
    LockHolder held(heap.lock);
    if (held) heap.idle_clock.Left((due - returned) >> kPageShift);
  }
  return wait_ms;
}

}  // namespace

void RecoverReturning() {
  heap.store.PutAllBack();
  for (int i = 0; i < Arenas::count(); ++i) {
    Arena& arena = Arenas::at(i);
    if (arena.base() == 0 || heap.returning_pages == 0) continue;
    for (size_t page = arena.first_page(); page < arena.used_pages();) {
      Span* span = arena.SpanAt(page);
      if (span->state == SpanState::kReturning) {
        --arena.spans_in_use;
        heap.returning_pages -= span->pages;
        span = MakeFreeMerged(arena, span, span->start, span->pages, kUsed);
      }
      page = arena.PageOf(span->end());
    }
  }
}

uint64_t ReturnUnderLock(const Order& order) {
  Returning returning(order);
  while (returning.Pick()) {
    returning.Call();
    returning.Settle();
  }
  returning.Finish();
  return returning.returned();
}

namespace {

// Free spans from this length on are worth a visit to the maps: 64 KiB of span map.
constexpr size_t kLongMaps = (size_t{64} << 10) / sizeof(Span*);

// Needs the lock, as the entries may be wanted at any time; there are few such spans.
void ReturnColdMaps() {
  const int lowest_bin = FreeSpans::BinOf(kLongMaps);
  for (int bin = heap.cold.HighestBin(); bin >= lowest_bin; bin = heap.cold.HighestBin(bin - 1)) {
    for (Span* span = heap.cold.First(bin); span != nullptr; span = span->next) {
      if (span->maps_returned) continue;
      ArenaOf(span).ReturnMaps(span);
      span->maps_returned = true;
    }
  }
}

// What describes memory goes after it: a heap that was large once would keep 0.4 % of
// that for good.
void ReturnMetadata() {
  void* block = nullptr;
  bool returned = false;
  while (true) {
    {
      LockHolder held(heap.lock);
      if (!held) return;
      if (block != nullptr) heap.store.PutBack(block, returned);
      block = heap.store.TakeEmpty();
      if (block == nullptr) return ReturnColdMaps();
    }
    returned = SpanStore::ReturnMemory(block);
  }
}

}  // namespace

uint64_t ReturnLongest(const Order& order) {
  PCMALLOC_CHECK(heap.return_lock.HeldBySelf());
  Returning returning(order);
  while (true) {
    {
      // Refused only to a handler between fork's own, and then from the beginning.
      LockHolder held(heap.lock);
      if (!held) return 0;
      returning.Settle();
      if (!returning.Pick()) {
        returning.Finish();
        break;
      }
    }
    returning.Call();
  }
  if (returning.returned() != 0) ReturnMetadata();
  return returning.returned();
}

namespace {

// More than so much is too much.
uint64_t Bound() {
  const uint64_t used = UsedBytes();
  const uint64_t bound = bounds.idle.For(used);
  // What the program says stands beside what large heaps are allowed.
  if (heap.idle_kept == 0 && bounds.idle_limit >= bound) return bound;
  const uint64_t share = used / IdleBound::kLeastDivisor;
  return bounds.idle_limit < share ? share : bounds.idle_limit;
}

}  // namespace

uint64_t ExcessBytes() {
  const uint64_t idle = Bytes(IdlePages());
  if (const uint64_t above = BytesAboveSoftLimit()) return above < idle ? above : idle;
  if (GetConfig().decay == 0) return DisposableBytes();
  if (idle < heap.next_pass_bytes) return 0;
  const uint64_t excess = ReleasePolicy::BytesToReturn(idle, Bound());
  // Of what the program wants to keep nearly all stays.
  const uint64_t kept = heap.idle_kept - heap.idle_kept / 16;
  return excess != 0 && idle - excess < kept ? idle - kept : excess;
}

uint64_t GrowthExcess() {
  if (heap.grown < ReleasePolicy::kGrowthStep) return 0;
  const uint64_t excess = ReleasePolicy::BytesForGrowth(heap.grown, DisposableBytes(), UsedBytes(),
                                                        bounds.idle.Earned(UsedBytes()));
  heap.grown = 0;
  return excess;
}

namespace {

// With return_lock held. A function of its own, as DecayStep is: neither needs what the other has
// on the stack.
ABSL_ATTRIBUTE_NOINLINE void ReturnExcess(uint64_t excess_bytes) {
  size_t shortest = GetConfig().decay == 0 ? kPageSize : ReleasePolicy::kShortestRange;
  if (bounds.limits.soft.load(std::memory_order_relaxed) != UINT64_MAX) {
    LockHolder held(heap.lock);
    PCMALLOC_CHECK(held);
    if (BytesAboveSoftLimit() != 0) shortest = kPageSize;
  }
  const uint64_t returned =
      ReturnSparingly({excess_bytes, shortest, shortest == kPageSize, /*may_be_more=*/true});
  LockHolder held(heap.lock);
  PCMALLOC_CHECK(held);
  bounds.idle.Returned(returned, UsedBytes());
  heap.next_pass_bytes = returned >= excess_bytes ? 0 : Bytes(IdlePages()) + Bound() / 4;
}

}  // namespace

void Maintain(uint64_t excess_bytes) {
  const uint64_t decay_ms = GetConfig().decay;
  const bool idle =
      decay_ms == 0 || decay_ms == kNever || heap.helped.load(std::memory_order_relaxed);
  const uint64_t now_ms = idle ? 0 : os::CoarseMilliseconds();
  const bool step = now_ms != 0 && heap.idle_clock.Due(now_ms);
  if (excess_bytes == 0 && !step) return;
  // Whoever has it returns memory just now, or is this thread's interrupted frame.
  if (!heap.return_lock.TryAcquire()) return;
  if (excess_bytes != 0) ReturnExcess(excess_bytes);
  if (step) DecayStep(now_ms);
  heap.return_lock.Release();
}

}  // namespace pcmalloc::pages

namespace pcmalloc {

using pages::heap;

size_t PageHeap::Release(size_t bytes) {
  LockHolder returning(heap.return_lock);
  return returning ? pages::ReturnLongest({bytes, kPageSize, true}) : 0;
}

uint64_t PageHeap::Decay(uint64_t now_ms) {
  LockHolder returning(heap.return_lock);
  // Somebody further up this thread's stack is at it.
  if (!returning) return IdleAges::SleepMs(GetConfig().decay);
  return pages::DecayStep(now_ms);
}

void PageHeap::SetHelped(bool helped) { heap.helped.store(helped, std::memory_order_relaxed); }

void PageHeap::Tick() { pages::Maintain(0); }

}  // namespace pcmalloc
