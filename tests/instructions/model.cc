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

// Where the two took place, as numbers of slabs.
struct Place {
  size_t own;
  size_t other;
  size_t expected;  // whose header SetCapacity compares with
};

// Whether the round could end as seen with the operation and the conflict there, in that order.
bool Leads(const Round& round, const Shared& shared, const Place& place, Order order) {
  std::vector<ModelStack> stacks = Initial(shared);
  ModelOutcome victim, conflict;
  const auto operate = [&] {
    victim = Apply(round.operation, stacks[place.own], VictimItem, kVictimCapacity);
  };
  if (order == Order::kOperationFirst) operate();
  conflict = Apply(round.conflict, stacks[place.other], OtherItem, kOtherCapacity);
  if (order == Order::kConflictFirst) {
    // It compares with the header and the slab that it saw before it was stopped.
    const bool stale = place.own != place.expected || stacks[place.expected].changes != 0;
    if (round.operation != Kind::kSetCapacity || !stale) operate();
  }
  return stacks == Seen(shared) && victim == ToModel(shared.victim) &&
         conflict == ToModel(shared.other);
}

bool MayComeLate(const Round& round) { return !round.committed || round.several; }

std::vector<Order> OrdersAllowed(const Round& round, Mode mode) {
  std::vector<Order> orders;
  if (round.committed) orders.push_back(Order::kOperationFirst);
  if (MayComeLate(round)) {
    orders.push_back(Order::kConflictFirst);
    // A cached pointer is gone after every interruption: the operation misses.
    const bool uncached =
        mode == Mode::kCached && (round.operation == Kind::kPop || round.operation == Kind::kPush);
    if (uncached) orders.push_back(Order::kNot);
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

Verdict Judge(const Round& round, const Shared& shared) {
  Verdict verdict;
  const auto slabs = static_cast<size_t>(shared.slabs);
  const bool by_cid = shared.mode == Mode::kMmCid;
  // The number of the slab that SetCapacity was told to change.
  size_t expected = 0;
  while (expected < slabs && shared.indices[expected] != shared.victim.index) ++expected;

  // A conflict made from outside is directed at the victim's slab; a section that another thread
  // executes is on the slab of that thread's index.
  std::vector<Place> places, all;
  for (size_t own = 0; own < slabs; ++own) {
    for (size_t other = 0; other < slabs; ++other) {
      if (!by_cid && other != 0) continue;
      const Place place = {own, other, expected < slabs ? expected : own};
      all.push_back(place);
      const int here = static_cast<int>(own);
      if (here == round.at_stop || here == round.at_end) places.push_back(place);
    }
  }
  for (const Place& place : places) {
    for (const Order order : OrdersAllowed(round, shared.mode)) {
      const int own = order == Order::kOperationFirst ? round.at_stop : round.at_end;
      if (static_cast<int>(place.own) != own) continue;
      if (!Leads(round, shared, place, order)) continue;
      verdict.same_slab = place.own == place.other;
      return verdict;
    }
  }
  if (by_cid) {
    for (const Place& place : all) {
      for (Order order : {Order::kOperationFirst, Order::kConflictFirst, Order::kNot}) {
        if (order == Order::kOperationFirst && !round.committed) continue;
        if (order != Order::kOperationFirst && !MayComeLate(round)) continue;
        if (order == Order::kNot && round.operation != Kind::kSetCapacity) continue;
        if (!Leads(round, shared, place, order)) continue;
        verdict.elsewhere = true;
        return verdict;
      }
    }
  }
  std::string text =
      absl::StrCat("no order of the two leads to this:", CountItems(round, shared), " victim ",
                   Describe(ToModel(shared.victim)), ", other ", Describe(ToModel(shared.other)));
  absl::StrAppend(&text, ", stopped on slab ", round.at_stop, ", finished on ", round.at_end);
  for (const ModelStack& stack : Seen(shared)) {
    absl::StrAppend(&text, ", slab of ", stack.capacity, " ", Describe({0, stack.items}));
  }
  verdict.wrong = text;
  return verdict;
}

}  // namespace pcmalloc::instructions
