// SPDX-License-Identifier: Apache-2.0
//
// How idle memory goes back to the operating system. A range leaves the page heap for the time of
// the system call (kReturning), so that nobody waits for the kernel who only wants pages:
//
//      lock      Pick    warm --> kReturning, a batch of the longest ranges
//      (no lock) Call    madvise
//      lock      Settle  kReturning --> cold, merged
//
// return_lock is held throughout, so there is one such batch at a time, and fork finds none.
#include "allocator/base/report.h"
#include "allocator/config/config.h"
#include "allocator/os/clock.h"
#include "allocator/os/memory.h"
#include "allocator/pages/heap.h"
#include "allocator/pages/page_heap.h"

namespace pcmalloc::pages {
namespace {

// Of one batch: enough to make the locks cheap beside the system calls, and not so much that others
// have to grow the heap meanwhile.
constexpr int kBatchRanges = 16;
constexpr uint64_t kBatchBytes = uint64_t{16} << 20;

// Refusals (locked memory, for one) after which a pass gives up.
constexpr int kMostRefusals = 16;

// The lengths that a range is cut to when less than all of it has to go.
constexpr uintptr_t kCut = uintptr_t{64} << 10;
constexpr uintptr_t kHugePage = uintptr_t{2} << 20;

constexpr uintptr_t RoundUp(uintptr_t value, uintptr_t to) { return (value + to - 1) & ~(to - 1); }
constexpr uintptr_t RoundDown(uintptr_t value, uintptr_t to) { return value & ~(to - 1); }

class Returning {
 public:
  Returning(uint64_t bytes, size_t shortest) : wanted_(bytes), shortest_(shortest) {}

  // False: nothing more to do.
  bool Pick();
  void Call();
  void Settle();
  // Puts the refused ranges back, which stay out until then so that they are not picked again.
  void Finish();

  uint64_t returned() const { return returned_; }

 private:
  bool PickFrom(Span* span, uint64_t most);

  const uint64_t wanted_;
  const size_t shortest_;
  uint64_t returned_ = 0;
  Span* picked_ = nullptr;  // linked through next
  Span* refused_ = nullptr;
  uint64_t picked_bytes_ = 0;
  int refusals_ = 0;
};

// Takes the upper end of a warm span out of the heap, `most` bytes or a little more. False: it
// holds no whole kernel page, or there is no Span object.
bool Returning::PickFrom(Span* span, uint64_t most) {
  const uintptr_t unit = Bytes(PagesPerKernelPage());
  const uintptr_t end = RoundDown(span->end(), unit);
  uintptr_t start = RoundUp(span->start, unit);
  if (start >= end) return false;
  if (end - start > most) {
    // Along the borders of hugepages as far as that is possible.
    const uintptr_t huge_cut = RoundUp(end - most, kHugePage);
    const uintptr_t cut = huge_cut < end ? huge_cut : RoundDown(end - most, kCut);
    if (cut > start) start = cut;
  }
  if (!heap.store.Reserve(kSpansPerCarve)) return false;
  Arena& arena = ArenaOf(span);
  CarveOut(arena, span, start, (end - start) >> kPageShift);
  span->state = SpanState::kReturning;
  ++arena.spans_in_use;
  heap.returning_pages.fetch_add(span->pages, std::memory_order_relaxed);
  span->next = picked_;
  picked_ = span;
  picked_bytes_ += end - start;
  return true;
}

bool Returning::Pick() {
  picked_bytes_ = 0;
  if (returned_ >= wanted_ || refusals_ >= kMostRefusals) return false;
  const uint64_t missing = wanted_ - returned_;
  const uint64_t most = missing < kBatchBytes ? missing : kBatchBytes;
  const int lowest_bin = FreeSpans::BinOf(shortest_ >> kPageShift);
  int ranges = 0;
  for (int bin = heap.warm.HighestBin(); bin >= lowest_bin; bin = heap.warm.HighestBin(bin - 1)) {
    Span* next;
    for (Span* span = heap.warm.First(bin); span != nullptr; span = next) {
      next = span->next;
      if (picked_bytes_ >= most || ranges == kBatchRanges) return true;
      if (PickFrom(span, most - picked_bytes_)) ++ranges;
    }
  }
  return ranges > 0;
}

void Returning::Call() {
  for (Span* span = picked_; span != nullptr; span = span->next) {
    span->returned = os::Return(reinterpret_cast<void*>(span->start), span->bytes());
  }
}

void Returning::Settle() {
  for (Span* span = picked_; span != nullptr;) {
    Span* const next = span->next;
    if (span->returned) {
      Arena& arena = ArenaOf(span);
      --arena.spans_in_use;
      heap.returning_pages.fetch_sub(span->pages, std::memory_order_relaxed);
      returned_ += span->bytes();
      ++heap.releases;
      MakeFreeMerged(arena, span, span->start, span->pages, true);
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
    heap.returning_pages.fetch_sub(span->pages, std::memory_order_relaxed);
    MakeFreeMerged(arena, span, span->start, span->pages, false);
  }
}

// One step of the ages, or several. What should go, in bytes; the number of milliseconds until the
// next step is in *wait_ms. Needs the lock.
uint64_t StepAges(uint64_t now_ms, uint64_t decay_ms, uint64_t* wait_ms) {
  const uint64_t step_ms = IdleAges::StepMs(decay_ms);
  const uint64_t idle = heap.warm.pages();
  uint64_t next = heap.next_step_ms.load(std::memory_order_relaxed);
  // The first call, or a clock that is not the one of the last call.
  if (next == 0 || next > now_ms + 2 * step_ms) {
    next = now_ms + step_ms;
    heap.least_idle = idle;
  }
  uint64_t due = 0;
  if (now_ms >= next) {
    const uint64_t steps = 1 + (now_ms - next) / step_ms;
    next += steps * step_ms;
    const uint64_t least = heap.least_idle < idle ? heap.least_idle : idle;
    due = heap.ages.Advance(steps, least, idle);
    heap.least_idle = idle;
  }
  heap.next_step_ms.store(next, std::memory_order_relaxed);
  *wait_ms = heap.ages.Pending(idle) ? next - now_ms : IdleAges::SleepMs(decay_ms);
  return Bytes(due);
}

// With return_lock held.
uint64_t DecayStep(uint64_t now_ms) {
  const uint64_t decay_ms = GetConfig().decay;
  if (decay_ms == kNever) return UINT64_MAX;
  uint64_t due;
  uint64_t wait_ms;
  {
    LockHolder held(heap.lock);
    if (!held) return IdleAges::SleepMs(decay_ms);
    due = StepAges(now_ms, decay_ms, &wait_ms);
    const uint64_t idle = Bytes(heap.warm.pages());
    const uint64_t most = idle > heap.idle_kept ? idle - heap.idle_kept : 0;
    if (due > most) due = most;
  }
  if (due == 0) return wait_ms;
  const uint64_t returned = ReturnLongest(due, ReleasePolicy::kShortestOldRange);
  if (returned < due) {
    LockHolder held(heap.lock);
    if (held) heap.ages.Left((due - returned) >> kPageShift);
  }
  return wait_ms;
}

}  // namespace

uint64_t ReturnUnderLock(uint64_t bytes, size_t shortest) {
  Returning returning(bytes, shortest);
  while (returning.Pick()) {
    returning.Call();
    returning.Settle();
  }
  returning.Finish();
  return returning.returned();
}

uint64_t ReturnLongest(uint64_t bytes, size_t shortest) {
  PCMALLOC_CHECK(heap.return_lock.HeldBySelf());
  Returning returning(bytes, shortest);
  while (true) {
    {
      // Never refused: whoever holds return_lock by the rules of ranks does not hold the lock.
      LockHolder held(heap.lock);
      PCMALLOC_CHECK(held);
      returning.Settle();
      if (!returning.Pick()) {
        returning.Finish();
        return returning.returned();
      }
    }
    returning.Call();
  }
}

uint64_t ExcessBytes() {
  const uint64_t idle = Bytes(heap.warm.pages());
  if (const uint64_t above = BytesAboveSoftLimit()) return above < idle ? above : idle;
  if (GetConfig().decay == 0) return idle > heap.idle_kept ? idle - heap.idle_kept : 0;
  if (idle < heap.next_pass_bytes) return 0;
  return ReleasePolicy::BytesToReturn(idle, UsedBytes(), heap.idle_limit);
}

void Maintain(uint64_t excess_bytes) {
  const uint64_t decay_ms = GetConfig().decay;
  const bool idle =
      decay_ms == 0 || decay_ms == kNever || heap.helped.load(std::memory_order_relaxed);
  const uint64_t now_ms = idle ? 0 : os::CoarseMilliseconds();
  const bool step = now_ms != 0 && now_ms >= heap.next_step_ms.load(std::memory_order_relaxed);
  if (excess_bytes == 0 && !step) return;
  // Whoever has it returns memory just now, or is this thread's interrupted frame.
  if (!heap.return_lock.TryAcquire()) return;
  if (excess_bytes != 0) {
    size_t shortest = decay_ms == 0 ? kPageSize : ReleasePolicy::kShortestRange;
    if (heap.limits.soft.load(std::memory_order_relaxed) != UINT64_MAX) {
      LockHolder held(heap.lock);
      PCMALLOC_CHECK(held);
      if (BytesAboveSoftLimit() != 0) shortest = kPageSize;
    }
    const uint64_t returned = ReturnLongest(excess_bytes, shortest);
    LockHolder held(heap.lock);
    PCMALLOC_CHECK(held);
    heap.next_pass_bytes =
        returned >= excess_bytes
            ? 0
            : Bytes(heap.warm.pages()) + ReleasePolicy::Bound(UsedBytes(), heap.idle_limit) / 4;
  }
  if (step) DecayStep(now_ms);
  heap.return_lock.Release();
}

}  // namespace pcmalloc::pages

namespace pcmalloc {

using pages::heap;

size_t PageHeap::Release(size_t bytes) {
  LockHolder returning(heap.return_lock);
  return returning ? pages::ReturnLongest(bytes, kPageSize) : 0;
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
