// SPDX-License-Identifier: Apache-2.0
//
// Purpose: where Span objects come from: blocks of metadata with mappings of their own, which give
//   their memory back while nobody needs them.
//
//      block (128 KiB) | head | Span | Span | Span | ... | bits | bits | bits | ... |
//                               \____________________________^  free_bits
//
//      partly_used  ->  empty (resident)  ->  returned (all but the first page)  ->  a new block
//      (where the next Span comes from; a block without a free Span is in no list)
//
// Invariants: the caller holds the page heap's lock; blocks are never unmapped: a stale pointer to
//   a Span may be read; a Span that is free, or whose memory was returned, covers no address.
// Cost: Take and Give are one or two list operations; Reserve maps a chunk of blocks when too few
//   Spans are left.
#ifndef PCMALLOC_ALLOCATOR_PAGES_SPAN_STORE_H_
#define PCMALLOC_ALLOCATOR_PAGES_SPAN_STORE_H_

#include <stddef.h>
#include <stdint.h>

#include "allocator/base/list.h"
#include "allocator/pages/span.h"

namespace pcmalloc {

class SpanStore {
 public:
  static constexpr size_t kBlockBytes = size_t{128} << 10;  // a multiple of every kernel page size

  constexpr SpanStore() = default;
  SpanStore(const SpanStore&) = delete;
  SpanStore& operator=(const SpanStore&) = delete;

  // Makes sure that the next `count` calls of Take succeed, so that no operation runs out of Spans
  // halfway. False: the kernel refused.
  bool Reserve(size_t count) { return available_ >= count || AddChunk(count); }

  Span* Take();
  void Give(Span* span);

  // A block that nobody needs, taken out of the store; null: what is empty is in proportion to what
  // is used. To be followed, under the lock again, by PutBack.
  void* TakeEmpty();
  // Returns the memory of such a block to the system. Needs no lock.
  static bool ReturnMemory(void* block);
  void PutBack(void* block, bool returned);
  // In a fork's child: what somebody took out who is not there.
  void PutAllBack();

  size_t bytes() const { return bytes_; }  // mapped and not returned

 private:
  struct Block;

  bool AddChunk(size_t count);
  Block* NextBlock();

  List<Block> partly_used_;
  List<Block> empty_;
  List<Block> returned_;
  List<Block> out_;      // between TakeEmpty and PutBack
  uintptr_t fresh_ = 0;  // the part of the last chunk that no block was made of
  uintptr_t fresh_end_ = 0;
  size_t available_ = 0;  // Spans that Take can give without a system call
  size_t bytes_ = 0;
  size_t used_blocks_ = 0;   // with a Span in use
  size_t empty_blocks_ = 0;  // in empty_
};

}  // namespace pcmalloc

#endif  // PCMALLOC_ALLOCATOR_PAGES_SPAN_STORE_H_
