// SPDX-License-Identifier: Apache-2.0
//
// What a Take and a Give cost together, alone and among many live spans.
#include <benchmark/benchmark.h>

#include <random>
#include <vector>

#include "allocator/pages/test_util.h"

namespace pcmalloc {
namespace {

// range(0): pages of the measured span; range(1): live spans, every other one of them given back.
void TakeAndGive(benchmark::State& state) {
  std::mt19937 random(1);
  std::vector<Span*> live;
  for (int64_t i = 0; i < 2 * state.range(1); ++i) {
    live.push_back(TakeOrNull(1 + random() % 16, kPageSize, 1));
  }
  for (size_t i = 1; i < live.size(); i += 2) PageHeap::Give(live[i]);
  for (auto _ : state) {
    Span* span = TakeOrNull(state.range(0), kPageSize, 1);
    benchmark::DoNotOptimize(span);
    PageHeap::Give(span);
  }
  for (size_t i = 0; i < live.size(); i += 2) PageHeap::Give(live[i]);
}
BENCHMARK(TakeAndGive)->ArgsProduct({{1, 2, 4, 8, 16}, {0, 1000, 100000}});

// Replaces a random live span by one of another size: every access is to cold lines.
void Churn(benchmark::State& state) {
  std::mt19937 random(1);
  std::vector<Span*> live;
  for (int64_t i = 0; i < state.range(0); ++i) {
    live.push_back(TakeOrNull(1 + random() % 16, kPageSize, 1));
  }
  for (auto _ : state) {
    Span*& span = live[random() % live.size()];
    PageHeap::Give(span);
    span = TakeOrNull(1 + random() % 16, kPageSize, 1);
  }
  for (Span* span : live) PageHeap::Give(span);
}
BENCHMARK(Churn)->Arg(100)->Arg(1000)->Arg(10000)->Arg(100000);

}  // namespace
}  // namespace pcmalloc

BENCHMARK_MAIN();
