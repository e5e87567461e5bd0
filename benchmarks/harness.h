// SPDX-License-Identifier: Apache-2.0
// Purpose: what the benchmark programs other than `micro` share: the command line, the printing of
//   results, memory that does not come from the allocator under test, random numbers.
// Invariants: `PROGRAM list` prints the rows; `PROGRAM run ROW [key=value ...]` runs one row and
//   prints one JSON object per line, {"row","metric","unit","value"}, after one line that names the
//   object that `malloc` resolved to. The harness never calls malloc before or inside a
//   measurement.
// Cost: Emit writes straight to descriptor 1.
#ifndef PCMALLOC_BENCHMARKS_HARNESS_H_
#define PCMALLOC_BENCHMARKS_HARNESS_H_

#include <cstddef>
#include <cstdint>

#include "benchmarks/counters.h"

namespace pcmalloc::bench {

// key=value arguments of one run. A key that no row asks for is an error of the caller's script.
class Arguments {
 public:
  Arguments(int count, char** values) : count_(count), values_(values) {}
  double Get(const char* key, double fallback) const;

 private:
  int count_;
  char** values_;
};

struct Row {
  const char* name;
  void (*run)(const char* row, const Arguments& arguments);
};

// main() of a benchmark program.
int Main(int argc, char** argv, const Row* rows, size_t count);

void Emit(const char* row, const char* metric, const char* unit, double value);
// ns_per_op (wall), cpu_ns_per_op, cycles_per_op, instructions_per_op, page_faults.
void EmitCost(const char* row, const Cost& cost, double operations);
// The file that holds the `malloc` in use, also printed by Main.
const char* MallocObject();

// Zeroed memory straight from the kernel, for the benchmark's own tables, and its return.
void* MapBytes(size_t bytes);
void UnmapBytes(void* memory, size_t bytes);

// A table of the benchmark's own, already faulted in: its page faults are not the allocator's.
template <typename T>
class Table {
 public:
  explicit Table(size_t count)
      : data_(static_cast<T*>(MapBytes(count * sizeof(T)))), count_(count) {
    for (size_t at = 0; at < count * sizeof(T); at += 4096) {
      reinterpret_cast<volatile char*>(data_)[at] = 0;
    }
  }
  ~Table() { UnmapBytes(data_, count_ * sizeof(T)); }
  Table(const Table&) = delete;
  Table& operator=(const Table&) = delete;
  T& operator[](size_t i) { return data_[i]; }
  T* data() { return data_; }
  size_t size() const { return count_; }

 private:
  T* data_;
  size_t count_;
};

// malloc, or a message and exit: a benchmark that measured failing calls would be wrong.
void* MustAllocate(size_t size);

// xorshift64*: deterministic, one per thread, cheap beside a malloc.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed * 0x9e3779b97f4a7c15u + 0x1234567u) {}
  uint64_t Next() {
    state_ ^= state_ >> 12;
    state_ ^= state_ << 25;
    state_ ^= state_ >> 27;
    return state_ * 0x2545f4914f6cdd1du;
  }
  uint32_t Below(uint32_t bound) {
    return static_cast<uint32_t>(((Next() >> 32) * static_cast<uint64_t>(bound)) >> 32);
  }

 private:
  uint64_t state_;
};

// Sizes as programs ask for them: mostly small, up to `limit`, each power of two equally likely.
inline size_t MixedSize(Random& random, size_t limit) {
  const uint64_t r = random.Next();
  const unsigned octaves = 64 - static_cast<unsigned>(__builtin_clzll(limit)) - 4;
  const size_t top = size_t{16} << ((r & 0xffff) % octaves);
  const size_t size = top / 2 + 1 + (r >> 16) % (top / 2);
  return size > limit ? limit : size;
}

// Writes to each page of a block, and so to its first byte.
inline void TouchPages(void* block, size_t size) {
  for (size_t at = 0; at < size; at += 4096) static_cast<volatile char*>(block)[at] = 1;
}

}  // namespace pcmalloc::bench

#endif  // PCMALLOC_BENCHMARKS_HARNESS_H_
