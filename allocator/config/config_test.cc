// SPDX-License-Identifier: Apache-2.0
#include "allocator/config/config.h"

#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <iterator>
#include <set>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace pcmalloc {
namespace {

using ::testing::HasSubstr;

// ParseConfig() is for once in a process: each case runs in one of its own and ends it with a
// status that tells what the configuration was.
int StatusFor(const char* text) {
  ParseConfig(text);
  const Config& config = GetConfig();
  return 10 + static_cast<int>(config.rseq) + (config.stats_print ? 20 : 0);
}

void ExpectStatus(const char* text, int status, const char* complaints) {
  EXPECT_EXIT(_exit(StatusFor(text)), ::testing::ExitedWithCode(status), complaints) << text;
}

TEST(ConfigDeathTest, Defaults) {
  EXPECT_EQ(GetConfig().rseq, RseqRequest::kAuto);
  EXPECT_FALSE(GetConfig().stats_print);
  EXPECT_FALSE(GetConfig().abort_conf);
  ExpectStatus(nullptr, 10, "^$");
  ExpectStatus("", 10, "^$");
}

TEST(ConfigDeathTest, EveryRseqRequest) {
  ExpectStatus("rseq:auto", 10, "^$");
  ExpectStatus("rseq:legacy", 11, "^$");
  ExpectStatus("rseq:v2safe-cpu", 12, "^$");
  ExpectStatus("rseq:v2safe-cid", 13, "^$");
  ExpectStatus("rseq:locked,stats_print:true", 34, "^$");
}

TEST(ConfigDeathTest, SaysWhatItDoesNotUnderstandAndGoesOn) {
  ExpectStatus("rseq:fast,stats_prnt:true,stats_print:true", 30,
               "^pcmalloc: PCMALLOC_CONF: key \"rseq\" does not take the value \"fast\". Accepted: "
               "auto, legacy, v2safe-cpu, v2safe-cid or locked\n"
               "pcmalloc: PCMALLOC_CONF: key \"stats_prnt\" with value \"true\" is unknown; did "
               "you mean stats_print. Accepted keys: [a-z_, ]*\n$");
}

TEST(ConfigDeathTest, AbortConfExitsAfterAllLines) {
  const char* const kBothLines = "\"rseq\"[^\n]*\n[^\n]*\"x\"[^\n]*\n$";
  ExpectStatus("abort_conf:true,rseq:fast,x:1", 1, kBothLines);
  ExpectStatus("rseq:fast,x:1,abort_conf:true", 1, kBothLines);
  ExpectStatus("rseq:fast,abort_conf:true,x:1", 1, kBothLines);
  ExpectStatus("abort_conf:true,rseq:locked", 14, "^$");
  ExpectStatus("abort_conf:true,rseq:fast,x:1,abort_conf:false", 10, kBothLines);
  ExpectStatus("abort_conf:yes", 10, "abort_conf");
}

// The table and the struct come from the same lines; this guards the lines themselves.
TEST(ConfigTable, RowsAreSound) {
  std::set<std::string> names;
  const Config defaults;
  for (const Key& key : ConfigKeys()) {
    EXPECT_TRUE(names.insert(key.name).second) << key.name;
    EXPECT_EQ(FieldValue(key, &defaults), key.default_value) << key.name;
    EXPECT_LE(key.lowest, key.default_value) << key.name;
    EXPECT_LE(key.default_value, key.highest) << key.name;
    EXPECT_GT(std::string(key.help).size(), 20u) << key.name;
    if (key.unit == Unit::kChoice) {
      for (uint64_t i = 0; i <= key.highest; ++i) EXPECT_NE(key.choices[i], nullptr);
    }
  }
  EXPECT_EQ(names.count("rseq"), 1u);
}

void ExpectEveryRowIn(const char* path) {
  SCOPED_TRACE(path);
  std::ifstream file(path);
  std::string readme{std::istreambuf_iterator<char>(file), {}};
  readme.erase(std::remove(readme.begin(), readme.end(), '`'), readme.end());
  for (const Key& key : ConfigKeys()) {
    Text<> row;
    row.Str("| ").Str(key.name).Str(" | ");
    AppendAccepted(key, row);
    row.Str(" | ");
    AppendValue(key, key.default_value, row);
    row.Str(" | ").Str(key.help).Str(" |");
    EXPECT_THAT(readme, HasSubstr(row.c_str()));
  }
}

TEST(ConfigTable, ReadmesHaveEveryRow) {
  ExpectEveryRowIn("allocator/config/README.md");
  ExpectEveryRowIn("README.md");
}

TEST(ConfigTable, HelpFits) {
  Text<8192> help;
  AppendHelp(ConfigKeys(), help);
  EXPECT_FALSE(help.truncated());
  EXPECT_THAT(help.c_str(), HasSubstr("rseq:auto"));
}

}  // namespace
}  // namespace pcmalloc
