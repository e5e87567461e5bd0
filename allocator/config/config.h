// SPDX-License-Identifier: Apache-2.0
//
// Purpose: what PCMALLOC_CONF="key:value,key:value" asked for. The keys are in config.def.
// Invariants: constant-initialised with the defaults; changes only in ParseConfig(), before there
//   is a second thread; nothing is allocated; errno is kept.
// Cost: reading a key is reading a field.
#ifndef PCMALLOC_ALLOCATOR_CONFIG_CONFIG_H_
#define PCMALLOC_ALLOCATOR_CONFIG_CONFIG_H_

#include <stdint.h>

#include "allocator/config/keys.h"

namespace pcmalloc {

enum class RseqRequest : uint8_t {
  kAuto,
  kLegacy,     // cached slab pointer that the kernel invalidates
  kV2SafeCpu,  // slab table indexed by cpu_id
  kV2SafeCid,  // slab table indexed by mm_cid
  kLocked,     // no rseq: a lock per slab
};
inline constexpr const char* kRseqRequestNames[] = {"auto", "legacy", "v2safe-cpu", "v2safe-cid",
                                                    "locked"};

enum class ThpRequest : uint8_t {
  kAuto,    // in proportion to the heap
  kAlways,  // for whatever memory is new
  kNever,
};
inline constexpr const char* kThpRequestNames[] = {"auto", "always", "never"};

enum class BackgroundThread : uint8_t { kAuto, kOn, kOff };
inline constexpr const char* kBackgroundThreadNames[] = {"auto", "on", "off"};

// Range of percpu_cache, bytes. With less a CPU's cache would hardly save a trip to the layers
// below.
inline constexpr uint64_t kLeastPercpuCache = uint64_t{64} << 10;
inline constexpr uint64_t kMostPercpuCache = uint64_t{1} << 30;

struct Config {
#define PCM_CONFIG(type, name, unit, default_value, ...) type name = default_value;
#include "allocator/config/config.def"
#undef PCM_CONFIG
};

const Config& GetConfig();

// Applies the text on top of what holds now. Says what it does not understand on stderr, a line
// each, and goes on with the rest; if abort_conf is true in the end, such a process then exits with
// status 1. Null is empty. Whoever reads the environment for it decides what a set-user-ID program
// may be told.
void ParseConfig(const char* text);

// Every key, for help, statistics and documentation: for (const Key& key : ConfigKeys()) ...
KeyTable ConfigKeys();

}  // namespace pcmalloc

#endif  // PCMALLOC_ALLOCATOR_CONFIG_CONFIG_H_
