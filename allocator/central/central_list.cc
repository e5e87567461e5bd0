// SPDX-License-Identifier: Apache-2.0
#include "allocator/central/central_list.h"

#include <string.h>

#include <atomic>

#include "absl/base/optimization.h"
#include "absl/numeric/bits.h"
#include "allocator/base/report.h"
#include "allocator/central/holes.h"
#include "allocator/pages/page_heap.h"
#include "allocator/pages/page_map.h"

namespace pcmalloc {
namespace {

// offset / object_size by a multiplication. Exact for the first byte of every object of a span of
// up to 1 MiB (central_list_test tries them all); for other addresses it may be one too high, which
// the comparison with the object's start notices all the same.
uint32_t IndexOf(const Span* span, uintptr_t address) {
  return static_cast<uint32_t>(((address - span->start) * span->object_inverse) >> 32);
}

[[noreturn]] void BadFree(const char* what, const void* p, const Span* span) {
  Text<> text;
  text.Str(what).Str(" of ").Ptr(p);
  if (span != nullptr && span->state == SpanState::kSmall) {
    text.Str(" (block of ").Bytes(span->object_size).Str(" in the span at ").Hex(span->start);
    text.Str(", object ").Dec(IndexOf(span, reinterpret_cast<uintptr_t>(p))).Str(")");
  }
  Fatal(text);
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
  const uint32_t index = IndexOf(span, reinterpret_cast<uintptr_t>(p));
  return index < span->objects && ((span->free_bits[index / 64] >> (index % 64)) & 1) != 0;
}

unsigned CentralList::ListFor(const Span* span) {
  const uint64_t eighths = span->free_objects * kLists - 1;
  return static_cast<unsigned>((eighths * span->objects_inverse) >> 32);
}

void CentralList::Insert(Span* span) {
  span->list_index = ListFor(span);
  lists_[span->list_index].Insert(span);
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

void CentralList::Remove(Span* span) { lists_[span->list_index].Remove(span); }

bool CentralList::Grow(unsigned size_class, Shortage* shortage) {
  const ClassInfo& info = kClasses[size_class];
  Span* span = nullptr;
  switch (PageHeap::Take(info.span_pages, kPageSize, size_class, &span)) {
    case PageResult::kOk:
      break;
    case PageResult::kNoMemory:
      *shortage = Shortage::kNoMemory;
      return false;
    case PageResult::kReentrant:
      *shortage = Shortage::kReentrant;
      return false;
  }
  size_t objects = span->bytes() / info.size;
  if (objects > Span::kMaxObjects) objects = Span::kMaxObjects;
  span->objects = span->free_objects = static_cast<uint16_t>(objects);
  span->object_size = info.size;
  span->object_inverse = static_cast<uint32_t>(((uint64_t{1} << 32) + info.size - 1) / info.size);
  span->objects_inverse = static_cast<uint32_t>(((uint64_t{1} << 32) + objects - 1) / objects);
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
      uint64_t bits = span->free_bits[word];
      const uintptr_t base = span->start + size_t{word} * 64 * size;
      if (bits == ~uint64_t{0} && n - taken >= 64) {
        // A fresh span, or one that has come back in order.
        void** const last = out + (n - taken) - 1;
        for (uint32_t k = 0; k < 64; ++k) *(last - k) = reinterpret_cast<void*>(base + k * size);
        taken += 64;
        bits = 0;
      }
      while (bits != 0 && taken < n) {
        const unsigned bit = static_cast<unsigned>(absl::countr_zero(bits));
        out[n - ++taken] = reinterpret_cast<void*>(base + size_t{bit} * size);
        bits &= bits - 1;
      }
      span->free_bits[word] = bits;
    }
    span->free_objects = static_cast<uint16_t>(span->free_objects - (taken - before));
    // Its list may be one of fewer free objects now; with none left it is in no list.
    if (span->free_objects == 0) {
      Remove(span);
    } else if (ListFor(span) != span->list_index) {
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

// Books `given` objects of a span whose bits have been set. One that is all free is put on `emptied`:
// returns how many objects leave the list with it.
uint32_t CentralList::Settle(Span* span, uint32_t given, Span** emptied) {
  const bool listed = span->free_objects != 0;
  span->free_objects = static_cast<uint16_t>(span->free_objects + given);
  if (ABSL_PREDICT_FALSE(span->away)) return 0;
  if (ABSL_PREDICT_FALSE(span->free_objects == span->objects)) {
    if (listed) Remove(span);
    return Leave(span, emptied);
  }
  if (!listed) {
    Insert(span);
  } else if (ListFor(span) != span->list_index) {
    Remove(span);
    Insert(span);
  }
  return 0;
}

uint32_t CentralList::Give(unsigned size_class, void* const* in, uint32_t n) {
  Span* emptied = nullptr;
  {
    LockHolder held(lock_);
    if (!held) return 0;
    int64_t leaving = 0;
    Span* span = nullptr;
    uint32_t begin = 0;  // of the run of objects of one span
    // The word of bits being changed stays in a register: neighbours come one after the other, and
    // each would wait for the store of the one before.
    uint32_t word_index = 0;
    uint64_t word = 0;
    for (uint32_t i = 0; i < n; ++i) {
      void* p = in[i];
      uintptr_t address = reinterpret_cast<uintptr_t>(p);
      const bool new_run = span == nullptr || address - span->start >= span->bytes();
      if (new_run) {
        if (span != nullptr) {
          span->free_bits[word_index] = word;
          leaving += Settle(span, i - begin, &emptied);
        }
        begin = i;
        span = QuickSpanOf(p);
        if (ABSL_PREDICT_FALSE(span == nullptr || span->state != SpanState::kSmall ||
                               span->size_class != size_class)) {
          BadFree("free of a pointer that was not allocated", p, span);
        }
      }
      const uint32_t index = IndexOf(span, address);
      if (ABSL_PREDICT_FALSE(index >= span->objects ||
                             span->start + size_t{index} * span->object_size != address)) {
        BadFree("free of a pointer into the middle of a block", p, span);
      }
      // A new run has no word to store; which word it begins with no branch could foresee.
      if (new_run || index / 64 != word_index) {
        if (!new_run) span->free_bits[word_index] = word;
        word_index = index / 64;
        word = span->free_bits[word_index];
      }
      uint64_t bit = uint64_t{1} << (index % 64);
      if (ABSL_PREDICT_FALSE((word & bit) != 0)) BadFree("double free", p, span);
      word |= bit;
      // Programs free much in the order in which they got it, or backwards: a step of one object is
      // a step of one bit, as long as the word lasts.
      const uintptr_t size = span->object_size;
      const uintptr_t end = span->start + span->objects * size;
      for (; i + 1 < n; ++i) {
        const uintptr_t next = reinterpret_cast<uintptr_t>(in[i + 1]);
        const uint64_t next_bit = next == address + size && next < end ? bit << 1
                                  : next == address - size             ? bit >> 1
                                                                       : 0;
        if (next_bit == 0) break;
        if (ABSL_PREDICT_FALSE((word & next_bit) != 0)) BadFree("double free", in[i + 1], span);
        word |= next_bit;
        bit = next_bit;
        address = next;
      }
    }
    if (span != nullptr) {
      span->free_bits[word_index] = word;
      leaving += Settle(span, n - begin, &emptied);
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
  const uint64_t bytes = central::BytesOf(span, units);
  span->holes &= ~units;
  PageHeap::NoteHoles(-static_cast<int64_t>(bytes));
  idle_bytes.fetch_add(static_cast<int64_t>(bytes), std::memory_order_relaxed);
}

// Needs the lock. What is this class's under it stays so; a span that is all free is on its way to
// the page heap.
uint64_t CentralList::UnitsToReturn(unsigned size_class, const Span* span, size_t shortest) {
  if (span->state != SpanState::kSmall || span->size_class != size_class || span->away ||
      span->free_objects == 0 || span->free_objects == span->objects) {
    return 0;
  }
  const unsigned shift = central::HoleShift(span);
  const size_t units = (shortest + (size_t{1} << shift) - 1) >> shift;
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
  span->away = true;
  return true;
}

void CentralList::Attach(Span* span, uint64_t holes) {
  const int64_t bytes = static_cast<int64_t>(central::BytesOf(span, holes));
  PageHeap::NoteHoles(bytes);
  Span* emptied = nullptr;
  {
    LockHolder held(lock_);
    PCMALLOC_CHECK(held);
    span->away = false;
    span->holes |= holes;
    idle_bytes.fetch_sub(bytes, std::memory_order_relaxed);
    if (span->free_objects == span->objects) {
      const uint32_t size = span->object_size;
      BookFree(-int64_t{Leave(span, &emptied)}, size);
    } else {
      Insert(span);
    }
  }
  if (emptied != nullptr) GiveToHeap(emptied);
}

void CentralList::Recover(Span* span) {
  span->away = false;
  Insert(span);
}

namespace central {

constinit CentralList lists[kNumClasses];

}  // namespace central
}  // namespace pcmalloc
