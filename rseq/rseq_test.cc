// SPDX-License-Identifier: Apache-2.0
//
// Starts rseq/testing/probe in fresh processes, one for each way that a process can find rseq, and
// checks what it printed.
#include "rseq/rseq.h"

#include <errno.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <map>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace pcmalloc::rseq {
namespace {

using ::testing::HasSubstr;

// A system call that the started process shall get an error for.
struct Refusal {
  int system_call;
  int error;  // 0: report success and do nothing
};

// Refuses from the next exec on, and for the rest of this process.
void InstallFilter(const std::vector<Refusal>& refusals) {
  std::vector<sock_filter> program;
  program.push_back(BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, nr)));
  for (const Refusal& refusal : refusals) {
    program.push_back(
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, static_cast<uint32_t>(refusal.system_call), 0, 1));
    program.push_back(BPF_STMT(BPF_RET | BPF_K, static_cast<uint32_t>(SECCOMP_RET_ERRNO) |
                                                    static_cast<uint32_t>(refusal.error)));
  }
  program.push_back(BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW));
  sock_fprog filter = {static_cast<unsigned short>(program.size()), program.data()};
  if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0 ||
      prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &filter) != 0) {
    perror("seccomp");
    _exit(126);
  }
}

struct Setting {
  std::string binary = "probe";
  bool libc_registers = true;
  std::vector<Refusal> refusals = {};
};

class Answers {
 public:
  explicit Answers(const std::string& output) {
    for (const auto line : absl::StrSplit(output, '\n', absl::SkipEmpty())) {
      const std::pair<std::string, std::string> entry =
          absl::StrSplit(line, absl::MaxSplits('=', 1));
      values_.insert(entry);
    }
  }

  long operator[](const std::string& key) const {
    const auto found = values_.find(key);
    long value = -999;
    if (found == values_.end() || !absl::SimpleAtoi(found->second, &value)) {
      ADD_FAILURE() << "the probe did not print " << key;
    }
    return value;
  }

  std::string reason() const {
    const auto found = values_.find("reason");
    return found == values_.end() ? "" : found->second;
  }

 private:
  std::map<std::string, std::string> values_;
};

Answers Probe(const Setting& setting, const std::string& looks) {
  int ends[2];
  if (pipe(ends) != 0) ADD_FAILURE() << "pipe";
  const bool absolute = absl::StartsWith(setting.binary, "/");
  const std::string binary = absl::StrCat(absolute ? "" : "rseq/testing/", setting.binary);
  const pid_t child = fork();
  if (child == 0) {
    dup2(ends[1], STDOUT_FILENO);
    close(ends[0]);
    close(ends[1]);
    if (!setting.libc_registers) setenv("GLIBC_TUNABLES", "glibc.pthread.rseq=0", 1);
    if (!setting.refusals.empty()) InstallFilter(setting.refusals);
    execl(binary.c_str(), binary.c_str(), looks.c_str(), nullptr);
    _exit(127);
  }
  close(ends[1]);
  std::string output;
  char buffer[4096];
  for (ssize_t n; (n = read(ends[0], buffer, sizeof(buffer))) > 0;) output.append(buffer, n);
  close(ends[0]);
  int status = -1;
  waitpid(child, &status, 0);
  EXPECT_EQ(status, 0) << binary << " " << looks;
  return Answers(output);
}

void ExpectErrnoKept(const Answers& answers) {
  EXPECT_EQ(answers["errno_after_discover"], 77);
  EXPECT_EQ(answers["errno_after_fence"], 78);
}

void ExpectFence(const Answers& answers) {
  EXPECT_EQ(answers["fence_available"], 1);
  EXPECT_EQ(answers["fence_one_cpu"], 1);
  EXPECT_EQ(answers["fence_error"], 0);
  EXPECT_EQ(answers["fence_cpu"], 1);
  EXPECT_EQ(answers["fence_absent_cpu"], 1);
  EXPECT_EQ(answers["fence_all"], 1);
}

class EveryLinkage : public ::testing::TestWithParam<const char*> {};

INSTANTIATE_TEST_SUITE_P(Rseq, EveryLinkage,
                         ::testing::Values("probe", "probe_static", "probe_static_pie",
                                           "probe_shared"),
                         [](const auto& info) { return std::string(info.param); });

TEST_P(EveryLinkage, ThreadReadsAsUnregisteredBeforeAnythingRuns) {
  const Answers answers = Probe({.binary = GetParam()}, "initial");
  EXPECT_EQ(answers["initial_offset"], 0);
  EXPECT_NE(answers["initial_area_offset"], 0);
  EXPECT_EQ(answers["initial_cpu_id"], -1);
}

TEST_P(EveryLinkage, SharesTheAreaOfTheCLibrary) {
  const Answers answers = Probe({.binary = GetParam()}, "discover,threads");
  if (answers["libc_size"] == 0) GTEST_SKIP() << "this C library does not register rseq";
  EXPECT_EQ(answers["owner"], static_cast<long>(Owner::kLibc));
  EXPECT_EQ(answers["offset"], answers["libc_offset"]);
  // glibc before 2.41 registers 32 bytes, later ones as many as the kernel has features.
  EXPECT_THAT(answers["registered_length"],
              ::testing::AnyOf(32, std::max(32L, answers["feature_size"])));
  EXPECT_EQ(answers["cached_word"], 0);
  EXPECT_GE(answers["cpu_id"], 0);
  EXPECT_EQ(answers["same_answer"], 1);
  EXPECT_EQ(answers["cpu_bound"], 8 * answers["kernel_mask_bytes"]);
  EXPECT_GE(answers["cpu_bound"], sysconf(_SC_NPROCESSORS_CONF));
  EXPECT_THAT(answers.reason(), HasSubstr("the C library registered in every thread"));
  ExpectFence(answers);
  ExpectErrnoKept(answers);
  EXPECT_EQ(answers["threads_before_valid"], 1000);
  EXPECT_EQ(answers["threads_usable"], 1000);
}

TEST_P(EveryLinkage, RegistersItsOwnAreaThreadByThread) {
  const Answers answers =
      Probe({.binary = GetParam(), .libc_registers = false}, "discover,threads");
  EXPECT_EQ(answers["owner"], static_cast<long>(Owner::kOwn));
  EXPECT_LT(answers["offset"], 0);
  EXPECT_GE(answers["registered_length"], 32);
  EXPECT_EQ(answers["line_rest"], answers["registered_length"] == 32 ? 32 : 0);
  EXPECT_EQ(answers["cached_word"], answers["registered_length"] == 32);
  EXPECT_EQ(answers["registered_length"], std::max(32L, answers["feature_size"]));
  EXPECT_GE(answers["cpu_id"], 0);
  EXPECT_THAT(answers.reason(), HasSubstr("own rseq area"));
  ExpectFence(answers);
  ExpectErrnoKept(answers);
  EXPECT_EQ(answers["threads_started"], 1000);
  EXPECT_EQ(answers["threads_before_uninitialized"], 1000);
  EXPECT_EQ(answers["threads_usable"], 1000);
  EXPECT_EQ(answers["threads_after_valid"], 1000);
  EXPECT_EQ(answers["threads_signals_blocked"], 0);
  EXPECT_EQ(answers["threads_errno_changed"], 0);
}

TEST_P(EveryLinkage, RegistersExactly32BytesOnRequest) {
  const Answers answers = Probe({.binary = GetParam(), .libc_registers = false},
                                "feature33,request32,discover,threads");
  EXPECT_EQ(answers["request32"], 1);
  EXPECT_EQ(answers["owner"], static_cast<long>(Owner::kOwn));
  EXPECT_EQ(answers["registered_length"], 32);
  EXPECT_EQ(answers["cached_word"], 1);
  EXPECT_EQ(answers["line_rest"], 32);
  EXPECT_EQ(answers["threads_usable"], 1000);
}

TEST_P(EveryLinkage, RegistersAsManyBytesAsTheKernelHasFeatures) {
  const Answers answers = Probe({.binary = GetParam(), .libc_registers = false},
                                "feature33,discover,threads,fork,unregister,end");
  if (answers["feature_size"] == 0) GTEST_SKIP() << "this kernel names no feature size";
  EXPECT_EQ(answers["feature_size"], 33);
  EXPECT_EQ(answers["owner"], static_cast<long>(Owner::kOwn));
  EXPECT_EQ(answers["registered_length"], 33);
  EXPECT_EQ(answers["cached_word"], 0);
  EXPECT_EQ(answers["line_rest"], 0);
  EXPECT_GE(answers["cpu_id"], 0);
  EXPECT_EQ(answers["threads_before_uninitialized"], 1000);
  EXPECT_EQ(answers["threads_usable"], 1000);
  EXPECT_EQ(answers["forked_usable"], 1);
  EXPECT_EQ(answers["unregister_cpu_id"], -2);
  EXPECT_EQ(answers["end_cpu_id_3"], -2);
}

TEST(Registration, RequestFor32BytesLeavesTheCLibrarysAlone) {
  const Answers answers = Probe({}, "request32,discover");
  EXPECT_EQ(answers["owner"], static_cast<long>(Owner::kLibc));
  EXPECT_EQ(answers["cached_word"], 0);
}

TEST(Registration, RequestFor32BytesMayComeTooLate) {
  EXPECT_EQ(Probe({.libc_registers = false}, "discover,request32")["request32"], 0);
}

TEST(Registration, SurvivesFork) {
  for (const bool libc_registers : {true, false}) {
    const Answers answers = Probe({.libc_registers = libc_registers}, "discover,fork");
    EXPECT_EQ(answers["forked_status"], 0);
    EXPECT_EQ(answers["forked_cpu_id_follows"], 1);
    EXPECT_EQ(answers["forked_usable"], 1);
    EXPECT_EQ(answers["forked_fence"], 1);
    EXPECT_EQ(answers["forked_thread_usable"], 1);
  }
}

TEST(Registration, VforkChildDoesNotTakeItsParentsArea) {
  const Answers answers = Probe({.libc_registers = false}, "vfork");
  EXPECT_EQ(answers["vfork_before_cpu_id"], -1);
  EXPECT_EQ(answers["vfork_child_usable"], 0);
  EXPECT_EQ(answers["vfork_parent_cpu_id"], -1);
  EXPECT_EQ(answers["vfork_parent_usable"], 1);
  EXPECT_EQ(answers["vfork_parent_cpu_id_follows"], 1);
}

TEST(Registration, IsUndoneForAThreadThatEnds) {
  const Answers answers = Probe({.libc_registers = false}, "unregister");
  EXPECT_EQ(answers["unregister_before"], 1);
  EXPECT_EQ(answers["unregister_cpu_id"], -2);
  EXPECT_EQ(answers["unregister_usable"], 0);
}

TEST(Registration, OutlivesOnePassOfDestructors) {
  for (const std::string look : {"end", "end_unregistered"}) {
    const Answers answers = Probe({.libc_registers = false}, look);
    EXPECT_EQ(answers["end_usable_1"], 1) << look;
    EXPECT_EQ(answers["end_usable_2"], look == "end" ? 0 : 1) << look;
    EXPECT_EQ(answers["end_usable_3"], 0) << look;
    EXPECT_EQ(answers["end_cpu_id_3"], -2) << look;
  }
}

TEST(Registration, OfTheCLibraryIsNeverUndone) {
  const Answers answers = Probe({}, "unregister");
  EXPECT_EQ(answers["unregister_before"], 1);
  EXPECT_GE(answers["unregister_cpu_id"], 0);
  EXPECT_EQ(answers["unregister_usable"], 1);
}

// The objects that everybody gets, linked by musl's compiler driver with musl's libc.a.
TEST(Registration, WorksInAStaticProgramOnMusl) {
  if (access("/usr/bin/musl-gcc", X_OK) != 0) {
    GTEST_SKIP() << "musl-gcc is missing: apt-get install musl-tools";
  }
  const std::string binary = absl::StrCat(::testing::TempDir(), "/probe_musl");
  const std::string command = absl::StrCat(
      "echo 'int ProbeMain(int, char**); int main(int c, char** v) { return ProbeMain(c, v); }' |"
      " musl-gcc -static -x c - -x none rseq/testing/libprobe_all.a -o ",
      binary);
  ASSERT_EQ(system(command.c_str()), 0) << command;
  const Answers answers =
      Probe({.binary = binary}, "discover,threads,fork,unregister,end,detached");
  EXPECT_EQ(answers["libc_size"], 0);
  EXPECT_EQ(answers["owner"], static_cast<long>(Owner::kOwn));
  EXPECT_THAT(answers.reason(), HasSubstr("the C library does not register rseq (musl"));
  EXPECT_EQ(answers["line_rest"], answers["registered_length"] == 32 ? 32 : 0);
  EXPECT_EQ(answers["threads_before_uninitialized"], 1000);
  EXPECT_EQ(answers["threads_usable"], 1000);
  EXPECT_EQ(answers["forked_thread_usable"], 1);
  EXPECT_EQ(answers["unregister_cpu_id"], -2);
  EXPECT_EQ(answers["end_cpu_id_3"], -2);
  EXPECT_EQ(answers["detached_usable"], 20000);
  ExpectFence(answers);
  ExpectErrnoKept(answers);
}

// Threads that allocate in a program that is linked with the whole library, and are never joined.
// Their key's number decides whether pthread_setspecific of glibc calls calloc.
void EndDetachedThreads(const std::string& compiler, const std::string& keys) {
  const std::string binary = absl::StrCat(::testing::TempDir(), "/thread_ends_", keys);
  const std::string command = absl::StrCat(compiler, " -static -O1 -o ", binary,
                                           " rseq/testing/thread_ends.c libpcmalloc.a -pthread");
  ASSERT_EQ(system(command.c_str()), 0) << command;
  const Answers answers = Probe({.binary = binary, .libc_registers = false}, keys);
  EXPECT_EQ(answers["ended"], 20000);
  EXPECT_EQ(answers["per_cpu"], 1);
}

TEST(ThreadEnd, OfAllocatingThreadsOnMusl) {
  if (access("/usr/bin/musl-gcc", X_OK) != 0) {
    GTEST_SKIP() << "musl-gcc is missing: apt-get install musl-tools";
  }
  EndDetachedThreads("musl-gcc", "0");
}

TEST(ThreadEnd, OfAllocatingThreadsOnGlibcWithOwnAreas) { EndDetachedThreads("gcc", "0"); }

TEST(ThreadEnd, WithAKeyForWhichGlibcAllocates) { EndDetachedThreads("gcc", "40"); }

TEST(Discovery, GivesRacingThreadsOneAnswer) {
  for (const bool libc_registers : {true, false}) {
    EXPECT_EQ(Probe({.libc_registers = libc_registers}, "race")["race_different_answers"], 0);
  }
}

void ExpectNone(const Answers& answers, int error, const std::string& words) {
  EXPECT_EQ(answers["owner"], static_cast<long>(Owner::kNone));
  EXPECT_EQ(answers["refused_error"], error);
  EXPECT_EQ(answers["registered_length"], 0);
  EXPECT_EQ(answers["mm_cid_maintained"], 0);
  EXPECT_LT(answers["cpu_id"], 0);
  EXPECT_GE(answers["current_cpu"], 0);
  EXPECT_THAT(answers.reason(), HasSubstr(words));
  ExpectErrnoKept(answers);
  EXPECT_EQ(answers["threads_usable"], 0);
  EXPECT_EQ(answers["threads_failed_mark"], 1000);
  EXPECT_EQ(answers["threads_errno_changed"], 0);
}

TEST(Refused, ByAKernelWithoutRseq) {
  ExpectNone(Probe({.refusals = {{SYS_rseq, ENOSYS}}}, "discover,threads"), ENOSYS,
             "this kernel or emulator has no rseq");
}

TEST(Refused, ByASeccompFilter) {
  for (const int error : {EPERM, EACCES}) {
    ExpectNone(Probe({.refusals = {{SYS_rseq, error}}}, "discover,threads"), error,
               "a seccomp filter refuses the rseq system call");
  }
}

TEST(Refused, ByAnAnswerThatIsNoRegistration) {
  // glibc takes the answer for a registration, so its symbols claim one.
  for (const bool libc_registers : {true, false}) {
    ExpectNone(
        Probe({.libc_registers = libc_registers, .refusals = {{SYS_rseq, 0}}}, "discover,threads"),
        ENODATA, "never fills in cpu_id");
  }
}

TEST(Refused, BecauseOtherCodeRegisteredThisThread) {
  const Answers answers = Probe({.libc_registers = false}, "foreign,discover");
  EXPECT_EQ(answers["foreign_result"], 0);
  EXPECT_EQ(answers["owner"], static_cast<long>(Owner::kNone));
  EXPECT_EQ(answers["refused_error"], EINVAL);
  EXPECT_EQ(answers["cpu_id"], -2);
  EXPECT_THAT(answers.reason(), HasSubstr("other code registered an rseq area"));
}

TEST(Refused, FenceOnly) {
  for (const int error : {EPERM, ENOSYS}) {
    const Answers answers = Probe({.refusals = {{SYS_membarrier, error}}}, "discover");
    EXPECT_EQ(answers["owner"], static_cast<long>(Owner::kLibc));
    EXPECT_EQ(answers["fence_available"], 0);
    EXPECT_EQ(answers["fence_one_cpu"], 0);
    EXPECT_EQ(answers["fence_error"], error);
    EXPECT_EQ(answers["fence_cpu"], 0);
    EXPECT_EQ(answers["fence_absent_cpu"], 0);
    EXPECT_EQ(answers["fence_all"], 0);
    ExpectErrnoKept(answers);
  }
}

TEST(Refused, CpuBoundFallsBackToTheMostCpusLinuxHas) {
  EXPECT_EQ(Probe({.refusals = {{SYS_sched_getaffinity, EPERM}}}, "discover")["cpu_bound"], 8192);
}

TEST(Discovery, TakesLessThan200Microseconds) {
  for (const bool libc_registers : {true, false}) {
    std::vector<long> times;
    for (int i = 0; i < 51; ++i) {
      times.push_back(Probe({.libc_registers = libc_registers}, "discover")["nanoseconds"]);
    }
    std::sort(times.begin(), times.end());
    printf("Discover(), %s area: median %ld ns, fastest %ld ns, slowest %ld ns of %zu processes\n",
           libc_registers ? "C library's" : "own", times[times.size() / 2], times.front(),
           times.back(), times.size());
    EXPECT_LE(times[times.size() / 2], 200 * 1000);
  }
}

}  // namespace
}  // namespace pcmalloc::rseq
