// SPDX-License-Identifier: Apache-2.0
#include "benchmarks/harness.h"

#include <dlfcn.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace pcmalloc::bench {
namespace {

[[noreturn]] void Die(const char* what, const char* detail) {
  dprintf(2, "benchmark: %s: %s\n", what, detail);
  _exit(2);
}

}  // namespace

double Arguments::Get(const char* key, double fallback) const {
  const size_t length = strlen(key);
  for (int i = 0; i < count_; ++i) {
    if (strncmp(values_[i], key, length) == 0 && values_[i][length] == '=') {
      return strtod(values_[i] + length + 1, nullptr);
    }
  }
  return fallback;
}

const char* MallocObject() {
  Dl_info info;
  void* symbol = dlsym(RTLD_DEFAULT, "malloc");
  return symbol != nullptr && dladdr(symbol, &info) != 0 ? info.dli_fname : "(unknown)";
}

int Main(int argc, char** argv, const Row* rows, size_t count) {
  if (argc == 2 && strcmp(argv[1], "list") == 0) {
    for (size_t i = 0; i < count; ++i) dprintf(1, "%s\n", rows[i].name);
    return 0;
  }
  if (argc < 3 || strcmp(argv[1], "run") != 0) {
    dprintf(2, "usage: %s list | run ROW [key=value ...]\n", argv[0]);
    return 2;
  }
  for (size_t i = 0; i < count; ++i) {
    if (strcmp(rows[i].name, argv[2]) != 0) continue;
    rows[i].run(argv[2], Arguments(argc - 3, argv + 3));
    dprintf(1, "{\"malloc\":\"%s\"}\n", MallocObject());
    return 0;
  }
  Die("no such row", argv[2]);
}

void Emit(const char* row, const char* metric, const char* unit, double value) {
  char line[512];
  const int n = snprintf(line, sizeof(line),
                         "{\"row\":\"%s\",\"metric\":\"%s\",\"unit\":\"%s\",\"value\":%.10g}\n",
                         row, metric, unit, value);
  if (write(1, line, static_cast<size_t>(n)) != n) Die("write", row);
}

void EmitCost(const char* row, const Cost& cost, double operations) {
  Emit(row, "ns_per_op", "ns", cost.wall_ns / operations);
  Emit(row, "cpu_ns_per_op", "ns", cost.cpu_ns / operations);
  if (cost.cycles >= 0) {
    const char* unit = cost.tsc ? "TSC cycles" : cost.user_only ? "user cycles" : "cycles";
    Emit(row, "cycles_per_op", unit, cost.cycles / operations);
  }
  if (cost.instructions >= 0) {
    Emit(row, "instructions_per_op", cost.user_only ? "user instructions" : "instructions",
         cost.instructions / operations);
  }
  Emit(row, "page_faults", "faults", cost.page_faults);
}

void* MapBytes(size_t bytes) {
  void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) Die("mmap", strerror(errno));
  return memory;
}

void UnmapBytes(void* memory, size_t bytes) { munmap(memory, bytes); }

void* MustAllocate(size_t size) {
  void* block = malloc(size);
  if (block == nullptr) Die("malloc", "failed");
  return block;
}

}  // namespace pcmalloc::bench
