// SPDX-License-Identifier: Apache-2.0
#include "tests/stress/actor.h"

#include <malloc.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>

#include <algorithm>
#include <bit>

#include "tests/stress/options.h"
#include "tests/stress/registry.h"
#include "tests/stress/violation.h"

namespace stress {
namespace {

Actor::IsHeld is_held_in_fork_child;

// malloc must align for any type that fits into the block.
uint32_t NaturalAlignment(uint32_t size) { return size >= 16 ? 16 : std::bit_floor(size); }

// Offset of the first byte that is not 0, or `size`.
uint32_t FirstNonzero(const uint8_t* data, uint32_t size) {
  uint32_t at = 0;
  for (; at + 8 <= size; at += 8) {
    uint64_t word;
    memcpy(&word, data + at, 8);
    if (word != 0) break;
  }
  while (at < size && data[at] == 0) ++at;
  return at;
}

class MallocScope {
 public:
  explicit MallocScope(Actor* actor) : actor_(actor) { actor_->set_inside_malloc(true); }
  ~MallocScope() {
    __atomic_signal_fence(__ATOMIC_SEQ_CST);
    actor_->set_inside_malloc(false);
  }

 private:
  Actor* const actor_;
};

}  // namespace

void Actor::EnterForkChild(IsHeld is_held) { is_held_in_fork_child = is_held; }

void Actor::Init(unsigned thread, bool handler, uint64_t seed) {
  thread_ = thread;
  handler_ = handler;
  random_ = Random(seed ^ (uint64_t{thread} << 32) ^ (handler ? uint64_t{1} << 63 : 0));
  random_.Next();
}

uint32_t Actor::PickSize() {
  const uint64_t r = random_.Next();
  const uint32_t kind = r & 0xfff;
  const uint32_t wide = static_cast<uint32_t>(r >> 32);
  auto between = [wide](uint32_t low, uint32_t high) {
    return low + static_cast<uint32_t>((uint64_t{wide} * (high - low)) >> 32);
  };
  uint32_t size;
  if (kind < 3072) {
    size = between(8, 257);
  } else if (kind < 3880) {
    size = between(257, 2049);
  } else if (kind < 4064) {
    size = between(2049, 16385);
  } else if (kind < 4076) {
    size = between(16385, 65537);
  } else if (kind < 4078) {
    size = between(65537, std::max(options.max_size, 65537u) + 1);
  } else {
    size = between(1, 8);
  }
  return std::min(size, options.max_size);
}

void* Actor::CallMalloc(uint32_t size, const char** call, uint32_t* alignment, bool* zeroed) {
  const uint32_t kind = options.aligned ? random_.Below(256) : random_.Below(240);
  *zeroed = false;
  *alignment = NaturalAlignment(size);
  if (kind < 216) {
    *call = "malloc";
    MallocScope scope(this);
    return malloc(size);
  }
  if (kind < 240) {
    *call = "calloc";
    *zeroed = true;
    // Two factors where the size has them: the product is the allocator's business.
    const uint32_t count = size % 8 == 0 ? 8 : 1;
    MallocScope scope(this);
    return calloc(count, size / count);
  }
  // Pages and more are rare; 16 … 1024 are what programs ask for.
  const uint32_t shift = kind < 255 ? 4 + random_.Below(7) : 11 + random_.Below(4);
  *alignment = 1u << shift;
  if (kind < 246) {
    *call = "posix_memalign";
    void* p = nullptr;
    MallocScope scope(this);
    return posix_memalign(&p, *alignment, size) == 0 ? p : nullptr;
  }
  MallocScope scope(this);
  if (kind < 251) {
    *call = "aligned_alloc";
    return aligned_alloc(*alignment, size);
  }
  *call = "memalign";
  return memalign(*alignment, size);
}

// Enters a block into the books; false when somebody else holds it.
bool Actor::Take(Block& block, void* data, uint32_t size, uint32_t extent, bool dense,
                 const char* call) {
  const uintptr_t address = reinterpret_cast<uintptr_t>(data);
  // No address while the rest changes: a report on another thread must not see halves of two
  // blocks.
  block.address.store(0, std::memory_order_relaxed);
  std::atomic_thread_fence(std::memory_order_release);
  block.dense = dense;
  block.tag.store(Tag::Make(thread_, handler_, size, ++sequence_).bits(),
                  std::memory_order_relaxed);
  block.extent.store(extent, std::memory_order_relaxed);
  block.cpu.store(sched_getcpu(), std::memory_order_relaxed);
  block.since.store(Ticks(), std::memory_order_relaxed);
  block.until.store(0, std::memory_order_relaxed);
  block.address.store(address, std::memory_order_release);
  const uintptr_t taken = Registry::Claim(address, extent);
  if (__builtin_expect(taken == 0, 1)) {
    block.held = true;
    return true;
  }
  Owner other;
  const bool known = BlockTable::FindOwner(taken, &block, &other);
  const bool stale_books =
      is_held_in_fork_child != nullptr && (!known || !is_held_in_fork_child(*other.block));
  if (!stale_books) Violations::ReportClaim(block, call, taken, known ? &other : nullptr);
  block.address.store(0, std::memory_order_relaxed);
  counters_.abandoned.Add();
  return false;
}

bool Actor::Allocate(Block& block, uint32_t size) {
  const char* call;
  uint32_t alignment;
  bool zeroed;
  void* const data = CallMalloc(size, &call, &alignment, &zeroed);
  if (data == nullptr) {
    counters_.failures.Add();
    return false;
  }
  counters_.allocations.Add();
  if ((reinterpret_cast<uintptr_t>(data) & (alignment - 1)) != 0) {
    Violations::ReportBlock(Kind::kMisaligned, call, data,
                            Tag::Make(thread_, handler_, size, sequence_ + 1), "alignment",
                            alignment);
  }
  const uint64_t r = random_.Next();
  uint32_t extent = size;
  if ((r & 0x1f) == 0) {
    size_t usable;
    {
      MallocScope scope(this);
      usable = malloc_usable_size(data);
    }
    if (usable < size) {
      Violations::ReportBlock(Kind::kShortBlock, call, data,
                              Tag::Make(thread_, handler_, size, sequence_ + 1), "usable size",
                              usable);
    } else if ((r & 0x20) == 0) {
      // What malloc_usable_size promises may be written to.
      extent = static_cast<uint32_t>(std::min<size_t>(usable, kMaxBlockSize));
    }
  }
  const bool dense = options.dense || (r >> 8 & 0x3f) == 0;
  if (!Take(block, data, size, extent, dense, call)) return false;
  if (zeroed) {
    const uint32_t at = FirstNonzero(block.data(), size);
    if (at != size) {
      Violations::ReportBlock(Kind::kNonzeroCalloc, call, data, block.Stamp(), "not zero at byte",
                              at);
    }
  }
  WriteStamp(block.data(), block.Stamp(), extent, dense);
  return true;
}

void Actor::Verify(const Block& block, const char* when) {
  Mismatch mismatch;
  const uint32_t extent = block.extent.load(std::memory_order_relaxed);
  const uintptr_t origin = block.address.load(std::memory_order_relaxed);
  if (__builtin_expect(
          !CheckStamp(block.data(), origin, block.Stamp(), extent, block.dense, extent, &mismatch),
          0)) {
    Violations::ReportContents(block, when, block.data(), mismatch);
  }
}

void Actor::Free(Block& block) {
  Verify(block, "before free");
  uint8_t* const data = block.data();
  block.held = false;
  block.until.store(Ticks(), std::memory_order_relaxed);
  if (!Registry::Release(block.address.load(std::memory_order_relaxed),
                         block.extent.load(std::memory_order_relaxed))) {
    Violations::Report(Kind::kAccounting, "the registry lost the claim on %p",
                       static_cast<void*>(data));
  }
  counters_.frees.Add();
  MallocScope scope(this);
  free(data);
}

void Actor::Reallocate(Block& block, uint32_t size) {
  Verify(block, "before realloc");
  uint8_t* const old_data = block.data();
  const uintptr_t old_address = reinterpret_cast<uintptr_t>(old_data);
  const Tag old_tag = block.Stamp();
  const uint32_t old_extent = block.extent.load(std::memory_order_relaxed);
  const bool old_dense = block.dense;
  block.until.store(Ticks(), std::memory_order_relaxed);
  Registry::Release(old_address, old_extent);
  void* data;
  {
    MallocScope scope(this);
    data = realloc(old_data, size);
  }
  block.held = false;
  if (data == nullptr) {
    // The old block is still ours, and so are its contents.
    counters_.failures.Add();
    if (Take(block, old_data, old_tag.size(), old_extent, old_dense, "failed realloc")) {
      WriteStamp(old_data, block.Stamp(), old_extent, old_dense);
    }
    return;
  }
  counters_.reallocs.Add();
  if ((reinterpret_cast<uintptr_t>(data) & (NaturalAlignment(size) - 1)) != 0) {
    Violations::ReportBlock(Kind::kMisaligned, "realloc", data,
                            Tag::Make(thread_, handler_, size, sequence_ + 1), "alignment",
                            NaturalAlignment(size));
  }
  if (!Take(block, data, size, size, old_dense, "realloc")) return;
  // Only the bytes that were asked for must survive, not the usable rest.
  const uint32_t kept = std::min({size, old_tag.size(), old_extent});
  Mismatch mismatch;
  if (!CheckStamp(block.data(), old_address, old_tag, old_extent, old_dense, kept, &mismatch)) {
    Violations::ReportContents(block, "after realloc", block.data(), mismatch);
  }
  WriteStamp(block.data(), block.Stamp(), size, block.dense);
}

}  // namespace stress
