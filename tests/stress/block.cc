// SPDX-License-Identifier: Apache-2.0
#include "tests/stress/block.h"

#include <unistd.h>

#include <new>

#include "tests/stress/base.h"

namespace stress {
namespace {

Block* blocks;
uint32_t block_capacity;
std::atomic<uint32_t> blocks_made{1};  // index 0 means "none"

inline void WriteStretch(uint8_t* data, Tag tag, uint32_t begin, uint32_t end) {
  uint64_t spread = (reinterpret_cast<uintptr_t>(data) + begin) * kSpread;
  uint32_t at = begin;
  for (; at + 8 <= end; at += 8, spread += 8 * kSpread) {
    const uint64_t word = tag.bits() ^ spread;
    memcpy(data + at, &word, 8);
  }
  if (at < end) {
    const uint64_t word = tag.bits() ^ spread;
    memcpy(data + at, &word, end - at);
  }
}

inline bool CheckStretch(const uint8_t* data, uintptr_t origin, Tag tag, uint32_t begin,
                         uint32_t end, Mismatch* mismatch) {
  uint64_t spread = (origin + begin) * kSpread;
  for (uint32_t at = begin; at < end; at += 8, spread += 8 * kSpread) {
    uint64_t expected = tag.bits() ^ spread;
    uint64_t found = 0;
    if (end - at >= 8) {
      memcpy(&found, data + at, 8);
    } else {
      const uint32_t bytes = end - at;
      memcpy(&found, data + at, bytes);
      expected &= (uint64_t{1} << (8 * bytes)) - 1;
    }
    if (__builtin_expect(found != expected, 0)) {
      *mismatch = {at, expected, found};
      return false;
    }
  }
  return true;
}

}  // namespace

bool ReadOwner(const Block& block, Owner* owner) {
  owner->block = &block;
  owner->address = block.address.load(std::memory_order_acquire);
  owner->tag = block.Stamp();
  owner->since = block.since.load(std::memory_order_relaxed);
  owner->until = block.until.load(std::memory_order_relaxed);
  owner->extent = block.extent.load(std::memory_order_relaxed);
  owner->cpu = block.cpu.load(std::memory_order_relaxed);
  std::atomic_thread_fence(std::memory_order_acquire);
  return owner->address != 0 && block.address.load(std::memory_order_relaxed) == owner->address &&
         block.Stamp().bits() == owner->tag.bits();
}

void WriteStamp(uint8_t* data, Tag tag, uint32_t size, bool dense) {
  ForEachStampedStretch(size, dense, [&](uint32_t begin, uint32_t end) {
    WriteStretch(data, tag, begin, end);
    return true;
  });
}

bool CheckStamp(const uint8_t* data, uintptr_t origin, Tag tag, uint32_t size, bool dense,
                uint32_t limit, Mismatch* mismatch) {
  bool intact = true;
  ForEachStampedStretch(size, dense, [&](uint32_t begin, uint32_t end) {
    if (begin >= limit) return false;
    intact = CheckStretch(data, origin, tag, begin, end < limit ? end : limit, mismatch);
    return intact;
  });
  return intact;
}

void BlockTable::Init(uint32_t capacity) {
  block_capacity = capacity + 1;
  blocks = static_cast<Block*>(MapOrDie(block_capacity * sizeof(Block)));
  for (uint32_t i = 0; i < block_capacity; ++i) new (&blocks[i]) Block;
}

uint32_t BlockTable::Make() {
  const uint32_t index = blocks_made.fetch_add(1, std::memory_order_relaxed);
  if (index >= block_capacity) {
    Message().Add("double_alloc_stress: out of block descriptions\n").Write(STDERR_FILENO);
    _exit(2);
  }
  return index;
}

Block& BlockTable::At(uint32_t index) { return blocks[index]; }

uint32_t BlockTable::count() { return blocks_made.load(std::memory_order_relaxed); }

bool BlockTable::FindOwner(uintptr_t address, const Block* self, Owner* owner) {
  bool found = false;
  const uint32_t end = count();
  for (uint32_t i = 1; i < end; ++i) {
    Owner candidate;
    if (&blocks[i] == self || !ReadOwner(blocks[i], &candidate)) continue;
    // Claims are made of whole granules, so compare whole granules.
    const uintptr_t last = candidate.address + candidate.extent - 1;
    if ((address | 7) < candidate.address || (address & ~uintptr_t{7}) > last) continue;
    if (candidate.until == 0 || !found || candidate.until > owner->until) *owner = candidate;
    if (candidate.until == 0) return true;
    found = true;
  }
  return found;
}

}  // namespace stress
