// SPDX-License-Identifier: Apache-2.0
//
// Purpose: where Span objects come from: chunks of metadata with mappings of their own.
// Invariants: the caller holds the page heap's lock; objects are recycled, chunks never unmapped:
//   a stale pointer to a Span may be read; a recycled Span covers no address.
// Cost: Take and Give are a list operation; Reserve maps a chunk when too few are left.
#ifndef PCMALLOC_ALLOCATOR_PAGES_SPAN_STORE_H_
#define PCMALLOC_ALLOCATOR_PAGES_SPAN_STORE_H_

#include <stddef.h>
#include <stdint.h>

#include "allocator/pages/span.h"

namespace pcmalloc {

class SpanStore {
 public:
  constexpr SpanStore() = default;
  SpanStore(const SpanStore&) = delete;
  SpanStore& operator=(const SpanStore&) = delete;

  // Makes sure that the next `count` calls of Take succeed, so that no operation runs out of Spans
  // halfway. False: the kernel refused.
  bool Reserve(size_t count) { return available_ >= count || AddChunk(count); }

  Span* Take();
  void Give(Span* span);

  size_t bytes() const { return bytes_; }  // mapped

 private:
  bool AddChunk(size_t count);

  Span* free_ = nullptr;  // linked through next
  uintptr_t fresh_ = 0;   // the part of the last chunk that was never handed out
  uintptr_t fresh_end_ = 0;
  size_t available_ = 0;  // on the list and fresh
  size_t bytes_ = 0;
};

}  // namespace pcmalloc

#endif  // PCMALLOC_ALLOCATOR_PAGES_SPAN_STORE_H_
