// SPDX-License-Identifier: Apache-2.0
//
// The page heap where the kernel says no: limits on address space and data, and system calls that
// fail by injection. Every test runs in a child; this process itself never uses the page heap.
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <signal.h>
#include <stddef.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <ucontext.h>

#include <fstream>
#include <string>
#include <vector>

#include "allocator/os/memory.h"
#include "allocator/pages/emergency.h"
#include "allocator/pages/test_util.h"
#include "gtest/gtest.h"

namespace pcmalloc {
namespace {

constexpr size_t kMiB = size_t{1} << 20;
constexpr size_t kGiB = size_t{1} << 30;

size_t Pages(size_t bytes) { return bytes >> kPageShift; }

void SetLimit(int resource, size_t bytes) {
  rlimit limit;
  ASSERT_EQ(getrlimit(static_cast<__rlimit_resource>(resource), &limit), 0);
  limit.rlim_cur = bytes;
  ASSERT_EQ(setrlimit(static_cast<__rlimit_resource>(resource), &limit), 0);
}

size_t ResidentKiB() {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);) {
    size_t value;
    if (sscanf(line.c_str(), "RssAnon: %zu kB", &value) == 1) return value;
  }
  return 0;
}

// Takes spans until the heap refuses; the number of bytes taken.
size_t FillUp(size_t pages, std::vector<Span*>* spans, unsigned size_class = 0) {
  size_t bytes = 0;
  while (Span* span = TakeOrNull(pages, kPageSize, size_class)) {
    Begin(span)[0] = 1;
    Begin(span)[span->bytes() - 1] = 1;
    spans->push_back(span);
    bytes += span->bytes();
  }
  return bytes;
}

void GiveAll(std::vector<Span*>* spans) {
  for (Span* span : *spans) ASSERT_EQ(PageHeap::Give(span), PageResult::kOk);
  spans->clear();
}

TEST(LimitsTest, StartsSmall) {
  InChild([] {
    EXPECT_EQ(pcmalloc_primary_arena.pages, 0u);
    int local;
    EXPECT_EQ(PrimaryClassOf(&local), 0u);
    EXPECT_EQ(SpanOf(&local), nullptr);
    ResidentKiB();
    const size_t before = ResidentKiB();
    Span* span = TakeOrNull(1, kPageSize, 5);
    ASSERT_NE(span, nullptr);
    const size_t after = ResidentKiB();
    EXPECT_LE(after, before + 48);
    EXPECT_TRUE(span->zeroed);
    EXPECT_EQ(PrimaryClassOf(Begin(span)), 5u);
    EXPECT_LE(PageHeap::Stats().committed_bytes, 2 * kMiB);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(pcmalloc_primary_arena.base) % (2 * kMiB), 0u);
    CheckPageHeap();
  });
}

TEST(LimitsTest, AmbitionFollowsTheLimit) {
  EXPECT_EQ(Arenas::Ambition(SIZE_MAX), Arenas::kAmbition);
  EXPECT_EQ(Arenas::Ambition(4 * kGiB), 512 * kMiB);
  EXPECT_EQ(Arenas::Ambition(0), Arenas::kUnit);
}

TEST(LimitsTest, TwoGiBUnderAFourGiBLimitAgainAndAgain) {
  InChild([] {
    SetLimit(RLIMIT_AS, 4 * kGiB);
    for (int i = 0; i < 200; ++i) {
      Span* span = TakeOrNull(Pages((2 + i % 2) * kGiB));  // more than what the last one left
      ASSERT_NE(span, nullptr) << i;
      Begin(span)[0] = 1;
      Begin(span)[span->bytes() - 1] = 1;
      ASSERT_EQ(SpanOf(Begin(span)), span);
      ASSERT_EQ(SpanOf(Begin(span) + span->bytes() - 1), span);
      ASSERT_EQ(PageHeap::Give(span), PageResult::kOk);
      // The program's own mappings find the address space again.
      void* other = mmap(nullptr, 3 * kGiB, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
      ASSERT_NE(other, MAP_FAILED) << i;
      munmap(other, 3 * kGiB);
    }
    CheckPageHeap();
  });
}

TEST(LimitsTest, TheReserveFitsALimitThatComesLater) {
  InChild([] {
    Span* span = TakeOrNull(Pages(40 * kMiB), kPageSize, 5);
    ASSERT_NE(span, nullptr);
    const uint64_t reserved = PageHeap::Stats().reserved_bytes;
    EXPECT_GE(reserved, 64 * kGiB);
    PageHeap::FitAddressSpace();
    EXPECT_EQ(PageHeap::Stats().reserved_bytes, reserved) << "nothing limits it";
    SetLimit(RLIMIT_AS, 4 * kGiB);
    PageHeap::FitAddressSpace();
    const uint64_t fitted = PageHeap::Stats().reserved_bytes;
    EXPECT_LE(fitted, 600 * kMiB);
    EXPECT_GE(fitted, 512 * kMiB);
    // Where its maps ended and behind it others may map; nothing there is taken for a block.
    void* other = mmap(nullptr, 3 * kGiB, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    ASSERT_NE(other, MAP_FAILED);
    munmap(other, 3 * kGiB);
    const char* const base = reinterpret_cast<const char*>(Arenas::at(0).base());
    for (const char* foreign = base; foreign < base + 4 * kGiB; foreign += 5 * kMiB) {
      if (foreign >= Begin(span) && foreign < Begin(span) + span->bytes()) continue;
      ASSERT_EQ(SpanOf(foreign), nullptr) << (foreign - base);
    }
    // Growth, first in what was left of it, then beyond.
    std::vector<Span*> spans;
    spans.reserve(1000);
    for (int i = 0; i < 20; ++i) {
      spans.push_back(TakeOrNull(Pages(100 * kMiB)));
      ASSERT_NE(spans.back(), nullptr) << i;
      ASSERT_EQ(SpanOf(Begin(spans.back())), spans.back());
    }
    EXPECT_GT(Arenas::count(), 1);
    EXPECT_EQ(PrimaryClassOf(Begin(span)), 5u);
    CheckPageHeap();
    GiveAll(&spans);
    ASSERT_EQ(PageHeap::Give(span), PageResult::kOk);
    CheckPageHeap();
  });
}

TEST(LimitsTest, ManyBlocksUpToNearlyTheLimit) {
  for (size_t pages : {size_t{4}, size_t{128}, Pages(100 * kMiB)}) {
    InChild([pages] {
      SetLimit(RLIMIT_AS, 2 * kGiB);
      std::vector<Span*> spans;
      spans.reserve(400000);
      const size_t bytes = FillUp(pages, &spans, pages == 4 ? 9 : 0);
      EXPECT_GE(bytes, pages < 1000 ? 2 * kGiB * 94 / 100 : 2 * kGiB * 70 / 100);
      CheckPageHeap();
      // Addresses in further arenas are found by class and by span.
      for (Span* span : spans) {
        ASSERT_EQ(SpanOf(Begin(span)), span);
        ASSERT_EQ(ClassOf(Begin(span)), pages == 4 ? 9u : 0u);
      }
      EXPECT_GT(Arenas::count(), 4);
      GiveAll(&spans);
      EXPECT_GE(FillUp(pages, &spans), bytes * 95 / 100);
      GiveAll(&spans);
      // Longer than any of the arenas: empty ones have to make room.
      Span* huge = TakeOrNull(Pages(kGiB + 300 * kMiB));
      ASSERT_NE(huge, nullptr);
      ASSERT_EQ(PageHeap::Give(huge), PageResult::kOk);
      CheckPageHeap();
    });
  }
}

TEST(LimitsTest, WorksAgainOnceMemoryIsThere) {
  InChild([] {
    SetLimit(RLIMIT_AS, 64 * kMiB);  // less than the process maps already, or little more
    std::vector<Span*> spans;
    spans.reserve(100000);
    FillUp(16, &spans);
    EXPECT_EQ(TakeOrNull(16), nullptr);
    EXPECT_EQ(TakeOrNull(Pages(kGiB)), nullptr);
    EXPECT_EQ(EmergencyTake(100 * kMiB, 16), nullptr);
    SetLimit(RLIMIT_AS, RLIM_INFINITY);
    Span* span = TakeOrNull(Pages(kGiB));
    ASSERT_NE(span, nullptr);
    ASSERT_EQ(PageHeap::Give(span), PageResult::kOk);
    GiveAll(&spans);
    CheckPageHeap();
  });
}

// RLIMIT_DATA counts what becomes writable, at the mprotect, as strict overcommit does.
TEST(LimitsTest, RefusedCommitmentUsesWhatIsThere) {
  InChild([] {
    Span* first = TakeOrNull(1);
    ASSERT_NE(first, nullptr);
    SetLimit(RLIMIT_DATA, 300 * kMiB);
    std::vector<Span*> spans;
    spans.reserve(100000);
    const size_t bytes = FillUp(32, &spans);
    EXPECT_GE(bytes, 290 * kMiB);   // the last step that fits, not only whole ones
    EXPECT_EQ(Arenas::count(), 1);  // more address space would not have helped
    GiveAll(&spans);
    // A warm range beside a cold one: both together must serve one request.
    PageHeap::Release(SIZE_MAX);
    Span* warm = TakeOrNull(Pages(2 * kMiB));
    ASSERT_NE(warm, nullptr);
    ASSERT_EQ(PageHeap::Give(warm), PageResult::kOk);
    ASSERT_GE(PageHeap::Stats().free_bytes, 2 * kMiB);
    Span* all = TakeOrNull(Pages(bytes - kMiB));
    ASSERT_NE(all, nullptr);
    EXPECT_EQ(PageHeap::Resize(all, Pages(kGiB)), PageResult::kNoMemory);
    ASSERT_EQ(PageHeap::Give(all), PageResult::kOk);
    ASSERT_EQ(PageHeap::Give(first), PageResult::kOk);
    CheckPageHeap();
  });
}

// To make room under the limit what is idle goes back, also what lies behind the block that is to
// grow: its pages need memory again, and more than the limit allows.
TEST(LimitsTest, GrowthInPlaceKeepsTheHardLimit) {
  InChild([] {
    constexpr uint64_t kPart = uint64_t{8} << 20;
    Span* const block = TakeOrNull(64);
    Span* const behind = TakeOrNull(kPart >> kPageShift);
    ASSERT_TRUE(block != nullptr && behind != nullptr);
    ASSERT_EQ(behind->start, block->end());
    memset(Begin(behind), 1, behind->bytes());
    PageHeap::SetIdleLimit(SIZE_MAX);
    ASSERT_EQ(PageHeap::Give(behind), PageResult::kOk);
    ASSERT_GE(PageHeap::Stats().free_bytes, kPart);
    const size_t wanted = 64 + ((kPart + kPart / 8) >> kPageShift);
    const uint64_t limit = PageHeap::Footprint() - kPart / 2;
    PageHeap::SetLimits(UINT64_MAX, limit);
    EXPECT_EQ(PageHeap::Resize(block, wanted), PageResult::kNoMemory);
    EXPECT_LE(PageHeap::Footprint(), limit);
    CheckPageHeap();
    PageHeap::SetLimits(UINT64_MAX, limit + kPart);
    EXPECT_EQ(PageHeap::Resize(block, wanted), PageResult::kOk);
    EXPECT_LE(PageHeap::Footprint(), limit + kPart);
    CheckPageHeap();
  });
}

TEST(LimitsTest, LockedMemoryGoesBack) {
  InChild([] {
    std::vector<Span*> spans;
    for (int i = 0; i < 40; ++i) {
      Span* span = TakeOrNull(Pages(kMiB));
      ASSERT_NE(span, nullptr);
      ASSERT_EQ(mlock(Begin(span), kPageSize), 0);
      memset(Begin(span), 5, span->bytes());
      spans.push_back(span);
    }
    Span* last = TakeOrNull(1);
    GiveAll(&spans);
    PageHeap::Release(SIZE_MAX);
    EXPECT_EQ(PageHeap::Stats().free_bytes, 0u);
    EXPECT_EQ(PageHeap::Stats().returned_bytes + last->bytes() + Arenas::at(0).map_bytes(),
              PageHeap::Stats().committed_bytes);
    CheckPageHeap();
  });
}

// Fault injection: a filter traps mmap, mprotect, mremap and madvise; the handler counts, fails the
// calls it was told to and makes the others itself, marked so that the filter lets them pass.
constexpr unsigned long kMark = 0x70636d61;
volatile sig_atomic_t trapped_calls;
volatile sig_atomic_t fail_from;   // the first call that fails, counted from 0
volatile sig_atomic_t fail_count;  // how many in a row

#if defined(__x86_64__)
constexpr uint32_t kArchitecture = AUDIT_ARCH_X86_64;
constexpr int kArgument[] = {REG_RDI, REG_RSI, REG_RDX, REG_R10, REG_R8, REG_R9};
unsigned long Argument(ucontext_t* context, int i) {
  return context->uc_mcontext.gregs[kArgument[i]];
}
void SetResult(ucontext_t* context, long result) { context->uc_mcontext.gregs[REG_RAX] = result; }
#else
constexpr uint32_t kArchitecture = AUDIT_ARCH_AARCH64;
unsigned long Argument(ucontext_t* context, int i) { return context->uc_mcontext.regs[i]; }
void SetResult(ucontext_t* context, long result) { context->uc_mcontext.regs[0] = result; }
#endif

void Trap(int, siginfo_t* info, void* raw_context) {
  ucontext_t* context = static_cast<ucontext_t*>(raw_context);
  const int saved = errno;
  const int call = trapped_calls;
  trapped_calls = call + 1;
  long result = -ENOMEM;
  if (call < fail_from || call >= fail_from + fail_count) {
    // The mark goes where an anonymous mmap and the shorter calls have an argument that the kernel
    // ignores: the file descriptor's.
    const bool is_mremap = info->si_syscall == SYS_mremap;
    result = syscall(info->si_syscall, Argument(context, 0), Argument(context, 1),
                     Argument(context, 2), Argument(context, 3),
                     is_mremap ? Argument(context, 4) : kMark, is_mremap ? kMark : 0ul);
    if (result == -1) result = -errno;
  }
  errno = saved;
  SetResult(context, result);
}

void InstallTrap() {
  struct sigaction action = {};
  action.sa_sigaction = Trap;
  action.sa_flags = SA_SIGINFO;
  ASSERT_EQ(sigaction(SIGSYS, &action, nullptr), 0);
  constexpr uint32_t kNumber = offsetof(seccomp_data, nr);
  constexpr uint32_t kArch = offsetof(seccomp_data, arch);
  constexpr uint32_t kFd = offsetof(seccomp_data, args) + 4 * 8;
  sock_filter filter[] = {
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, kArch),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, kArchitecture, 0, 6),
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, kNumber),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_mmap, 2, 0),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_mprotect, 1, 0),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_madvise, 0, 2),
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, kFd),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, kMark, 0, 1),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_TRAP),
  };
  const sock_fprog program = {sizeof(filter) / sizeof(filter[0]), filter};
  ASSERT_EQ(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
  ASSERT_EQ(prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program), 0);
}

// Takes, resizes, releases and gives; true if nothing was refused.
bool Workload() {
  bool all = true;
  Span* spans[64] = {};
  size_t n = 0;
  for (size_t pages : {1ul, 100ul, 3ul, Pages(3 * kMiB), 7ul, Pages(40 * kMiB), 500ul}) {
    Span* span = TakeOrNull(pages, pages == 7 ? 4 * kMiB : kPageSize, pages == 3 ? 8 : 0);
    if (span == nullptr) {
      all = false;
      continue;
    }
    if (span->zeroed) {
      for (size_t i = 0; i < span->bytes(); i += 512) EXPECT_EQ(Begin(span)[i], 0);
    }
    memset(Begin(span), 1, span->bytes() < kMiB ? span->bytes() : kMiB);
    spans[n++] = span;
  }
  // May find used pages behind the span, so a refusal says nothing about memory.
  if (n > 0 && spans[n - 1]->state == SpanState::kLarge) {
    PageHeap::Resize(spans[n - 1], spans[n - 1]->pages + 3000);
  }
  for (size_t i = 0; i < n; i += 2) EXPECT_EQ(PageHeap::Give(spans[i]), PageResult::kOk);
  PageHeap::Release(kMiB);
  for (size_t i = 1; i < n; i += 2) EXPECT_EQ(PageHeap::Give(spans[i]), PageResult::kOk);
  PageHeap::Release(SIZE_MAX);
  void* small = EmergencyTake(100, 16);
  void* large = EmergencyTake(100000, 16);
  all = all && small != nullptr && large != nullptr;
  if (small != nullptr) EmergencyGive(small);
  if (large != nullptr) EmergencyGive(large);
  return all;
}

TEST(LimitsTest, EveryCallFailsOnceInTurn) {
  int calls = 1;
  size_t refused = 0;
  for (int at = 0; at < calls; ++at) {
    for (int in_a_row : {1, 3, 1000}) {
      int pipe_ends[2];
      ASSERT_EQ(pipe(pipe_ends), 0);
      InChild([&] {
        InstallTrap();
        fail_from = at;
        fail_count = in_a_row;
        trapped_calls = 0;
        int result[2];
        result[1] = Workload() ? 0 : 1;
        result[0] = trapped_calls;
        ASSERT_EQ(write(pipe_ends[1], result, sizeof(result)), ssize_t(sizeof(result)));
        fail_count = 0;
        CheckPageHeap();
        EXPECT_TRUE(Workload()) << "after call " << at << " failed";
        CheckPageHeap();
        EXPECT_EQ(PageHeap::Stats().spans, 0u);
      });
      int result[2] = {};
      ASSERT_EQ(read(pipe_ends[0], result, sizeof(result)), ssize_t(sizeof(result)));
      close(pipe_ends[0]);
      close(pipe_ends[1]);
      if (in_a_row == 1) calls = result[0];
      refused += result[1];
      if (HasFailure()) return;
    }
  }
  EXPECT_GT(calls, 15);
  EXPECT_GT(refused, 0u);
}

TEST(LimitsTest, NothingAtAllFromTheKernel) {
  InChild([] {
    InstallTrap();
    fail_count = 1 << 30;
    for (int i = 0; i < 100; ++i) {
      ASSERT_EQ(TakeOrNull(1), nullptr);
      ASSERT_EQ(TakeOrNull(Pages(kGiB), 2 * kMiB), nullptr);
      ASSERT_EQ(EmergencyTake(16, 16), nullptr);
      ASSERT_EQ(EmergencyTake(1 << 20, 16), nullptr);
    }
    EXPECT_GT(trapped_calls, 0);
    int local;
    EXPECT_EQ(SpanOf(&local), nullptr);
    CheckPageHeap();
    fail_count = 0;
    EXPECT_NE(TakeOrNull(1), nullptr);
    EXPECT_NE(EmergencyTake(16, 16), nullptr);
    CheckPageHeap();
  });
}

}  // namespace
}  // namespace pcmalloc
