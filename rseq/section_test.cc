// SPDX-License-Identifier: Apache-2.0
//
// The kernel's promise itself, with the smallest possible section: what interrupts it and how soon.
#include <pthread.h>
#include <sched.h>
#include <string.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <thread>
#include <vector>

#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "gtest/gtest.h"
#include "rseq/arch/x86_64.h"
#include "rseq/rseq.h"
#include "rseq/sections.h"
#include "tests/support/affinity.h"

namespace pcmalloc::rseq {
namespace {

using testing::AllowedCpus;
using testing::PinTo;

// Spins inside a section. True: aborted there; false: `stop` was set.
//
//   section: entered = 1; while (stop == 0) {}; commit: (nothing)
__attribute__((noinline)) bool SpinInSection(std::atomic<int>* entered, std::atomic<int>* stop) {
  asm goto volatile(
      PCM_RSEQ_DESCRIPTOR(".Lspin_cs%=", ".Lspin_start%=", ".Lspin_commit%=", ".Lspin_abort%=")
      PCM_RSEQ_ARM(".Lspin_cs%=", "%%rax", "%[area]")
      ".Lspin_start%=:\n\t"
      "movl $1, (%[entered])\n"
      ".Lspin_again%=:\n\t"
      "cmpl $0, (%[stop])\n\t"
      "je .Lspin_again%=\n"
      ".Lspin_commit%=:\n\t"
      PCM_RSEQ_ABORT(".Lspin_abort%=", "%l[aborted]")
      :
      : [area] "r"(pcmalloc_rseq_offset), [entered] "r"(entered), [stop] "r"(stop)
      : "rax", "memory", "cc"
      : aborted);
  return false;
aborted:
  return true;
}

// cpu_id as a section reads it.
__attribute__((noinline)) long IndexInSection() {
  long index;
  asm volatile(PCM_RSEQ_LOAD_INDEX("4", "%[area]", "%[index]")
               : [index] "=r"(index)
               : [area] "r"(pcmalloc_rseq_offset));
  return index;
}

// How long sections on `spin_cpu` live after `disturb` was called on `own_cpu`, in ascending order;
// each round ends after `patience` at the latest.
template <typename Disturb>
std::vector<absl::Duration> Lives(int own_cpu, int spin_cpu, absl::Duration patience,
                                  Disturb disturb) {
  std::vector<absl::Duration> lives;
  std::thread([&] {
    PinTo(own_cpu);
    for (int round = 0; round < 41; ++round) {
      std::atomic<int> entered{0}, stop{0};
      std::atomic<bool> left{false};
      std::thread spinner([&] {
        PinTo(spin_cpu);
        EXPECT_TRUE(EnsureThreadRegistered());
        SpinInSection(&entered, &stop);
        left = true;
      });
      while (entered == 0) {
      }
      const absl::Time begin = absl::Now();
      disturb();
      while (!left && absl::Now() - begin < patience) {
      }
      lives.push_back(absl::Now() - begin);
      stop = 1;
      spinner.join();
    }
  }).join();
  std::sort(lives.begin(), lives.end());
  return lives;
}

class FenceTest : public ::testing::Test {
 protected:
  void SetUp() override {
    if (Discover().owner == Owner::kNone) GTEST_SKIP() << Discover().reason;
    if (!Discover().fence_available) GTEST_SKIP() << "no fence here: " << Discover().fence_error;
    const std::vector<int> cpus = AllowedCpus();
    if (cpus.size() < 2) GTEST_SKIP() << "needs two CPUs";
    own_cpu_ = cpus[0];
    spin_cpu_ = cpus[1];
  }

  // Preemption aborts sections too, on a busy machine within half a millisecond. So a fence counts
  // as one that aborts if most sections end sooner than this, and as one that does not if some live
  // on in one of a few attempts: a fence that strikes strikes every time.
  static constexpr absl::Duration kSoon = absl::Microseconds(150);
  static constexpr int kAttempts = 5;

  template <typename Disturb>
  void ExpectAborts(Disturb disturb) {
    const auto lives = Lives(own_cpu_, spin_cpu_, absl::Seconds(2), disturb);
    printf("fence to abort: median %s\n", absl::FormatDuration(lives[lives.size() / 2]).c_str());
    EXPECT_LT(lives[lives.size() / 2], kSoon);
  }

  template <typename Disturb>
  void ExpectLeavesAlone(Disturb disturb) {
    absl::Duration longer_lived;
    for (int i = 0; i < kAttempts && longer_lived < kSoon; ++i) {
      const auto lives = Lives(own_cpu_, spin_cpu_, kSoon, disturb);
      longer_lived = lives[lives.size() * 3 / 4];
    }
    EXPECT_GE(longer_lived, kSoon);
  }

  int own_cpu_ = -1;
  int spin_cpu_ = -1;
};

TEST_F(FenceTest, WithoutOneASectionLivesOn) {
  ExpectLeavesAlone([] {});
}

TEST_F(FenceTest, OfItsCpuAbortsASection) {
  ExpectAborts([this] { EXPECT_TRUE(FenceCpu(spin_cpu_)); });
}

TEST_F(FenceTest, OfAllCpusAbortsASection) {
  ExpectAborts([] { EXPECT_TRUE(FenceAll()); });
}

TEST_F(FenceTest, OfAnotherCpuLeavesASectionAlone) {
  if (!Discover().fence_one_cpu) GTEST_SKIP() << "this kernel fences all CPUs or none";
  ExpectLeavesAlone([this] { EXPECT_TRUE(FenceCpu(own_cpu_)); });
}

TEST_F(FenceTest, OfAnAbsentCpuIsHarmless) {
  if (!Discover().fence_one_cpu) GTEST_SKIP() << "this kernel fences all CPUs or none";
  const int absent = static_cast<int>(Discover().cpu_bound) + 7;
  ExpectLeavesAlone([absent] { EXPECT_TRUE(FenceCpu(absent)); });
}

TEST(Section, IndexIsTheCpuItRunsOn) {
  if (!EnsureThreadRegistered()) GTEST_SKIP() << Discover().reason;
  const std::vector<int> cpus = AllowedCpus();
  std::thread([&cpus] {
    ASSERT_TRUE(EnsureThreadRegistered());
    for (const int cpu : cpus) {
      PinTo(cpu);
      EXPECT_EQ(IndexInSection(), cpu);
      EXPECT_EQ(CurrentCpu(), cpu);
    }
  }).join();
}

TEST(Section, ForgetSectionsDisarms) {
  if (!EnsureThreadRegistered()) GTEST_SKIP() << Discover().reason;
  Area* const area = ThisArea();
  // The kernel clears rseq_cs by itself when it preempts between the two statements.
  for (int i = 0; i < 100 && area->rseq_cs == 0; ++i) {
    std::atomic<int> entered{0}, stop{1};
    SpinInSection(&entered, &stop);
  }
  EXPECT_EQ(__atomic_load_n(&area->rseq_cs, __ATOMIC_RELAXED),
            SectionsBegin()->DescriptorAddress());
  ForgetSections();
  EXPECT_EQ(__atomic_load_n(&area->rseq_cs, __ATOMIC_RELAXED), 0u);
}

// The table says what the kernel will read: it is checked against the descriptors and the code.
TEST(Section, TableListsThisBinarysOnlySection) {
  ASSERT_EQ(SectionsEnd() - SectionsBegin(), 1);
  const SectionEntry& entry = *SectionsBegin();
  EXPECT_EQ(entry.DescriptorAddress() % 32, 0u);
  struct {
    uint32_t version, flags;
    uint64_t start, length, abort;
  } descriptor;
  memcpy(&descriptor, reinterpret_cast<void*>(entry.DescriptorAddress()), sizeof(descriptor));
  EXPECT_EQ(descriptor.version, 0u);
  EXPECT_EQ(descriptor.flags, 0u);
  EXPECT_EQ(descriptor.start, entry.StartAddress());
  EXPECT_EQ(descriptor.start + descriptor.length, entry.CommitAddress());
  EXPECT_EQ(descriptor.abort, entry.AbortAddress());
  EXPECT_GT(descriptor.length, 0u);
  EXPECT_TRUE(descriptor.abort < descriptor.start ||
              descriptor.abort >= descriptor.start + descriptor.length);
  uint32_t signature;
  memcpy(&signature, reinterpret_cast<void*>(descriptor.abort - 4), sizeof(signature));
  EXPECT_EQ(signature, kSignature);
}

}  // namespace
}  // namespace pcmalloc::rseq
