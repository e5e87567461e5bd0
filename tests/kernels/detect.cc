// SPDX-License-Identifier: Apache-2.0
//
// What the library's own probe makes of this kernel, as "PCM key=value" lines. Status 0 unless the
// probe came to no answer.
#include <stdio.h>
#include <sys/auxv.h>

#include "rseq/detect/probe.h"

namespace rseq = pcmalloc::rseq;

namespace {

constexpr unsigned long kAuxFeatureSize = 27;  // AT_RSEQ_FEATURE_SIZE
constexpr unsigned long kOriginalLength = 32;

// The kernel's class in one word: V2 where the advertised length is one that has the strict mode.
const char* ClassOf(rseq::Class32 original, rseq::ClassV2 longer) {
  if (original != rseq::Class32::kCacheOk) return rseq::Name(original);
  if (getauxval(kAuxFeatureSize) <= kOriginalLength) return rseq::Name(original);
  return longer == rseq::ClassV2::kOk ? "V2" : rseq::Name(longer);
}

}  // namespace

int main() {
  const rseq::Finding32 original = rseq::FindClass32();
  const rseq::FindingV2 longer = rseq::FindClassV2(rseq::LongerLength());
  printf("PCM class32=%s\nPCM class_long=%s\nPCM class=%s\n", rseq::Name(original.value),
         rseq::Name(longer.value), ClassOf(original.value, longer.value));
  printf("PCM microseconds=%ld\n",
         (original.marked.nanoseconds + longer.result.nanoseconds) / 1000);
  return original.value == rseq::Class32::kUnknown || longer.value == rseq::ClassV2::kUnknown;
}
