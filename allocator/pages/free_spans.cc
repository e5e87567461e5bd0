// SPDX-License-Identifier: Apache-2.0
#include "allocator/pages/free_spans.h"

#include "allocator/base/round.h"

namespace pcmalloc {

void FreeSpans::Insert(Span* span) {
  const int bin = BinOf(span->pages);
  Span* const head = heads_[bin];
  if (head == nullptr) {
    span->prev = span->next = nullptr;
    heads_[bin] = span;
    words_[bin / 64] |= uint64_t{1} << (bin % 64);
    summary_ |= uint64_t{1} << (bin / 64);
  } else if (span->start < head->start) {
    span->prev = nullptr;
    span->next = head;
    head->prev = span;
    heads_[bin] = span;
  } else {
    // Behind the lowest address: one comparison keeps use near the arena's start, so that its end
    // empties, without the search that a sorted list would need.
    span->prev = head;
    span->next = head->next;
    if (head->next != nullptr) head->next->prev = span;
    head->next = span;
  }
  pages_ += span->pages;
  ++spans_;
}

void FreeSpans::Remove(Span* span) {
  if (span->prev != nullptr) {
    span->prev->next = span->next;
  } else {
    const int bin = BinOf(span->pages);
    heads_[bin] = span->next;
    if (span->next == nullptr) {
      words_[bin / 64] &= ~(uint64_t{1} << (bin % 64));
      if (words_[bin / 64] == 0) summary_ &= ~(uint64_t{1} << (bin / 64));
    }
  }
  if (span->next != nullptr) span->next->prev = span->prev;
  span->prev = span->next = nullptr;
  pages_ -= span->pages;
  --spans_;
}

Span* FreeSpans::Find(size_t pages, int patience) const {
  if (pages > UINT32_MAX) return nullptr;
  const int bin = BinOf(pages);
  for (Span* span = heads_[bin]; span != nullptr && patience > 0; span = span->next, --patience) {
    if (span->pages >= pages) return span;
  }
  const int larger = LowestBin(bin + 1);
  return larger < 0 ? nullptr : heads_[larger];
}

Span* FreeSpans::FindAligned(size_t pages, size_t alignment) const {
  if (pages > UINT32_MAX || alignment >> kPageShift > UINT32_MAX) return nullptr;
  const size_t sure = PagesToAlign(pages, alignment);
  if (sure > UINT32_MAX) return nullptr;
  const size_t bytes = pages << kPageShift;
  int patience = kAlignedPatience;
  const int sure_bin = sure == pages ? 0 : BinOf(sure);
  for (int bin = LowestBin(BinOf(pages)); bin >= 0 && bin < sure_bin; bin = LowestBin(bin + 1)) {
    int here = kAlignedPatienceHere;
    for (Span* span = heads_[bin]; span != nullptr && here > 0; span = span->next, --here) {
      if (patience-- == 0) return Find(sure);
      if (RoundUp(span->start, alignment) + bytes <= span->end()) return span;
    }
  }
  return Find(sure);
}

int FreeSpans::LowestBin(int bin) const {
  if (bin >= kBins) return -1;
  int word = bin / 64;
  const uint64_t here = words_[word] & (~uint64_t{0} << (bin % 64));
  if (here != 0) return word * 64 + __builtin_ctzll(here);
  const uint64_t above = summary_ & (~uint64_t{0} << (word + 1));
  if (above == 0) return -1;
  word = __builtin_ctzll(above);
  return word * 64 + __builtin_ctzll(words_[word]);
}

int FreeSpans::HighestBin(int bin) const {
  if (bin < 0) return -1;
  int word = bin / 64;
  const uint64_t here = words_[word] & (~uint64_t{0} >> (63 - bin % 64));
  if (here != 0) return word * 64 + 63 - __builtin_clzll(here);
  const uint64_t below = summary_ & ((uint64_t{1} << word) - 1);
  if (below == 0) return -1;
  word = 63 - __builtin_clzll(below);
  return word * 64 + 63 - __builtin_clzll(words_[word]);
}

}  // namespace pcmalloc
