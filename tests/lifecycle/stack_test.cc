// SPDX-License-Identifier: Apache-2.0
//
// How much stack malloc and free need: a signal handler may have to get by with SIGSTKSZ, 8 KiB, of
// which the kernel takes 3 KiB for the registers.
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/mman.h>

#include <algorithm>
#include <vector>

#include "gtest/gtest.h"
#include "tests/support/allocator.h"
#include "tests/support/process.h"

namespace pcmalloc::testing {
namespace {

// docs/limits.md promises it.
constexpr size_t kMostUsed = 2304;
constexpr size_t kMiB = size_t{1} << 20;

constexpr size_t kStackBytes = 64 << 10;
constexpr size_t kGuardBytes = 64 << 10;  // a page of any kernel
constexpr unsigned char kPattern = 0x5a;

char* stack;
void (*operation)();
size_t used;

// By itself, so that its own frame is gone when the operation runs. Not memset: that has a frame,
// too.
__attribute__((noinline)) void Paint() {
  const uintptr_t end = reinterpret_cast<uintptr_t>(__builtin_frame_address(0)) - 64;
  for (auto p = reinterpret_cast<uintptr_t>(stack); p < end; ++p) {
    *reinterpret_cast<volatile unsigned char*>(p) = kPattern;
  }
}

__attribute__((noinline)) void Measure(int) {
  Paint();
  operation();
  size_t untouched = 0;
  while (stack[untouched] == kPattern) ++untouched;
  used = reinterpret_cast<uintptr_t>(__builtin_frame_address(0)) -
         reinterpret_cast<uintptr_t>(stack + untouched);
}

// An alternate stack above a guard.
char* MakeStack(size_t bytes) {
  char* const memory = static_cast<char*>(mmap(nullptr, kGuardBytes + bytes, PROT_READ | PROT_WRITE,
                                               MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  if (memory == MAP_FAILED || mprotect(memory, kGuardBytes, PROT_NONE) != 0) _exit(125);
  stack_t alternate = {};
  alternate.ss_sp = memory + kGuardBytes;
  alternate.ss_size = bytes;
  if (sigaltstack(&alternate, nullptr) != 0) _exit(125);
  return memory + kGuardBytes;
}

void InHandler(void (*handler)(int)) {
  struct sigaction action = {};
  action.sa_handler = handler;
  action.sa_flags = SA_ONSTACK;
  sigaction(SIGUSR1, &action, nullptr);
  raise(SIGUSR1);
}

// Kept from one operation to the next.
constexpr size_t kBlocks = 40'000;
void* blocks[kBlocks];
void* large;

void TakeBlocks() {
  for (void*& p : blocks) {
    p = Escape(malloc(1000));
    if (p != nullptr) *static_cast<char*>(p) = 1;
  }
}

void FreeBlocks() {
  for (size_t i = 0; i < kBlocks; ++i) {
    void*& p = blocks[i * 7919 % kBlocks];
    free(p);
    p = nullptr;
  }
}

void TakeEachSize() {
  for (size_t size = 1; size <= 4 * kMiB; size += size / 8 + 1) free(Escape(malloc(size)));
}

void TakeManyOfEachSize() {
  Random random(1);
  for (int round = 0; round < 200'000; ++round) {
    void*& p = blocks[random.Below(5000)];
    free(p);
    p = Escape(malloc(random.Size(15)));
  }
  for (void*& p : blocks) {
    free(p);
    p = nullptr;
  }
}

void TakeAligned() {
  for (size_t alignment = 16; alignment <= 4 * kMiB; alignment *= 2) {
    void* p;
    free(Escape(aligned_alloc(alignment, 3 * alignment)));
    if (posix_memalign(&p, alignment, 5000) == 0) free(Escape(p));
  }
}

void TakeUsedZeroed() {
  for (size_t size : {kMiB, 2 * kMiB, 16 * kMiB, 33 * kMiB}) {
    for (int i = 0; i < 3; ++i) {
      auto* p = static_cast<char*>(Escape(malloc(size)));
      for (size_t at = 0; at < size; at += 4096) p[at] = 1;
      free(p);
      free(Escape(calloc(1, size)));
    }
  }
}

void TakeLarge() { large = Escape(malloc(9 * kMiB)); }
void ResizeLarge() {
  void* between[8];
  for (size_t size = 10; size < 60; size += 7) {
    memset(large, 1, size / 2 * kMiB);
    large = Escape(realloc(large, size * kMiB));
    between[size / 7 - 1] = malloc(9 * kMiB);  // so that the next has to move
  }
  for (void* p : between) free(p);
  large = Escape(realloc(large, 3 * kMiB));
}
void FreeLarge() { free(large); }

// Past 64 MiB the files of the control group are read.
void TakeVeryMuch() {
  for (size_t i = 0; i < 150; ++i) blocks[i] = Escape(malloc(kMiB));
}
void FreeVeryMuch() {
  for (size_t i = 0; i < 150; ++i) free(blocks[i]);
}

PCM_SCENARIO(MeasureStack) {
  if (!IsPcmalloc()) return;
  // What the dynamic linker needs to find a function at its first call is its own.
  void* p;
  if (posix_memalign(&p, 64, 64) == 0) free(Escape(p));
  free(Escape(realloc(Escape(calloc(1, 10)), 1000)));
  free(Escape(aligned_alloc(64, 64)));
  memset(Escape(blocks), 0, sizeof(blocks));
  stack = MakeStack(kStackBytes);
  constexpr struct {
    const char* name;
    void (*run)();
  } kOperations[] = {
      {"malloc of 40 MB in blocks of 1000 bytes", TakeBlocks},
      {"free of them in disorder", FreeBlocks},
      {"malloc and free of each size", TakeEachSize},
      {"malloc and free of blocks that stay for a while", TakeManyOfEachSize},
      {"aligned_alloc, posix_memalign", TakeAligned},
      {"calloc of large blocks that were used", TakeUsedZeroed},
      {"malloc of a large block", TakeLarge},
      {"realloc of it", ResizeLarge},
      {"free of it", FreeLarge},
      {"malloc of 150 MiB in blocks of 1 MiB", TakeVeryMuch},
      {"free of them", FreeVeryMuch},
  };
  for (const auto& tried : kOperations) {
    operation = tried.run;
    InHandler(Measure);
    EXPECT_LE(used, kMostUsed) << tried.name;
    printf("%5zu bytes: %s\n", used, tried.name);
  }
}

TEST(Stack, IsUsedSparingly) { EXPECT_TRUE(InFreshProcess("MeasureStack")); }

PCM_SCENARIO(AllocateInSmallHandler) {
  constexpr size_t kSmallStack = 8192;
  constexpr size_t kOwnFrames = 512;
  constexpr unsigned long kMinSigStackSize = 51;  // AT_MINSIGSTKSZ: what the kernel may take
  // Where it is more, programs have to ask how much they need.
  const size_t taken = getauxval(kMinSigStackSize);
  if (taken == 0 || taken + kMostUsed + kOwnFrames > kSmallStack) return;
  stack = MakeStack(kSmallStack);
  InHandler([](int) {
    TakeBlocks();
    FreeBlocks();
    TakeUsedZeroed();
  });
}

TEST(Stack, OfSigstkszIsEnoughForAHandlerThatAllocates) {
  EXPECT_TRUE(InFreshProcess("AllocateInSmallHandler"));
}

}  // namespace
}  // namespace pcmalloc::testing
