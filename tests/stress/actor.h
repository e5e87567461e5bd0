// SPDX-License-Identifier: Apache-2.0
//
// Purpose: one flow of control that allocates, checks and frees blocks: the main flow of a worker,
//   its signal handler, or the main thread's clean-up.
//
//      Allocate:    malloc* -> aligned? -> claim -> zero? -> stamp
//      Free:        stamp intact? -> release the claim -> free
//      Reallocate:  stamp intact? -> release -> realloc -> claim -> old contents there? -> stamp
//      (a failed claim: report, let the block go, never free it)
//
// Invariants: what the registry holds is always a part of what the malloc has handed out; the loser
//   of a claim writes nothing into the block, so that its other owner's stamp stays whole.
// Cost: about 100 ns a block of 64 bytes beside the malloc itself.
#ifndef PCMALLOC_TESTS_STRESS_ACTOR_H_
#define PCMALLOC_TESTS_STRESS_ACTOR_H_

#include <signal.h>

#include "tests/stress/base.h"
#include "tests/stress/block.h"

namespace stress {

struct Counters {
  Counter allocations;
  Counter frees;
  Counter reallocs;
  Counter handovers;
  Counter failures;   // the malloc returned null
  Counter abandoned;  // not freed, because somebody else holds the block

  uint64_t Operations() const { return allocations.Get() + frees.Get() + reallocs.Get(); }
};

class Actor {
 public:
  void Init(unsigned thread, bool handler, uint64_t seed);

  // `block` must not be held. On success it is.
  bool Allocate(Block& block, uint32_t size);
  // `block` must be held.
  void Free(Block& block);
  void Reallocate(Block& block, uint32_t size);
  void Verify(const Block& block, const char* when);

  // 1 byte … max_size, mostly small.
  uint32_t PickSize();

  // True while this flow is inside a call of the malloc under test.
  bool inside_malloc() const { return inside_malloc_ != 0; }
  void set_inside_malloc(bool inside) {
    inside_malloc_ = inside;
    __atomic_signal_fence(__ATOMIC_SEQ_CST);
  }

  // In a fork child: tells whether a block that is held according to the inherited books really is.
  // Other threads went on while the kernel copied those books page by page.
  using IsHeld = bool (*)(const Block& block);
  static void EnterForkChild(IsHeld is_held);

  Random& random() { return random_; }
  Counters& counters() { return counters_; }
  const Counters& counters() const { return counters_; }

 private:
  void* CallMalloc(uint32_t size, const char** call, uint32_t* alignment, bool* zeroed);
  bool Take(Block& block, void* data, uint32_t size, uint32_t extent, bool dense, const char* call);

  Random random_;
  unsigned thread_ = 0;
  bool handler_ = false;
  uint32_t sequence_ = 0;
  volatile sig_atomic_t inside_malloc_ = 0;
  Counters counters_;
};

}  // namespace stress

#endif  // PCMALLOC_TESTS_STRESS_ACTOR_H_
