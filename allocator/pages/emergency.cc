// SPDX-License-Identifier: Apache-2.0
//
//   size class c: blocks of 16 << c bytes, c = 0 .. 11
//
//      stack of class c      chunk (128 KiB, one class)
//      [tag | block] --.     | next[0] next[1] ... | block 0 | block 1 | ...
//                      '-->  a block's number is its chunk's slot and its index in the chunk
//
// The links lie beside the blocks, not in them: a block that is popped by one thread while another
// looks at it as the stack's top holds the user's data by then. The tag counts pushes and pops, so
// that a top which went and came back is not mistaken for one that stayed.
#include "allocator/pages/emergency.h"

#include <stdint.h>

#include <atomic>
#include <new>

#include "allocator/base/report.h"
#include "allocator/os/memory.h"

namespace pcmalloc {
namespace {

constexpr int kSmallestShift = 4;
constexpr int kLargestShift = 15;
constexpr int kClasses = kLargestShift - kSmallestShift + 1;
constexpr size_t kChunkSize = size_t{128} << 10;
constexpr int kChunks = 256;      // of all classes: 32 MiB
constexpr int kLargeSlots = 512;  // large blocks alive at a time

constexpr uint32_t kIndexBits = 13;  // kChunkSize >> kSmallestShift
static_assert(kChunkSize >> kSmallestShift <= size_t{1} << kIndexBits);

// Values of a link besides block number + 1.
constexpr uint32_t kEnd = 0;
constexpr uint32_t kInUse = UINT32_MAX;

using Link = std::atomic<uint32_t>;

// A chunk's address with its class in the low bits. Filled from the front, never emptied.
constinit std::atomic<uintptr_t> chunks[kChunks] = {};

// Low half: number + 1 of the block on top, or kEnd. High half: the tag.
constinit std::atomic<uint64_t> stacks[kClasses] = {};

struct LargeSlot {
  std::atomic<uintptr_t> start{0};  // 0: free; kClaimed: being filled
  std::atomic<size_t> size{0};
};
constexpr uintptr_t kClaimed = 1;
constinit LargeSlot large_slots[kLargeSlots];
constinit std::atomic<int> large_slots_tried{0};  // slots from here on were never used

constinit std::atomic<size_t> blocks_handed_out{0};

struct Layout {
  uint32_t blocks;
  uint32_t first;  // offset of block 0
};

// The blocks of a chunk start at a multiple of their own size, behind the links.
Layout LayoutOf(int size_class) {
  const size_t size = size_t{1} << (size_class + kSmallestShift);
  size_t blocks = kChunkSize / (size + sizeof(Link));
  size_t first;
  while (true) {
    first = (blocks * sizeof(Link) + size - 1) & ~(size - 1);
    if (first + blocks * size <= kChunkSize) break;
    --blocks;
  }
  return {static_cast<uint32_t>(blocks), static_cast<uint32_t>(first)};
}

uintptr_t ChunkStart(uintptr_t entry) { return entry & ~(kChunkSize - 1); }
int ChunkClass(uintptr_t entry) { return static_cast<int>(entry & (kChunkSize - 1)); }

uintptr_t ChunkEntry(uint32_t number) {
  return chunks[number >> kIndexBits].load(std::memory_order_acquire);
}

Link& LinkOf(uint32_t number) {
  Link* links = reinterpret_cast<Link*>(ChunkStart(ChunkEntry(number)));
  return links[number & ((1u << kIndexBits) - 1)];
}

void* BlockAt(int size_class, uint32_t number) {
  const uint32_t index = number & ((1u << kIndexBits) - 1);
  return reinterpret_cast<void*>(ChunkStart(ChunkEntry(number)) + LayoutOf(size_class).first +
                                 (uintptr_t{index} << (size_class + kSmallestShift)));
}

uint64_t Top(uint64_t before, uint32_t link) { return ((before >> 32) + 1) << 32 | link; }

// Pushes a chain of blocks that are linked already, except for the last one.
void Push(int size_class, uint32_t first, uint32_t last) {
  uint64_t seen = stacks[size_class].load(std::memory_order_relaxed);
  do {
    LinkOf(last).store(static_cast<uint32_t>(seen), std::memory_order_relaxed);
  } while (!stacks[size_class].compare_exchange_weak(
      seen, Top(seen, first + 1), std::memory_order_release, std::memory_order_relaxed));
}

bool Pop(int size_class, uint32_t* number) {
  uint64_t seen = stacks[size_class].load(std::memory_order_acquire);
  uint32_t next;
  do {
    const uint32_t top = static_cast<uint32_t>(seen);
    if (top == kEnd) return false;
    *number = top - 1;
    // Another thread may have popped it meanwhile: then this is no link, and the exchange fails.
    next = LinkOf(*number).load(std::memory_order_relaxed);
  } while (!stacks[size_class].compare_exchange_weak(
      seen, Top(seen, next), std::memory_order_acquire, std::memory_order_acquire));
  LinkOf(*number).store(kInUse, std::memory_order_relaxed);
  return true;
}

void* MapMemory(size_t size, size_t alignment) {
  void* start = os::Reserve(size, alignment);
  if (start == nullptr) return nullptr;
  if (os::Commit(start, size)) return start;
  os::Unreserve(start, size);
  return nullptr;
}

// Adds a chunk, keeps its block 0 for the caller and pushes the others.
bool AddChunk(int size_class, uint32_t* number) {
  void* start = MapMemory(kChunkSize, kChunkSize);
  if (start == nullptr) return false;
  const uint32_t blocks = LayoutOf(size_class).blocks;
  const uintptr_t entry = reinterpret_cast<uintptr_t>(start) | static_cast<uintptr_t>(size_class);
  uint32_t slot = 0;
  for (;; ++slot) {
    if (slot == kChunks) {
      os::Unreserve(start, kChunkSize);
      return false;
    }
    uintptr_t expected = 0;
    if (chunks[slot].load(std::memory_order_relaxed) == 0 &&
        chunks[slot].compare_exchange_strong(expected, entry, std::memory_order_release,
                                             std::memory_order_relaxed)) {
      break;
    }
  }
  const uint32_t base = slot << kIndexBits;
  Link* links = reinterpret_cast<Link*>(start);
  new (&links[0]) Link(kInUse);
  for (uint32_t i = 1; i < blocks; ++i) new (&links[i]) Link(base + i + 1 + 1);
  Push(size_class, base + 1, base + blocks - 1);
  *number = base;
  return true;
}

void* TakeLarge(size_t size, size_t alignment) {
  const size_t kernel_page = os::KernelPageSize();
  size = (size + kernel_page - 1) & ~(kernel_page - 1);
  if (alignment < kernel_page) alignment = kernel_page;
  for (int i = 0; i < kLargeSlots; ++i) {
    LargeSlot& slot = large_slots[i];
    uintptr_t expected = 0;
    if (slot.start.load(std::memory_order_relaxed) != 0 ||
        !slot.start.compare_exchange_strong(expected, kClaimed, std::memory_order_acquire,
                                            std::memory_order_relaxed)) {
      continue;
    }
    int tried = large_slots_tried.load(std::memory_order_relaxed);
    while (tried <= i && !large_slots_tried.compare_exchange_weak(tried, i + 1)) {
    }
    void* start = MapMemory(size, alignment);
    slot.size.store(size, std::memory_order_relaxed);
    slot.start.store(reinterpret_cast<uintptr_t>(start), std::memory_order_release);
    return start;
  }
  return nullptr;
}

// Where a block lives. For a block inside a chunk, `number` is set and `slot` null.
struct Place {
  int size_class;
  uint32_t number;
  LargeSlot* slot;
  uintptr_t start;
  size_t size;
};

bool Locate(const void* p, Place* place) {
  const uintptr_t address = reinterpret_cast<uintptr_t>(p);
  for (int i = 0; i < kChunks; ++i) {
    const uintptr_t entry = chunks[i].load(std::memory_order_acquire);
    if (entry == 0) break;
    const uintptr_t start = ChunkStart(entry);
    if (address - start >= kChunkSize) continue;
    const int size_class = ChunkClass(entry);
    const Layout layout = LayoutOf(size_class);
    const int shift = size_class + kSmallestShift;
    const uintptr_t index = (address - start - layout.first) >> shift;
    if (index >= layout.blocks) return false;  // among the links, or the rest behind the blocks
    place->size_class = size_class;
    place->number = (static_cast<uint32_t>(i) << kIndexBits) + static_cast<uint32_t>(index);
    place->slot = nullptr;
    place->start = start + layout.first + (index << shift);
    place->size = size_t{1} << shift;
    return true;
  }
  const int slots = large_slots_tried.load(std::memory_order_acquire);
  for (int i = 0; i < slots; ++i) {
    const uintptr_t start = large_slots[i].start.load(std::memory_order_acquire);
    if (start <= kClaimed) continue;
    const size_t size = large_slots[i].size.load(std::memory_order_relaxed);
    if (address - start >= size) continue;
    *place = {0, 0, &large_slots[i], start, size};
    return true;
  }
  return false;
}

}  // namespace

void* EmergencyTake(size_t size, size_t alignment) {
  if (size > PTRDIFF_MAX || alignment > PTRDIFF_MAX) return nullptr;
  const size_t room = size > alignment ? size : alignment;
  void* block;
  if (room > size_t{1} << kLargestShift) {
    block = TakeLarge(size == 0 ? 1 : size, alignment);
    if (block == nullptr) return nullptr;
  } else {
    int size_class = 0;
    while (size_t{1} << (size_class + kSmallestShift) < room) ++size_class;
    uint32_t number;
    if (!Pop(size_class, &number) && !AddChunk(size_class, &number)) return nullptr;
    block = BlockAt(size_class, number);
  }
  blocks_handed_out.fetch_add(1, std::memory_order_relaxed);
  return block;
}

bool EmergencyOwns(const void* p) {
  Place place;
  return Locate(p, &place);
}

size_t EmergencySize(const void* p) {
  Place place;
  PCMALLOC_CHECK(Locate(p, &place));
  return place.start + place.size - reinterpret_cast<uintptr_t>(p);
}

void EmergencyGive(void* p) {
  Place place;
  PCMALLOC_CHECK(Locate(p, &place) && place.start == reinterpret_cast<uintptr_t>(p));
  if (place.slot != nullptr) {
    // Out of the table first: once unmapped, the address may come back as somebody else's.
    uintptr_t expected = place.start;
    PCMALLOC_CHECK(place.slot->start.compare_exchange_strong(expected, kClaimed));
    os::Unreserve(p, place.size);
    place.slot->start.store(0, std::memory_order_release);
    return;
  }
  uint32_t expected = kInUse;
  PCMALLOC_CHECK(
      LinkOf(place.number).compare_exchange_strong(expected, kEnd, std::memory_order_relaxed));
  Push(place.size_class, place.number, place.number);
}

size_t EmergencyBlocks() { return blocks_handed_out.load(std::memory_order_relaxed); }

}  // namespace pcmalloc
