// SPDX-License-Identifier: Apache-2.0
#include "allocator/pages/arena.h"

#include "allocator/base/report.h"
#include "allocator/base/round.h"
#include "allocator/os/memory.h"
#include "allocator/pages/page_map.h"

namespace pcmalloc {
namespace {

constinit Arena arenas[Arenas::kMax];
constinit std::atomic<int> arena_count{0};
constinit bool fast_free_open = false;

// Maps are committed in such steps: a multiple of every kernel page size, and few system calls.
constexpr size_t kMapStep = size_t{64} << 10;

// Bytes of each map of an arena of that many pages: whole pages, of the kernel's as well.
size_t ClassMapBytes(size_t pages) { return RoundUp(pages, PagesPerKernelPage() << kPageShift); }
size_t SpanMapBytes(size_t pages) {
  return RoundUp(pages * sizeof(Span*), PagesPerKernelPage() << kPageShift);
}
size_t HugeMapBytes(size_t pages) {
  return RoundUp((pages << kPageShift) / os::kHugePage, PagesPerKernelPage() << kPageShift);
}
size_t MapPages(size_t pages) {
  return (ClassMapBytes(pages) + SpanMapBytes(pages) + HugeMapBytes(pages)) >> kPageShift;
}

// The smallest arena with so much room besides its maps, in bytes.
size_t BytesFor(size_t room) {
  constexpr size_t kUnitPages = Arenas::kUnit >> kPageShift;
  size_t pages = RoundUp(room + MapPages(room), kUnitPages);
  while (pages - MapPages(pages) < room) pages += kUnitPages;
  return pages << kPageShift;
}

// Commits a map from `begin` as far as `needed`, both counted from its start, and keeps the mark.
bool CommitMap(uintptr_t map, size_t size, size_t needed, size_t* committed) {
  if (needed <= *committed) return true;
  size_t end = RoundUp(needed, kMapStep);
  if (end > size) end = size;
  if (!os::Commit(reinterpret_cast<void*>(map + *committed), end - *committed)) return false;
  *committed = end;
  return true;
}

}  // namespace

size_t PagesPerKernelPage() {
  const size_t pages = os::KernelPageSize() >> kPageShift;
  return pages == 0 ? 1 : pages;
}

size_t Arena::map_bytes() const {
  return class_map_end_ + (span_map_end_ - span_map_begin_) + huge_map_end_;
}

bool Arena::WantHuge(uintptr_t start, uintptr_t end, bool huge) {
  if (!os::WantHuge(reinterpret_cast<void*>(start), end - start, huge)) return false;
  for (size_t i = HugeIndex(start); i < HugeIndex(end); ++i) {
    huge_count_ += size_t{huge} - huge_map()[i];
    huge_map()[i] = huge;
  }
  return true;
}

void Arena::ReturnMaps(const Span* span) {
  const uintptr_t unit = os::KernelPageSize();
  const size_t page = PageOf(span->start);
  // Whole kernel pages; the first and the last entry of the span map stay.
  auto drop = [unit](uintptr_t begin, uintptr_t end) {
    begin = RoundUp(begin, unit);
    end = RoundDown(end, unit);
    // Refused for locked memory, which stays as it is.
    if (begin < end) (void)os::Return(reinterpret_cast<void*>(begin), end - begin);
  };
  drop(reinterpret_cast<uintptr_t>(span_map() + page + 1),
       reinterpret_cast<uintptr_t>(span_map() + page + span->pages - 1));
  drop(base() + page, base() + page + span->pages);
}

size_t Arena::Grow(size_t least, size_t wanted) {
  const size_t unit = PagesPerKernelPage();
  const size_t room = size_pages_ - used_pages();
  least = RoundUp(least, unit);
  wanted = RoundUp(wanted, unit);
  if (least > room) return 0;
  // To the end of a hugepage, so that the last one begun can become one.
  constexpr size_t kHugePages = os::kHugePage >> kPageShift;
  wanted = RoundUp(used_pages() + wanted, kHugePages) - used_pages();
  if (wanted > room) wanted = room;
  if (wanted > least && TryGrow(wanted)) return wanted;
  return TryGrow(least) ? least : 0;
}

void Arena::CutTo(size_t pages) {
  const size_t before = size_pages_;
  os::Unreserve(reinterpret_cast<void*>(AddressOf(pages)), (before - pages) << kPageShift);
  const auto cut = [this](uintptr_t map, size_t size, size_t wanted, size_t committed) {
    const size_t end = wanted > committed ? wanted : committed;
    if (end >= size) return;
    os::Unreserve(reinterpret_cast<void*>(map + end), size - end);
    cut_bytes_ += size - end;
  };
  cut(base(), ClassMapBytes(before), ClassMapBytes(pages), class_map_end_);
  cut(reinterpret_cast<uintptr_t>(span_map()), SpanMapBytes(before), SpanMapBytes(pages),
      span_map_end_);
  cut(huge_map_, HugeMapBytes(before), HugeMapBytes(pages), huge_map_end_);
  size_pages_ = pages;
}

bool Arena::TryGrow(size_t pages) {
  const size_t used = used_pages();
  const size_t end = used + pages;
  if (!CommitMap(base(), ClassMapBytes(size_pages_), end, &class_map_end_) ||
      !CommitMap(span_map_.load(std::memory_order_relaxed), SpanMapBytes(size_pages_),
                 end * sizeof(Span*), &span_map_end_) ||
      !CommitMap(huge_map_, HugeMapBytes(size_pages_), HugeIndex(AddressOf(end) - 1) + 1,
                 &huge_map_end_) ||
      !os::Commit(reinterpret_cast<void*>(AddressOf(used)), pages << kPageShift)) {
    return false;
  }
  used_pages_ = end;
  mapped_pages_.store(end, std::memory_order_release);
  if (Arenas::primary(*this)) {
    __atomic_store_n(&pcmalloc_primary_arena.spans, span_map(), __ATOMIC_RELAXED);
    __atomic_store_n(&pcmalloc_primary_arena.base, classes(), __ATOMIC_RELEASE);
    __atomic_store_n(&pcmalloc_primary_arena.pages, end, __ATOMIC_RELEASE);
    if (fast_free_open) Arenas::OpenFastFree();
  }
  return true;
}

size_t Arenas::Ambition(size_t address_space_limit) {
  const size_t part = RoundDown(address_space_limit / 8, kUnit);
  if (part < kUnit) return kUnit;
  return part < kAmbition ? part : kAmbition;
}

bool Arenas::FitAddressSpace() {
  Arena& arena = arenas[0];
  const size_t limit = os::AddressSpaceLimit();
  if (arena.base() == 0 || limit == SIZE_MAX) return false;
  const size_t room = Ambition(limit) >> kPageShift;
  const size_t pages = RoundUp(arena.used_pages() + room, kUnit >> kPageShift);
  // Cut but once for a limit, not by little for every step of growth below it.
  if (pages + room > arena.size_pages()) return false;
  arena.CutTo(pages);
  return true;
}

Arena* Arenas::Create(size_t pages) {
  if (pages > kMaxPages) return nullptr;
  const int count = arena_count.load(std::memory_order_relaxed);
  int slot = 0;
  while (slot < count && arenas[slot].base() != 0) ++slot;
  if (slot == kMax) return nullptr;

  const size_t least = BytesFor(slot == 0 ? 1 : pages);
  size_t size = Ambition(os::AddressSpaceLimit());
  if (size < least) size = least;
  void* base;
  while ((base = os::Reserve(size, kUnit)) == nullptr) {
    if (slot != 0 && FitAddressSpace()) continue;
    if (size == least) return nullptr;
    size = RoundDown(size / 2, kUnit);
    if (size < least) size = least;
  }

  Arena& arena = arenas[slot];
  arena.size_pages_ = size >> kPageShift;
  const size_t first_page = MapPages(arena.size_pages_);
  arena.first_page_.store(first_page, std::memory_order_relaxed);
  arena.used_pages_ = first_page;
  arena.class_map_end_ = 0;
  // The maps' own pages have no span: their entries take no memory, and in the primary arena, whose
  // lookups do not ask for first_page, they read as null. If that is refused, who frees an address
  // inside of the maps gets a segmentation fault instead of a message.
  const size_t entries = RoundDown(first_page * sizeof(Span*), os::KernelPageSize());
  arena.span_map_begin_ = arena.span_map_end_ = entries;
  if (primary(arena)) {
    char* const span_map = static_cast<char*>(base) + ClassMapBytes(arena.size_pages_);
    (void)os::LetRead(span_map, entries);
  }
  arena.huge_map_ = reinterpret_cast<uintptr_t>(base) + ClassMapBytes(arena.size_pages_) +
                    SpanMapBytes(arena.size_pages_);
  arena.huge_map_end_ = 0;
  arena.huge_count_ = 0;
  arena.cut_bytes_ = 0;
  // Where a hugepage is worth it is for the page heap to say, whatever the system's default. A
  // kernel that has none refuses, and that is as good.
  (void)os::WantHuge(base, size, false);
  arena.spans_in_use = 0;
  arena.span_map_.store(reinterpret_cast<uintptr_t>(base) + ClassMapBytes(arena.size_pages_),
                        std::memory_order_relaxed);
  arena.base_.store(reinterpret_cast<uintptr_t>(base), std::memory_order_release);
  if (slot == count) arena_count.store(count + 1, std::memory_order_release);
  return &arena;
}

void Arenas::Retire(Arena* arena) {
  PCMALLOC_CHECK(!primary(*arena) && arena->spans_in_use == 0);
  const uintptr_t base = arena->base();
  arena->mapped_pages_.store(0, std::memory_order_release);
  arena->base_.store(0, std::memory_order_release);
  os::Unreserve(reinterpret_cast<void*>(base), arena->size_pages_ << kPageShift);
}

void Arenas::OpenFastFree() {
  fast_free_open = true;
  __atomic_store_n(&pcmalloc_primary_arena.fast_pages, pcmalloc_primary_arena.pages,
                   __ATOMIC_RELEASE);
}

int Arenas::count() { return arena_count.load(std::memory_order_acquire); }

Arena& Arenas::at(int index) { return arenas[index]; }

Arena* Arenas::Find(uintptr_t address) {
  const int count = Arenas::count();
  for (int i = 0; i < count; ++i) {
    const uintptr_t base = arenas[i].base_.load(std::memory_order_acquire);
    const size_t pages = arenas[i].mapped_pages_.load(std::memory_order_acquire);
    const size_t page = (address - base) >> kPageShift;
    if (page < pages && page >= arenas[i].first_page() &&
        arenas[i].base_.load(std::memory_order_relaxed) == base) {
      return &arenas[i];
    }
  }
  return nullptr;
}

}  // namespace pcmalloc
