// SPDX-License-Identifier: Apache-2.0
#include "tools/doctor/report.h"

#include <errno.h>

#include <optional>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tools/doctor/facts.h"
#include "tools/doctor/preload.h"

namespace pcmalloc::doctor {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

Facts Server() {
  Facts facts;
  facts.kernel = "6.18.15";
  facts.machine = "x86_64";
  facts.libc = "glibc 2.36";
  facts.libc_registers = true;
  facts.registered_length = 32;
  facts.feature_size = 28;
  facts.align = 32;
  facts.cpus_possible = "0-7";
  facts.cpus_online = "0-3";
  facts.cpus_allowed = "0,2-3";
  facts.cpus_used = "2";
  facts.membarrier_rseq = true;
  facts.membarrier_cpu = true;
  facts.page_size = 4096;
  facts.thp = "madvise";
  facts.overcommit = "2";
  return facts;
}

Answer PerCpu() { return ParseAnswer("v2safe-cpu\nshares the C library's area\n", "", ""); }

TEST(TableTest, Golden) {
  EXPECT_EQ(Table(Server(), PerCpu(), /*colour=*/false),
            R"(pcmalloc on this machine

  mode                v2safe-cpu
  reason              shares the C library's area
  preloaded program   per-CPU caches on
  kernel              6.18.15
  machine             x86_64
  C library           glibc 2.36
  registered area     32 bytes, by the C library
  feature size        28 bytes
  alignment           32 bytes
  fence (membarrier)  yes, one CPU at a time
  kernel, 32 bytes    not tried out; --probe does
  kernel, longer      not tried out; --probe does
  CPUs possible       8 (0-7)
  CPUs online         4 (0-3)
  CPUs allowed        3 (0,2-3)
  CPUs seen in use    1 (2)
  page size           4096 bytes
  hugepages           madvise
  overcommit          2 (strict)

Nothing to do: per-CPU caches are on.
)");
}

TEST(TableTest, ColourOnlyWhenAskedFor) {
  EXPECT_THAT(Table(Server(), PerCpu(), /*colour=*/false), Not(HasSubstr("\033")));
  EXPECT_THAT(Table(Server(), PerCpu(), /*colour=*/true), HasSubstr("\033[32mv2safe-cpu\033[0m"));
}

TEST(TableTest, ShowsWhyThereIsNoAnswer) {
  const Answer answer = ParseAnswer("", "ld.so: cannot be preloaded", "the library was not loaded");
  const std::string table = Table(Server(), answer, /*colour=*/false);
  EXPECT_THAT(table, HasSubstr("mode                unknown\n"));
  EXPECT_THAT(table, HasSubstr("the library was not loaded"));
  EXPECT_THAT(table, HasSubstr("ld.so: cannot be preloaded"));
}

TEST(AdviceTest, NamesTheCauseOfTheLockedMode) {
  const Answer locked = ParseAnswer("locked\nno rseq\n", "", "");
  Facts facts = Server();
  EXPECT_THAT(Advice(facts, locked), HasSubstr("PCMALLOC_CONF"));
  facts.membarrier_rseq = false;
  EXPECT_THAT(Advice(facts, locked), HasSubstr("membarrier"));
  facts.libc_registers = false;
  facts.registered_length = 0;
  facts.rseq_error = EPERM;
  EXPECT_THAT(Advice(facts, locked), HasSubstr("EPERM"));
  facts.rseq_error = ENOSYS;
  EXPECT_THAT(Advice(facts, locked), HasSubstr("is missing"));
}

TEST(AdviceTest, MentionsHugepagesThatAreOff) {
  Facts facts = Server();
  EXPECT_THAT(Advice(facts, PerCpu()), Not(HasSubstr("hugepages")));
  facts.thp = "never";
  EXPECT_THAT(Advice(facts, PerCpu()), HasSubstr("hugepages"));
}

rseq::ProbeResult Rounds(int aborted, int rewritten) {
  rseq::ProbeResult result;
  result.finished = true;
  result.aborted = aborted;
  result.rewritten = rewritten;
  result.nanoseconds = 340'000;
  return result;
}

Facts Probed(rseq::ProbeResult exact32, rseq::ProbeResult longer) {
  Facts facts = Server();
  facts.behaviour = {.exact32 = {rseq::Classify32(exact32, exact32), exact32},
                     .longer = {rseq::ClassifyV2(longer), longer},
                     .longer_length = 33};
  return facts;
}

TEST(BehaviourTest, WhenAllIsWell) {
  const Facts facts = Probed(Rounds(3, 3), Rounds(3, 0));
  const std::string table = Table(facts, PerCpu(), /*colour=*/false);
  EXPECT_THAT(table, HasSubstr("kernel, 32 bytes    CACHE_OK: sections are aborted and "
                               "cpu_id_start is rewritten (0.3 ms)\n"));
  EXPECT_THAT(table, HasSubstr("kernel, longer      OK: 33 bytes accepted, sections are aborted"));
  EXPECT_THAT(Advice(facts, PerCpu()), HasSubstr("Nothing to do: per-CPU caches are on. The "));
  const std::string json = Json(facts, PerCpu());
  EXPECT_THAT(json, HasSubstr("\"class_32_bytes\": \"CACHE_OK\""));
  EXPECT_THAT(json, HasSubstr("\"class_longer\": \"OK\""));
  EXPECT_THAT(Json(Server(), PerCpu()), HasSubstr("\"class_32_bytes\": null"));
}

TEST(BehaviourTest, WarnsOfMarksThatSurvive) {
  const Facts facts = Probed(Rounds(3, 0), Rounds(3, 0));
  EXPECT_THAT(Json(facts, PerCpu()), HasSubstr("\"class_32_bytes\": \"NO_CACHE\""));
  const std::string advice = Advice(facts, PerCpu());
  EXPECT_THAT(advice, HasSubstr("google/tcmalloc before its fix corrupts memory"));
  EXPECT_THAT(advice, Not(HasSubstr("Nothing to do")));
}

TEST(BehaviourTest, WarnsOfSectionsThatAreNotAborted) {
  // The two kernels of arm64: without any abort, and with the mark rewritten nevertheless.
  for (const int rewritten : {0, 3}) {
    Facts facts = Probed(Rounds(0, rewritten), Rounds(0, 0));
    EXPECT_THAT(Json(facts, PerCpu()), HasSubstr("\"class_32_bytes\": \"NO_RSEQ\""));
    EXPECT_THAT(Json(facts, PerCpu()), HasSubstr("\"class_longer\": \"NO_RSEQ\""));
    facts.machine = "aarch64";
    const std::string advice = Advice(facts, PerCpu());
    EXPECT_THAT(advice, HasSubstr("arm64: rseq must not be used on this kernel"));
    EXPECT_THAT(advice, Not(HasSubstr("Nothing to do")));
  }
}

TEST(BehaviourTest, NamesWhatWasInTheWay) {
  rseq::ProbeResult hindered;
  hindered.obstacle = "cannot make a process (clone)";
  hindered.error = EPERM;
  const Facts facts = Probed(hindered, hindered);
  EXPECT_THAT(Table(facts, PerCpu(), /*colour=*/false),
              HasSubstr("unknown: cannot make a process (clone): EPERM\n"));
  EXPECT_THAT(Json(facts, PerCpu()), HasSubstr("\"class_longer\": \"unknown\""));
  EXPECT_THAT(Advice(facts, PerCpu()), HasSubstr("no full answer"));
}

TEST(BehaviourTest, NoRseqAtAllIsNoBrokenKernel) {
  rseq::ProbeResult refused;
  refused.registration_error = ENOSYS;
  Facts facts = Probed(refused, refused);
  const Answer locked = ParseAnswer("locked\nno rseq\n", "", "");
  EXPECT_THAT(Json(facts, locked), HasSubstr("\"class_32_bytes\": \"NO_RSEQ\""));
  EXPECT_THAT(Json(facts, locked), HasSubstr("\"class_longer\": \"none\""));
  EXPECT_THAT(Advice(facts, locked), Not(HasSubstr("must not be used")));
}

TEST(ParseAnswerTest, TakesModeAndReason) {
  const Answer answer = PerCpu();
  EXPECT_EQ(answer.mode, "v2safe-cpu");
  EXPECT_EQ(answer.reason, "shares the C library's area");
  EXPECT_EQ(answer.error, "");
  EXPECT_TRUE(PerCpuActive(answer));
  EXPECT_FALSE(PerCpuActive(ParseAnswer("locked\nno rseq\n", "", "")));
}

TEST(ParseAnswerTest, CutOutputIsAnError) {
  EXPECT_EQ(ParseAnswer("", "", "").error, "the preloaded program gave no answer");
  EXPECT_EQ(ParseAnswer("v2safe-cpu", "", "").mode, "");
  EXPECT_EQ(ParseAnswer("v2safe-cpu\nwhy\n", "", "ended by signal 11").mode, "");
}

TEST(CountCpusTest, ReadsTheKernelsLists) {
  EXPECT_EQ(CountCpus("0"), 1);
  EXPECT_EQ(CountCpus("0-3,8,10-11"), 7);
  EXPECT_EQ(CountCpus("unknown"), std::nullopt);
  EXPECT_EQ(CountCpus("3-1"), std::nullopt);
  EXPECT_EQ(CountCpus(""), std::nullopt);
}

TEST(JsonStringTest, EscapesWhatJsonForbids) {
  EXPECT_EQ(JsonString("a\"b\\c\n"), R"("a\"b\\c\u000a")");
  EXPECT_EQ(JsonString("\xc3\xa9"), "\"\xc3\xa9\"");
  EXPECT_EQ(JsonString("\xff x \xc3"), R"("\ufffd x \ufffd")");
}

}  // namespace
}  // namespace pcmalloc::doctor
