// SPDX-License-Identifier: Apache-2.0
//
// Purpose: what can go wrong, counted by kind; the first few are told on stderr in full.
// Invariants: nothing allocates; async-signal-safe; may be called from any thread, from a signal
//   handler, and in a fork child (which marks its lines and answers by its exit status).
// Cost: only paid when the malloc under test fails.
#ifndef PCMALLOC_TESTS_STRESS_VIOLATION_H_
#define PCMALLOC_TESTS_STRESS_VIOLATION_H_

#include <stdint.h>

#include "tests/stress/base.h"
#include "tests/stress/block.h"

namespace stress {

enum class Kind {
  kDuplicate,      // a block handed out while somebody holds one at the same address
  kOverlap,        // ... while somebody holds a part of it
  kLostContents,   // a live block's stamp changed
  kMisaligned,     // address not aligned as asked, or not as malloc must
  kNonzeroCalloc,  // calloc gave bytes that are not 0
  kShortBlock,     // malloc_usable_size below the size asked for
  kForkChild,      // a fork child failed, crashed or hung
  kStall,          // no thread made progress
  kRssGrowth,      // resident memory grew while the live set did not
  kAccounting,     // at the end, a block is missing or left over
  kCrash,          // SIGSEGV, SIGABRT, ...
  kCount,
};

const char* KindName(Kind kind);

class Violations {
 public:
  static uint64_t Count(Kind kind);
  static uint64_t Total();

  // From now on this process is a fork child: lines say so.
  static void EnterForkChild();

  // A claim for `mine` failed at `taken`; `other` is who holds that, or null when unknown.
  static void ReportClaim(const Block& mine, const char* call, uintptr_t taken, const Owner* other);

  // The stamp of `block` is damaged; its data lay at `data` when looked at.
  static void ReportContents(const Block& block, const char* when, const uint8_t* data,
                             const Mismatch& mismatch);

  // The block that `call` just handed out is bad: misaligned, not zero, too short.
  static void ReportBlock(Kind kind, const char* call, const void* address, Tag tag,
                          const char* detail_name, uint64_t detail);

  // Everything else: one line of text.
  static void Report(Kind kind, const char* format, ...) __attribute__((format(printf, 2, 3)));

 private:
  // Counts; true when the caller shall write the details.
  static bool Begin(Kind kind, Message& message);
};

}  // namespace stress

#endif  // PCMALLOC_TESTS_STRESS_VIOLATION_H_
