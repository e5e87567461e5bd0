// SPDX-License-Identifier: Apache-2.0
//
// Purpose: pcmalloc's own API, found at run time, and what these tests ask of a process.
// Invariants: nothing here allocates, but Conf.
// Cost: a symbol lookup a call.
#ifndef PCMALLOC_TESTS_RELEASE_EXTENSION_H_
#define PCMALLOC_TESTS_RELEASE_EXTENSION_H_

#include <stdint.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include <string>

#include "tests/support/allocator.h"

namespace pcmalloc::testing {

constexpr size_t kMiB = size_t{1} << 20;

// An entry for FreshProcess: these keys besides those that the variant of the test needs.
inline std::string Conf(const std::string& keys) {
  const char* before = getenv("PCMALLOC_CONF");
  return "PCMALLOC_CONF=" + (before == nullptr ? "" : before + std::string(",")) + keys;
}

inline size_t Ask(const char* name) { return Lookup<size_t(void)>(name)(); }
inline void Tell(const char* name, size_t bytes) { Lookup<void(size_t)>(name)(bytes); }
inline const char* State() { return Lookup<const char*(void)>("pcmalloc_background_thread")(); }
inline size_t Footprint() { return Ask("pcmalloc_footprint"); }

// A figure of the statistics, -1 for "no limit"; -2 if there is none of that name.
inline int64_t Statistic(const char* name) {
  char text[8192];
  Lookup<int(char*, size_t)>("pcmalloc_stats_json")(text, sizeof(text));
  char key[64];
  snprintf(key, sizeof(key), "\"%s\": ", name);
  const char* found = strstr(text, key);
  if (found == nullptr) return -2;
  const char* const value = found + strlen(key);
  return *value == 'n' ? -1 : static_cast<int64_t>(strtoull(value, nullptr, 10));
}

// Threads of this process, from the links of the directory: no descriptor, no allocation.
inline int Threads() {
  struct stat tasks;
  return stat("/proc/self/task", &tasks) == 0 ? static_cast<int>(tasks.st_nlink) - 2 : -1;
}

inline void SleepMs(long ms) {
  const timespec time = {ms / 1000, ms % 1000 * 1'000'000};
  nanosleep(&time, nullptr);
}

// Looks every few milliseconds until it holds, for so long at most.
template <typename Condition>
bool Soon(Condition condition, int ms = 5000) {
  for (int waited = 0; waited < ms; waited += 5) {
    if (condition()) return true;
    SleepMs(5);
  }
  return condition();
}

// Takes and writes so many bytes in blocks of one size, then frees them all. False: out of memory.
inline bool Burst(size_t bytes, size_t size) {
  void* head = nullptr;
  bool whole = true;
  for (size_t taken = 0; taken < bytes && whole; taken += size) {
    void* p = malloc(size);
    whole = p != nullptr;
    if (!whole) break;
    for (size_t i = 0; i < size; i += 512) static_cast<char*>(p)[i] = 1;
    *static_cast<void**>(p) = head;
    head = p;
  }
  while (head != nullptr) {
    void* p = head;
    head = *static_cast<void**>(p);
    free(p);
  }
  return whole;
}

}  // namespace pcmalloc::testing

#endif  // PCMALLOC_TESTS_RELEASE_EXTENSION_H_
