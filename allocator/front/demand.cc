// SPDX-License-Identifier: Apache-2.0
#include "allocator/front/demand.h"

#include "allocator/front/per_cpu.h"
#include "allocator/sizes/size_classes.h"

namespace pcmalloc::front {

constinit PerCpu of_cpu[percpu::kMaxCpus];

namespace {

// In misses. A stack with all the slots that a class may ever have takes 16 batches: a longer swing
// than this it would hardly notice.
constexpr uint8_t kLongestSwing = 100;
constexpr uint8_t kOneWay = 3;

constexpr uint8_t kFullBit = 128;
constexpr uint8_t kLongestRun = 127;

// So many misses weigh twice as much as those before them.
constexpr uint32_t kMissesToHalve = 512;

}  // namespace

uint32_t BatchFor(unsigned size_class, uint32_t capacity, bool one_way) {
  const uint32_t room = one_way && capacity != 0 ? capacity : capacity / 2 + 1;
  const uint32_t batch = kClasses[size_class].batch;
  return room < batch ? room : batch;
}

void CountMiss(int index, unsigned size_class) {
  PerCpu& state = of_cpu[index];
  uint8_t* const misses = state.misses;
  const uint8_t before = __atomic_load_n(&misses[size_class], __ATOMIC_RELAXED);
  if (before < UINT8_MAX) __atomic_store_n(&misses[size_class], before + 1, __ATOMIC_RELAXED);
  const uint32_t counted = state.misses_counted.load(std::memory_order_relaxed) + 1;
  state.misses_counted.store(counted % kMissesToHalve, std::memory_order_relaxed);
  if (counted < kMissesToHalve) return;
  for (unsigned c = 1; c < kNumCachedClasses; ++c) {
    __atomic_store_n(&misses[c], __atomic_load_n(&misses[c], __ATOMIC_RELAXED) / 2,
                     __ATOMIC_RELAXED);
  }
}

uint32_t RecentMisses(int index, unsigned size_class) {
  return __atomic_load_n(&of_cpu[index].misses[size_class], __ATOMIC_RELAXED);
}

Demand NoteMiss(int index, unsigned size_class, Miss miss, uint32_t capacity, uint32_t most,
                uint64_t (*clock)()) {
  CountMiss(index, size_class);
  PerCpu& state = of_cpu[index];
  uint8_t* const entry = &state.runs[size_class];
  const uint8_t kind = miss == Miss::kFull ? kFullBit : 0;
  const uint8_t before = __atomic_load_n(entry, __ATOMIC_RELAXED);
  const uint8_t run = before & kLongestRun;
  const bool turned = (before & kFullBit) != kind;
  const uint8_t now = turned ? 1 : run < kLongestRun ? run + 1 : run;
  __atomic_store_n(entry, static_cast<uint8_t>(kind | now), __ATOMIC_RELAXED);

  Demand demand = {capacity < most, now >= kOneWay};
  if (capacity < kFirstCapacity || capacity >= most) return demand;
  const bool batch_grows = capacity < kClasses[size_class].batch;
  // Misses that no capacity would avoid make nothing frequent.
  if (run > kLongestSwing && !batch_grows) {
    demand.grow = false;
  } else {
    const bool matters = turned || batch_grows;
    const uint32_t cost = MissNanoseconds(BatchFor(size_class, capacity, demand.one_way));
    demand.grow = state.rate.Note(cost, matters, clock) && matters;
  }
  return demand;
}

}  // namespace pcmalloc::front
