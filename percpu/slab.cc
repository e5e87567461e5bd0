// SPDX-License-Identifier: Apache-2.0
#include "percpu/slab.h"

namespace pcmalloc::percpu {
namespace {

constexpr Slab MakeClosedSlab() {
  Slab slab{};
  for (Header& header : slab.headers) header = kUnusedHeader;
  slab.mark = kMark;
  // No stack has anything between its begin and `current`.
  for (uint32_t& begin : slab.begin) begin = kUnusedHeader.current;
  return slab;
}

}  // namespace

extern "C" {
// Read-only: a section that wrote to it would be a bug, and is stopped by the processor.
constexpr Slab pcmalloc_closed_slab = MakeClosedSlab();

// All zero, so that 64 KiB do not lie in the file: no section runs before InitTable has filled it.
constinit Slab* pcmalloc_slab_of[2 + kMaxCpus] = {};
}

}  // namespace pcmalloc::percpu
