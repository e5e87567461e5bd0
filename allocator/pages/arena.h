// SPDX-License-Identifier: Apache-2.0
//
// Purpose: the address space that pages come from, its maps, and how both are committed bit by bit.
//
//      base                                          first_page             used_pages        size
//      | class map      | span map    | huge map     | pages                | reserved only    |
//      | 1 B a page     | 8 B a page  | 1 B a 2 MiB  | 8 KiB each           | (PROT_NONE)      |
//      | committed | -- | committed (own part) | -- | committed            |                  |
//
//   Pages are numbered from the base, so the maps' own pages have numbers too (class 0, no span).
//
// Invariants: arena 0 is the primary one and stays for ever; further arenas come when the present
//   ones cannot serve a request and go when empty. Everything that changes an arena needs the page
//   heap's lock; Find does not. used_pages grows only after the maps cover the new pages.
// Cost: Find: a compare for each arena; Grow: up to three system calls; Create: one a halving.
#ifndef PCMALLOC_ALLOCATOR_PAGES_ARENA_H_
#define PCMALLOC_ALLOCATOR_PAGES_ARENA_H_

#include <stddef.h>
#include <stdint.h>

#include <atomic>

#include "allocator/os/thp.h"
#include "allocator/pages/span.h"

namespace pcmalloc {

// No request, alignment included, is longer: 16 TiB. Sums of a few such numbers do not overflow.
inline constexpr size_t kMaxPages = size_t{1} << 31;

// Pages that memory is committed and returned in: one where kernel pages are not longer.
size_t PagesPerKernelPage();

class Arena {
 public:
  constexpr Arena() = default;
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;

  uintptr_t base() const { return base_.load(std::memory_order_relaxed); }
  size_t first_page() const { return first_page_.load(std::memory_order_relaxed); }
  size_t used_pages() const { return used_pages_; }
  // The same without the lock.
  size_t mapped_pages() const { return mapped_pages_.load(std::memory_order_acquire); }
  size_t size_pages() const { return size_pages_; }
  size_t map_bytes() const;  // committed
  size_t reserved_bytes() const { return (size_pages_ << kPageShift) - cut_bytes_; }

  size_t PageOf(uintptr_t address) const { return (address - base()) >> kPageShift; }
  uintptr_t AddressOf(size_t page) const { return base() + (page << kPageShift); }
  uint8_t* classes() const { return reinterpret_cast<uint8_t*>(base()); }

  Span* SpanAt(size_t page) const { return __atomic_load_n(&span_map()[page], __ATOMIC_RELAXED); }
  void SetSpan(size_t page, Span* span) {
    __atomic_store_n(&span_map()[page], span, __ATOMIC_RELAXED);
  }
  // First and last page, all that a kFree or kLarge span needs.
  void SetEnds(Span* span) {
    const size_t page = PageOf(span->start);
    SetSpan(page, span);
    SetSpan(page + span->pages - 1, span);
  }

  // Gives the memory of the map entries inside of a kFree span to the system: they read as 0, so
  // that lookups answer null.
  void ReturnMaps(const Span* span);

  // Makes at least `least` more pages usable, rather `wanted` if there is room and the kernel
  // agrees. Returns how many (zeroed, without map entries yet): 0 where there is no room or memory.
  size_t Grow(size_t least, size_t wanted);

  // Unmaps what lies behind so many pages and their part of the maps, none of it committed. Where
  // the maps end early others may map theirs: those addresses' entries read as no span, as before.
  void CutTo(size_t pages);

  // Whether the 2 MiB that hold the address were asked for as a hugepage.
  bool huge(uintptr_t address) const { return huge_map()[HugeIndex(address)] != 0; }
  size_t huge_count() const { return huge_count_; }
  // Asks for hugepages in [start, end), whole ones, or takes the request back. True: all was done.
  bool WantHuge(uintptr_t start, uintptr_t end, bool huge);

  size_t spans_in_use = 0;  // the page heap's count of what keeps this arena alive

 private:
  friend class Arenas;

  // Null where no arena lives. A reader that sees mapped_pages_ of a new arena with the old one's
  // base finds that out by reading the base again.
  std::atomic<uintptr_t> base_{0};
  std::atomic<size_t> mapped_pages_{0};  // used_pages_ for readers: 0 until there is a map entry
  std::atomic<size_t> first_page_{0};
  std::atomic<uintptr_t> span_map_{0};
  uintptr_t huge_map_ = 0;
  size_t used_pages_ = 0;
  size_t size_pages_ = 0;
  size_t class_map_end_ = 0;  // committed bytes of the class map
  size_t span_map_end_ = 0;   // end of the span map's committed part, in bytes from its start
  size_t span_map_begin_ = 0;
  size_t huge_map_end_ = 0;  // committed bytes of the huge map
  size_t huge_count_ = 0;    // its entries that are not 0
  size_t cut_bytes_ = 0;     // unmapped inside of the arena

  Span** span_map() const {
    return reinterpret_cast<Span**>(span_map_.load(std::memory_order_relaxed));
  }
  uint8_t* huge_map() const { return reinterpret_cast<uint8_t*>(huge_map_); }
  size_t HugeIndex(uintptr_t address) const { return (address - base()) / os::kHugePage; }
  bool TryGrow(size_t pages);
};

class Arenas {
 public:
  static constexpr int kMax = 64;
  static constexpr size_t kUnit = os::kHugePage;        // sizes and bases are multiples
  static constexpr size_t kAmbition = size_t{1} << 40;  // where nothing limits address space

  // Reserves an arena with room for `pages` pages or more: what is worth having if the system
  // grants it, halved on refusal down to what is needed. The first call makes the primary arena,
  // with any room at all. Null: refused, or kMax reached.
  static Arena* Create(size_t pages);

  // Unmaps an arena without spans, other than the primary one.
  static void Retire(Arena* arena);

  // From now on fast_pages of the primary arena follows its pages.
  static void OpenFastFree();

  // The slots ever used; a retired one has no base.
  static int count();
  static Arena& at(int index);
  static bool primary(const Arena& arena) { return &arena == &at(0); }

  // The arena whose usable pages hold the address, or null. Lock-free, for valid and foreign
  // addresses (an address in an arena that goes away meanwhile is neither).
  static Arena* Find(uintptr_t address);

  // After a limit on address space has come: leaves the primary arena the room that one made under
  // it would have. The rest goes, whose mere reservation would be more than is allowed, so that the
  // program's own mmaps, and ours, were refused. True: something went.
  static bool FitAddressSpace();

  // What one arena should have under the present limit on address space.
  static size_t Ambition(size_t address_space_limit);
};

}  // namespace pcmalloc

#endif  // PCMALLOC_ALLOCATOR_PAGES_ARENA_H_
