// SPDX-License-Identifier: Apache-2.0
#include "allocator/pages/span_store.h"

#include <new>

#include "allocator/base/report.h"
#include "allocator/os/memory.h"
#include "allocator/pages/arena.h"

namespace pcmalloc {
namespace {

// The Spans of a block lie side by side, a cache line each, behind its head, and their bits behind
// them all: what only small blocks need is not in the way, nor resident where there are none.
constexpr size_t kBits = Span::kMaxObjects / 64;
constexpr size_t kBytesPerSpan = sizeof(Span) + kBits * sizeof(uint64_t);
constexpr uint32_t kSpans = (SpanStore::kBlockBytes - sizeof(Span)) / kBytesPerSpan;
constexpr size_t kLargestChunk = size_t{1} << 20;

// One empty block for so many used ones stays resident, and one more.
constexpr size_t kUsedPerEmpty = 8;

// What a returned block keeps: the kernel page that its head lies in.
size_t KeptBytes() { return os::KernelPageSize(); }
size_t ReturnedBytes() { return SpanStore::kBlockBytes - KeptBytes(); }

}  // namespace

struct SpanStore::Block {
  Block* prev = nullptr;
  Block* next = nullptr;
  Span* free = nullptr;  // linked through next
  uint32_t fresh = 0;    // Spans from here on were never used
  uint32_t used = 0;
  bool returned = false;  // in returned_: whether the system took the memory

  static_assert(sizeof(Span) + kSpans * kBytesPerSpan <= kBlockBytes);
  static Block* Of(const Span* span) {
    return reinterpret_cast<Block*>(reinterpret_cast<uintptr_t>(span) & ~(kBlockBytes - 1));
  }
  Span* spans() { return reinterpret_cast<Span*>(this) + 1; }
  uint64_t* BitsOf(const Span* span) {
    return reinterpret_cast<uint64_t*>(spans() + kSpans) +
           static_cast<size_t>(span - spans()) * kBits;
  }
};

// A block for the next Span, in partly_used_.
SpanStore::Block* SpanStore::NextBlock() {
  static_assert(sizeof(Block) <= sizeof(Span), "its head has the room of one");
  if (partly_used_.first != nullptr) return partly_used_.first;
  Block* block = empty_.first;
  if (block != nullptr) {
    empty_.Remove(block);
    --empty_blocks_;
  } else if ((block = returned_.first) != nullptr) {
    returned_.Remove(block);
    if (block->returned) bytes_ += ReturnedBytes();
  } else {
    PCMALLOC_CHECK(fresh_ < fresh_end_);
    block = new (reinterpret_cast<void*>(fresh_)) Block;
    fresh_ += kBlockBytes;
  }
  partly_used_.Insert(block);
  ++used_blocks_;
  return block;
}

Span* SpanStore::Take() {
  PCMALLOC_CHECK(available_ > 0);
  --available_;
  Block* const block = NextBlock();
  Span* span = block->free;
  if (span != nullptr) {
    block->free = span->next;
  } else {
    span = new (block->spans() + block->fresh++) Span;
  }
  if (++block->used == kSpans) partly_used_.Remove(block);
  span->prev = span->next = nullptr;
  span->free_bits.SetAt(block->BitsOf(span));
  return span;
}

void SpanStore::Give(Span* span) {
  Block* const block = Block::Of(span);
  span->start = 0;
  span->pages = 0;
  span->next = block->free;
  block->free = span;
  ++available_;
  if (block->used-- == kSpans) partly_used_.Insert(block);
  if (block->used != 0) return;
  partly_used_.Remove(block);
  empty_.Insert(block);
  --used_blocks_;
  ++empty_blocks_;
}

void* SpanStore::TakeEmpty() {
  if (empty_blocks_ <= 1 + used_blocks_ / kUsedPerEmpty || ReturnedBytes() == 0) return nullptr;
  Block* const block = empty_.first;
  empty_.Remove(block);
  --empty_blocks_;
  available_ -= kSpans;
  out_.Insert(block);
  return block;
}

bool SpanStore::ReturnMemory(void* block) {
  return os::Return(static_cast<char*>(block) + KeptBytes(), ReturnedBytes());
}

void SpanStore::PutBack(void* memory, bool returned) {
  Block* const block = static_cast<Block*>(memory);
  out_.Remove(block);
  available_ += kSpans;
  block->free = nullptr;
  block->fresh = 0;
  block->returned = returned;
  if (returned) bytes_ -= ReturnedBytes();
  // Refused (locked memory) or not, it is not asked for again.
  returned_.Insert(block);
}

void SpanStore::PutAllBack() {
  while (out_.first != nullptr) PutBack(out_.first, false);
}

bool SpanStore::AddChunk(size_t count) {
  // What is left of the chunk before must not be lost.
  while (fresh_ < fresh_end_) {
    Block* const block = new (reinterpret_cast<void*>(fresh_)) Block;
    fresh_ += kBlockBytes;
    empty_.Insert(block);
    ++empty_blocks_;
  }
  size_t size = (bytes_ / 8) & ~(kBlockBytes - 1);
  if (size < kBlockBytes) size = kBlockBytes;
  if (size > kLargestChunk) size = kLargestChunk;
  void* chunk = os::Reserve(size, kBlockBytes);
  if (chunk == nullptr) {
    (void)Arenas::FitAddressSpace();
    size = kBlockBytes;
    chunk = os::Reserve(size, kBlockBytes);
  }
  if (chunk == nullptr) return false;
  if (!os::Commit(chunk, size)) {
    os::Unreserve(chunk, size);
    return false;
  }
  fresh_ = reinterpret_cast<uintptr_t>(chunk);
  fresh_end_ = fresh_ + size;
  available_ += size / kBlockBytes * kSpans;
  bytes_ += size;
  return available_ >= count;
}

}  // namespace pcmalloc
