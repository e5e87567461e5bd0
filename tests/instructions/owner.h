// SPDX-License-Identifier: Apache-2.0
//
// Purpose: a process whose slab is changed by its owner with plain stores, one thread of it to be
//   executed instruction by instruction, while another forks children as a signal handler would: in
//   the middle. Each child takes the slab over and writes down what it found.
// Invariants: the two sides talk through `Shared` alone, a mapping that both have; every item is a
//   number that occurs once; nothing of the process changes but by the thread that is executed.
// Cost: a fork and a thread; each child a fork, a stop, a drain and a resize.
#ifndef PCMALLOC_TESTS_INSTRUCTIONS_OWNER_H_
#define PCMALLOC_TESTS_INSTRUCTIONS_OWNER_H_

#include <semaphore.h>
#include <stdint.h>
#include <sys/types.h>

#include "percpu/slabs.h"

namespace pcmalloc::owner {

inline constexpr unsigned kMany = 7;  // more items than are moved at a time
inline constexpr unsigned kFew = 8;
inline constexpr unsigned kNew = 9;  // not used yet
inline constexpr unsigned kClasses[] = {kMany, kFew, kNew};
inline constexpr int kNumClasses = 3;

// Slots of each class in the two geometries, what is in force at the start, what is there then.
inline constexpr uint32_t kWide[kNumClasses] = {100, 30, 20};
inline constexpr uint32_t kNarrow[kNumClasses] = {66, 5, 10};
inline constexpr uint32_t kCapacity[kNumClasses] = {90, 15, 0};
inline constexpr uint32_t kNarrowCapacity[kNumClasses] = {66, 4, 0};
inline constexpr uint32_t kItems[kNumClasses] = {70, 8, 0};
inline constexpr uint32_t kNarrowItems[kNumClasses] = {66, 3, 0};
inline constexpr uint32_t kMost = 128;
inline constexpr uint32_t kBatch = 6;
inline constexpr uint32_t kLargeBatch = 10;  // does not fit

// The j-th item of the k-th class at the start, and of those that are pushed.
constexpr uint64_t InitialItem(int k, uint32_t j) {
  return 0x10000u * static_cast<uint64_t>(k + 1) + 16 * j;
}
constexpr uint64_t PushedItem(uint32_t j) { return 0x900000 + 16 * j; }

// What an owner does.
enum class Kind : uint8_t {
  kPopBatch,
  kPushBatch,
  kPushMoreThanFits,
  kRaiseCapacity,
  kLowerCapacity,
  kFirstCapacity,  // of kNew
  kStopAndStart,
  kDrain,
  kDrainWithCapacity,
  kResize,
  kResizeToKept,  // the new slab is one that was in use before, with other items
  kTryResize,
  kEnsure,  // a slab for an index that has none
};

// A stack as a child finds it.
struct Stack {
  bool used;
  uint32_t capacity;
  uint32_t most;
  uint32_t count;
  uint64_t items[kMost];
};

struct View {
  Stack stacks[kNumClasses];
  bool second_there;  // the index of kEnsure has a slab
  char problem[96];   // what is wrong in itself; empty: nothing
};

enum class Command : uint8_t { kPrepare, kFork };

struct Shared {
  percpu::Mode mode;
  Kind kind;
  int cpu;     // that everything runs on
  int second;  // an index without a slab
  pid_t victim_id;
  sem_t ready, attached;

  // Commands to the other thread.
  sem_t go, done;
  Command command;
  bool failed;  // it could not do what it was told

  bool finished;  // the victim, with what `kind` says
  uint32_t moved;
  uint32_t taken_count;  // items that came out of the slab
  uint64_t taken[kMost];
  View view;
};

// The life of the process.
[[noreturn]] void RunOwner(Shared* shared);

}  // namespace pcmalloc::owner

#endif  // PCMALLOC_TESTS_INSTRUCTIONS_OWNER_H_
