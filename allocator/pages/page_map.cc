// SPDX-License-Identifier: Apache-2.0
#include "allocator/pages/page_map.h"

#include "allocator/pages/arena.h"

namespace pcmalloc {

extern "C" {
constinit PrimaryArena pcmalloc_primary_arena = {nullptr, 0, 0, nullptr};
}

unsigned ClassOf(const void* p) {
  const uintptr_t address = reinterpret_cast<uintptr_t>(p);
  const Arena* const arena = Arenas::Find(address);
  return arena == nullptr ? 0 : arena->classes()[arena->PageOf(address)];
}

Span* SpanOf(const void* p) {
  const uintptr_t address = reinterpret_cast<uintptr_t>(p);
  const Arena* const arena = Arenas::Find(address);
  if (arena == nullptr) return nullptr;
  Span* const span = arena->SpanAt(arena->PageOf(address));
  // Inner pages of large and free spans keep entries of earlier times; such a Span has moved on.
  if (span == nullptr || address - span->start >= span->bytes()) return nullptr;
  return span;
}

bool InArena(const void* p) { return Arenas::Find(reinterpret_cast<uintptr_t>(p)) != nullptr; }

}  // namespace pcmalloc
