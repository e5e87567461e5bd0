// SPDX-License-Identifier: Apache-2.0
//
// Purpose: what the misses of a CPU say: which class would have avoided them with more slots, and
//   whether that is worth the memory.
//
//      slots of a class  < 8          more at the first miss
//                        < a batch    more where misses are frequent: the batches become larger
//                        from there   more where they are frequent and the class swings: it was
//                                     full, is empty and will be full again within so few batches
//                                     that a larger stack would have taken the swing
//
//   Blocks that only arrive (or only leave) are as cheap with a batch of slots as with a hundred.
//
// Invariants: misses that take less than kPercentOfTime get nobody more than first slots. Threads
//   that race on one CPU lose a miss or a reading of the clock, no more. Async-signal-safe.
// Cost: a few loads and stores on two lines of the CPU's own; the clock is read once for kWindow of
//   misses and where a class grows, so it may be a system call.
#ifndef PCMALLOC_ALLOCATOR_FRONT_DEMAND_H_
#define PCMALLOC_ALLOCATOR_FRONT_DEMAND_H_

#include <stdint.h>

#include <atomic>

#include "allocator/os/clock.h"

namespace pcmalloc::front {

// Slots that a class gets at first.
inline constexpr uint32_t kFirstCapacity = 8;

// Misses are frequent where they take more of the time than this; a doubled capacity
// leaves far fewer.
inline constexpr uint32_t kPercentOfTime = 3;

// What a miss costs that moves so many objects by way of the transfer cache. Down to their spans it
// is two ns more for each.
constexpr uint32_t MissNanoseconds(uint32_t objects) { return 50 + objects; }

// A leaky bucket: the cost of misses fills it, time empties it, and they are frequent while
// it is full.
class MissRate {
 public:
  static constexpr uint32_t kBurst = 4000;   // ns that are not worth a thought
  static constexpr uint32_t kWindow = 1000;  // ns of cost between readings of the clock

  // Notes a miss that costs `cost` ns at a time by `clock`, in ns; whether misses are frequent,
  // which is exact where it `matters`: memory of what was before a pause must not decide.
  bool Note(uint32_t cost, bool matters, uint64_t (*clock)()) {
    cost += cost_.load(std::memory_order_relaxed);
    uint32_t level = level_.load(std::memory_order_relaxed);
    if (cost < kWindow && !(matters && level > kBurst)) {
      cost_.store(cost, std::memory_order_relaxed);
      return false;
    }
    cost_.store(0, std::memory_order_relaxed);
    // 32 bits of 64 ns last for four minutes.
    const uint32_t now = static_cast<uint32_t>(clock() / kUnit);
    const uint32_t passed = now - then_.load(std::memory_order_relaxed);
    then_.store(now, std::memory_order_relaxed);
    const uint64_t leaked = passed * kUnit * kPercentOfTime / 100;
    level += cost;
    level = leaked < level ? level - static_cast<uint32_t>(leaked) : 0;
    // Not much above the mark, so that it soon ends.
    if (level > kBurst + 4 * kWindow) level = kBurst + 4 * kWindow;
    level_.store(level, std::memory_order_relaxed);
    return level > kBurst;
  }

 private:
  static constexpr uint64_t kUnit = 64;
  std::atomic<uint32_t> cost_{0};   // since the clock was read
  std::atomic<uint32_t> level_{0};  // what is in the bucket
  std::atomic<uint32_t> then_{0};   // when the clock was read
};

enum class Miss : uint8_t {
  kEmpty,  // of malloc
  kFull,   // of free
};

struct Demand {
  bool grow;     // more slots are worth it
  bool one_way;  // the class has missed like this several times on end
};

// Objects that a miss moves. Half of what there is room for, so that what comes next, whichever
// way, does not miss again; all of it where the way is known.
uint32_t BatchFor(unsigned size_class, uint32_t capacity, bool one_way);

// Counts a miss of a class on an index.
void CountMiss(int index, unsigned size_class);

// How many of the index's recent misses, some hundreds, were of the class.
uint32_t RecentMisses(int index, unsigned size_class);

// The same, and notes a miss of a class that has `capacity` slots on an index and may have `most`.
Demand NoteMiss(int index, unsigned size_class, Miss miss, uint32_t capacity, uint32_t most,
                uint64_t (*clock)() = os::Nanoseconds);

}  // namespace pcmalloc::front

#endif  // PCMALLOC_ALLOCATOR_FRONT_DEMAND_H_
