// SPDX-License-Identifier: Apache-2.0
#include "allocator/sizes/size_classes.h"

namespace pcmalloc {
namespace {

constexpr ClassTable MakeTable() {
  ClassTable table{};
  for (unsigned c = 1; c < kNumCachedClasses; ++c) {
    table.rows[c] = {static_cast<uint32_t>(ClassSize(c)), static_cast<uint16_t>(SpanPages(c)),
                     static_cast<uint16_t>(BatchSize(c))};
  }
  return table;
}

}  // namespace

constexpr ClassTable kClasses = MakeTable();

}  // namespace pcmalloc
