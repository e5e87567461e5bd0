// SPDX-License-Identifier: Apache-2.0
#include "allocator/pages/span_store.h"

#include <new>

#include "allocator/base/report.h"
#include "allocator/os/memory.h"

namespace pcmalloc {
namespace {

// Whole cache lines, so that the fields that every operation reads lie in one.
constexpr size_t kStride = (sizeof(Span) + 63) & ~size_t{63};
constexpr size_t kSmallestChunk = size_t{64} << 10;  // a multiple of every kernel page size
constexpr size_t kLargestChunk = size_t{1} << 20;

}  // namespace

Span* SpanStore::Take() {
  PCMALLOC_CHECK(available_ > 0);
  --available_;
  Span* span = free_;
  if (span != nullptr) {
    free_ = span->next;
  } else {
    span = new (reinterpret_cast<void*>(fresh_)) Span;
    fresh_ += kStride;
  }
  span->prev = span->next = nullptr;
  return span;
}

void SpanStore::Give(Span* span) {
  span->start = 0;
  span->pages = 0;
  span->next = free_;
  free_ = span;
  ++available_;
}

bool SpanStore::AddChunk(size_t count) {
  size_t size = (bytes_ / 8) & ~(kSmallestChunk - 1);
  if (size < kSmallestChunk) size = kSmallestChunk;
  if (size > kLargestChunk) size = kLargestChunk;
  void* chunk = os::Reserve(size, kSmallestChunk);
  if (chunk == nullptr) {
    size = kSmallestChunk;
    chunk = os::Reserve(size, os::KernelPageSize());
    if (chunk == nullptr) return false;
  }
  if (!os::Commit(chunk, size)) {
    os::Unreserve(chunk, size);
    return false;
  }
  // What is left of the chunk before goes to the list, or it would be lost.
  while (fresh_ + kStride <= fresh_end_) {
    Span* span = new (reinterpret_cast<void*>(fresh_)) Span;
    fresh_ += kStride;
    span->start = 0;
    span->pages = 0;
    span->next = free_;
    free_ = span;
  }
  fresh_ = reinterpret_cast<uintptr_t>(chunk);
  fresh_end_ = fresh_ + size;
  available_ += size / kStride;
  bytes_ += size;
  return available_ >= count;
}

}  // namespace pcmalloc
