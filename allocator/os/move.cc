// SPDX-License-Identifier: Apache-2.0
#include "allocator/os/move.h"

#include <errno.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>

#include <atomic>

#include "allocator/base/report.h"
#include "allocator/base/round.h"
#include "allocator/base/syscall.h"
#include "allocator/os/memory.h"

#ifndef MREMAP_DONTUNMAP
#define MREMAP_DONTUNMAP 4
#endif

#ifndef MAP_FIXED_NOREPLACE
#define MAP_FIXED_NOREPLACE 0x100000
#endif

namespace pcmalloc::os {
namespace {

// Moves as many mappings as there are, which a kernel before 6.17 refuses with its target unmapped.
bool MoveOnto(char* from, char* to, size_t size) {
  constexpr int kFlags = MREMAP_MAYMOVE | MREMAP_FIXED | MREMAP_DONTUNMAP;
  return RawSyscall(SYS_mremap, from, size, size, kFlags, to) >= 0;
}

// Found by trying, since distributions add such things to older kernels and sandboxes
// take them away.
bool MovesSeveralMappings() {
  enum { kUnknown, kYes, kNo };
  static std::atomic<int> answer{kUnknown};
  const int known = answer.load(std::memory_order_relaxed);
  if (known != kUnknown) return known == kYes;
  const size_t page = KernelPageSize();
  char* const trial = static_cast<char*>(Reserve(4 * page, page));
  if (trial == nullptr) return false;
  const bool moves = Commit(trial, page) && MoveOnto(trial, trial + 2 * page, 2 * page);
  // After a refusal the target may be gone, and another thread's mapping be there.
  Unreserve(trial, (moves ? 4 : 2) * page);
  answer.store(moves ? kYes : kNo, std::memory_order_relaxed);
  return moves;
}

// Whether so much more may be mapped. MoveOnto unmaps its target before it asks for that, and
// what is refused then, under a limit that has come since (RLIMIT_AS, RLIMIT_DATA), nobody
// can map again.
bool MayMapMore(size_t size) {
  const long mapped = RawSyscall(SYS_mmap, nullptr, size, PROT_READ | PROT_WRITE,
                                 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, long{0});
  if (mapped < 0) return false;
  RawSyscall(SYS_munmap, mapped, size);
  return true;
}

// Maps a range again whose mapping a refused call may have taken away.
void Map(char* where, size_t size, int flags) {
  const long result = RawSyscall(SYS_mmap, where, size, PROT_READ | PROT_WRITE,
                                 MAP_PRIVATE | MAP_ANONYMOUS | flags, -1, long{0});
  PCMALLOC_CHECK(result == reinterpret_cast<long>(where));
}

bool IsMapped(char* page, size_t size) {
  unsigned char resident;
  return RawSyscall(SYS_mincore, page, size, &resident) >= 0;
}

// Ends what MoveOnto gave up, at the limit of mappings or of memory: with some of them moved, one
// perhaps unmapped at its target, the rest still at their source. Either side reads as zero where
// the contents are on the other, so they are the two together.
void Finish(char* from, char* to, size_t size) {
  const size_t page = KernelPageSize();
  // The source always is. A sandbox that refuses the question has refused the move, too, before a
  // hole was made.
  const bool may_ask = IsMapped(from, page);
  for (size_t at = 0; at < size; at += page) {
    if (may_ask && !IsMapped(to + at, page)) Map(to + at, page, MAP_FIXED_NOREPLACE);
    for (size_t word = at; word < at + page; word += sizeof(uint64_t)) {
      uint64_t left;
      memcpy(&left, from + word, sizeof(left));
      if (left != 0) memcpy(to + word, &left, sizeof(left));
    }
  }
}

// Shorter pieces are copied: a move is two system calls and leaves a mapping more.
constexpr size_t kShortestPiece = size_t{256} << 10;

// Moves what is one mapping, by way of a place between: a kernel that is told the final one at once
// unmaps it before it finds that the source is more than one mapping, and anybody's mmap may fall
// into that hole. Returns 0, or a negated error number with both sides as before: -EFAULT where it
// is more than one.
long MoveOneMapping(char* from, char* to, size_t size) {
  const long moved =
      RawSyscall(SYS_mremap, from, size, size, MREMAP_MAYMOVE | MREMAP_DONTUNMAP, nullptr);
  if (moved < 0) return moved;
  void* const between = reinterpret_cast<void*>(moved);
  if (RawSyscall(SYS_mremap, between, size, size, MREMAP_MAYMOVE | MREMAP_FIXED, to) >= 0) return 0;
  // The contents are in the middle now, so they must be carried on by hand. The target may be gone.
  Map(to, size, MAP_FIXED);
  memcpy(to, between, size);
  Unreserve(between, size);
  return 0;
}

}  // namespace

bool Move(void* from, void* to, size_t size) {
  if (!MovesSeveralMappings()) return MoveByPieces(from, to, size);
  if (!MayMapMore(size)) return false;
  if (!Return(to, size)) return false;  // memory that the program has locked
  char* const source = static_cast<char*>(from);
  char* const target = static_cast<char*>(to);
  if (!MoveOnto(source, target, size)) Finish(source, target, size);
  return true;
}

bool MoveByPieces(void* from, void* to, size_t size) {
  char* source = static_cast<char*>(from);
  char* target = static_cast<char*>(to);
  // A block that was moved and has grown since is several mappings, of which one call moves one.
  // Where it ends is found by halving; pieces of one mapping become one again where they arrive.
  size_t piece = size;
  while (size != 0) {
    const long error = MoveOneMapping(source, target, piece);
    if (error == -EFAULT && piece > kShortestPiece) {
      piece = RoundUp(piece / 2, KernelPageSize());
      continue;
    }
    if (error != 0) {
      if (error != -EFAULT) {  // nothing more will be moved
        if (source == from) return false;
        piece = size;
      }
      memcpy(target, source, piece);
    }
    source += piece;
    target += piece;
    size -= piece;
    piece = size;
  }
  return true;
}

}  // namespace pcmalloc::os
