// SPDX-License-Identifier: Apache-2.0
#include "tests/stress/registry.h"

#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <bit>

#include "tests/stress/base.h"

namespace stress {
namespace {

using Word = std::atomic<uint64_t>;

constexpr unsigned kGranuleShift = 3;
constexpr unsigned kWordShift = kGranuleShift + 6;
constexpr unsigned kChunkShift = 26;
constexpr size_t kWordsPerChunk = size_t{1} << (kChunkShift - kWordShift);
constexpr size_t kDirectoryEntries = size_t{1} << (Registry::kAddressBits - kChunkShift);

std::atomic<Word*>* directory;

Word* MakeChunk(std::atomic<Word*>& entry) {
  constexpr size_t kBytes = kWordsPerChunk * sizeof(Word);
  Word* const made = static_cast<Word*>(MapOrDie(kBytes));
  Word* expected = nullptr;
  if (entry.compare_exchange_strong(expected, made)) return made;
  munmap(made, kBytes);
  return expected;
}

inline Word& WordOf(uint64_t granule) {
  const uint64_t chunk_number = granule >> (kChunkShift - kGranuleShift);
  if (__builtin_expect(chunk_number >= kDirectoryEntries, 0)) {
    // A process has no memory there unless it asked for it. The handler of crashes sums up.
    Message()
        .Add("double_alloc_stress: malloc gave 0x%llx, which is no address\n",
             static_cast<unsigned long long>(granule << kGranuleShift))
        .Write(STDERR_FILENO);
    abort();
  }
  std::atomic<Word*>& entry = directory[chunk_number];
  Word* chunk = entry.load(std::memory_order_acquire);
  if (__builtin_expect(chunk == nullptr, 0)) chunk = MakeChunk(entry);
  return chunk[(granule >> 6) & (kWordsPerChunk - 1)];
}

// Bits of the word that holds `granule`, from there up to `end`.
inline uint64_t MaskFrom(uint64_t granule, uint64_t end) {
  const uint64_t low = granule & 63;
  const uint64_t count = end - granule;
  const uint64_t ones = count >= 64 ? ~uint64_t{0} : (uint64_t{1} << count) - 1;
  return ones << low;
}

inline uint64_t NextWord(uint64_t granule) { return (granule | 63) + 1; }

inline uint64_t FirstGranule(uintptr_t address) { return address >> kGranuleShift; }
inline uint64_t EndGranule(uintptr_t address, size_t size) {
  return (address + size + (1u << kGranuleShift) - 1) >> kGranuleShift;
}

void ReleaseGranules(uint64_t begin, uint64_t end) {
  for (uint64_t g = begin; g < end; g = NextWord(g)) {
    WordOf(g).fetch_and(~MaskFrom(g, end), std::memory_order_acq_rel);
  }
}

}  // namespace

void Registry::Init() {
  directory = static_cast<std::atomic<Word*>*>(MapOrDie(kDirectoryEntries * sizeof(directory[0])));
}

uintptr_t Registry::Claim(uintptr_t address, size_t size) {
  const uint64_t begin = FirstGranule(address);
  const uint64_t end = EndGranule(address, size);
  for (uint64_t g = begin; g < end; g = NextWord(g)) {
    Word& word = WordOf(g);
    const uint64_t mask = MaskFrom(g, end);
    uint64_t old = word.load(std::memory_order_relaxed);
    do {
      if (__builtin_expect((old & mask) != 0, 0)) {
        ReleaseGranules(begin, g);
        const unsigned bit = static_cast<unsigned>(std::countr_zero(old & mask));
        return ((g & ~uint64_t{63}) + bit) << kGranuleShift;
      }
    } while (!word.compare_exchange_weak(old, old | mask, std::memory_order_acq_rel,
                                         std::memory_order_relaxed));
  }
  return 0;
}

bool Registry::Release(uintptr_t address, size_t size) {
  const uint64_t begin = FirstGranule(address);
  const uint64_t end = EndGranule(address, size);
  bool whole = true;
  for (uint64_t g = begin; g < end; g = NextWord(g)) {
    Word& word = WordOf(g);
    const uint64_t mask = MaskFrom(g, end);
    whole &= (word.load(std::memory_order_relaxed) & mask) == mask;
    // Without use of the old value: one instruction on x86.
    word.fetch_and(~mask, std::memory_order_acq_rel);
  }
  return whole;
}

uint64_t Registry::CountClaimed() {
  uint64_t count = 0;
  for (size_t i = 0; i < kDirectoryEntries; ++i) {
    const Word* const chunk = directory[i].load(std::memory_order_acquire);
    if (chunk == nullptr) continue;
    for (size_t w = 0; w < kWordsPerChunk; ++w) {
      count += static_cast<uint64_t>(std::popcount(chunk[w].load(std::memory_order_relaxed)));
    }
  }
  return count;
}

}  // namespace stress
