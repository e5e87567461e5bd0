// SPDX-License-Identifier: Apache-2.0
#include "allocator/central/large_blocks.h"

#include "allocator/base/report.h"
#include "allocator/pages/page_heap.h"
#include "allocator/sizes/size_classes.h"

namespace pcmalloc::central {

uint32_t TakeLarge(unsigned size_class, void** out, uint32_t n, Shortage* shortage) {
  for (uint32_t taken = 0; taken < n; ++taken) {
    Span* span = nullptr;
    switch (PageHeap::Take(kClasses[size_class].span_pages, kPageSize, 0, &span)) {
      case PageResult::kOk:
        span->size_class = static_cast<uint8_t>(size_class);
        out[taken] = reinterpret_cast<void*>(span->start);
        break;
      case PageResult::kNoMemory:
        *shortage = Shortage::kNoMemory;
        return taken;
      case PageResult::kReentrant:
        *shortage = Shortage::kReentrant;
        return taken;
    }
  }
  return n;
}

uint32_t GiveLarge(void* const* in, uint32_t n) {
  for (uint32_t given = 0; given < n; ++given) {
    Span* span = SpanEntryOf(in[given]);
    PCMALLOC_CHECK(span != nullptr && span->start == reinterpret_cast<uintptr_t>(in[given]) &&
                   span->state != SpanState::kFree);
    // What is refused waits as a block in use that is freed again later.
    SetState(span, SpanState::kLarge);
    if (PageHeap::Give(span) == PageResult::kReentrant) return given;
  }
  return n;
}

void ExpectGive(void* p) {
  const Span* span = PrimarySpanAt(p);
  if (span != nullptr) PageHeap::ExpectGive(span);
}

}  // namespace pcmalloc::central
