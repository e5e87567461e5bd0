// SPDX-License-Identifier: Apache-2.0
//
// Purpose: what every part of the stress tool stands on: memory, clock, random numbers and output
//   that do not touch the malloc under test.
// Invariants: nothing here calls malloc; everything is async-signal-safe.
// Cost: a tick is one instruction (rdtsc, cntvct_el0) or one clock_gettime; a random number five.
#ifndef PCMALLOC_TESTS_STRESS_BASE_H_
#define PCMALLOC_TESTS_STRESS_BASE_H_

#include <stddef.h>
#include <stdint.h>
#include <time.h>

#include <atomic>

namespace stress {

// Zeroed memory straight from the kernel, never given back. Ends the process with status 2 when the
// kernel refuses: without its books the tool cannot judge anything.
void* MapOrDie(size_t bytes);

inline uint64_t NowNs() {
  timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return static_cast<uint64_t>(now.tv_sec) * 1000000000u + static_cast<uint64_t>(now.tv_nsec);
}

// A cheap clock of unknown rate, good enough across CPUs to say who held a block how long.
inline uint64_t Ticks() {
#if defined(__x86_64__)
  return __builtin_ia32_rdtsc();
#elif defined(__aarch64__)
  uint64_t ticks;
  asm volatile("mrs %0, cntvct_el0" : "=r"(ticks));
  return ticks;
#else
  return NowNs();
#endif
}

// Remembers the pair (ticks, nanoseconds) from which TicksToNs derives the rate.
void StartClock();
uint64_t TicksToNs(uint64_t ticks);

// splitmix64: the same seed gives the same sequence on every machine.
class Random {
 public:
  explicit Random(uint64_t seed = 0) : state_(seed) {}

  uint64_t Next() {
    uint64_t z = (state_ += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
  }
  // Below `bound`, which is not 0; the slight bias does not matter here.
  uint32_t Below(uint32_t bound) {
    return static_cast<uint32_t>(((Next() >> 32) * static_cast<uint64_t>(bound)) >> 32);
  }
  bool OneIn(uint32_t n) { return Below(n) == 0; }

 private:
  uint64_t state_;
};

// A counter with one writer and any number of readers.
class Counter {
 public:
  void Add(uint64_t n = 1) {
    value_.store(value_.load(std::memory_order_relaxed) + n, std::memory_order_relaxed);
  }
  uint64_t Get() const { return value_.load(std::memory_order_relaxed); }

 private:
  std::atomic<uint64_t> value_{0};
};

// Text for one write(2), so that the lines of several threads do not mix.
class Message {
 public:
  Message& Add(const char* format, ...) __attribute__((format(printf, 2, 3)));
  // "417 ns", "3.214 us", "1.250 ms", "2.001 s".
  Message& Duration(uint64_t ns);
  void Write(int fd) const;

 private:
  char text_[4096];
  size_t size_ = 0;
};

}  // namespace stress

#endif  // PCMALLOC_TESTS_STRESS_BASE_H_
