// SPDX-License-Identifier: Apache-2.0
//
// Purpose: what the tests of slabs share: items that are numbers, and a slab on one CPU.
// Invariants: the mode is final once FirstUse has run, which must be the first test of the process.
// Cost: none of note.
#ifndef PCMALLOC_PERCPU_SLABS_TEST_H_
#define PCMALLOC_PERCPU_SLABS_TEST_H_

#include <sched.h>
#include <stdint.h>

#include <map>
#include <mutex>
#include <vector>

#include "gtest/gtest.h"
#include "percpu/ops.h"
#include "percpu/slabs.h"
#include "tests/support/affinity.h"

namespace pcmalloc::percpu {

using testing::AllowedCpus;
using testing::PinTo;

inline constexpr unsigned kClass = 11;
inline constexpr unsigned kOtherClass = 12;
inline constexpr uint32_t kSlots = 40;

inline Mode mode_under_test = Mode::kUnset;

inline Geometry GeometryWith(uint32_t capacity) {
  Geometry geometry = {};
  geometry.capacity[kClass] = capacity;
  geometry.capacity[kOtherClass] = capacity;
  return geometry;
}

inline void* Token(uintptr_t i) { return reinterpret_cast<void*>((i + 1) * 16); }
inline uintptr_t NumberOf(const void* token) { return reinterpret_cast<uintptr_t>(token) / 16 - 1; }

inline std::vector<void*> Tokens(uintptr_t first, uint32_t n) {
  std::vector<void*> tokens;
  for (uintptr_t i = first; i < first + n; ++i) tokens.push_back(Token(i));
  return tokens;
}

inline std::vector<void*> PopSome(unsigned size_class, uint32_t n) {
  std::vector<void*> items(n);
  items.resize(PopBatch(size_class, items.data(), n));
  return items;
}

inline uint32_t PushAll(unsigned size_class, const std::vector<void*>& items) {
  return PushBatch(size_class, items.data(), static_cast<uint32_t>(items.size()));
}

// One item by the section that the mode has for that.
inline void* PopOne(unsigned size_class) {
  switch (mode_under_test) {
    case Mode::kCpuId:
      return Pop<Index::kCpuId>(size_class);
    case Mode::kMmCid:
      return Pop<Index::kMmCid>(size_class);
    case Mode::kCached:
      return PopCached(size_class);
    default:
      return nullptr;
  }
}

inline bool PushOne(unsigned size_class, void* item) {
  switch (mode_under_test) {
    case Mode::kCpuId:
      return Push<Index::kCpuId>(size_class, item);
    case Mode::kMmCid:
      return Push<Index::kMmCid>(size_class, item);
    case Mode::kCached:
      return PushCached(size_class, item);
    default:
      return false;
  }
}

// What Drain and Resize handed out; one lock is enough.
inline std::mutex received_mutex;
inline std::map<unsigned, std::vector<void*>> received;
inline void Receive(unsigned size_class, void* const* items, uint32_t n) {
  std::lock_guard<std::mutex> held(received_mutex);
  received[size_class].insert(received[size_class].end(), items, items + n);
}

// Every test on one CPU, with a slab whose class has kSlots slots, of which 10 are in force.
class Slabs : public ::testing::Test {
 protected:
  void SetUp() override {
    sched_getaffinity(0, sizeof(allowed_), &allowed_);
    PinTo(AllowedCpus()[0]);
    ASSERT_TRUE(PrepareThread());
    index_ = CurrentIndex();
    ASSERT_GE(index_, 0);
    EnsureSlab(index_);
    ASSERT_TRUE(Resize(index_, GeometryWith(kSlots), Receive));
    Drain(index_, Receive);
    received.clear();
    for (const unsigned c : {kClass, kOtherClass}) SetCapacity(index_, c, 10);
    ASSERT_EQ(CapacityOf(index_, kClass).now, 10u);
  }
  void TearDown() override {
    Drain(index_, Receive);
    sched_setaffinity(0, sizeof(allowed_), &allowed_);
  }

  int index_ = -1;
  cpu_set_t allowed_;
};

}  // namespace pcmalloc::percpu

#endif  // PCMALLOC_PERCPU_SLABS_TEST_H_
