// SPDX-License-Identifier: Apache-2.0
//
// Purpose: the process whose sections are stopped at every instruction. One thread, the victim,
//   executes operations on a slab; another does to the same slab what the tracer asks for while the
//   victim stands still.
// Invariants: the two sides talk through `Shared` alone, a mapping that both have; every item is a
//   number that occurs once, so that what was lost or doubled can be told.
// Cost: a fork and two threads.
#ifndef PCMALLOC_TESTS_INSTRUCTIONS_SUBJECT_H_
#define PCMALLOC_TESTS_INSTRUCTIONS_SUBJECT_H_

#include <semaphore.h>
#include <stdint.h>
#include <sys/types.h>

#include <vector>

#include "percpu/slabs.h"

namespace pcmalloc::instructions {

// What can be done to a slab.
enum class Kind : uint8_t {
  kNothing,
  kPop,
  kPush,
  kPopBatch,
  kPushBatch,
  kSetCapacity,
  kDrain,   // from here on not in a section: Stop, ..., Start
  kResize,  // a slab of another geometry takes its place
  kHold,    // Stop, and Start only after the victim has finished
};

inline constexpr unsigned kClass = 7;
inline constexpr uint32_t kMost = 24;      // slots of the smaller geometry
inline constexpr uint32_t kCapacity = 15;  // in force at the start of a round
inline constexpr uint32_t kItems = 8;      // in each slab at the start of a round
inline constexpr uint32_t kBatch = 6;      // a step of four, and some that are copied one by one
inline constexpr uint32_t kVictimCapacity = 18;  // what each side sets, if it does
inline constexpr uint32_t kOtherCapacity = 11;
inline constexpr int kMaxSlabs = 4;

// The j-th item that slab number `slab` starts with, and those that each side pushes.
constexpr uint64_t InitialItem(int slab, uint32_t j) {
  return 0x10000u * static_cast<uint64_t>(slab + 1) + 16 * j;
}
constexpr uint64_t VictimItem(uint32_t j) { return 0x900000 + 16 * j; }
constexpr uint64_t OtherItem(uint32_t j) { return 0xa00000 + 16 * j; }

// How an operation ended: items that came out; how many went in, or by how much a capacity changed.
struct Outcome {
  int32_t value = 0;
  int index = -1;  // that SetCapacity was given
  uint32_t count = 0;
  uint64_t items[kMost * 2] = {};
};

struct Stack {
  uint32_t count = 0;
  uint64_t items[kMost * 2] = {};
  uint32_t capacity = 0;
};

enum class Command : uint8_t { kPrepare, kConflict, kRelease, kObserve, kQuit };

struct Shared {
  // Of the whole run.
  percpu::Mode mode;
  int cpus[2];  // where the victim starts, and another
  int slabs;
  int indices[kMaxSlabs];  // of the slabs in the table
  int sleepers;  // threads that do nothing; more of them than CPUs, see instructions_test.cc
  pid_t victim_id;
  const void* victim_area;  // in the subject's memory
  sem_t ready, attached;

  // Commands to the other thread.
  sem_t go, done;
  Command command;

  // Of a round.
  int operation;  // of the victim, in Operations(); -1: calls BreakpointProbe
  Kind conflict;
  bool from_other_cpu;
  bool in_handler;
  Outcome victim;
  Outcome other;
  int victim_slab;  // that the conflict was directed at; -1: none of the slabs
  Stack stacks[kMaxSlabs];
  uint64_t aborts;
  bool failed;  // the other thread could not do what it was told
};

struct Operation {
  const char* name;
  Kind kind;
  void (*run)(const uint64_t* items, uint32_t capacity, Outcome* outcome);
};

// Everything that executes a section in the mode. A new one belongs here; the test says so.
const std::vector<Operation>& Operations(percpu::Mode mode);

void BreakpointProbe();

// The life of the process that is traced.
[[noreturn]] void RunSubject(Shared* shared);

}  // namespace pcmalloc::instructions

#endif  // PCMALLOC_TESTS_INSTRUCTIONS_SUBJECT_H_
