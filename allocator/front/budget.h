// SPDX-License-Identifier: Apache-2.0
//
// Purpose: how many bytes of objects a CPU's slab may hold in all, and which class gets how much of
//   it.
//
//      capacity of a class: 0 -> 8 slots (1 of a large class) -> doubled, when demand.h says so ->
//      what the geometry allows, as long as the CPU's budget lasts; then taken, half at a time,
//      from classes whose bytes avoid fewer misses: of the recent ones each class has a share, and
//      per byte of what it may hold the giver's is a quarter of the taker's at most.
//
// Invariants: the books change only by what SetCapacity has really changed, so concurrent threads
//   on one CPU cannot book a change twice.
// Cost: a few loads and one section a miss; a steal costs a section and a batch a victim.
#ifndef PCMALLOC_ALLOCATOR_FRONT_BUDGET_H_
#define PCMALLOC_ALLOCATOR_FRONT_BUDGET_H_

#include <stddef.h>
#include <stdint.h>

namespace pcmalloc::front {

// Bytes of objects that one slab may hold: at most, unless SetBudget says otherwise; in a small
// heap half of what small blocks have beyond the first 2 MiB and a quarter of the large ones',
// whose pages may wait for any size in the page heap; at least so much.
inline constexpr size_t kBudgetBytes = size_t{8} << 20;
inline constexpr size_t kLeastBudgetBytes = size_t{1} << 20;
inline constexpr size_t kNotSharedBytes = size_t{2} << 20;
inline constexpr size_t kSmallDivisor = 2;
inline constexpr size_t kLargeDivisor = 4;

// Of such a limit, what one of so many slabs in use may have: more than two share what two would
// have, down to three eighths each.
constexpr size_t BudgetAmong(unsigned slabs, size_t budget) {
  const size_t share = slabs <= 2 ? budget : budget / slabs * 2;
  const size_t least = budget / 8 * 3;
  return share < least ? least : share;
}

// The upper limit, before it is shared. A change takes effect as classes grow: nobody grows beyond
// it, but by single slots and small classes by an eighth of it in all, and who misses takes from
// the others; what is held already stays until it is drained. Async-signal-safe.
size_t Budget();
void SetBudget(size_t bytes);

// Raises the capacity of a class on an index after a miss; returns the capacity now in force.
uint32_t GrowCapacity(int index, unsigned size_class);

// Books slots of a class that percpu::Drain has taken away.
void BookTaken(int index, unsigned size_class, uint32_t slots);

// Bytes handed out to the classes of an index, and how often one class took from another.
uint64_t BudgetUsed(int index);
uint64_t Steals();

}  // namespace pcmalloc::front

#endif  // PCMALLOC_ALLOCATOR_FRONT_BUDGET_H_
