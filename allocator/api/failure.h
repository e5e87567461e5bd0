// SPDX-License-Identifier: Apache-2.0
//
// Purpose: what operator new does when there is no memory: the new_handler, again and again, then
//   std::bad_alloc, or null for the nothrow forms.
// Invariants: needs a C++ runtime only when it is called: the references are weak. Without one (a C
//   program that somehow calls operator new) the process ends with a message.
// Cost: never on a path that succeeds.
#ifndef PCMALLOC_ALLOCATOR_API_FAILURE_H_
#define PCMALLOC_ALLOCATOR_API_FAILURE_H_

#include <stddef.h>

namespace pcmalloc {

// Returns the block once a handler has made room; throws std::bad_alloc where there is no handler.
void* NewFailed(size_t alignment, size_t size);

// The same, but null instead of an exception, also of one that the handler throws.
void* NothrowNewFailed(size_t alignment, size_t size) noexcept;

}  // namespace pcmalloc

#endif  // PCMALLOC_ALLOCATOR_API_FAILURE_H_
