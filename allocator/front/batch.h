// SPDX-License-Identifier: Apache-2.0
//
// Purpose: the array that a batch of objects goes through. A long one takes a lock less often, but
//   the stack may be a signal handler's of 8 KiB, most of which the kernel has used for registers.
//
//      shared_batches | taken, 257 objects | taken, 257 objects | ...  one for each CPU, up to 64
//                        |
//      Batch on the stack '-> whoever comes first; 65 objects of its own for all others
//
// Invariants: a shared array is its taker's alone, wherever he runs meanwhile. Who finds it taken
//   does not wait: he interrupts the taker, or runs on a CPU of the same remainder. A thread that
//   never comes back (a handler that jumps, a fork's child without it) leaves it taken for good,
//   and batches there are short from then on.
// Cost: an exchange and a store for batches that are longer than the array on the stack, else none.
#ifndef PCMALLOC_ALLOCATOR_FRONT_BATCH_H_
#define PCMALLOC_ALLOCATOR_FRONT_BATCH_H_

#include <stdint.h>

#include <atomic>

#include "allocator/sizes/size_classes.h"

namespace pcmalloc::front {

struct alignas(64) SharedBatch {
  std::atomic<bool> taken{false};
  void* items[1 + kMaxBatch]{};
};
inline constexpr unsigned kSharedBatches = 64;
extern SharedBatch shared_batches[kSharedBatches];

class Batch {
 public:
  // For `wanted` objects; `index` is that of the caller's slab, or -1: a hint.
  Batch(int index, uint32_t wanted)
      : shared_(wanted <= kMostInArray ? nullptr : Taken(static_cast<unsigned>(index))) {}
  ~Batch() {
    if (shared_ != nullptr) shared_->taken.store(false, std::memory_order_release);
  }
  Batch(const Batch&) = delete;
  Batch& operator=(const Batch&) = delete;

  // Room for one more than most().
  void** items() { return shared_ != nullptr ? shared_->items : own_; }
  uint32_t most() const { return shared_ != nullptr ? kMaxBatch : kMostInArray; }

 private:
  static SharedBatch* Taken(unsigned index) {
    SharedBatch& batch = shared_batches[index % kSharedBatches];
    return batch.taken.exchange(true, std::memory_order_acquire) ? nullptr : &batch;
  }

  SharedBatch* const shared_;
  void* own_[1 + kMostInArray];
};

}  // namespace pcmalloc::front

#endif  // PCMALLOC_ALLOCATOR_FRONT_BATCH_H_
