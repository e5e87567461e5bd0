// SPDX-License-Identifier: Apache-2.0
#include "tests/stress/hooks.h"

#include <dlfcn.h>
#include <stdlib.h>

// Weak references find what is linked in (also into a static program, where dlsym sees nothing);
// dlsym finds what is preloaded.
extern "C" {
__attribute__((weak)) void pcmalloc_drain_cpu(int cpu);
__attribute__((weak)) void pcmalloc_resize_cpu(int cpu);
__attribute__((weak)) void pcmalloc_stop_cpu(int cpu);
__attribute__((weak)) void pcmalloc_start_cpu(int cpu);
__attribute__((weak)) int pcmalloc_cpu_bound(void);
__attribute__((weak)) uint64_t pcmalloc_aborts(void);
__attribute__((weak)) const char* pcmalloc_mode(void);
__attribute__((weak)) int malloc_trim(size_t pad);
}

namespace stress {
namespace {

template <typename Function>
Function Find(Function linked, const char* name) {
  if (linked != nullptr) return linked;
  return reinterpret_cast<Function>(dlsym(RTLD_DEFAULT, name));
}

const char* malloc_file = "?";

}  // namespace

Hooks hooks;

void FindHooks() {
  hooks.drain_cpu = Find(&pcmalloc_drain_cpu, "pcmalloc_drain_cpu");
  hooks.resize_cpu = Find(&pcmalloc_resize_cpu, "pcmalloc_resize_cpu");
  hooks.stop_cpu = Find(&pcmalloc_stop_cpu, "pcmalloc_stop_cpu");
  hooks.start_cpu = Find(&pcmalloc_start_cpu, "pcmalloc_start_cpu");
  hooks.cpu_bound = Find(&pcmalloc_cpu_bound, "pcmalloc_cpu_bound");
  hooks.aborts = Find(&pcmalloc_aborts, "pcmalloc_aborts");
  hooks.mode = Find(&pcmalloc_mode, "pcmalloc_mode");
  hooks.trim = Find(&malloc_trim, "malloc_trim");
  // Stopping without a way to start again would only measure the slow path.
  if (hooks.start_cpu == nullptr) hooks.stop_cpu = nullptr;

  Dl_info info;
  void* const address = dlsym(RTLD_DEFAULT, "malloc");
  if (address != nullptr && dladdr(address, &info) != 0 && info.dli_fname != nullptr) {
    malloc_file = info.dli_fname;
  }
}

const char* MallocFile() { return malloc_file; }

}  // namespace stress
