// SPDX-License-Identifier: Apache-2.0
//
// Purpose: what the tests of this folder share: a process of one's own for tests that change limits
//   or filters, and a check of the whole page heap.
// Invariants: a child ends by _exit, with the failures it had on stderr.
// Cost: a fork; a walk over all arenas.
#ifndef PCMALLOC_ALLOCATOR_PAGES_TEST_UTIL_H_
#define PCMALLOC_ALLOCATOR_PAGES_TEST_UTIL_H_

#include <stdint.h>
#include <stdio.h>
#include <sys/wait.h>
#include <unistd.h>

#include "allocator/os/memory.h"
#include "allocator/os/thp.h"
#include "allocator/pages/arena.h"
#include "allocator/pages/page_heap.h"
#include "allocator/pages/page_map.h"
#include "gtest/gtest.h"

namespace pcmalloc {

// Runs the body in a forked child; the test fails if the child does or dies.
template <typename Body>
void InChild(Body body) {
  fflush(nullptr);
  const pid_t child = fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    body();
    const bool failed = ::testing::Test::HasFailure();
    fflush(nullptr);
    _exit(failed ? 1 : 0);
  }
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  EXPECT_TRUE(WIFEXITED(status)) << "ended by signal " << WTERMSIG(status);
  if (WIFEXITED(status)) {
    EXPECT_EQ(WEXITSTATUS(status), 0);
  }
}

inline Span* TakeOrNull(size_t pages, size_t alignment = kPageSize, unsigned size_class = 0) {
  Span* span = nullptr;
  return PageHeap::Take(pages, alignment, size_class, &span) == PageResult::kOk ? span : nullptr;
}

inline char* Begin(const Span* span) { return reinterpret_cast<char*>(span->start); }

// Over the spans of all arenas, in bytes but for `spans`.
struct PageSums {
  uint64_t warm = 0, cold = 0, small = 0, large = 0, spans = 0, maps = 0, pages = 0, reserved = 0;
};

// The map entries of a span's pages. Lookups inside of a span that is not of small blocks may find
// nothing.
inline void CheckMapEntries(const Arena& arena, size_t first_page, const Span* span) {
  ASSERT_EQ(SpanOf(Begin(span)), span);
  ASSERT_EQ(SpanOf(Begin(span) + span->bytes() - 1), span);
  const bool small = span->state == SpanState::kSmall;
  const unsigned size_class = small ? span->size_class : 0;
  for (size_t k = first_page; k < first_page + span->pages; ++k) {
    const char* inside = reinterpret_cast<const char*>(arena.AddressOf(k)) + 100;
    ASSERT_EQ(ClassOf(inside), size_class);
    if (Arenas::primary(arena)) {
      ASSERT_EQ(PrimaryClassOf(inside), size_class);
    }
    const Span* found = SpanOf(inside);
    ASSERT_TRUE(found == span || (!small && found == nullptr));
  }
}

// What a kFree span says of its memory; `left` is the span in front of it, or null.
inline void CheckFreeSpan(const Arena& arena, const Span* span, const Span* left) {
  if (span->zeroed && !span->returned) {
    for (size_t byte = 0; byte < span->bytes(); byte += kPageSize - 8) {
      ASSERT_EQ(Begin(span)[byte], 0);
    }
  }
  if (span->returned) {
    ASSERT_TRUE(span->zeroed);
    // A hugepage that was asked for is cold altogether or nowhere.
    for (const uintptr_t at : {span->start, span->end()}) {
      ASSERT_TRUE(at % os::kHugePage == 0 || !arena.huge(at)) << "part of a hugepage is cold";
    }
    ASSERT_EQ(span->start % os::KernelPageSize(), 0u);
    ASSERT_EQ(span->bytes() % os::KernelPageSize(), 0u);
  }
  if (left != nullptr && left->state == SpanState::kFree) {
    ASSERT_NE(left->returned, span->returned) << "free neighbours that were not merged";
  }
}

// The spans of an arena, one beside the other; adds them to the sums.
inline void CheckArena(const Arena& arena, PageSums* sums) {
  sums->reserved += arena.reserved_bytes();
  sums->maps += arena.map_bytes();
  sums->pages += (arena.used_pages() - arena.first_page()) << kPageShift;
  const Span* left = nullptr;
  size_t in_use = 0;
  for (size_t page = arena.first_page(); page < arena.used_pages();) {
    const Span* span = arena.SpanAt(page);
    ASSERT_NE(span, nullptr);
    ASSERT_EQ(span->start, arena.AddressOf(page));
    ASSERT_GT(span->pages, 0u);
    ASSERT_LE(page + span->pages, arena.used_pages());
    ASSERT_NO_FATAL_FAILURE(CheckMapEntries(arena, page, span));
    if (span->state == SpanState::kFree) {
      (span->returned ? sums->cold : sums->warm) += span->bytes();
      ASSERT_NO_FATAL_FAILURE(CheckFreeSpan(arena, span, left));
    } else {
      (span->state == SpanState::kSmall ? sums->small : sums->large) += span->bytes();
      ++in_use;
    }
    left = span;
    page += span->pages;
  }
  ASSERT_EQ(in_use, arena.spans_in_use);
  sums->spans += in_use;
}

// Every page of every arena belongs to one span whose map entries are right, free neighbours are
// merged, and the statistics are the sums. Only while no other thread uses the page heap.
inline void CheckPageHeap() {
  const PageStats stats = PageHeap::Stats();
  PageSums sums;
  for (int i = 0; i < Arenas::count(); ++i) {
    if (Arenas::at(i).base() == 0) continue;
    ASSERT_NO_FATAL_FAILURE(CheckArena(Arenas::at(i), &sums));
  }
  ASSERT_EQ(stats.free_bytes, sums.warm);
  ASSERT_EQ(stats.returned_bytes, sums.cold);
  ASSERT_EQ(stats.small_bytes, sums.small);
  ASSERT_EQ(stats.large_bytes, sums.large);
  ASSERT_EQ(stats.spans, sums.spans);
  ASSERT_EQ(stats.reserved_bytes, sums.reserved);
  ASSERT_EQ(stats.committed_bytes, sums.pages + sums.maps);
  ASSERT_EQ(sums.pages, sums.warm + sums.cold + sums.small + sums.large);
  ASSERT_GE(stats.metadata_bytes, sums.maps);
}

}  // namespace pcmalloc

#endif  // PCMALLOC_ALLOCATOR_PAGES_TEST_UTIL_H_
