// SPDX-License-Identifier: Apache-2.0
//
// The parser, on a table of its own that has every unit.
#include "allocator/config/keys.h"

#include <errno.h>

#include <cstring>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace pcmalloc {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;

struct Fields {
  uint64_t guard_before = 0x1111111111111111;
  bool verbose = false;
  uint8_t guard_bool[7] = {1, 2, 3, 4, 5, 6, 7};
  uint8_t mode = 1;
  uint8_t guard_choice[7] = {1, 2, 3, 4, 5, 6, 7};
  uint64_t arenas = 4;
  uint64_t budget = 1 << 20;
  uint64_t decay = 1000;
  uint64_t any_bytes = 0;
  uint64_t any_time = 0;
  uint64_t guard_after = 0x2222222222222222;
};

constexpr const char* kModes[] = {"slow", "fast", "faster"};

constexpr Key kKeys[] = {
    {"verbose", Unit::kBool, offsetof(Fields, verbose), 0, 0, 1, nullptr, "says more"},
    {"mode", Unit::kChoice, offsetof(Fields, mode), 1, 0, 2, kModes, "how"},
    {"arenas", Unit::kCount, offsetof(Fields, arenas), 4, 1, 64, nullptr, "how many"},
    {"budget", Unit::kBytes, offsetof(Fields, budget), 1 << 20, 4096, uint64_t{1} << 40, nullptr,
     "how much"},
    {"decay", Unit::kDuration, offsetof(Fields, decay), 1000, 0, 60000, nullptr, "how long"},
    {"any_bytes", Unit::kBytes, offsetof(Fields, any_bytes), 0, 0, UINT64_MAX, nullptr, "any"},
    {"any_time", Unit::kDuration, offsetof(Fields, any_time), 0, 0, kNever, nullptr, "any"},
};
constexpr KeyTable kTable = {kKeys, sizeof(kKeys) / sizeof(kKeys[0])};

std::vector<std::string>* complaints;

class KeysTest : public ::testing::Test {
 protected:
  void SetUp() override { complaints = &complaints_; }

  int Parse(const char* text) {
    complaints_.clear();
    return ParseKeys(kTable, &fields_, text, [](const TextBuffer& line) {
      complaints->push_back(std::string(line.c_str(), line.size()));
    });
  }

  void ExpectGuards() {
    EXPECT_EQ(fields_.guard_before, 0x1111111111111111u);
    EXPECT_EQ(fields_.guard_after, 0x2222222222222222u);
    EXPECT_THAT(fields_.guard_bool, ElementsAre(1, 2, 3, 4, 5, 6, 7));
    EXPECT_THAT(fields_.guard_choice, ElementsAre(1, 2, 3, 4, 5, 6, 7));
  }

  Fields fields_;
  std::vector<std::string> complaints_;
};

TEST_F(KeysTest, SetsEveryUnit) {
  EXPECT_EQ(Parse("verbose:true,mode:faster,arenas:64,budget:3M,decay:250ms"), 0);
  EXPECT_THAT(complaints_, IsEmpty());
  EXPECT_TRUE(fields_.verbose);
  EXPECT_EQ(fields_.mode, 2);
  EXPECT_EQ(fields_.arenas, 64u);
  EXPECT_EQ(fields_.budget, 3u << 20);
  EXPECT_EQ(fields_.decay, 250u);
  ExpectGuards();
}

TEST_F(KeysTest, ReadsUnits) {
  const struct {
    const char* text;
    uint64_t bytes;
  } kBytes[] = {{"4096", 4096},
                {"4K", 4096},
                {"5k", 5120},
                {"7M", 7 << 20},
                {"7m", 7 << 20},
                {"2G", uint64_t{2} << 30},
                {"9g", uint64_t{9} << 30},
                {"1024G", uint64_t{1} << 40}};
  for (const auto& row : kBytes) {
    EXPECT_EQ(Parse((std::string("budget:") + row.text).c_str()), 0) << row.text;
    EXPECT_EQ(fields_.budget, row.bytes) << row.text;
  }
  const struct {
    const char* text;
    uint64_t milliseconds;
  } kTimes[] = {{"1ms", 1}, {"5s", 5000}, {"60s", 60000}, {"0", 0}, {"0s", 0}, {"0ms", 0}};
  for (const auto& row : kTimes) {
    EXPECT_EQ(Parse((std::string("decay:") + row.text).c_str()), 0) << row.text;
    EXPECT_EQ(fields_.decay, row.milliseconds) << row.text;
  }
}

TEST_F(KeysTest, NeverIsATimeWhereTheKeyAllowsIt) {
  EXPECT_EQ(Parse("any_time:never"), 0);
  EXPECT_EQ(fields_.any_time, kNever);
  EXPECT_EQ(Parse("decay:never"), 1);
  EXPECT_EQ(fields_.decay, 1000u);
  EXPECT_EQ(Parse("any_time:ever"), 1);
  Text<> text;
  AppendValue(kKeys[6], kNever, text);
  text.Str(" | ");
  AppendAccepted(kKeys[6], text);
  EXPECT_STREQ(text.c_str(), "never | a time in ms or s, or never");
}

TEST_F(KeysTest, RefusesValuesItDoesNotUnderstandAndKeepsTheOldOnes) {
  const Fields before = fields_;
  for (const char* text : {"verbose:yes",
                           "verbose:",
                           "verbose:TRUE",
                           "verbose:true1",
                           "verbose:1",
                           "mode:fas",
                           "mode:fastest",
                           "mode:",
                           "arenas:0",
                           "arenas:65",
                           "arenas:-1",
                           "arenas:4K",
                           "arenas:0x4",
                           "arenas:",
                           "arenas:four",
                           "arenas:4 4",
                           "budget:4095",
                           "budget:1025G",
                           "budget:4KB",
                           "budget:K",
                           "budget:1.5M",
                           "budget:-4K",
                           "budget:99999999999999999999",
                           "budget:18446744073709551615G",
                           "decay:5",
                           "decay:5m",
                           "decay:61s",
                           "decay:60001ms",
                           "decay:s",
                           "any_bytes:18446744073709551616",
                           "any_bytes:17179869184G",
                           "verbose:true:",
                           "verbose::true"}) {
    EXPECT_EQ(Parse(text), 1) << text;
    EXPECT_EQ(complaints_.size(), 1u) << text;
    EXPECT_EQ(memcmp(&before, &fields_, sizeof(before)), 0) << text;
  }
  EXPECT_EQ(Parse("any_bytes:18446744073709551615"), 0);
  EXPECT_EQ(fields_.any_bytes, UINT64_MAX);
  EXPECT_EQ(Parse("any_bytes:17179869183G"), 0);
  EXPECT_EQ(fields_.any_bytes, UINT64_MAX - ((1 << 30) - 1));
}

TEST_F(KeysTest, ComplaintNamesKeyValueAndWhatIsAccepted) {
  EXPECT_EQ(Parse("mode:quick,arenas:65,budget:1,decay:2h,verbose:maybe"), 5);
  EXPECT_THAT(
      complaints_,
      ElementsAre("key \"mode\" does not take the value \"quick\". Accepted: slow, fast or faster",
                  "key \"arenas\" does not take the value \"65\". Accepted: a number from 1 to 64",
                  "key \"budget\" does not take the value \"1\". Accepted: bytes, or K, M, G, from "
                  "4K to 1024G",
                  "key \"decay\" does not take the value \"2h\". Accepted: a time in ms or s from "
                  "0s to 60s",
                  "key \"verbose\" does not take the value \"maybe\". Accepted: true or false"));
}

TEST_F(KeysTest, GoesOnAfterAMistake) {
  EXPECT_EQ(Parse("nonsense:1,arenas:9,mode,verbose:true"), 2);
  EXPECT_EQ(fields_.arenas, 9u);
  EXPECT_TRUE(fields_.verbose);
  EXPECT_EQ(fields_.mode, 1);
}

TEST_F(KeysTest, SuggestsTheClosestKey) {
  EXPECT_EQ(Parse("verbos:true,budgte:4K,areans:3,deacy:1s"), 4);
  ASSERT_EQ(complaints_.size(), 4u);
  EXPECT_THAT(complaints_[0], AllOf(HasSubstr("key \"verbos\" with value \"true\" is unknown"),
                                    HasSubstr("did you mean verbose?"),
                                    HasSubstr("Accepted keys: verbose, mode, arenas")));
  EXPECT_THAT(complaints_[1], HasSubstr("did you mean budget?"));
  EXPECT_THAT(complaints_[2], HasSubstr("did you mean arenas?"));
  EXPECT_THAT(complaints_[3], HasSubstr("did you mean decay?"));
  EXPECT_EQ(Parse("opt.narenas_total:3"), 1);
  EXPECT_THAT(complaints_[0], Not(HasSubstr("did you mean")));
}

TEST_F(KeysTest, SuggestsTheCloserOfTwo) {
  constexpr Key kTwo[] = {{"model", Unit::kBool, 0, 0, 0, 1, nullptr, ""},
                          {"mode", Unit::kBool, 0, 0, 0, 1, nullptr, ""}};
  for (const auto& [wrong, right] : {std::pair{"modell", "model?"}, std::pair{"moe", "mode?"}}) {
    complaints_.clear();
    ParseKeys({kTwo, 2}, &fields_, wrong, [](const TextBuffer& line) {
      complaints->push_back(std::string(line.c_str(), line.size()));
    });
    ASSERT_EQ(complaints_.size(), 1u);
    EXPECT_THAT(complaints_[0], HasSubstr(std::string("did you mean ") + right));
  }
}

TEST_F(KeysTest, SkipsEmptyItemsAndBlanks) {
  EXPECT_EQ(Parse(nullptr), 0);
  EXPECT_EQ(Parse(""), 0);
  EXPECT_EQ(Parse(",,, ,\t,"), 0);
  EXPECT_EQ(Parse(",arenas:5,, verbose : true ,"), 0);
  EXPECT_EQ(fields_.arenas, 5u);
  EXPECT_TRUE(fields_.verbose);
}

TEST_F(KeysTest, LastOfARepeatedKeyCounts) {
  EXPECT_EQ(Parse("arenas:5,arenas:6"), 0);
  EXPECT_EQ(fields_.arenas, 6u);
}

TEST_F(KeysTest, ComplainsOfAMissingColonOrKey) {
  EXPECT_EQ(Parse("mode"), 1);
  EXPECT_THAT(complaints_[0], HasSubstr("key \"mode\" has no value. Accepted: slow"));
  EXPECT_EQ(Parse("banana"), 1);
  EXPECT_THAT(complaints_[0], HasSubstr("\"banana\""));
  EXPECT_EQ(Parse(":5"), 1);
  EXPECT_EQ(Parse(":"), 1);
}

TEST_F(KeysTest, CutsAndCleansWhatItRepeats) {
  const std::string huge(1 << 20, '7');
  EXPECT_EQ(Parse(("arenas:" + huge).c_str()), 1);
  EXPECT_LT(complaints_[0].size(), 200u);
  EXPECT_THAT(complaints_[0], AllOf(HasSubstr("7777...\""), HasSubstr("a number from 1 to 64")));
  EXPECT_EQ(Parse((huge + ":1").c_str()), 1);
  EXPECT_LT(complaints_[0].size(), 300u);
  EXPECT_EQ(Parse("mode:\x1b[31m\nx\x80"), 1);
  EXPECT_THAT(complaints_[0], HasSubstr("\"?[31m?x?\""));
}

TEST_F(KeysTest, WritesValuesAsTheyAreRead) {
  for (const char* text : {"verbose:true", "mode:slow", "arenas:17", "budget:4097", "budget:48K",
                           "budget:1G", "decay:1500ms", "decay:3s", "any_bytes:0"}) {
    ASSERT_EQ(Parse(text), 0) << text;
    const std::string name(text, strcspn(text, ":"));
    for (const Key& key : kTable) {
      if (name != key.name) continue;
      Text<> shown;
      shown.Str(key.name).Str(":");
      AppendValue(key, FieldValue(key, &fields_), shown);
      EXPECT_STREQ(shown.c_str(), text);
    }
  }
}

TEST_F(KeysTest, HelpShowsEveryKeyWithDefault) {
  Text<4096> help;
  AppendHelp(kTable, help);
  EXPECT_FALSE(help.truncated());
  EXPECT_THAT(help.c_str(), HasSubstr("budget:1M\n    how much\n    accepted: bytes, or K, M, G, "
                                      "from 4K to 1024G\n"));
  for (const Key& key : kTable) EXPECT_THAT(help.c_str(), HasSubstr(key.name));
}

TEST_F(KeysTest, KeepsErrno) {
  errno = 55;
  Parse("arenas:99999999999999999999999,x,mode:fast");
  EXPECT_EQ(errno, 55);
}

// Whatever the text: no crash, one complaint a counted mistake, fields in range, nothing else
// written. Pieces of real keys make the interesting paths likely.
TEST_F(KeysTest, SurvivesRandomText) {
  const char* const kPieces[] = {"verbose",     "mode",
                                 "arenas",      "budget",
                                 "decay",       "true",
                                 "false",       ":",
                                 ":",           ",",
                                 ",",           " ",
                                 "4",           "64",
                                 "1K",          "7G",
                                 "5s",          "20ms",
                                 "fast",        "slow",
                                 "-",           "999999999999999999999999",
                                 "\xff",        "\n",
                                 "any_bytes",   "q",
                                 "mode:slow",   "arenas:9",
                                 "decay:20ms,", ",budget:1M"};
  const unsigned seed = 20260101;
  std::mt19937 random(seed);
  int understood = 0;
  for (int round = 0; round < 200000; ++round) {
    std::string text;
    for (unsigned n = random() % 12; n > 0; --n) {
      if (random() % 4 == 0) {
        text += static_cast<char>(1 + random() % 255);
      } else {
        text += kPieces[random() % (sizeof(kPieces) / sizeof(kPieces[0]))];
      }
    }
    const Fields before = fields_ = Fields();
    const int mistakes = Parse(text.c_str());
    ASSERT_EQ(static_cast<size_t>(mistakes), complaints_.size()) << text;
    for (const std::string& line : complaints_) {
      ASSERT_LT(line.size(), 600u) << text;
      ASSERT_EQ(line.find('\n'), std::string::npos) << text;
    }
    for (const Key& key : kTable) {
      const uint64_t value = FieldValue(key, &fields_);
      ASSERT_GE(value, key.lowest) << text;
      ASSERT_LE(value, key.highest) << text;
    }
    understood += memcmp(&before, &fields_, sizeof(before)) != 0;
  }
  ExpectGuards();
  EXPECT_GT(understood, 3000) << "the random text hardly ever means anything (seed " << seed << ")";
}

}  // namespace
}  // namespace pcmalloc
