// SPDX-License-Identifier: Apache-2.0
#include "allocator/pages/span_store.h"

#include <string.h>
#include <sys/mman.h>

#include <algorithm>
#include <random>
#include <set>
#include <vector>

#include "allocator/os/memory.h"
#include "gtest/gtest.h"

namespace pcmalloc {
namespace {

constexpr size_t kMany = 5000;

std::vector<Span*> TakeMany(SpanStore& store, size_t count) {
  std::vector<Span*> spans;
  for (size_t i = 0; i < count; ++i) {
    if (!store.Reserve(1)) {
      ADD_FAILURE() << "no memory for Span " << i;
      break;
    }
    spans.push_back(store.Take());
    memset(static_cast<void*>(spans.back()), 0x5a, sizeof(Span));
  }
  return spans;
}

// Returns the number of blocks whose memory went back.
int ReturnAll(SpanStore& store) {
  int blocks = 0;
  while (void* block = store.TakeEmpty()) {
    const bool returned = SpanStore::ReturnMemory(block);
    EXPECT_TRUE(returned);
    store.PutBack(block, returned);
    ++blocks;
  }
  return blocks;
}

// Of all blocks that the Spans lie in.
size_t ResidentPages(const std::vector<Span*>& spans) {
  std::set<uintptr_t> blocks;
  for (const Span* span : spans) {
    blocks.insert(reinterpret_cast<uintptr_t>(span) & ~(SpanStore::kBlockBytes - 1));
  }
  size_t pages = 0;
  for (const uintptr_t block : blocks) {
    std::vector<unsigned char> resident(SpanStore::kBlockBytes / os::KernelPageSize());
    EXPECT_EQ(mincore(reinterpret_cast<void*>(block), SpanStore::kBlockBytes, resident.data()), 0);
    for (const unsigned char page : resident) pages += page & 1;
  }
  return pages;
}

TEST(SpanStore, SpansAreApartAndRecycled) {
  SpanStore store;
  const std::vector<Span*> spans = TakeMany(store, kMany);
  std::set<Span*> all(spans.begin(), spans.end());
  ASSERT_EQ(all.size(), kMany);
  uintptr_t last = 0;
  for (const Span* span : all) {
    const uintptr_t at = reinterpret_cast<uintptr_t>(span);
    ASSERT_EQ(at % 64, 0u);
    ASSERT_TRUE(last == 0 || at - last >= sizeof(Span));
    last = at;
  }
  const size_t bytes = store.bytes();
  EXPECT_LE(bytes, kMany * 192 * 5 / 4 + 2 * SpanStore::kBlockBytes);
  std::vector<Span*> shuffled = spans;
  std::shuffle(shuffled.begin(), shuffled.end(), std::mt19937(1));
  for (Span* span : shuffled) {
    store.Give(span);
    // A stale pointer finds a Span that covers nothing.
    ASSERT_EQ(span->start, 0u);
    ASSERT_EQ(span->pages, 0u);
  }
  const std::vector<Span*> again = TakeMany(store, kMany);
  EXPECT_EQ(std::set<Span*>(again.begin(), again.end()).size(), kMany);
  EXPECT_EQ(store.bytes(), bytes);
}

TEST(SpanStore, WhatNobodyNeedsGoesBackAndComesAgain) {
  SpanStore store;
  std::vector<Span*> spans = TakeMany(store, kMany);
  const size_t bytes = store.bytes();
  EXPECT_EQ(ReturnAll(store), 0) << "all are used";
  for (Span* span : spans) store.Give(span);
  const size_t resident = ResidentPages(spans);
  EXPECT_GE(resident * os::KernelPageSize(), kMany * sizeof(Span));
  const int blocks = ReturnAll(store);
  EXPECT_GE(static_cast<size_t>(blocks), bytes / SpanStore::kBlockBytes - 3);
  EXPECT_LE(ResidentPages(spans), resident / 4);
  EXPECT_LE(store.bytes(), bytes / 5);
  EXPECT_EQ(ReturnAll(store), 0) << "a second time";
  for (const Span* span : spans) ASSERT_EQ(span->pages, 0u);
  // They serve again, and count again.
  spans = TakeMany(store, kMany);
  EXPECT_EQ(std::set<Span*>(spans.begin(), spans.end()).size(), kMany);
  EXPECT_EQ(store.bytes(), bytes);
}

TEST(SpanStore, SomeEmptyBlocksStay) {
  SpanStore store;
  std::vector<Span*> spans = TakeMany(store, 30000);
  // The later half: whole blocks.
  while (spans.size() > 15000) {
    store.Give(spans.back());
    spans.pop_back();
  }
  const size_t used_blocks = 15000 * 192 / SpanStore::kBlockBytes;
  const size_t bytes = store.bytes();
  const size_t blocks = static_cast<size_t>(ReturnAll(store));
  EXPECT_GT(blocks, used_blocks / 2);
  EXPECT_LT(blocks, used_blocks - used_blocks / 16);
  // What stays is enough for a breath without a page fault or a system call.
  const size_t after = store.bytes();
  EXPECT_LT(after, bytes);
  TakeMany(store, used_blocks / 16 * (SpanStore::kBlockBytes / 192));
  EXPECT_EQ(store.bytes(), after);
}

// The promise of Reserve holds whatever was taken out of the store meanwhile.
TEST(SpanStore, ABlockThatIsOutCountsAsTaken) {
  SpanStore store;
  std::vector<Span*> spans = TakeMany(store, kMany);
  for (Span* span : spans) store.Give(span);
  std::vector<void*> out;
  while (void* block = store.TakeEmpty()) out.push_back(block);
  ASSERT_FALSE(out.empty());
  spans = TakeMany(store, kMany);
  for (const Span* span : spans) {
    void* const block =
        reinterpret_cast<void*>(reinterpret_cast<uintptr_t>(span) & ~(SpanStore::kBlockBytes - 1));
    ASSERT_EQ(std::count(out.begin(), out.end(), block), 0);
  }
  // Refused by the system: in use again like any other.
  for (void* block : out) store.PutBack(block, false);
  const size_t bytes = store.bytes();
  TakeMany(store, out.size() * 300);
  EXPECT_EQ(store.bytes(), bytes);
}

}  // namespace
}  // namespace pcmalloc
