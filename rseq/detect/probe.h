// SPDX-License-Identifier: Apache-2.0
//
// Purpose: what the running kernel really does with restartable sequences, found out by experiment:
//   does it abort a section that is preempted, and does it rewrite cpu_id_start then? Neither the
//   release nor AT_RSEQ_FEATURE_SIZE tells.
//
//      the program          helper, pinned to one CPU          spinner, on the same CPU
//      clone, waits  ---->  clone  ------------------------->  register own area, mark it
//                           sleep 20 us                        section: spin until woken
//                           wake: it was preempted there  -->  aborted? rewritten? (three rounds)
//      reaps, answers <---  reaps, ends  <-------------------  ends
//
// Invariants: the program's registrations, signals, affinity and children are as before; no
//   SIGCHLD, no zombie, no descriptor, no file; errno is kept; nothing comes from malloc. Whatever
//   cannot be found out is kUnknown with a reason, never a guess.
// Cost: Probe() 0.3-10 ms on an idle machine, kMostNanoseconds and a process's end at most. So only
//   where the answer matters: the legacy scheme is asked for, the doctor, a suspicious release.
#ifndef PCMALLOC_RSEQ_DETECT_PROBE_H_
#define PCMALLOC_RSEQ_DETECT_PROBE_H_

#include <stdint.h>

namespace pcmalloc::rseq {

inline constexpr long kMostNanoseconds = 900'000'000;

// Lets the spinner play a kernel that misbehaves, for tests.
enum class FakeKernel : uint8_t {
  kNone,
  kKeepsMark,    // never rewrites cpu_id_start
  kNeverAborts,  // never aborts a section
  kKills,        // kills whoever has marked cpu_id_start
  kHangs,        // never lets the spinner get as far as a section
};

struct ProbeResult {
  static constexpr int kRounds = 3;
  bool finished = false;       // all rounds were run, or the spinner was killed in one
  int registration_error = 0;  // the kernel refused to register this length
  int aborted = 0;             // rounds whose section was aborted
  int rewritten = 0;           // rounds after which the mark was gone; 0 if nothing was marked
  int killed_by = 0;           // signal that ended the spinner
  long nanoseconds = 0;        // that the probe took
  const char* obstacle = "";   // when not finished and not refused: what was in the way
  int error = 0;               // and its error number, if it has one
};

// Registers `length` bytes in the spinner; `mark`: lays a foreign value over cpu_id_start. Only for
// 32 bytes: a longer registration that is marked is killed by some kernels. One caller at a time is
// enough, several are possible.
ProbeResult Probe(uint32_t length, bool mark, FakeKernel fake = FakeKernel::kNone);

// An area registered with exactly 32 bytes.
enum class Class32 : uint8_t {
  kUnknown,
  kCacheOk,  // sections abort and cpu_id_start is rewritten: the legacy scheme works
  kNoCache,  // sections abort, but a mark survives preemption: the legacy scheme corrupts memory
  kNoRseq,   // sections are not aborted, or there is no rseq: nothing built on rseq is safe
};

// A longer one.
enum class ClassV2 : uint8_t {
  kUnknown,
  kOk,      // sections abort
  kNoRseq,  // they do not
  kNone,    // the kernel accepts no such length
};

// What results mean. `unmarked` is looked at where the mark got the spinner killed.
Class32 Classify32(const ProbeResult& marked, const ProbeResult& unmarked);
ClassV2 ClassifyV2(const ProbeResult& result);

// "CACHE_OK", "NO_CACHE", "NO_RSEQ", "unknown"; "OK", "NO_RSEQ", "none", "unknown".
const char* Name(Class32 value);
const char* Name(ClassV2 value);

struct Finding32 {
  Class32 value;
  ProbeResult marked;
};
struct FindingV2 {
  ClassV2 value;
  ProbeResult result;
};

// Both ask the kernel each time.
Finding32 FindClass32(FakeKernel fake = FakeKernel::kNone);
FindingV2 FindClassV2(uint32_t length, FakeKernel fake = FakeKernel::kNone);

// For the legacy scheme: FindClass32() once in the life of the process and of its forked children;
// again only after kUnknown.
Class32 ClassifyForLegacy();

// Whether releases like this one were seen not to abort sections, so that the probe is worth its
// time at start: aarch64 from Linux 6.19 on. Decides nothing else.
bool ReleaseIsSuspicious();
bool ReleaseAtLeast(const char* release, unsigned major, unsigned minor);

// The length to ask FindClassV2() about: what the C library would register here, at least 33.
uint32_t LongerLength();

}  // namespace pcmalloc::rseq

#endif  // PCMALLOC_RSEQ_DETECT_PROBE_H_
