// SPDX-License-Identifier: Apache-2.0
//
// Purpose: decides when idle memory goes back to the operating system, and how much; how it goes is
//   return.cc's business.
//
//      ReleasePolicy   what goes when too much is idle, checked whenever pages come back
//      IdleBound       what is too much
//      IdleClock       when the next step of ages is due
//      IdleAges        idle memory by age, in steps; what of each age may still stay:
//
//                      1 |***..
//                        |     *.
//                        |       *.
//                      0 |         ..***
//                        +-------------- age, 0 .. kSteps
//
// Invariants: pure functions of the numbers passed in, and of ages alone; no clock is read here.
// Cost: a few instructions; Advance some fifty.
#ifndef PCMALLOC_ALLOCATOR_PAGES_RELEASE_POLICY_H_
#define PCMALLOC_ALLOCATOR_PAGES_RELEASE_POLICY_H_

#include <stddef.h>
#include <stdint.h>

#include <atomic>

namespace pcmalloc {

struct ReleasePolicy {
  // Shorter ranges are not worth a system call of their own: while there is too much idle memory;
  // once they have been idle for long. Anything goes if somebody asks for it.
  static constexpr size_t kShortestRange = size_t{128} << 10;
  static constexpr size_t kShortestOldRange = size_t{32} << 10;

  // How many of the `idle` bytes should go: what is above the bound and so much below it that the
  // next pass is as much freed memory away. Of a large bound, which is large because what went came
  // back, that is a small part.
  static constexpr uint64_t kPass = uint64_t{3} << 19;
  static constexpr uint64_t BytesToReturn(uint64_t idle, uint64_t bound) {
    if (idle <= bound) return 0;
    const uint64_t pass = bound / 16 > kPass ? bound / 16 : kPass;
    return idle - bound + (pass < bound / 2 ? pass : bound / 2);
  }

  // What has been `grown` although `idle` bytes were there, which fitted nobody, is to be made up
  // for, so that the heap needs no more memory than at its height. Not for every little, and not
  // where what went would only come back: `earned` is IdleBound's.
  static constexpr uint64_t kGrowthStep = uint64_t{1} << 20;
  static constexpr uint64_t kGrowthDivisor = 8;
  static constexpr uint64_t BytesForGrowth(uint64_t grown, uint64_t idle, uint64_t used,
                                           uint64_t earned) {
    const uint64_t keep = used / kGrowthDivisor > earned ? used / kGrowthDivisor : earned;
    if (grown < kGrowthStep || idle <= keep) return 0;
    return grown < idle - keep ? grown : idle - keep;
  }
};

// How much may be idle: little, until it turns out that what was returned is needed again at once.
// A heap that breathes may keep what it breathes with; whether it still does, age will tell.
//
//      used   peak  - - /\ - - - - /\ - - - - - - /\ - -
//                      /  \ first  /  \ from now   /  \      what went and came may be idle
//                     /    \______/    \_on_______/    \__
//                           returned     kept
class IdleBound {
 public:
  // What may be idle whatever is used, the part of the used memory that may, and the one that may
  // where it is needed again.
  static constexpr uint64_t kLeast = uint64_t{3} << 20;
  static constexpr uint64_t kMost = uint64_t{16} << 20;
  static constexpr uint64_t kLeastDivisor = 32;
  static constexpr uint64_t kMostDivisor = 8;

  // How far the bound of a heap may rise that has shown that it needs what is idle.
  enum class Reach : uint8_t {
    // Half as much again as was used at its height of late: where large blocks of many sizes come
    // and go a free range seldom fits the next one, and with less idle memory would go and come
    // back all the time. (What is used swings there; a bound that swung along would do it, too.)
    kRanges,
    // What is missing to that height: an object's place fits every other of its class.
    kPlaces,
  };

  constexpr explicit IdleBound(Reach reach = Reach::kRanges, uint64_t least = kLeast,
                               uint64_t most = kMost)
      : reach_(reach), least_(least), most_(most), bytes_(least) {}

  constexpr uint64_t For(uint64_t used) const {
    const uint64_t least = Least(used);
    if (bytes_ <= least) return least;
    const bool ranges = reach_ == Reach::kRanges;
    uint64_t most = ranges ? used : used / kMostDivisor;
    if (most_ > most) most = most_;
    const uint64_t breath = ranges ? peak_ + peak_ / 2 : peak_ > used ? peak_ - used : 0;
    if (breath > most) most = breath;
    return bytes_ > most ? most : bytes_;
  }

  // The same, but 0 before memory has been needed again.
  constexpr uint64_t Earned(uint64_t used) const {
    const uint64_t bytes = For(used);
    return bytes > Least(used) ? bytes : 0;
  }

  // So much cold memory was taken, with which so much is used.
  constexpr void Taken(uint64_t bytes, uint64_t used) {
    taken_ += bytes;
    if (used > peak_) peak_ = used;
  }

  // Too much was idle, and so much of it was returned.
  constexpr void Returned(uint64_t bytes, uint64_t used) {
    if (bytes_ < Least(used)) bytes_ = Least(used);
    if (taken_ != 0) {  // breathing out again
      if (returned_ != 0 && taken_ >= returned_ / 2) {
        bytes_ += returned_ > bytes_ ? returned_ : bytes_;
      } else {
        bytes_ /= 2;
      }
      returned_ = taken_ = 0;
    }
    returned_ += bytes;
    if (returned_ / 2 > bytes_) bytes_ = 0;  // this is no breath, the heap shrinks
    // Not much more than For allows, so that what is not needed any more can be forgotten.
    const uint64_t most = 2 * peak_ > most_ ? 2 * peak_ : most_;
    if (bytes_ > most) bytes_ = most;
  }

  // A step of the ages has passed: a peak is forgotten in as many as IdleAges has, and what has
  // been learnt has to be learnt again now and then.
  constexpr void Age(uint64_t used) {
    peak_ = used >= peak_ ? used : peak_ - (peak_ - used) / 8;
    bytes_ -= bytes_ / 32;
  }

 private:
  constexpr uint64_t Least(uint64_t used) const {
    return used / kLeastDivisor > least_ ? used / kLeastDivisor : least_;
  }

  Reach reach_;
  uint64_t least_;
  uint64_t most_;
  uint64_t bytes_;
  uint64_t returned_ = 0;  // since memory was last taken
  uint64_t taken_ = 0;     // since memory was last returned
  uint64_t peak_ = 0;      // of what is used, fading
};

// Pages that were idle for some steps and are needed again are taken from the youngest: it is the
// least number of idle pages between two steps that nobody needed.
class IdleAges {
 public:
  static constexpr unsigned kSteps = 16;

  // The length of a step for a decay time, and how long one who finds nothing idle may sleep. All
  // of the curve and one such sleep fit into the decay time.
  static constexpr uint64_t StepMs(uint64_t decay_ms) {
    return decay_ms * 3 / 4 / kSteps == 0 ? 1 : decay_ms * 3 / 4 / kSteps;
  }
  static constexpr uint64_t SleepMs(uint64_t decay_ms) {
    return decay_ms / 4 == 0 ? 1 : decay_ms / 4;
  }

  // The part of what became idle at once that may stay after so many steps, of kWhole.
  static constexpr uint64_t kWhole = uint64_t{1} << 16;
  static constexpr uint64_t Share(uint64_t age) {
    if (age >= kSteps) return 0;
    const uint64_t x = age * kWhole / kSteps;
    return kWhole - x * x / kWhole * (3 * kWhole - 2 * x) / kWhole;
  }

  // `steps` have passed since the last call; `least` is the smallest number of idle pages between
  // the two, `idle` the present one. Returns how many pages should go.
  constexpr uint64_t Advance(uint64_t steps, uint64_t least, uint64_t idle) {
    uint64_t aged = 0;
    for (const uint64_t pages : pages_) aged += pages;
    for (unsigned age = 0; age < kSteps && aged > least; ++age) {
      const uint64_t used = pages_[age] < aged - least ? pages_[age] : aged - least;
      pages_[age] -= used;
      aged -= used;
    }
    if (steps > 0) {
      since_retry_ += steps;
      for (unsigned age = kSteps; age-- > 0;) {
        const uint64_t pages = pages_[age];
        pages_[age] = 0;
        if (steps >= kSteps - age) continue;
        pages_[age + steps] = pages * Share(age + steps) / Share(age);
      }
    }
    pages_[0] += idle - least;
    uint64_t keep = 0;
    for (const uint64_t pages : pages_) keep += pages;
    const uint64_t due = idle > keep ? idle - keep : 0;
    if (since_retry_ >= kSteps) {
      since_retry_ = 0;
      left_ = 0;
    }
    if (left_ > due) left_ = due;
    return due - left_;
  }

  // So many of the pages that should have gone could not (too short a range, locked memory). They
  // are not asked for again until all ages have passed once.
  constexpr void Left(uint64_t pages) { left_ += pages; }

  // Whether a further step could ask for anything, with `idle` idle pages.
  constexpr bool Pending(uint64_t idle) const { return idle > left_; }

 private:
  uint64_t pages_[kSteps] = {};  // idle and allowed to be, by age
  uint64_t left_ = 0;
  uint64_t since_retry_ = 0;
};

// The ages' steps by the time that callers bring along. Due and Note may be called by anybody at
// any time, the others by one thread at a time.
class IdleClock {
 public:
  // Whether Step makes sense.
  bool Due(uint64_t now_ms) const { return now_ms >= next_ms_.load(std::memory_order_relaxed); }

  // So many pages are idle just now; to be called whenever they have become fewer.
  void Note(uint64_t idle) {
    if (idle < least_.load(std::memory_order_relaxed)) {
      least_.store(idle, std::memory_order_relaxed);
    }
  }

  // Makes the steps that are due. Returns how many pages should go; *wait_ms becomes the number of
  // milliseconds until the next call makes sense.
  uint64_t Step(uint64_t now_ms, uint64_t decay_ms, uint64_t idle, uint64_t* wait_ms) {
    const uint64_t step_ms = IdleAges::StepMs(decay_ms);
    uint64_t next = next_ms_.load(std::memory_order_relaxed);
    // The first call, or a clock that is not the one of the last call: all that is idle is young.
    if (next == 0 || next > now_ms + 2 * step_ms) {
      next = now_ms + step_ms;
      least_.store(0, std::memory_order_relaxed);
    }
    uint64_t due = 0;
    if (now_ms >= next) {
      const uint64_t steps = 1 + (now_ms - next) / step_ms;
      next += steps * step_ms;
      Note(idle);
      due = ages_.Advance(steps, least_.load(std::memory_order_relaxed), idle);
      least_.store(idle, std::memory_order_relaxed);
    }
    next_ms_.store(next, std::memory_order_relaxed);
    *wait_ms = ages_.Pending(idle) ? next - now_ms : IdleAges::SleepMs(decay_ms);
    return due;
  }

  // See IdleAges::Left.
  void Left(uint64_t pages) { ages_.Left(pages); }

 private:
  IdleAges ages_;
  std::atomic<uint64_t> least_{0};    // idle pages, since the last step
  std::atomic<uint64_t> next_ms_{0};  // when the next one is due; 0 before the first
};

}  // namespace pcmalloc

#endif  // PCMALLOC_ALLOCATOR_PAGES_RELEASE_POLICY_H_
