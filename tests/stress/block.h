// SPDX-License-Identifier: Apache-2.0
//
// Purpose: the description of one block, kept outside the heap, and the stamp inside the block.
//
//   A stamp word at address a holds  tag ^ a * kSpread  where the tag is
//
//      63        52 51      50         31 30         0
//      thread       handler size          sequence
//
//   so that any one word found in a foreign place tells who wrote it, whatever block it belongs to.
//
// Invariants: the description is written by the block's holder only; any thread may read it to name
//   the other owner in a report. A released description keeps its last block until it is reused.
// Cost: stamping a block of <= 512 bytes writes all of it; larger ones 24 words, or all when dense.
#ifndef PCMALLOC_TESTS_STRESS_BLOCK_H_
#define PCMALLOC_TESTS_STRESS_BLOCK_H_

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <atomic>

namespace stress {

inline constexpr unsigned kMaxThreads = 4000;
inline constexpr uint32_t kMaxBlockSize = (1u << 20) - 1;

class Tag {
 public:
  constexpr explicit Tag(uint64_t bits = 0) : bits_(bits) {}
  static constexpr Tag Make(unsigned thread, bool handler, uint32_t size, uint32_t sequence) {
    return Tag(uint64_t{thread} << 52 | uint64_t{handler} << 51 | uint64_t{size} << 31 |
               (sequence & 0x7fffffffu));
  }
  constexpr unsigned thread() const { return static_cast<unsigned>(bits_ >> 52); }
  constexpr bool handler() const { return (bits_ >> 51 & 1) != 0; }
  constexpr uint32_t size() const { return static_cast<uint32_t>(bits_ >> 31 & 0xfffff); }
  constexpr uint32_t sequence() const { return static_cast<uint32_t>(bits_ & 0x7fffffffu); }
  constexpr uint64_t bits() const { return bits_; }

 private:
  uint64_t bits_;
};

struct alignas(64) Block {
  std::atomic<uintptr_t> address{0};  // 0: never used, or its claim failed
  std::atomic<uint64_t> tag{0};
  std::atomic<uint64_t> since{0};   // ticks
  std::atomic<uint64_t> until{0};   // ticks of the release; 0 while held
  std::atomic<uint32_t> extent{0};  // bytes claimed and stamped; the usable size where it was asked
  std::atomic<int32_t> cpu{0};      // where it was allocated
  bool dense = false;               // every word stamped, whatever the size
  bool held = false;

  uint8_t* data() const {
    return reinterpret_cast<uint8_t*>(address.load(std::memory_order_relaxed));
  }
  Tag Stamp() const { return Tag(tag.load(std::memory_order_relaxed)); }
};

// What a description said at one moment: its block may have another holder an instant later.
struct Owner {
  const Block* block;
  uintptr_t address;
  Tag tag;
  uint64_t since;
  uint64_t until;
  uint32_t extent;
  int cpu;
};

// False if the description changed while it was read, or describes nothing.
bool ReadOwner(const Block& block, Owner* owner);

inline constexpr uint64_t kSpread = 0x9e3779b97f4a7c15u;

inline uint64_t StampWord(Tag tag, uintptr_t address) { return tag.bits() ^ address * kSpread; }
inline Tag TagOfWord(uint64_t word, uintptr_t address) { return Tag(word ^ address * kSpread); }

// Calls visit(begin, end) for each stretch of bytes that a stamp covers, in rising order and with
// `begin` a multiple of 8, until one returns false.
template <typename Visit>
inline void ForEachStampedStretch(uint32_t size, bool dense, Visit visit) {
  constexpr uint32_t kAllBelow = 512;
  constexpr uint32_t kEdge = 64;
  if (dense || size <= kAllBelow) {
    visit(0, size);
    return;
  }
  if (!visit(0, kEdge)) return;
  const uint32_t stride = (size / 9) & ~7u;
  for (uint32_t at = stride; at + kEdge + 16 < size; at += stride) {
    if (at >= kEdge && !visit(at, at + 8)) return;
  }
  visit((size - kEdge) & ~7u, size);
}

void WriteStamp(uint8_t* data, Tag tag, uint32_t size, bool dense);

struct Mismatch {
  uint32_t offset;
  uint64_t expected;
  uint64_t found;
};

// Checks the first `limit` bytes at `data` for the stamp of a block of `size` bytes that was
// written when the block lay at `origin` (realloc may have moved it). True when intact.
bool CheckStamp(const uint8_t* data, uintptr_t origin, Tag tag, uint32_t size, bool dense,
                uint32_t limit, Mismatch* mismatch);

// All descriptions there are: made once, handed to the workers' slots, never freed.
class BlockTable {
 public:
  static void Init(uint32_t capacity);
  // Index of a fresh description, > 0. Each is handed out once.
  static uint32_t Make();
  static Block& At(uint32_t index);
  static uint32_t count();

  // Finds the block that covers `address`: a held one if there is any, else the one released last.
  // False if none is known. `self` is passed over.
  static bool FindOwner(uintptr_t address, const Block* self, Owner* owner);
};

}  // namespace stress

#endif  // PCMALLOC_TESTS_STRESS_BLOCK_H_
