// SPDX-License-Identifier: Apache-2.0
#include "allocator/config/config.h"

#include <unistd.h>

#include "allocator/base/report.h"

namespace pcmalloc {
namespace {

constexpr Key kKeys[] = {
#define PCM_CONFIG(type, name, unit, default_value, lowest, highest, choices, help) \
  {#name,                                                                           \
   Unit::unit,                                                                      \
   offsetof(Config, name),                                                          \
   static_cast<uint64_t>(default_value),                                            \
   lowest,                                                                          \
   highest,                                                                         \
   choices,                                                                         \
   help},
#include "allocator/config/config.def"
#undef PCM_CONFIG
};

constinit Config config;

void Complain(const TextBuffer& line) {
  Text<> text;
  text.Str("PCMALLOC_CONF: ").Str(line.c_str(), line.size());
  Warn(text);
}

}  // namespace

const Config& GetConfig() { return config; }

KeyTable ConfigKeys() { return {kKeys, sizeof(kKeys) / sizeof(kKeys[0])}; }

void ParseConfig(const char* text) {
  if (text == nullptr) return;
  if (ParseKeys(ConfigKeys(), &config, text, Complain) > 0 && config.abort_conf) _exit(1);
}

}  // namespace pcmalloc
