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
  bool migrated;   // it was moved to the other CPU
};

// Empty if what is seen in `shared` after the round is what it had to lead to; else what is wrong.
// Says whether both sides worked on the same slab, which is a matter of luck where mm_cid is the
// index.
std::string Explain(const Round& round, const Shared& shared, bool* same_slab);

}  // namespace pcmalloc::instructions

#endif  // PCMALLOC_TESTS_INSTRUCTIONS_MODEL_H_
