// SPDX-License-Identifier: Apache-2.0
#include "allocator/api/init.h"

#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <unistd.h>

#include "absl/base/attributes.h"
#include "allocator/api/fork.h"
#include "allocator/api/hot.h"
#include "allocator/api/replaced.h"
#include "allocator/base/report.h"
#include "allocator/base/syscall.h"
#include "allocator/config/config.h"
#include "allocator/front/front.h"
#include "allocator/observe/stats.h"
#include "allocator/pages/page_heap.h"
#include "allocator/release/release.h"
#include "pcmalloc/pcmalloc.h"
#include "percpu/ops.h"
#include "percpu/sabotage.h"
#include "percpu/slabs.h"
#include "rseq/detect/probe.h"
#include "rseq/rseq.h"

extern "C" char** environ;

namespace pcmalloc {

constinit std::atomic<InitState> init_state{InitState::kCold};

namespace {

constinit char reason[320] = "";

// getenv by hand: it must work before the C library's own and in programs that replace it.
const char* Environment(const char* name) {
  const size_t length = strlen(name);
  for (char** entry = environ; entry != nullptr && *entry != nullptr; ++entry) {
    if (strncmp(*entry, name, length) == 0 && (*entry)[length] == '=') return *entry + length + 1;
  }
  return nullptr;
}

// By experiment, on an area of the length that is registered.
bool SectionsAbort(const rseq::Discovery& found) {
  if (found.registered_length > 32) {
    return rseq::FindClassV2(found.registered_length).value == rseq::ClassV2::kOk;
  }
  const rseq::Class32 value = rseq::ClassifyForLegacy();
  return value == rseq::Class32::kCacheOk || value == rseq::Class32::kNoCache;
}

// The legacy scheme needs an area of our own that the kernel rewrites, and proof that it does.
ABSL_ATTRIBUTE_COLD bool LegacyIsSafe(const rseq::Discovery& found, TextBuffer& refusal) {
  if (!percpu::kHasCachedOps) {
    refusal.Str("this architecture has no sections for it");
    return false;
  }
  if (found.owner == rseq::Owner::kLibc) {
    refusal.Str("the C library holds an rseq registration of ").Dec(found.registered_length);
    refusal.Str(" bytes, which is not ours to write to");
    if (found.registered_length > 32) refusal.Str(" (the kernel would kill the process)");
    refusal.Str(
        "; GLIBC_TUNABLES=glibc.pthread.rseq=0, which pcm run --legacy sets, switches it off");
    return false;
  }
  if (!found.cached_word) {
    refusal.Str("the area that is registered is not one of exactly 32 bytes");
    return false;
  }
  if (percpu::kSabotageLegacyUnproved) return true;
  switch (rseq::ClassifyForLegacy()) {
    case rseq::Class32::kCacheOk:
      return true;
    case rseq::Class32::kNoCache:
      refusal.Str(
          "this kernel keeps a foreign value in cpu_id_start (Linux 6.19 to 7.0.9 do), so ");
      refusal.Str("nothing would invalidate a cached slab pointer");
      return false;
    case rseq::Class32::kNoRseq:
      refusal.Str("this kernel does not abort critical sections");
      return false;
    case rseq::Class32::kUnknown:
      refusal.Str("the probe could not find out whether this kernel rewrites cpu_id_start");
      return false;
  }
  return false;
}

// The mode that the request and the kernel allow, and why. Needs the fence: without it no slab
// could be taken away from a CPU, so memory could neither be drained nor trimmed. Choose() has
// answered what is asked in most processes.
ABSL_ATTRIBUTE_COLD ABSL_ATTRIBUTE_NOINLINE percpu::Mode ChooseOtherwise(
    RseqRequest request, const rseq::Discovery& found, TextBuffer& why) {
  if (request == RseqRequest::kLocked) {
    why.Str("asked for by PCMALLOC_CONF (rseq:locked)");
    return percpu::Mode::kLocked;
  }
  if (found.owner == rseq::Owner::kNone) {
    why.Str(found.reason);
    return percpu::Mode::kLocked;
  }
  if (!found.fence_available) {
    why.Str("membarrier cannot fence critical sections here (").ErrorName(found.fence_error);
    why.Str("); before Linux 5.10, or refused by a filter");
    return percpu::Mode::kLocked;
  }
  if (rseq::ReleaseIsSuspicious() && !SectionsAbort(found)) {
    why.Str("this kernel does not abort critical sections (arm64, Linux 6.19 to 7.0.13), or the ");
    why.Str("probe could not find out");
    return percpu::Mode::kLocked;
  }
  if (request == RseqRequest::kLegacy) {
    Text<> refusal;
    if (LegacyIsSafe(found, refusal)) {
      why.Str("asked for by PCMALLOC_CONF (rseq:legacy), and the probe saw this kernel rewrite ");
      why.Str("cpu_id_start and abort sections");
      return percpu::Mode::kCached;
    }
    Text<> text;
    text.Str("rseq:legacy is not possible: ").Str(refusal.c_str());
    text.Str("; v2safe-cpu is used instead");
    Warn(text);
  }
  if (request == RseqRequest::kV2SafeCid) {
    if (found.mm_cid_maintained) {
      why.Str("asked for by PCMALLOC_CONF (rseq:v2safe-cid); ").Str(found.reason);
      return percpu::Mode::kMmCid;
    }
    Text<> text;
    text.Str("rseq:v2safe-cid is not possible: the kernel does not maintain mm_cid (feature size ");
    text.Dec(found.feature_size).Str("); v2safe-cpu is used instead");
    Warn(text);
  }
  why.Str(found.reason);
  if (!found.fence_one_cpu && request != RseqRequest::kV2SafeCid) {
    why.Str("; fences reach all CPUs, this kernel cannot address one");
  }
  return percpu::Mode::kCpuId;
}

percpu::Mode Choose(RseqRequest request, const rseq::Discovery& found, TextBuffer& why) {
  const bool plain = request == RseqRequest::kAuto && found.owner != rseq::Owner::kNone &&
                     found.fence_one_cpu && !rseq::ReleaseIsSuspicious();
  if (!plain) return ChooseOtherwise(request, found, why);
  why.Str(found.reason);
  return percpu::Mode::kCpuId;
}

void Start() {
  // A set-uid program must not write files, or change how it works, at its caller's word.
  ParseConfig(getauxval(AT_SECURE) != 0 ? nullptr : Environment("PCMALLOC_CONF"));
  if (GetConfig().stats_print) observe::KeepStderr();
  // Before the first Discover(): which length is registered is final.
  if (GetConfig().rseq == RseqRequest::kLegacy) rseq::RequestLength32();
  const rseq::Discovery& found = rseq::Discover();
  TextBuffer why(reason, sizeof(reason));
  const percpu::Mode chosen = Choose(GetConfig().rseq, found, why);
  percpu::InitTable(found.cpu_bound);
  percpu::Init(chosen, front::MakeCompactGeometry());
  release::Start();
  if (chosen == percpu::Mode::kCpuId && !Replaced()) {
    PageHeap::OpenFastFree();
    __atomic_store_n(&pcmalloc_coarse_gate, kMaxSmallSize - kFineLimit, __ATOMIC_RELEASE);
    __atomic_store_n(&pcmalloc_small_gate, kFineClasses + 1, __ATOMIC_RELEASE);
  }
}

void StartOnce() {
  InitState cold = InitState::kCold;
  if (!init_state.compare_exchange_strong(cold, InitState::kBusy)) return;
  Start();
  InstallForkHandlers();
  init_state.store(InitState::kReady, std::memory_order_release);
}

// For a program that does not allocate before main, or whose environment is empty.
__attribute__((constructor(101))) void Load() {
  StartOnce();
  release::AllowThread();
}

__attribute__((destructor(101))) void Finish() { observe::ReportAtExit(WhoAmI()); }

}  // namespace

observe::Identity WhoAmI() {
  const auto count = [](const std::atomic<uint64_t>& operations) {
    return kCountOperations ? operations.load(std::memory_order_relaxed) : observe::kNotCounted;
  };
  return {pcmalloc_version(), ModeName(), ModeReason(), count(operation_counts.fast),
          count(operation_counts.slow)};
}

void InitializeSlow() {
  // Before the C library has set up the environment nothing can be configured; the constructor
  // comes.
  if (environ == nullptr) return;
  ErrnoSaver saver;
  StartOnce();
}

const char* ModeName() {
  switch (percpu::CurrentMode()) {
    case percpu::Mode::kCpuId:
      return "v2safe-cpu";
    case percpu::Mode::kMmCid:
      return "v2safe-cid";
    case percpu::Mode::kCached:
      return "legacy";
    case percpu::Mode::kLocked:
      return "locked";
    case percpu::Mode::kUnset:
      break;
  }
  return "starting";
}

const char* ModeReason() { return reason; }

}  // namespace pcmalloc
