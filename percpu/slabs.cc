// SPDX-License-Identifier: Apache-2.0
#include "percpu/slabs.h"

#include <string.h>

#include <atomic>

#include "absl/base/optimization.h"
#include "allocator/base/lock.h"
#include "allocator/base/report.h"
#include "allocator/os/memory.h"
#include "percpu/ops.h"
#include "percpu/sabotage.h"
#include "rseq/rseq.h"

namespace pcmalloc::percpu {
namespace {

struct alignas(64) CpuState {
  RankedLock<LockRank::kCpu> lock;
  // Changed under the lock only; the one that slab_of points to while open. The lock of an index
  // that has none yet is touched under the creation lock only, because fork takes no other locks
  // than that one and those of the indices that have been used.
  Slab* slab = nullptr;
};

// Backwards, so that the states of the first CPUs lie before the table of slabs, on the page that
// its first entries are on, in a library that is linked so (tools/build/layout.lds).
constinit CpuState states[kMaxCpus];
CpuState& StateOf(int index) { return states[kMaxCpus - 1 - index]; }
// Guards the three below, and the first use of an index.
constinit RankedLock<LockRank::kCreation> creation_lock;
constinit Slab* kept_slabs = nullptr;
constinit std::atomic<size_t> slab_bytes{0};
constinit std::atomic<unsigned> populated{0};
constinit std::atomic<unsigned> highest_used{0};

constinit std::atomic<Mode> mode{Mode::kUnset};
constinit unsigned bound = 0;
constinit Geometry new_geometry = {};

Slab** Entry(int index) { return &pcmalloc_slab_of[2 + index]; }

// The sections load entries with plain instructions on other CPUs.
void Publish(int index, Slab* slab) { __atomic_store_n(Entry(index), slab, __ATOMIC_RELEASE); }

Slab* SlabOf(int index) { return __atomic_load_n(&StateOf(index).slab, __ATOMIC_ACQUIRE); }
void SetSlab(int index, Slab* slab) {
  __atomic_store_n(&StateOf(index).slab, slab, __ATOMIC_RELEASE);
}

// The kernel fences nothing in a process with one thread, which therefore would keep a pointer that
// it has cached itself. 0 is the number of a CPU, as the kernel would write one.
void ForgetCachedSlab() { __atomic_store_n(&rseq::ThisArea()->cpu_id_start, 0, __ATOMIC_RELAXED); }

bool Fence(int index) {
  if (kSabotageNoFence) return true;
  if (mode == Mode::kCached) ForgetCachedSlab();
  return mode == Mode::kMmCid ? rseq::FenceAll() : rseq::FenceCpu(index);
}

// Caches the slab's pointer for the legacy scheme after a miss.
void Revalidate() {
  if (kSabotageLegacyForced) {
    static constinit thread_local uintptr_t last = 0;
    auto* word = reinterpret_cast<uintptr_t*>(reinterpret_cast<char*>(rseq::ThisArea()) +
                                              rseq::kCachedWordOffset);
    if (last != 0) {
      __atomic_store_n(word, last, __ATOMIC_RELAXED);
    } else if (CacheSlab()) {
      last = __atomic_load_n(word, __ATOMIC_RELAXED);
      if (last >> 63 == 0) last = 0;
    }
    return;
  }
  CacheSlab();
}

uint64_t Pack(Header header) {
  uint64_t packed;
  memcpy(&packed, &header, sizeof(packed));
  return packed;
}

// Changed while a fork may leave a child in the middle: one store, after all others.
void WriteHeader(Slab* slab, unsigned size_class, Header header) {
  if (kSabotageTornHeader) {
    __atomic_store_n(&slab->headers[size_class].end, header.end, __ATOMIC_RELEASE);
    __atomic_store_n(&slab->headers[size_class].current, header.current, __ATOMIC_RELEASE);
    return;
  }
  __atomic_store_n(reinterpret_cast<uint64_t*>(&slab->headers[size_class]), Pack(header),
                   __ATOMIC_RELEASE);
}

// Read while sections run on it: one load, so that both halves belong together.
Header ReadHeader(const Slab* slab, unsigned size_class) {
  const uint64_t packed = __atomic_load_n(
      reinterpret_cast<const uint64_t*>(&slab->headers[size_class]), __ATOMIC_RELAXED);
  Header header;
  memcpy(&header, &packed, sizeof(header));
  return header;
}

size_t BytesFor(const Geometry& geometry) {
  size_t bytes = sizeof(Slab);
  for (uint32_t capacity : geometry.capacity) bytes += (capacity + 1) * sizeof(uintptr_t);
  const size_t page = os::KernelPageSize();
  return (bytes + page - 1) & ~(page - 1);
}

// Sections write slots of a class only once its header was set up, so only the fixed part is
// touched.
void Format(Slab* slab, const Geometry& geometry) {
  for (Header& header : slab->headers) header = kUnusedHeader;
  slab->mark = kMark;
  uint32_t next = sizeof(Slab) / sizeof(uintptr_t);
  for (unsigned c = 0; c < kSlabClasses; ++c) {
    slab->begin[c] = next + 1;
    slab->limit[c] = next + 1 + geometry.capacity[c];
    next = slab->limit[c];
  }
}

bool HasGeometry(const Slab* slab, const Geometry& geometry) {
  for (unsigned c = 0; c < kSlabClasses; ++c) {
    if (slab->limit[c] - slab->begin[c] != geometry.capacity[c]) return false;
  }
  return true;
}

// Needs creation_lock. A kept slab is used again only with the geometry it had: a thread that was
// preempted in WithCapacity may still write a mark into it, at the place where that geometry has
// one.
Slab* MakeSlab(const Geometry& geometry) {
  const size_t bytes = BytesFor(geometry);
  for (Slab** link = &kept_slabs; *link != nullptr; link = &(*link)->next_free) {
    if (!HasGeometry(*link, geometry)) continue;
    Slab* slab = *link;
    *link = slab->next_free;
    Format(slab, geometry);
    return slab;
  }
  void* memory = os::Reserve(bytes, os::KernelPageSize());
  if (memory == nullptr) return nullptr;
  if (!os::Commit(memory, bytes)) {
    os::Unreserve(memory, bytes);
    return nullptr;
  }
  Slab* slab = static_cast<Slab*>(memory);
  slab->bytes = bytes;
  Format(slab, geometry);
  slab_bytes.fetch_add(bytes, std::memory_order_relaxed);
  return slab;
}

void KeepSlab(Slab* slab) {
  slab->next_free = kept_slabs;
  __atomic_store_n(&kept_slabs, slab, __ATOMIC_RELEASE);
}

// The plain versions of the sections, for whoever owns the slab. Like those they commit
// by one store.
uint32_t OwnedPop(Slab* slab, unsigned size_class, void** out, uint32_t n) {
  Header header = slab->headers[size_class];
  uint32_t taken = 0;
  while (taken < n) {
    const uintptr_t item = *slab->slot(header.current - 1);
    if ((item & kMark) != 0) break;
    out[taken++] = reinterpret_cast<void*>(item);
    --header.current;
  }
  if (taken != 0) WriteHeader(slab, size_class, header);
  return taken;
}

uint32_t OwnedPush(Slab* slab, unsigned size_class, void* const* in, uint32_t n) {
  Header header = slab->headers[size_class];
  uint32_t put = 0;
  if (kSabotageEarlyHeader && header.current < header.end) {
    const uint32_t room = header.end - header.current;
    WriteHeader(slab, size_class, {header.current + (n < room ? n : room), header.end});
    // Not after what follows: a release would allow for that.
    std::atomic_signal_fence(std::memory_order_seq_cst);
  }
  while (put < n && header.current < header.end) {
    *slab->slot(header.current++) = reinterpret_cast<uintptr_t>(in[put++]);
  }
  if (put != 0) WriteHeader(slab, size_class, header);
  return put;
}

uint32_t CapacityIn(const Slab* slab, unsigned size_class, Header header) {
  return header.end == 0 ? 0 : header.end - slab->begin[size_class];
}

// The header that a class has with another capacity; sets the mark below its stack on first use,
// which nobody reads before the header leads there.
Header WithCapacity(Slab* slab, unsigned size_class, Header header, uint32_t capacity) {
  const uint32_t begin = slab->begin[size_class];
  const uint32_t most = slab->limit[size_class] - begin;
  if (capacity > most) capacity = most;
  if (header.end == 0) {
    *slab->slot(begin - 1) = kMark;
    header.current = begin;
  }
  header.end = begin + capacity;
  return header;
}

size_t DrainOwned(Slab* slab, Receiver receiver) {
  size_t drained = 0;
  void* items[kOwnedAtOnce];
  for (unsigned c = 1; c < kSlabClasses; ++c) {
    while (uint32_t n = OwnedPop(slab, c, items, kOwnedAtOnce)) {
      receiver(c, items, n);
      drained += n;
    }
  }
  return drained;
}

// In locked mode: the slab of the CPU this thread runs on, locked; null if this thread holds it
// already, if another keeps it (stopped, or preempted in the middle), or if there is no memory for
// one.
class LockedSlab {
 public:
  LockedSlab() {
    const int index = CurrentIndex();
    if (SlabOf(index) == nullptr && !EnsureSlab(index)) return;
    if (StateOf(index).lock.AcquireSoon()) cpu_ = &StateOf(index);
  }
  ~LockedSlab() {
    if (cpu_ != nullptr) cpu_->lock.Release();
  }
  Slab* get() const { return cpu_ == nullptr ? nullptr : cpu_->slab; }

 private:
  CpuState* cpu_ = nullptr;
};

}  // namespace

void InitTable(unsigned new_bound) {
  bound = new_bound < kMaxCpus ? new_bound : kMaxCpus;
  for (int i = -2; i < static_cast<int>(bound); ++i) Publish(i, ClosedSlab());
}

void Init(Mode new_mode, const Geometry& geometry) {
  new_geometry = geometry;
  mode.store(new_mode, std::memory_order_release);
}

Mode CurrentMode() { return mode.load(std::memory_order_acquire); }
unsigned Bound() { return bound; }
unsigned PopulatedSlabs() { return populated.load(std::memory_order_relaxed); }
unsigned HighestUsed() { return highest_used.load(std::memory_order_relaxed); }
size_t SlabBytes() { return slab_bytes.load(std::memory_order_relaxed); }
Slab* OpenSlab(int index) { return __atomic_load_n(Entry(index), __ATOMIC_ACQUIRE); }

int CurrentIndex() {
  if (mode == Mode::kUnset) return -1;
  if (mode == Mode::kLocked) {
    const int cpu = rseq::CurrentCpu();
    // Where not even getcpu works, threads spread over a few slabs by their identity.
    if (cpu < 0) return static_cast<int>((ThreadId() >> 12) % (bound < 16 ? bound : 16));
    return static_cast<int>(static_cast<unsigned>(cpu) % bound);
  }
  const rseq::Area* area = rseq::ThisArea();
  const auto cpu = static_cast<int32_t>(__atomic_load_n(&area->cpu_id, __ATOMIC_RELAXED));
  if (cpu < 0) return -1;
  const uint32_t index = mode == Mode::kMmCid ? __atomic_load_n(&area->mm_cid, __ATOMIC_RELAXED)
                                              : static_cast<uint32_t>(cpu);
  return index < bound ? static_cast<int>(index) : -1;
}

bool PrepareThread() {
  switch (mode) {
    case Mode::kUnset:
      return false;
    case Mode::kLocked:
      return true;
    case Mode::kCpuId:
    case Mode::kMmCid:
    case Mode::kCached:
      break;
  }
  return rseq::EnsureThreadRegistered();
}

bool EnsureSlab(int index) {
  CpuState& cpu = StateOf(index);
  // Not to be waited for: Resize holds it while it waits for whoever has stopped an index.
  if (!creation_lock.TryAcquire()) return false;
  // Held by another: somebody has stopped this index and will open it again.
  bool made = cpu.lock.TryAcquire();
  if (made) {
    if (cpu.slab == nullptr) {
      Slab* slab = MakeSlab(new_geometry);
      made = slab != nullptr;
      if (made) {
        const unsigned used = static_cast<unsigned>(index) + 1;
        if (used > HighestUsed()) highest_used.store(used, std::memory_order_relaxed);
        populated.fetch_add(1, std::memory_order_relaxed);
        SetSlab(index, slab);
        if (CurrentMode() != Mode::kLocked) Publish(index, slab);
      }
    }
    cpu.lock.Release();
  }
  creation_lock.Release();
  return made;
}

// Aligned, both, so that where their loops lie in the lines of code does not change with the length
// of other functions: that makes half a cycle an object.
__attribute__((aligned(64))) uint32_t PopBatch(unsigned size_class, void** out, uint32_t n) {
  switch (mode) {
    case Mode::kCached:
      Revalidate();  // for the operations to come; this one needs no cached pointer
      [[fallthrough]];
    case Mode::kCpuId:
      return PopBatch<Index::kCpuId>(size_class, out, n);
    case Mode::kMmCid:
      return PopBatch<Index::kMmCid>(size_class, out, n);
    case Mode::kLocked: {
      LockedSlab slab;
      return slab.get() == nullptr ? 0 : OwnedPop(slab.get(), size_class, out, n);
    }
    case Mode::kUnset:
      break;
  }
  return 0;
}

__attribute__((aligned(64))) uint32_t PushBatch(unsigned size_class, void* const* in, uint32_t n) {
  switch (mode) {
    case Mode::kCached:
      Revalidate();
      [[fallthrough]];
    case Mode::kCpuId:
      return PushBatch<Index::kCpuId>(size_class, in, n);
    case Mode::kMmCid:
      return PushBatch<Index::kMmCid>(size_class, in, n);
    case Mode::kLocked: {
      LockedSlab slab;
      return slab.get() == nullptr ? 0 : OwnedPush(slab.get(), size_class, in, n);
    }
    case Mode::kUnset:
      break;
  }
  return 0;
}

int32_t SetCapacity(int index, unsigned size_class, uint32_t capacity) {
  if (mode == Mode::kLocked) {
    Slab* slab = SlabOf(index);
    if (slab == nullptr || !StateOf(index).lock.AcquireSoon()) return 0;
    slab = StateOf(index).slab;
    const Header header = slab->headers[size_class];
    const Header wanted = WithCapacity(slab, size_class, header, capacity);
    WriteHeader(slab, size_class, wanted);
    const uint32_t before = CapacityIn(slab, size_class, header);
    const uint32_t after = CapacityIn(slab, size_class, wanted);
    StateOf(index).lock.Release();
    return static_cast<int32_t>(after - before);
  }
  Slab* slab = OpenSlab(index);
  if (slab == ClosedSlab()) return 0;
  const Header seen = ReadHeader(slab, size_class);
  const Header wanted = WithCapacity(slab, size_class, seen, capacity);
  const bool done = mode == Mode::kMmCid
                        ? ReplaceHeader<Index::kMmCid>(size_class, slab, Pack(seen), Pack(wanted))
                        : ReplaceHeader<Index::kCpuId>(size_class, slab, Pack(seen), Pack(wanted));
  if (!done) return 0;
  return static_cast<int32_t>(CapacityIn(slab, size_class, wanted) -
                              CapacityIn(slab, size_class, seen));
}

uint32_t HeldBy(int index, unsigned size_class) {
  const Slab* slab = StateOf(index).slab;
  if (slab == nullptr) return 0;
  const Header header = ReadHeader(slab, size_class);
  return header.end == 0 ? 0 : header.current - slab->begin[size_class];
}

Capacity CapacityOf(int index, unsigned size_class) {
  // In locked mode the table is closed; the slab of an index, once made, stays readable.
  const Slab* slab = mode == Mode::kLocked ? SlabOf(index) : OpenSlab(index);
  if (slab == nullptr || slab == ClosedSlab()) return {0, 0};
  return {CapacityIn(slab, size_class, ReadHeader(slab, size_class)),
          slab->limit[size_class] - slab->begin[size_class]};
}

namespace {

// Stop once the lock is held: takes the slab, or gives the lock back.
Slab* TakeAway(int index) {
  CpuState& cpu = StateOf(index);
  if (mode != Mode::kLocked) {
    if (kSabotageRemoteWrite) return cpu.slab;
    Publish(index, ClosedSlab());
    if (kSabotageEarlyPublish) Publish(index, cpu.slab);
    if (!Fence(index)) {
      // Sections may still be at work on the slab: nothing may be assumed, so nothing is touched.
      Publish(index, cpu.slab);
      cpu.lock.Release();
      return nullptr;
    }
  }
  return cpu.slab;
}

}  // namespace

Slab* Stop(int index) {
  if (SlabOf(index) == nullptr || !StateOf(index).lock.Acquire()) return nullptr;
  return TakeAway(index);
}

bool Start(int index, Slab* slab) {
  CpuState& cpu = StateOf(index);
  if (!cpu.lock.HeldBySelf()) return false;
  SetSlab(index, slab);
  if (mode != Mode::kLocked) Publish(index, slab);
  cpu.lock.Release();
  return true;
}

bool Restart(int index) {
  return StateOf(index).lock.HeldBySelf() && Start(index, StateOf(index).slab);
}

size_t Drain(int index, Receiver receiver, Loser loser) {
  Slab* slab = Stop(index);
  if (slab == nullptr) return 0;
  const size_t drained = DrainOwned(slab, receiver);
  for (unsigned c = 1; loser != nullptr && c < kSlabClasses; ++c) {
    const uint32_t slots = CapacityIn(slab, c, slab->headers[c]);
    if (slots == 0) continue;
    // In use still, with no slot: its mark stays where it is.
    WriteHeader(slab, c, {slab->begin[c], slab->begin[c]});
    loser(index, c, slots);
  }
  Start(index, slab);
  return drained;
}

Activity ActivityOf(int index) {
  const Slab* slab = SlabOf(index);
  if (slab == nullptr) return {0, false};
  uint64_t state = 0;
  bool holds = false;
  for (unsigned c = 1; c < kSlabClasses; ++c) {
    const Header header = ReadHeader(slab, c);
    if (header.end == 0) continue;
    holds |= header.current > slab->begin[c];
    state = (state ^ Pack(header)) * 0x9e3779b97f4a7c15u + c;
  }
  return {state, holds};
}

namespace {

// Moves the contents of the slab of a stopped index to another slab and starts the index with that.
void MoveTo(Slab* fresh, int index, Slab* old, Receiver receiver) {
  void* items[kOwnedAtOnce];
  for (unsigned c = 1; c < kSlabClasses; ++c) {
    const Header header = old->headers[c];
    if (header.end == 0) continue;
    fresh->headers[c] = WithCapacity(fresh, c, fresh->headers[c], header.end - old->begin[c]);
    // Popped newest first, pushed in that order: the stack comes out upside down, which costs a
    // little warmth in the cache, once.
    while (uint32_t n = OwnedPop(old, c, items, kOwnedAtOnce)) {
      const uint32_t put = OwnedPush(fresh, c, items, n);
      if (put < n) receiver(c, items + put, n - put);
    }
  }
  Start(index, fresh);
  KeepSlab(old);
}

}  // namespace

bool Resize(int index, const Geometry& geometry, Receiver receiver) {
  LockHolder creating(creation_lock);
  if (!creating) return false;
  Slab* fresh = MakeSlab(geometry);
  if (fresh == nullptr) return false;
  Slab* old = Stop(index);
  if (old == nullptr) {
    KeepSlab(fresh);
    return false;
  }
  MoveTo(fresh, index, old, receiver);
  return true;
}

bool TryResize(int index, const Geometry& geometry, Receiver receiver) {
  if (SlabOf(index) == nullptr || !creation_lock.TryAcquire()) return false;
  Slab* old = nullptr;
  if (StateOf(index).lock.TryAcquire()) {
    Slab* fresh = HasGeometry(SlabOf(index), geometry) ? nullptr : MakeSlab(geometry);
    if (fresh == nullptr) {
      StateOf(index).lock.Release();
    } else if ((old = TakeAway(index)) == nullptr) {
      KeepSlab(fresh);
    } else {
      MoveTo(fresh, index, old, receiver);
    }
  }
  creation_lock.Release();
  return old != nullptr;
}

namespace {

// In the child, of locks that fork could not take and whose holders are not here: what they
// guard is consistent after each store, so it can be taken over. What those threads had in their
// hands is lost.
void TakeOver() {
  // Who was making a slab took its CPU's lock before the index counted as used.
  const unsigned end = creation_lock.FreeInChild() ? Bound() : HighestUsed();
  for (unsigned i = 0; i < end; ++i) {
    const int index = static_cast<int>(i);
    CpuState& cpu = StateOf(index);
    if (cpu.lock.HeldBySelf()) continue;
    cpu.lock.FreeInChild();
    const bool open = cpu.slab == nullptr || OpenSlab(index) == cpu.slab;
    if (mode != Mode::kLocked && !open) Publish(index, cpu.slab);
  }
}

}  // namespace

// In a signal handler that interrupted the allocator: a lock that this very thread holds stays with
// the interrupted code, in both processes. One that another thread holds stays with that one in the
// parent, where it may be waiting, with what it has drained, for what was interrupted.
void LockForFork() {
  (void)creation_lock.AcquireForFork(ForkPatience::kNone);
  for (unsigned i = 0; i < HighestUsed(); ++i) {
    (void)StateOf(static_cast<int>(i)).lock.AcquireForFork(ForkPatience::kNone);
  }
}

void UnlockAfterFork(bool in_child) {
  for (unsigned i = HighestUsed(); i-- > 0;)
    StateOf(static_cast<int>(i)).lock.ReleaseAfterFork(in_child);
  creation_lock.ReleaseAfterFork(in_child);
  if (in_child) TakeOver();
}

}  // namespace pcmalloc::percpu
