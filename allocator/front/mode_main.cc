// SPDX-License-Identifier: Apache-2.0
//
// main of the tests that run in the mode of --mode=.
#include "allocator/front/front.h"
#include "gtest/gtest.h"
#include "percpu/slabs.h"
#include "rseq/rseq.h"
#include "tests/support/mode.h"

int main(int argc, char** argv) {
  const pcmalloc::percpu::Mode mode = pcmalloc::testing::InitForMode(&argc, argv);
  pcmalloc::percpu::InitTable(pcmalloc::rseq::Discover().cpu_bound);
  pcmalloc::percpu::Init(mode, pcmalloc::front::MakeGeometry());
  return RUN_ALL_TESTS();
}
