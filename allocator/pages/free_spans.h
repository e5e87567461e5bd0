// SPDX-License-Identifier: Apache-2.0
//
// Purpose: free spans by size: finds a small one that is large enough, in constant time.
//
//      bin      0 .. 31          32 ..
//      pages    1, 2, ... 31     16 bins for each power of two: 32-33, 34-35, ... 64-67, ...
//      words_   one bit a bin that is not empty     summary_   one bit a word that is not 0
//
// Invariants: a span is in one bin at most, linked through prev and next; the structure knows sizes
//   and addresses only, neither neighbours nor arenas; not thread-safe; constant-initialised.
// Cost: Insert and Remove touch the span and its list neighbours; Find looks at no more than
//   `patience` spans of the bin in which not all fit, then takes the next bin's first; FindAligned
//   at no more than kAlignedPatience of those that fit if they begin where they should.
#ifndef PCMALLOC_ALLOCATOR_PAGES_FREE_SPANS_H_
#define PCMALLOC_ALLOCATOR_PAGES_FREE_SPANS_H_

#include <stddef.h>
#include <stdint.h>

#include "allocator/pages/span.h"

namespace pcmalloc {

class FreeSpans {
 public:
  static constexpr int kStepBits = 4;  // 16 bins for each power of two: at most 6 % too long
  static constexpr int kBins = (32 - kStepBits + 1) << kStepBits;
  // Looked at in the bin of the request's own size before a larger span is split.
  static constexpr int kPatience = 8;
  static constexpr int kUnlimited = INT32_MAX;
  // The same where it depends on the address: in one bin, and in all.
  static constexpr int kAlignedPatienceHere = 4;
  static constexpr int kAlignedPatience = 32;

  constexpr FreeSpans() = default;
  FreeSpans(const FreeSpans&) = delete;
  FreeSpans& operator=(const FreeSpans&) = delete;

  void Insert(Span* span);
  void Remove(Span* span);

  // A span of at least `pages` pages, from the lowest bin that is sure to have one; low addresses
  // come first where that is free. Null: none found. With kUnlimited: there is none.
  Span* Find(size_t pages, int patience = kPatience) const;

  // A span that holds `pages` pages from a multiple of `alignment` bytes on (a power of two,
  // >= kPageSize). What an aligned block has left when it was freed fits the next one although it
  // is not longer than that, so shorter spans are looked at before one that is sure to.
  Span* FindAligned(size_t pages, size_t alignment) const;

  // For walks from the longest spans to the shortest: the highest bin that is not empty and is at
  // most `bin`, or -1; and the list of a bin.
  int HighestBin(int bin = kBins - 1) const;
  Span* First(int bin) const { return heads_[bin]; }

  size_t pages() const { return pages_; }  // sum over all spans
  size_t spans() const { return spans_; }

  // The bin that spans of this length are in; `pages` fits Span::pages.
  static int BinOf(size_t pages) {
    if (pages < (size_t{1} << kStepBits)) return static_cast<int>(pages);
    const int power = 63 - __builtin_clzll(pages);
    const int step = static_cast<int>(pages >> (power - kStepBits)) & ((1 << kStepBits) - 1);
    return ((power - kStepBits + 1) << kStepBits) + step;
  }

 private:
  static constexpr int kWords = (kBins + 63) / 64;

  // The lowest bin that is not empty and is at least `bin`, or -1.
  int LowestBin(int bin) const;

  uint64_t summary_ = 0;
  uint64_t words_[kWords] = {};
  size_t pages_ = 0;
  size_t spans_ = 0;
  Span* heads_[kBins] = {};
};

}  // namespace pcmalloc

#endif  // PCMALLOC_ALLOCATOR_PAGES_FREE_SPANS_H_
