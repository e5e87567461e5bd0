// SPDX-License-Identifier: Apache-2.0
//
// A thread is stopped at each instruction of each critical section in turn, and something else
// happens to the slab it works on before it may go on. Up to its commit the thread must be aborted
// and do its work anew on what it then finds; behind it, it must be left alone. In either case no
// item may be lost or doubled.
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#include <map>
#include <set>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "gtest/gtest.h"
#include "percpu/ops.h"
#include "rseq/rseq.h"
#include "rseq/sections.h"
#include "tests/instructions/model.h"
#include "tests/instructions/subject.h"
#include "tests/instructions/tracer.h"

namespace pcmalloc::instructions {
namespace {

using percpu::Mode;
using rseq::SectionEntry;
using rseq::SectionsBegin;
using rseq::SectionsEnd;

// Set in the process that registers an area of its own.
constexpr char kOwnArea[] = "PCM_INSTRUCTIONS_OWN_AREA";
// Set where the first stop that goes wrong is enough, as in a build with a fault: the test ends
// there, and its line "PCM noticed=" says which instruction it was.
constexpr char kFirstOnly[] = "PCM_INSTRUCTIONS_FIRST_ONLY";

enum class Actor : uint8_t {
  kOtherThread,  // on the same CPU
  kOtherCpu,     // a thread on another one
  kHandler,      // a signal handler of the victim
  kMigration,    // a thread on the same CPU, while the victim is moved to another one
};

struct Disturbance {
  Actor actor;
  Kind kind;
  const char* name;
};

constexpr Disturbance kDisturbances[] = {
    {Actor::kOtherThread, Kind::kNothing, "nothing"},
    {Actor::kOtherThread, Kind::kPop, "a pop"},
    {Actor::kOtherThread, Kind::kPush, "a push"},
    {Actor::kOtherThread, Kind::kPopBatch, "a batch popped"},
    {Actor::kOtherThread, Kind::kPushBatch, "a batch pushed"},
    {Actor::kOtherThread, Kind::kSetCapacity, "another capacity"},
    {Actor::kOtherThread, Kind::kDrain, "a drain"},
    {Actor::kOtherThread, Kind::kResize, "a resize"},
    {Actor::kOtherThread, Kind::kHold, "a stop"},
    {Actor::kOtherCpu, Kind::kDrain, "a drain from another CPU"},
    {Actor::kOtherCpu, Kind::kResize, "a resize from another CPU"},
    {Actor::kOtherCpu, Kind::kHold, "a stop from another CPU"},
    {Actor::kHandler, Kind::kPop, "a pop in a signal handler"},
    {Actor::kHandler, Kind::kPush, "a push in a signal handler"},
    {Actor::kHandler, Kind::kPopBatch, "a batch popped in a signal handler"},
    {Actor::kHandler, Kind::kPushBatch, "a batch pushed in a signal handler"},
    {Actor::kHandler, Kind::kSetCapacity, "another capacity in a signal handler"},
    {Actor::kMigration, Kind::kNothing, "a migration"},
    {Actor::kMigration, Kind::kPop, "a migration and a pop"},
    {Actor::kMigration, Kind::kPush, "a migration and a push"},
};

// What the kernel hands out as mm_cid depends on how many threads there are. Before 6.19 a number
// stays with its CPU. Since then it stays with its thread while there are no more threads than
// CPUs, so that it survives a migration and no two threads ever meet on a slab; with more it stays
// with its CPU.
struct Setting {
  Mode mode;
  int sleepers;
};
constexpr int kSleepers = 8;
// A round where the kernel changes an mm_cid behind our back is made anew, so often at most.
constexpr int kAttempts = 5;

struct Section {
  const SectionEntry* entry;
  SectionCode code;
  std::set<uintptr_t> stopped_at;
  bool reached = false;
};

std::string NameOf(const SectionEntry* entry) {
  return absl::StrFormat("section %d of the table", entry - SectionsBegin());
}

class InstructionsTest : public ::testing::Test {
 protected:
  void SetUp() override {
    own_area_ = getenv(kOwnArea) != nullptr;
    if (own_area_) rseq::RequestLength32();
    if (rseq::Discover().owner == rseq::Owner::kNone) GTEST_SKIP() << rseq::Discover().reason;
    if (!rseq::Discover().fence_available) GTEST_SKIP() << "there is no fence here";
    cpu_set_t allowed;
    ASSERT_EQ(sched_getaffinity(0, sizeof(allowed), &allowed), 0);
    int found = 0;
    for (int cpu = 0; cpu < CPU_SETSIZE && found < 2; ++cpu) {
      if (CPU_ISSET(cpu, &allowed)) cpus_[found++] = cpu;
    }
    if (found < 2) GTEST_SKIP() << "needs two CPUs";
    settings_ = {{Mode::kCpuId, 0}};
    if (rseq::Discover().mm_cid_maintained) {
      settings_.push_back({Mode::kMmCid, 0});
      // Where the number comes from does not depend on whose area it is written to.
      if (!own_area_) settings_.push_back({Mode::kMmCid, kSleepers});
    }
    if (rseq::Discover().cached_word && percpu::kHasCachedOps && KernelRewrites()) {
      settings_.push_back({Mode::kCached, 0});
    }

    Tracer tracer(Mode::kCpuId, cpus_, 0);
    tracer.Tell(Command::kPrepare);
    if (!tracer.RunTo(-1, reinterpret_cast<uintptr_t>(&BreakpointProbe))) {
      GTEST_SKIP() << "this machine has no hardware breakpoints: NOTHING IS TESTED HERE";
    }
  }

  // Whether a thread that slept finds the kernel's number in cpu_id_start again.
  static bool KernelRewrites() {
    if (!rseq::EnsureThreadRegistered()) return false;
    constexpr uint32_t kMarker = 0x7fffffff;
    rseq::Area* const area = rseq::ThisArea();
    __atomic_store_n(&area->cpu_id_start, kMarker, __ATOMIC_RELAXED);
    usleep(1000);
    return __atomic_load_n(&area->cpu_id_start, __ATOMIC_RELAXED) != kMarker;
  }

  bool Drives(Mode mode) const {
    for (const Setting& setting : settings_) {
      if (setting.mode == mode) return true;
    }
    return false;
  }

  // One stop of the victim at one place. False if its operation does not come there.
  bool Stop(Tracer& tracer, int operation, bool several, const Section& section, uintptr_t address,
            const Disturbance& disturbance) {
    for (int attempt = 0; attempt < kAttempts; ++attempt) {
      bool elsewhere = false;
      if (!StopOnce(tracer, operation, several, section, address, disturbance, &elsewhere)) {
        return false;
      }
      if (!elsewhere) return true;
      ++repeated_;
    }
    ADD_FAILURE() << Operations(tracer.shared().mode)[static_cast<size_t>(operation)].name
                  << " stopped at " << static_cast<long>(address - section.entry->StartAddress())
                  << " in " << NameOf(section.entry) << ", " << disturbance.name
                  << ": not on the slab of the victim's mm_cid, " << kAttempts << " times";
    return true;
  }

  bool StopOnce(Tracer& tracer, int operation, bool several, const Section& section,
                uintptr_t address, const Disturbance& disturbance, bool* elsewhere) {
    Shared& shared = tracer.shared();
    const bool committed = address == section.entry->CommitAddress();
    const bool inside = !committed && address >= section.entry->StartAddress();
    const bool migrated = disturbance.actor == Actor::kMigration;
    const Operation& run = Operations(shared.mode)[static_cast<size_t>(operation)];
    tracer.MoveVictimTo(cpus_[0]);
    bool reached = false;
    // The victim may lose its cached pointer on the way there, and do nothing.
    for (int attempt = shared.mode == Mode::kCached ? 10 : 1; attempt > 0 && !reached; --attempt) {
      tracer.Tell(Command::kPrepare);
      reached = tracer.RunTo(operation, address);
    }
    if (!reached) return false;
    ++rounds_;
    const int at_stop = tracer.VictimSlab();

    shared.conflict = disturbance.kind;
    shared.from_other_cpu = disturbance.actor == Actor::kOtherCpu;
    if (disturbance.actor == Actor::kHandler) {
      tracer.SignalVictim();
    } else {
      tracer.Tell(Command::kConflict);
    }
    if (migrated) tracer.MoveVictimTo(cpus_[1]);
    const int aborted = tracer.Finish(section.entry->AbortAddress());
    const int at_end = tracer.VictimSlab();
    if (disturbance.kind == Kind::kHold) tracer.Tell(Command::kRelease);
    tracer.Tell(Command::kObserve);

    const Verdict verdict =
        Judge({run.kind, disturbance.kind, committed, several, at_stop, at_end}, shared);
    std::string wrong = verdict.wrong;
    *elsewhere = verdict.elsewhere;
    if (disturbance.kind != Kind::kNothing && !migrated) {
      ++conflicts_;
      conflicts_on_one_slab_ += verdict.same_slab ? 1 : 0;
    }
    if (migrated) ++(at_stop == at_end ? migrations_with_index_ : migrations_to_other_index_);
    if (shared.mode != Mode::kMmCid && (at_stop != 0 || at_end != (migrated ? 1 : 0))) {
      absl::StrAppend(&wrong, " on slab ", at_stop, ", then ", at_end, ";");
    }
    if (shared.failed) absl::StrAppend(&wrong, " the other thread was refused;");
    if (committed && aborted != 0) absl::StrAppend(&wrong, " aborted after its commit;");
    if (inside && aborted == 0) absl::StrAppend(&wrong, " not aborted;");
    if (shared.aborts < static_cast<uint64_t>(aborted)) {
      absl::StrAppend(&wrong, " aborts were not counted;");
    }
    if (!wrong.empty()) {
      const std::string place =
          absl::StrFormat("%s%s stopped at %d of %d in %s, %s: %s", run.name,
                          shared.mode == Mode::kMmCid ? " by mm_cid" : "",
                          static_cast<long>(address - section.entry->StartAddress()),
                          section.entry->CommitAddress() - section.entry->StartAddress(),
                          NameOf(section.entry), disturbance.name, wrong);
      ADD_FAILURE() << place;
      if (first_only_) printf("PCM noticed=%s\n", place.c_str());
    }
    return true;
  }

  bool own_area_ = false;
  const bool first_only_ = getenv(kFirstOnly) != nullptr;
  int cpus_[2] = {};
  std::vector<Setting> settings_;
  long rounds_ = 0;
  long repeated_ = 0;
  long migrations_with_index_ = 0;
  long migrations_to_other_index_ = 0;
  long conflicts_ = 0;
  long conflicts_on_one_slab_ = 0;
};

TEST_F(InstructionsTest, EveryOneOfEverySection) {
  const Disassembly disassembly;
  std::vector<Section> sections;
  for (const SectionEntry* entry = SectionsBegin(); entry != SectionsEnd(); ++entry) {
    sections.push_back({entry, disassembly.CodeOf(*entry), {}});
    const SectionCode& code = sections.back().code;
    ASSERT_GE(code.instructions.size(), 3u) << "objdump does not show " << NameOf(entry);
    ASSERT_EQ(code.instructions.front(), entry->StartAddress());
    ASSERT_EQ(code.instructions.back(), entry->CommitAddress());
    ASSERT_FALSE(code.prelude.empty()) << "where does an abort of " << NameOf(entry) << " lead?";
  }
  ASSERT_FALSE(sections.empty());

  for (const auto& [mode, sleepers] : settings_) {
    Tracer tracer(mode, cpus_, sleepers);
    const int operations = static_cast<int>(Operations(mode).size());
    // Which operation executes which sections.
    std::vector<std::vector<Section*>> executed(static_cast<size_t>(operations));
    for (int operation = 0; operation < operations; ++operation) {
      for (Section& section : sections) {
        tracer.MoveVictimTo(cpus_[0]);
        for (int attempt = 0; attempt < 10; ++attempt) {
          tracer.Tell(Command::kPrepare);
          if (!tracer.RunTo(operation, section.entry->StartAddress())) continue;
          tracer.Finish(0);
          section.reached = true;
          EXPECT_EQ(section.code.by_mm_cid, mode == Mode::kMmCid) << NameOf(section.entry);
          executed[static_cast<size_t>(operation)].push_back(&section);
          break;
        }
      }
    }
    for (int operation = 0; operation < operations; ++operation) {
      const std::vector<Section*>& own = executed[static_cast<size_t>(operation)];
      for (Section* section : own) {
        std::vector<uintptr_t> addresses = section->code.prelude;
        addresses.insert(addresses.end(), section->code.instructions.begin(),
                         section->code.instructions.end());
        for (const uintptr_t address : addresses) {
          for (const Disturbance& disturbance : kDisturbances) {
            if (Stop(tracer, operation, own.size() > 1, *section, address, disturbance)) {
              section->stopped_at.insert(address);
            }
            if (first_only_ && HasFailure()) return;
          }
        }
      }
    }
  }

  size_t instructions = 0;
  const bool all_by_number = Drives(Mode::kCached) || !percpu::kHasCachedOps;
  for (const Section& section : sections) {
    if (!section.reached && (!all_by_number || (section.code.by_mm_cid && !Drives(Mode::kMmCid)))) {
      // The run with an area of our own has all modes that this kernel allows for; before 6.3 there
      // is no mm_cid.
      printf("%s: not driven in this mode of registration\n", NameOf(section.entry).c_str());
      continue;
    }
    EXPECT_TRUE(section.reached) << "no operation executes " << NameOf(section.entry)
                                 << ": Operations() lacks one";
    for (const uintptr_t address : section.code.instructions) {
      ++instructions;
      EXPECT_TRUE(section.stopped_at.count(address) != 0)
          << "no operation comes to +" << address - section.entry->StartAddress() << " of "
          << NameOf(section.entry);
    }
  }
  printf("%zu sections, %zu instructions, %ld stops, %ld of %ld conflicts on the same slab\n",
         sections.size(), instructions, rounds_, conflicts_on_one_slab_, conflicts_);
  printf("PCM moved=%ld\nPCM moved_with_index=%ld\nPCM anew=%ld\n", migrations_to_other_index_,
         migrations_with_index_, repeated_);
  EXPECT_LE(repeated_, rounds_ / 20);
  // By cpu_id always; by mm_cid most of the time, as the kernel keeps the number on its CPU.
  EXPECT_GT(conflicts_on_one_slab_, conflicts_ * 3 / 4);
}

// The same in a process whose C library does not register: with an area of this library's own, and
// with the sections of the legacy scheme.
TEST_F(InstructionsTest, AndInAnAreaOfOurOwn) {
  if (own_area_) GTEST_SKIP() << "is that process";
  if (!percpu::kHasCachedOps) GTEST_SKIP() << "no legacy scheme on this architecture";
  fflush(nullptr);
  const pid_t child = fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    setenv(kOwnArea, "1", 1);
    setenv("GLIBC_TUNABLES", "glibc.pthread.rseq=0", 1);
    for (const char* name : {"XML_OUTPUT_FILE", "TEST_PREMATURE_EXIT_FILE", "GTEST_OUTPUT"}) {
      unsetenv(name);
    }
    execl("/proc/self/exe", "instructions",
          "--gtest_filter=InstructionsTest.EveryOneOfEverySection", nullptr);
    _exit(127);
  }
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << "status " << status;
}

}  // namespace
}  // namespace pcmalloc::instructions
