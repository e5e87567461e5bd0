// SPDX-License-Identifier: Apache-2.0
//
// The C API of <pcmalloc/pcmalloc.h>.
#include "allocator/api/exports.h"
#include "allocator/api/init.h"
#include "allocator/base/syscall.h"
#include "allocator/front/budget.h"
#include "allocator/front/front.h"
#include "allocator/observe/stats.h"
#include "allocator/pages/page_heap.h"
#include "allocator/release/release.h"
#include "pcmalloc/pcmalloc.h"
#include "percpu/slabs.h"
#include "rseq/rseq.h"

namespace pcmalloc {
namespace {

bool ValidCpu(int cpu) { return cpu >= 0 && static_cast<unsigned>(cpu) < percpu::Bound(); }

}  // namespace
}  // namespace pcmalloc

using pcmalloc::ValidCpu;

extern "C" {

PCM_EXPORT const char* pcmalloc_mode(void) {
  pcmalloc::Initialize();
  return pcmalloc::ModeName();
}

PCM_EXPORT const char* pcmalloc_reason(void) {
  pcmalloc::Initialize();
  return pcmalloc::ModeReason();
}

PCM_EXPORT const char* pcmalloc_version(void) { return PCMALLOC_VERSION; }

PCM_EXPORT int pcmalloc_stats_json(char* buffer, size_t size) {
  pcmalloc::Initialize();
  pcmalloc::Text<4096> json;
  pcmalloc::observe::PrintJson(pcmalloc::observe::TakeSnapshot(pcmalloc::WhoAmI()), json);
  if (size > 0) {
    pcmalloc::TextBuffer(buffer, size).Str(json.c_str(), json.size());
  }
  return static_cast<int>(json.size() + 1);
}

PCM_EXPORT int pcmalloc_cpu_bound(void) {
  pcmalloc::Initialize();
  return static_cast<int>(pcmalloc::percpu::Bound());
}

PCM_EXPORT size_t pcmalloc_drain_cpu(int cpu) {
  pcmalloc::ErrnoSaver saver;
  return ValidCpu(cpu) ? pcmalloc::front::DrainIndex(cpu) : 0;
}

PCM_EXPORT int pcmalloc_resize_cpu(int cpu) {
  pcmalloc::ErrnoSaver saver;
  return ValidCpu(cpu) && pcmalloc::front::ResizeIndex(cpu) ? 0 : -1;
}

PCM_EXPORT int pcmalloc_stop_cpu(int cpu) {
  pcmalloc::ErrnoSaver saver;
  return ValidCpu(cpu) && pcmalloc::percpu::Stop(cpu) != nullptr ? 0 : -1;
}

PCM_EXPORT int pcmalloc_start_cpu(int cpu) {
  pcmalloc::ErrnoSaver saver;
  return ValidCpu(cpu) && pcmalloc::percpu::Restart(cpu) ? 0 : -1;
}

PCM_EXPORT size_t pcmalloc_soft_limit(void) {
  pcmalloc::Initialize();
  return pcmalloc::release::SoftLimit();
}

PCM_EXPORT void pcmalloc_set_soft_limit(size_t bytes) {
  pcmalloc::Initialize();
  pcmalloc::ErrnoSaver saver;
  pcmalloc::release::SetSoftLimit(bytes);
}

PCM_EXPORT size_t pcmalloc_hard_limit(void) {
  pcmalloc::Initialize();
  return pcmalloc::release::HardLimit();
}

PCM_EXPORT void pcmalloc_set_hard_limit(size_t bytes) {
  pcmalloc::Initialize();
  pcmalloc::ErrnoSaver saver;
  pcmalloc::release::SetHardLimit(bytes);
}

PCM_EXPORT size_t pcmalloc_percpu_cache(void) {
  pcmalloc::Initialize();
  return pcmalloc::front::Budget();
}

PCM_EXPORT void pcmalloc_set_percpu_cache(size_t bytes) {
  pcmalloc::Initialize();
  pcmalloc::ErrnoSaver saver;
  pcmalloc::release::SetPercpuCache(bytes);
}

PCM_EXPORT size_t pcmalloc_footprint(void) { return pcmalloc::PageHeap::Footprint(); }

PCM_EXPORT const char* pcmalloc_background_thread(void) {
  pcmalloc::Initialize();
  return pcmalloc::release::ReadBackgroundStats().state;
}

PCM_EXPORT uint64_t pcmalloc_aborts(void) { return pcmalloc::rseq::Aborts(); }

}  // extern "C"
