// SPDX-License-Identifier: Apache-2.0
#include "allocator/os/zero.h"

#include <stdint.h>
#include <string.h>
#include <sys/syscall.h>

#include <atomic>

#include "allocator/base/syscall.h"
#include "allocator/os/memory.h"

namespace pcmalloc::os {
namespace {

// One byte of stack each, which may be a signal handler's.
constexpr size_t kPagesAtOnce = 1024;
// Dropping a run is a system call, writing this many pages of it is no more.
constexpr size_t kShortestRun = 16;
constexpr size_t kSampledPages = 64;
// To ask about so many pages costs what the fault costs that brings a dropped one back.
constexpr size_t kPagesAskedForAFault = 256;

// A memset of no bytes may be a masked store to memory that is absent (glibc, AVX-512), which costs
// some 300 cycles although it does nothing.
void Clear(char* p, size_t bytes) {
  if (bytes != 0) memset(p, 0, bytes);
}

// Whether large used blocks have lately turned out to be (nearly) untouched. Dropping an untouched
// block unasked costs a fraction of asking first; dropping a touched one costs a page fault a page.
// So trust doubles with every answer "nothing is there", as often as the answer is asked for, and
// one other answer ends it. Once it is full a sample is asked about, since to ask about all of
// 16 MiB takes six times as long as to drop it. A wrong guess costs time only.
struct Trust {
  static constexpr uint32_t kMost = 32;

  std::atomic<uint32_t> blind_in_a_row{0};  // how many blocks are dropped between two questions
  std::atomic<uint32_t> blind_left{0};
  std::atomic<uint32_t> samples{0};

  // Races between threads lose or repeat a question.
  bool MayDropUnasked() {
    const uint32_t left = blind_left.load(std::memory_order_relaxed);
    if (left != 0) blind_left.store(left - 1, std::memory_order_relaxed);
    return left != 0;
  }
  bool SampleIsEnough() const { return blind_in_a_row.load(std::memory_order_relaxed) == kMost; }
  // The first page of the next sample of a block of `pages`: every other time the block's start,
  // which is what is used first, else places that spread over the block.
  size_t NextSample(size_t pages) {
    const uint32_t n = samples.load(std::memory_order_relaxed);
    samples.store(n + 1, std::memory_order_relaxed);
    if (n % 2 == 0 || pages <= kSampledPages) return 0;
    constexpr uint32_t kGoldenRatio = 0x9E3779B9;  // of 2^32: multiples of it lie far apart
    return (uint64_t{n * kGoldenRatio} * (pages - kSampledPages + 1)) >> 32;
  }
  void Learn(bool untouched) {
    uint32_t row = blind_in_a_row.load(std::memory_order_relaxed);
    row = !untouched ? 0 : row == 0 ? 1 : row < kMost ? row * 2 : kMost;
    blind_in_a_row.store(row, std::memory_order_relaxed);
    blind_left.store(row, std::memory_order_relaxed);
  }
};
constinit Trust trust;

// How many pages from `i` on are alike; bit 0 is what mincore says, the others are reserved.
size_t RunLength(const unsigned char* resident, size_t i, size_t pages) {
  const size_t begin = i;
  const unsigned char kind = resident[i] & 1;
  // By words where it is absent: untouched memory is what this is for.
  if (kind == 0) {
    uint64_t word;
    for (; i + sizeof(word) <= pages; i += sizeof(word)) {
      memcpy(&word, resident + i, sizeof(word));
      if ((word & 0x0101010101010101u) != 0) break;
    }
  }
  while (i < pages && (resident[i] & 1) == kind) ++i;
  return i - begin;
}

// Returns how many pages were there, all of them if the kernel does not say.
size_t ZeroPages(char* memory, size_t pages) {
  const size_t page = KernelPageSize();
  unsigned char resident[kPagesAtOnce];
  if (RawSyscall(SYS_mincore, memory, pages * page, resident) != 0) {
    memset(memory, 0, pages * page);
    return pages;
  }
  size_t written = 0;
  for (size_t i = 0; i < pages;) {
    const size_t run = RunLength(resident, i, pages);
    char* const start = memory + i * page;
    const bool worth_dropping = run >= kShortestRun || run == pages;
    // Refused for locked memory.
    if ((resident[i] & 1) != 0 || !worth_dropping || !Return(start, run * page)) {
      memset(start, 0, run * page);
      written += run;
    }
    i += run;
  }
  return written;
}

// Whether nothing is there, as far as a sample can tell.
bool LooksUntouched(char* memory, size_t pages) {
  const size_t first = trust.NextSample(pages);
  const size_t sampled = pages < kSampledPages ? pages : kSampledPages;
  const size_t page = KernelPageSize();
  unsigned char resident[kSampledPages];
  return RawSyscall(SYS_mincore, memory + first * page, sampled * page, resident) == 0 &&
         (resident[0] & 1) == 0 && RunLength(resident, 0, sampled) == sampled;
}

}  // namespace

void Zero(void* memory, size_t bytes) {
  char* p = static_cast<char*>(memory);
  if (bytes >= kWorthAsking) {
    const size_t page = KernelPageSize();
    const size_t head = -reinterpret_cast<uintptr_t>(p) & (page - 1);
    Clear(p, head);
    p += head;
    bytes -= head;
    const size_t whole = bytes / page * page;
    const bool unasked = trust.MayDropUnasked();
    const bool drop = unasked || (trust.SampleIsEnough() && LooksUntouched(p, whole / page));
    if (drop && Return(p, whole)) {
      if (!unasked) trust.Learn(true);
      p += whole;
      bytes -= whole;
    } else {
      size_t written = 0;
      while (bytes >= page) {
        const size_t left = bytes / page;
        const size_t pages = left < kPagesAtOnce ? left : kPagesAtOnce;
        written += ZeroPages(p, pages);
        p += pages * page;
        bytes -= pages * page;
      }
      trust.Learn(written * kPagesAskedForAFault < whole / page);
    }
  }
  Clear(p, bytes);
}

}  // namespace pcmalloc::os
