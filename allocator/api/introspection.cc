// SPDX-License-Identifier: Apache-2.0
//
// mallinfo, malloc_info, malloc_stats, malloc_trim, mallopt: the names that programs written for
// glibc call, with this allocator's figures behind them.
#include <errno.h>
#include <malloc.h>
#include <stdio.h>
#include <unistd.h>

#include "allocator/api/blocks.h"
#include "allocator/api/exports.h"
#include "allocator/api/init.h"
#include "allocator/base/report.h"
#include "allocator/base/syscall.h"
#include "allocator/observe/stats.h"

namespace pcmalloc {
namespace {

observe::Snapshot Now() { return observe::TakeSnapshot(WhoAmI()); }

// The figures of a snapshot are read one after another while other threads work: what is a part of
// another one may be larger than that.
uint64_t Less(uint64_t whole, uint64_t part) { return whole > part ? whole - part : 0; }

// Bytes of free blocks in the layers above the page heap.
uint64_t CachedBytes(const observe::Snapshot& s) {
  return s.front.held_bytes + s.central_bytes + s.transfer_bytes;
}

// Bytes that are free in some layer but not with the operating system.
uint64_t FreeBytes(const observe::Snapshot& s) {
  return Less(s.pages.free_bytes + CachedBytes(s), s.pages.hole_bytes);
}

uint64_t UsedBytes(const observe::Snapshot& s) {
  return Less(s.pages.small_bytes + s.pages.large_bytes, CachedBytes(s));
}

}  // namespace
}  // namespace pcmalloc

using pcmalloc::CachedBytes;
using pcmalloc::FreeBytes;
using pcmalloc::Less;
using pcmalloc::Now;
using pcmalloc::UsedBytes;

// Not <malloc.h>'s struct mallinfo2: glibc has it only since 2.33, musl not at all.
struct PcmMallinfo2 {
  size_t arena, ordblks, smblks, hblks, hblkhd, usmblks, fsmblks, uordblks, fordblks, keepcost;
};
struct PcmMallinfo {
  int arena, ordblks, smblks, hblks, hblkhd, usmblks, fsmblks, uordblks, fordblks, keepcost;
};

extern "C" {

PCM_EXPORT PcmMallinfo2 pcmalloc_mallinfo2(void) __asm__("mallinfo2");
PCM_EXPORT PcmMallinfo2 pcmalloc_mallinfo2(void) {
  const pcmalloc::observe::Snapshot s = Now();
  PcmMallinfo2 info = {};
  info.arena = Less(s.pages.small_bytes + s.pages.free_bytes, s.pages.hole_bytes);
  info.ordblks = s.pages.spans;
  info.hblkhd = Less(s.pages.large_bytes, s.front.held_large_bytes);
  info.fsmblks = CachedBytes(s);
  info.uordblks = UsedBytes(s);
  info.fordblks = FreeBytes(s);
  info.keepcost = s.pages.free_bytes;
  return info;
}

PCM_EXPORT PcmMallinfo pcmalloc_mallinfo(void) __asm__("mallinfo");
PCM_EXPORT PcmMallinfo pcmalloc_mallinfo(void) {
  const PcmMallinfo2 wide = pcmalloc_mallinfo2();
  // The fields are int by specification: they saturate instead of wrapping around.
  const auto narrow = [](size_t n) { return n > 0x7fffffff ? 0x7fffffff : static_cast<int>(n); };
  return {narrow(wide.arena),    narrow(wide.ordblks), narrow(wide.smblks),  narrow(wide.hblks),
          narrow(wide.hblkhd),   narrow(wide.usmblks), narrow(wide.fsmblks), narrow(wide.uordblks),
          narrow(wide.fordblks), narrow(wide.keepcost)};
}

PCM_EXPORT int malloc_trim(size_t pad) {
  pcmalloc::ErrnoSaver saver;
  return pcmalloc::TrimBlocks(pad) > 0 ? 1 : 0;
}

PCM_EXPORT void malloc_stats(void) {
  pcmalloc::ErrnoSaver saver;
  pcmalloc::Text<4096> table;
  pcmalloc::observe::PrintTable(Now(), table);
  pcmalloc::WriteAll(STDERR_FILENO, table.c_str(), table.size());
}

PCM_EXPORT int malloc_info(int options, FILE* stream) {
  if (options != 0) return EINVAL;
  const pcmalloc::observe::Snapshot s = Now();
  pcmalloc::Text<2048> xml;
  xml.Str("<malloc version=\"1\">\n<heap nr=\"0\">\n</heap>\n");
  xml.Str("<allocator name=\"pcmalloc\" mode=\"").Str(s.mode).Str("\"/>\n");
  xml.Str("<total type=\"fast\" count=\"").Dec(s.slabs).Str("\" size=\"");
  xml.Dec(s.front.capacity_bytes).Str("\"/>\n");
  xml.Str("<total type=\"rest\" count=\"").Dec(s.pages.spans).Str("\" size=\"");
  xml.Dec(FreeBytes(s)).Str("\"/>\n");
  xml.Str("<total type=\"mmap\" count=\"0\" size=\"").Dec(s.pages.large_bytes).Str("\"/>\n");
  xml.Str("<system type=\"current\" size=\"").Dec(s.pages.committed_bytes).Str("\"/>\n");
  xml.Str("<system type=\"max\" size=\"").Dec(s.pages.committed_bytes).Str("\"/>\n");
  xml.Str("<aspace type=\"total\" size=\"").Dec(s.pages.reserved_bytes).Str("\"/>\n");
  xml.Str("</malloc>\n");
  return fputs(xml.c_str(), stream) < 0 ? -1 : 0;
}

// Options whose meaning exists here take effect; glibc's other ones are accepted and have none, as
// on glibc itself where a tunable does not apply.
PCM_EXPORT int mallopt(int option, int value) {
  switch (option) {
    case M_TRIM_THRESHOLD:
      pcmalloc::PageHeap::SetIdleLimit(value < 0 ? SIZE_MAX : static_cast<size_t>(value));
      return 1;
    case M_MXFAST:
      return value >= 0 && value <= 80 * static_cast<int>(sizeof(size_t)) / 4 ? 1 : 0;
    case M_TOP_PAD:
    case M_MMAP_THRESHOLD:
    case M_MMAP_MAX:
    case M_CHECK_ACTION:
    case M_PERTURB:
    case M_ARENA_TEST:
    case M_ARENA_MAX:
      return 1;
    default:
      return 0;
  }
}

}  // extern "C"
