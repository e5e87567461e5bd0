// SPDX-License-Identifier: Apache-2.0
#include "allocator/central/central_list.h"

#include <string.h>

#include <atomic>

#include "absl/base/attributes.h"
#include "absl/base/optimization.h"
#include "absl/numeric/bits.h"
#include "allocator/base/report.h"
#include "allocator/central/holes.h"
#include "allocator/central/shapes.h"
#include "allocator/pages/page_heap.h"
#include "allocator/pages/page_map.h"

namespace pcmalloc {
namespace {

// Ends the process with what is wrong with an object that is given back.
[[noreturn]] ABSL_ATTRIBUTE_NOINLINE void BadFree(unsigned size_class, const void* p) {
  const Span* const span = SpanOf(p);
  Text<> text;
  const bool small = span != nullptr && span->state == SpanState::kSmall;
  Quotient place = {};
  if (small) {
    place = Divide(reinterpret_cast<uintptr_t>(p) - span->start, kShapes[span->size_class]);
  }
  text.Str(!small || span->size_class != size_class ? "free of a pointer that was not allocated"
           : !place.exact || place.index >= span->objects
               ? "free of a pointer into the middle of a block"
               : "double free");
  text.Str(" of ").Ptr(p);
  if (small) {
    text.Str(" (block of ").Bytes(span->object_size).Str(" in the span at ").Hex(span->start);
    text.Str(", object ").Dec(place.index).Str(")");
  }
  Fatal(text);
}

// Puts the addresses of `n` neighbours, the lowest of them `address`, in front of `end` from there
// down: two to a store.
inline void Descend(uintptr_t address, uintptr_t size, void** end, uint32_t n) {
  using Two = uintptr_t __attribute__((vector_size(16)));
  // Behind the type, clang takes no notice of them.
  using Unaligned __attribute__((aligned(8), may_alias)) = Two;
  static_assert(alignof(Unaligned) == 8);
  Two next = {address + size, address};
  const Two two = {2 * size, 2 * size};
  const Two four = two + two;
  Two after = next + two;
  for (; n >= 4; n -= 4, end -= 4) {
    *reinterpret_cast<Unaligned*>(end - 2) = next;
    *reinterpret_cast<Unaligned*>(end - 4) = after;
    next += four;
    after += four;
  }
  for (address = next[1]; n != 0; --n, address += size) *--end = reinterpret_cast<void*>(address);
}

// Puts up to `n` objects of a word of bits, whose first bit stands for the object at `base`, in
// front of `end` from there down; adds their number to *taken and returns what is left of the word.
inline uint64_t TakeOfWord(uint64_t bits, uintptr_t base, uintptr_t size, void** end, uint32_t n,
                           uint32_t* taken) {
  const unsigned first = static_cast<unsigned>(absl::countr_zero(bits));
  const uint64_t from_first = bits >> first;
  if ((from_first & (from_first + 1)) == 0) {
    // One run: of a fresh span, or of one that has come back whole.
    const auto length = 64 - static_cast<uint32_t>(absl::countl_zero(from_first));
    const uint32_t count = length < n ? length : n;
    Descend(base + first * size, size, end, count);
    *taken += count;
    return count == length ? 0 : from_first >> count << (count + first);
  }
  void** next = end;
  void** const last = end - n;
  do {
    *--next = reinterpret_cast<void*>(base + static_cast<unsigned>(absl::countr_zero(bits)) * size);
    bits &= bits - 1;
  } while (bits != 0 && next != last);
  *taken += static_cast<uint32_t>(end - next);
  return bits;
}

// How many of the up to `most` (>= 1) objects from in[0] on follow each other at a distance of
// `step`.
inline uint32_t RunLength(void* const* in, uint32_t most, uintptr_t step) {
  uintptr_t address = reinterpret_cast<uintptr_t>(in[0]);
  const auto follows = [&](uint32_t i, uintptr_t distance) {
    return reinterpret_cast<uintptr_t>(in[i]) == address + distance;
  };
  uint32_t length = 1;
  // Four at a time: this is what freeing in order costs.
  const uintptr_t two = 2 * step, three = 3 * step, four = 4 * step;
  while (length + 4 <= most && follows(length, step) && follows(length + 1, two) &&
         follows(length + 2, three) && follows(length + 3, four)) {
    length += 4;
    address += four;
  }
  for (; length < most && follows(length, step); ++length) address += step;
  return length;
}

// Sets the bits of `count` objects from the one numbered `first` on; one that is set already is a
// double free.
inline void SetBits(Span* span, uint32_t first, uint32_t count) {
  while (count != 0) {
    uint64_t& word = span->free_bits[first / 64];
    const uint32_t here = count < 64 - first % 64 ? count : 64 - first % 64;
    const uint64_t mask = (~uint64_t{0} >> (64 - here)) << (first % 64);
    if (ABSL_PREDICT_FALSE((word & mask) != 0)) {
      const uint32_t twice =
          first / 64 * 64 + static_cast<uint32_t>(absl::countr_zero(word & mask));
      BadFree(span->size_class,
              reinterpret_cast<void*>(span->start + size_t{twice} * span->object_size));
    }
    word |= mask;
    first += here;
    count -= here;
  }
}

// Gives objects as long as each needs no more than that its bit is set and it is counted; returns
// how many. The next one is for GiveRun: it lies beside the one before it, or its span is to change
// its list, or something is wrong with it. A function of its own and without calls, for the
// registers.
ABSL_ATTRIBUTE_NOINLINE uint32_t GiveScattered(unsigned size_class, void* const* in, uint32_t n) {
  const Shape shape = kShapes[size_class];
  const uint16_t tag = Span::Tag(SpanState::kSmall, size_class);
  const PrimaryArena& arena = pcmalloc_primary_arena;
  const uintptr_t base = reinterpret_cast<uintptr_t>(arena.base);
  const size_t pages = __atomic_load_n(&arena.pages, __ATOMIC_RELAXED);
  Span* const* const spans = arena.spans;
  const uintptr_t size = shape.size;
  const size_t objects = shape.objects;
  uintptr_t last = 0;
  void* const* next = in;
  for (void* const* const end = in + n; next != end; ++next) {
    const uintptr_t address = reinterpret_cast<uintptr_t>(*next);
    if (address == last + size || address + size == last) break;
    last = address;
    const size_t page = (address - base) >> kPageShift;
    if (ABSL_PREDICT_FALSE(page >= pages)) break;
    Span* const span = __atomic_load_n(&spans[page], __ATOMIC_RELAXED);
    if (ABSL_PREDICT_FALSE(span == nullptr || span->tag() != tag)) break;
    const Quotient place = Divide(address - span->start, shape);
    if (ABSL_PREDICT_FALSE(!place.exact || place.index >= objects)) break;
    // All but the bit first: fewer registers are in use at a time.
    const uint32_t free_objects = span->free_objects + 1;
    if (ABSL_PREDICT_FALSE(free_objects == span->relist_at)) break;
    span->free_objects = free_objects;
    const uint64_t bit = uint64_t{1} << (place.index % 64);
    uint64_t& word = span->free_bits[place.index / 64];
    const uint64_t bits = word;
    if (ABSL_PREDICT_FALSE((bits & bit) != 0)) break;
    word = bits | bit;
  }
  return static_cast<uint32_t>(next - in);
}

// Of all lists: free objects less holes; the least since it was last asked for.
constinit std::atomic<int64_t> idle_bytes{0};
constinit std::atomic<int64_t> least_idle_bytes[2] = {};  // for each IdleWatcher
constinit std::atomic<uint64_t> taken_bytes{0};
constinit std::atomic<uint64_t> refilled_bytes{0};

void Adjust(uint64_t* counter, int64_t by) {
  __atomic_store_n(counter, *counter + static_cast<uint64_t>(by), __ATOMIC_RELAXED);
}

uint64_t Positive(int64_t bytes) { return bytes < 0 ? 0 : static_cast<uint64_t>(bytes); }

}  // namespace

bool CentralList::IsFree(const Span* span, const void* p) {
  const uint64_t index =
      Divide(reinterpret_cast<uintptr_t>(p) - span->start, kShapes[span->size_class]).index;
  return index < span->objects && ((span->free_bits[index / 64] >> (index % 64)) & 1) != 0;
}

uint32_t CentralList::ListFor(const Span& span) {
  return (span.free_objects * kLists - 1) / span.objects;
}

void CentralList::Insert(Span* span) {
  const uint32_t objects = span->objects;
  const uint32_t list = ListFor(*span);
  // The least count that the next list is for, or that of a span that leaves.
  const uint32_t next = ((list + 1) * objects + kLists) / kLists;
  span->list_index = static_cast<uint8_t>(list);
  span->relist_at = next < objects ? next : objects;
  lists_[list].Insert(span);
}

void CentralList::Remove(Span* span) {
  lists_[span->list_index].Remove(span);
  span->list_index = kNoList;
  span->relist_at = 1;
}

void CentralList::BookFree(int64_t objects, int64_t size) {
  Adjust(&free_objects_, objects);
  const int64_t change = objects * size;
  const int64_t now = idle_bytes.fetch_add(change, std::memory_order_relaxed) + change;
  for (std::atomic<int64_t>& least : least_idle_bytes) {
    if (now < least.load(std::memory_order_relaxed)) least.store(now, std::memory_order_relaxed);
  }
}

uint64_t CentralList::IdleBytes() { return Positive(idle_bytes.load(std::memory_order_relaxed)); }

uint64_t CentralList::TakeLeastIdleBytes(IdleWatcher watcher) {
  return Positive(least_idle_bytes[static_cast<int>(watcher)].exchange(
      idle_bytes.load(std::memory_order_relaxed), std::memory_order_relaxed));
}

uint64_t CentralList::TakenBytes() { return taken_bytes.load(std::memory_order_relaxed); }

uint64_t CentralList::RefilledBytes() { return refilled_bytes.load(std::memory_order_relaxed); }

bool CentralList::Grow(unsigned size_class, Shortage* shortage) {
  const ClassInfo& info = kClasses[size_class];
  Span* span = nullptr;
  PageResult result;
  {
    // A fork must not wait for this list while another thread has the page heap and waits
    // for the fork.
    const AtRest at_rest(lock_);
    result = PageHeap::Take(info.span_pages, kPageSize, size_class, &span);
  }
  switch (result) {
    case PageResult::kOk:
      break;
    case PageResult::kNoMemory:
      *shortage = Shortage::kNoMemory;
      return false;
    case PageResult::kReentrant:
      *shortage = Shortage::kReentrant;
      return false;
  }
  const uint32_t objects = kShapes[size_class].objects;
  span->objects = static_cast<uint16_t>(objects);
  span->free_objects = objects;
  span->object_size = info.size;
  for (size_t word = 0; word < Span::kMaxObjects / 64; ++word) {
    const size_t first = word * 64;
    span->free_bits[word] = objects >= first + 64 ? ~uint64_t{0}
                            : objects > first     ? (uint64_t{1} << (objects - first)) - 1
                                                  : 0;
  }
  span->away = false;
  span->holes = 0;
  Insert(span);
  Adjust(&spans_, 1);
  BookFree(static_cast<int64_t>(objects), info.size);
  return true;
}

uint32_t CentralList::Take(unsigned size_class, void** out, uint32_t n, Shortage* shortage) {
  *shortage = Shortage::kNone;
  LockHolder held(lock_);
  if (!held) {
    *shortage = Shortage::kReentrant;
    return 0;
  }
  uint32_t taken = 0;
  while (taken < n) {
    Span* span = nullptr;
    for (unsigned list = 0; list < kLists && span == nullptr; ++list) span = lists_[list].first;
    if (span == nullptr) {
      if (!Grow(size_class, shortage)) break;
      continue;
    }
    const uint32_t before = taken;
    const uint32_t size = span->object_size;
    for (uint32_t word = 0; word * 64 < span->objects && taken < n; ++word) {
      const uint64_t bits = span->free_bits[word];
      if (bits == 0) continue;
      const uintptr_t base = span->start + size_t{word} * 64 * size;
      span->free_bits[word] = TakeOfWord(bits, base, size, out + (n - taken), n - taken, &taken);
    }
    span->free_objects -= taken - before;
    // Its list may be one of fewer free objects now; with none left it is in no list.
    if (span->free_objects == 0) {
      Remove(span);
    } else if (ListFor(*span) != span->list_index) {
      Remove(span);
      Insert(span);
    }
    if (ABSL_PREDICT_FALSE(span->holes != 0)) Refill(span, out + (n - taken), taken - before);
    BookFree(-static_cast<int64_t>(taken - before), size);
  }
  taken_bytes.fetch_add(uint64_t{taken} * kClasses[size_class].size, std::memory_order_relaxed);
  if (ABSL_PREDICT_FALSE(taken < n)) memmove(out, out + (n - taken), taken * sizeof(void*));
  return taken;
}

// A span that is all free, and in no list any more, goes: returns how many objects with it.
uint32_t CentralList::Leave(Span* span, Span** emptied) {
  if (ABSL_PREDICT_FALSE(span->holes != 0)) FillHoles(span, span->holes);
  Adjust(&spans_, -1);
  span->next = *emptied;
  *emptied = span;
  return span->objects;
}

uint32_t CentralList::Relist(Span* span, Span** emptied) {
  if (span->list_index != kNoList) Remove(span);
  if (ABSL_PREDICT_FALSE(span->free_objects == span->objects)) return Leave(span, emptied);
  Insert(span);
  return 0;
}

uint32_t CentralList::GiveRun(unsigned size_class, void* const* in, uint32_t n, Span** emptied,
                              int64_t* leaving) {
  const Shape& shape = kShapes[size_class];
  const uintptr_t address = reinterpret_cast<uintptr_t>(in[0]);
  // Whether the span holds the object at all the quotient will say.
  Span* const span = SpanEntryOf(in[0]);
  const uint16_t tag = Span::Tag(SpanState::kSmall, size_class);
  if (ABSL_PREDICT_FALSE(span == nullptr || span->tag() != tag)) BadFree(size_class, in[0]);
  const Quotient place = Divide(address - span->start, shape);
  if (ABSL_PREDICT_FALSE(!place.exact || place.index >= shape.objects)) BadFree(size_class, in[0]);
  const auto index = static_cast<uint32_t>(place.index);
  const uintptr_t step = n > 1 ? reinterpret_cast<uintptr_t>(in[1]) - address : 0;
  const bool up = step == shape.size;
  const uint32_t room = up ? shape.objects - index : step == -uintptr_t{shape.size} ? index + 1 : 1;
  const uint32_t count = RunLength(in, n < room ? n : room, step);
  SetBits(span, up ? index : index + 1 - count, count);
  span->free_objects += count;
  if (span->free_objects >= span->relist_at) *leaving += Relist(span, emptied);
  return count;
}

uint32_t CentralList::Give(unsigned size_class, void* const* in, uint32_t n) {
  Span* emptied = nullptr;
  {
    LockHolder held(lock_);
    if (!held) return 0;
    int64_t leaving = 0;
    for (uint32_t i = 0; i < n;) {
      i += GiveScattered(size_class, in + i, n - i);
      if (i < n) i += GiveRun(size_class, in + i, n - i, &emptied, &leaving);
    }
    BookFree(n - leaving, kClasses[size_class].size);
  }
  // Outside of the lock: the page heap may have to talk to the kernel.
  while (emptied != nullptr) {
    Span* span = emptied;
    emptied = span->next;
    GiveToHeap(span);
  }
  return n;
}

void CentralList::GiveToHeap(Span* span) {
  if (PageHeap::Give(span) != PageResult::kReentrant) return;
  // This thread was interrupted inside the page heap: the span stays here, all of it free.
  LockHolder held(lock_);
  Insert(span);
  Adjust(&spans_, 1);
  BookFree(span->objects, span->object_size);
}

// Objects of a span with holes have been taken: where they lie there will be memory.
void CentralList::Refill(Span* span, void* const* objects, uint32_t n) {
  const unsigned shift = central::HoleShift(span);
  uint64_t touched = 0;
  for (uint32_t i = 0; i < n; ++i) {
    const uintptr_t start = reinterpret_cast<uintptr_t>(objects[i]);
    touched |= central::UnitsOf(span, shift, start, span->object_size);
  }
  touched &= span->holes;
  refilled_bytes.fetch_add(central::BytesOf(span, touched), std::memory_order_relaxed);
  FillHoles(span, touched);
}

void CentralList::FillHoles(Span* span, uint64_t units) {
  if (units == 0) return;
  span->holes &= ~units;
  PageHeap::NoteHoles(-static_cast<int64_t>(central::BytesOf(span, units)));
  idle_bytes.fetch_add(static_cast<int64_t>(central::ObjectBytesOf(span, units)),
                       std::memory_order_relaxed);
}

// Needs the lock. Under it what is this class's stays so, but for a span that is all free: that one
// is on its way to the page heap, and may serve another class a moment later. So whose the span is
// has to be read after what says that it is not such a one.
uint64_t CentralList::UnitsToReturn(unsigned size_class, const Span* span, size_t shortest) {
  const uint32_t free_objects = __atomic_load_n(&span->free_objects, __ATOMIC_RELAXED);
  const uint32_t objects = __atomic_load_n(&span->objects, __ATOMIC_RELAXED);
  std::atomic_thread_fence(std::memory_order_acquire);
  if (free_objects == 0 || free_objects == objects || span->state != SpanState::kSmall ||
      span->size_class != size_class || span->away) {
    return 0;
  }
  const unsigned shift = central::HoleShift(span);
  const size_t units = (shortest + (size_t{1} << shift) - 1) >> shift;
  if (!central::MayHaveFreeUnits(span, units << shift)) return 0;
  return central::LongRuns(central::FreeUnits(span, shift) & ~span->holes,
                           static_cast<unsigned>(units));
}

uint64_t CentralList::Returnable(unsigned size_class, const Span* span, size_t shortest) {
  LockHolder held(lock_);
  return held ? central::BytesOf(span, UnitsToReturn(size_class, span, shortest)) : 0;
}

bool CentralList::Detach(unsigned size_class, Span* span, size_t shortest, uint64_t* units) {
  LockHolder held(lock_);
  if (!held) return false;
  *units = UnitsToReturn(size_class, span, shortest);
  if (*units == 0) return false;
  Remove(span);
  span->relist_at = kNever;
  span->away = true;
  return true;
}

void CentralList::Attach(Span* span, uint64_t holes) {
  const int64_t bytes = static_cast<int64_t>(central::BytesOf(span, holes));
  Span* emptied = nullptr;
  {
    LockHolder held(lock_);
    PCMALLOC_CHECK(held);
    // All of it under the lock: a fork in between would leave its child with figures that are off.
    PageHeap::NoteHoles(bytes);
    span->away = false;
    span->holes |= holes;
    idle_bytes.fetch_sub(static_cast<int64_t>(central::ObjectBytesOf(span, holes)),
                         std::memory_order_relaxed);
    BookFree(-int64_t{Relist(span, &emptied)}, span->object_size);
  }
  if (emptied != nullptr) GiveToHeap(emptied);
}

void CentralList::Recover(Span* span) {
  // What has the lock otherwise may be in the middle of a change.
  if (!lock_.HeldForFork()) return;
  span->away = false;
  Insert(span);
}

namespace central {

constinit CentralList lists[kNumClasses];

}  // namespace central
}  // namespace pcmalloc
