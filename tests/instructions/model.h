// SPDX-License-Identifier: Apache-2.0
//
// Purpose: what the operations on slabs mean, one after another and without threads: what a round
//   may have led to.
// Invariants: an interrupted operation takes place as a whole, either before what interrupted it
//   (its commit was done) or after it.
// Cost: none to speak of.
#ifndef PCMALLOC_TESTS_INSTRUCTIONS_MODEL_H_
#define PCMALLOC_TESTS_INSTRUCTIONS_MODEL_H_

#include <string>

#include "tests/instructions/subject.h"

namespace pcmalloc::instructions {

struct Round {
  Kind operation;
  Kind conflict;
  bool committed;  // the victim had committed a section before the conflict
  bool several;    // and its operation consists of several: the one that counts may be to come
  int at_stop;     // number of the slab of the index that the victim had when it was stopped, and
  int at_end;      // when it had finished; -1: of none
};

struct Verdict {
  std::string wrong;       // empty if what is seen after the round is what it had to lead to
  bool same_slab = false;  // both sides worked on one: a matter of luck where mm_cid is the index
  // The items are right, but not in the slabs of the indices that the victim was seen to have. The
  // kernel may give another mm_cid between a section and the look at it, though not
  // again and again.
  bool elsewhere = false;
};

Verdict Judge(const Round& round, const Shared& shared);

}  // namespace pcmalloc::instructions

#endif  // PCMALLOC_TESTS_INSTRUCTIONS_MODEL_H_
