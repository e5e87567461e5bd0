// SPDX-License-Identifier: Apache-2.0
#include "tests/instructions/model.h"

#include <algorithm>
#include <map>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace pcmalloc::instructions {
namespace {

using percpu::Mode;

struct ModelStack {
  std::vector<uint64_t> items;
  uint32_t capacity = kCapacity;
  bool open = true;
  int changes = 0;  // of the header or of the slab in use

  friend bool operator==(const ModelStack& a, const ModelStack& b) {
    return a.items == b.items && a.capacity == b.capacity;
  }
};

struct ModelOutcome {
  int32_t value = 0;
  std::vector<uint64_t> items;

  friend bool operator==(const ModelOutcome& a, const ModelOutcome& b) {
    return a.value == b.value && a.items == b.items;
  }
};

ModelOutcome Apply(Kind kind, ModelStack& stack, uint64_t (*item)(uint32_t), uint32_t capacity) {
  ModelOutcome outcome;
  const auto pop = [&](size_t n) {
    for (; n > 0 && !stack.items.empty(); --n) {
      outcome.items.push_back(stack.items.back());
      stack.items.pop_back();
      ++stack.changes;
    }
  };
  const auto push = [&](uint32_t n) {
    for (uint32_t i = 0; i < n && stack.items.size() < stack.capacity; ++i) {
      stack.items.push_back(item(i));
      ++stack.changes;
      ++outcome.value;
    }
  };
  if (!stack.open) return outcome;
  switch (kind) {
    case Kind::kNothing:
      break;
    case Kind::kPop:
      pop(1);
      break;
    case Kind::kPush:
      push(1);
      break;
    case Kind::kPopBatch:
      pop(kBatch);
      break;
    case Kind::kPushBatch:
      push(kBatch);
      break;
    case Kind::kSetCapacity:
      outcome.value = static_cast<int32_t>(capacity) - static_cast<int32_t>(stack.capacity);
      stack.capacity = capacity;
      ++stack.changes;
      break;
    case Kind::kDrain:
      outcome.value = static_cast<int32_t>(stack.items.size());
      pop(stack.items.size());
      break;
    case Kind::kResize:
      std::reverse(stack.items.begin(), stack.items.end());
      ++stack.changes;
      break;
    case Kind::kHold:
      stack.open = false;
      break;
  }
  return outcome;
}

ModelOutcome ToModel(const Outcome& outcome) {
  return {outcome.value, {outcome.items, outcome.items + outcome.count}};
}

std::vector<ModelStack> Initial(const Shared& shared) {
  std::vector<ModelStack> stacks(static_cast<size_t>(shared.slabs));
  for (int s = 0; s < shared.slabs; ++s) {
    for (uint32_t j = 0; j < kItems; ++j) {
      stacks[static_cast<size_t>(s)].items.push_back(InitialItem(s, j));
    }
  }
  return stacks;
}

std::vector<ModelStack> Seen(const Shared& shared) {
  std::vector<ModelStack> stacks(static_cast<size_t>(shared.slabs));
  for (size_t s = 0; s < stacks.size(); ++s) {
    const Stack& stack = shared.stacks[s];
    stacks[s].items.assign(stack.items, stack.items + std::min(stack.count, kMost * 2));
    stacks[s].capacity = stack.capacity;
  }
  return stacks;
}

// In which order the two took place. kNot: the operation had no effect.
enum class Order : uint8_t { kOperationFirst, kConflictFirst, kNot };

// Whether the round could end as seen with the operation on slab `own` and the conflict on `other`.
bool Leads(const Round& round, const Shared& shared, size_t own, size_t other, Order order) {
  std::vector<ModelStack> stacks = Initial(shared);
  ModelOutcome victim, conflict;
  const auto operate = [&] {
    victim = Apply(round.operation, stacks[own], VictimItem, kVictimCapacity);
  };
  if (order == Order::kOperationFirst) operate();
  conflict = Apply(round.conflict, stacks[other], OtherItem, kOtherCapacity);
  if (order == Order::kConflictFirst) {
    // It compares with the header and the slab that it saw before it was stopped.
    const bool stale = stacks[own].changes != 0 || round.migrated;
    if (round.operation != Kind::kSetCapacity || !stale) operate();
  }
  return stacks == Seen(shared) && victim == ToModel(shared.victim) &&
         conflict == ToModel(shared.other);
}

std::vector<Order> OrdersAllowed(const Round& round, Mode mode) {
  std::vector<Order> orders;
  if (round.committed) orders.push_back(Order::kOperationFirst);
  if (!round.committed || round.several) {
    orders.push_back(Order::kConflictFirst);
    // The index by mm_cid is another one whenever the kernel likes, and the capacity then stays.
    const bool elsewhere = mode == Mode::kMmCid && round.operation == Kind::kSetCapacity;
    // A cached pointer is gone after every interruption: the operation misses.
    const bool uncached =
        mode == Mode::kCached && (round.operation == Kind::kPop || round.operation == Kind::kPush);
    if (elsewhere || uncached) orders.push_back(Order::kNot);
  }
  return orders;
}

std::string Describe(const ModelOutcome& outcome) {
  std::string text = absl::StrCat(outcome.value, " [");
  for (const uint64_t item : outcome.items) absl::StrAppendFormat(&text, " %x", item);
  return text + " ]";
}

// What became of the items, whatever the order: the reason why all this is done.
std::string CountItems(const Round& round, const Shared& shared) {
  std::map<uint64_t, int> times;
  for (int s = 0; s < shared.slabs; ++s) {
    for (uint32_t j = 0; j < kItems; ++j) --times[InitialItem(s, j)];
  }
  const auto pushed = [&times](Kind kind, const Outcome& outcome, uint64_t (*item)(uint32_t)) {
    if (kind != Kind::kPush && kind != Kind::kPushBatch) return;
    for (int32_t i = 0; i < outcome.value; ++i) --times[item(static_cast<uint32_t>(i))];
  };
  const auto found = [&times](const std::vector<uint64_t>& items) {
    for (const uint64_t item : items) ++times[item];
  };
  pushed(round.operation, shared.victim, VictimItem);
  pushed(round.conflict, shared.other, OtherItem);
  found(ToModel(shared.victim).items);
  found(ToModel(shared.other).items);
  for (const ModelStack& stack : Seen(shared)) found(stack.items);
  std::string text;
  for (const auto& [item, n] : times) {
    if (n < 0) absl::StrAppendFormat(&text, " item %x lost;", item);
    if (n > 0) absl::StrAppendFormat(&text, " item %x there %d times too often;", item, n);
  }
  return text;
}

}  // namespace

std::string Explain(const Round& round, const Shared& shared, bool* same_slab) {
  std::vector<std::pair<size_t, size_t>> candidates;
  if (shared.mode == Mode::kMmCid) {
    for (size_t own = 0; own < static_cast<size_t>(shared.slabs); ++own) {
      for (size_t other = 0; other < static_cast<size_t>(shared.slabs); ++other) {
        candidates.emplace_back(own, other);
      }
    }
  } else {
    if (round.committed || !round.migrated) candidates.emplace_back(0, 0);
    if (round.migrated && (!round.committed || round.several)) candidates.emplace_back(1, 0);
  }
  for (const auto& [own, other] : candidates) {
    for (const Order order : OrdersAllowed(round, shared.mode)) {
      if (!Leads(round, shared, own, other, order)) continue;
      *same_slab = own == other;
      return "";
    }
  }
  std::string text =
      absl::StrCat("no order of the two leads to this:", CountItems(round, shared), " victim ",
                   Describe(ToModel(shared.victim)), ", other ", Describe(ToModel(shared.other)));
  for (const ModelStack& stack : Seen(shared)) {
    absl::StrAppend(&text, ", slab of ", stack.capacity, " ", Describe({0, stack.items}));
  }
  return text;
}

}  // namespace pcmalloc::instructions
