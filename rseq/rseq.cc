// SPDX-License-Identifier: Apache-2.0
#include "rseq/rseq.h"

#include <errno.h>
#include <limits.h>
#include <pthread.h>
#include <sched.h>
#include <sys/auxv.h>
#include <sys/mman.h>

#include "absl/base/attributes.h"
#include "absl/base/optimization.h"
#include "allocator/base/syscall.h"
#include "allocator/base/text.h"
#include "rseq/sections.h"

#ifndef SYS_rseq
#if defined(__x86_64__)
#define SYS_rseq 334
#else
#define SYS_rseq 293
#endif
#endif

extern "C" {
constinit uint64_t pcmalloc_rseq_aborts = 0;

// glibc's since 2.35; null elsewhere. Not from <sys/rseq.h>, which musl lacks.
extern const unsigned int __rseq_size __attribute__((weak));
extern const ptrdiff_t __rseq_offset __attribute__((weak));

constinit ptrdiff_t pcmalloc_rseq_offset = 0;
}

namespace pcmalloc::rseq {
namespace {

constexpr Area kUnregisteredArea = {0, kUninitialized, 0, 0, 0, 0, 0};

// One cache line, so that the word that ends with exact32.cpu_id_start lies in one. Which of the
// two is registered depends on the length; initial-exec, because the dynamic model may allocate.
struct alignas(64) OwnStorage {
  Area longer = kUnregisteredArea;   // for more than 32 bytes: covers exact32 too
  Area exact32 = kUnregisteredArea;  // for 32 bytes; longer.slice_ctrl is the word's other half
};
static_assert(sizeof(OwnStorage) == 64);
static_assert(offsetof(OwnStorage, exact32) + kCachedWordOffset + sizeof(uint64_t) <= 64);
static_assert(offsetof(OwnStorage, longer.slice_ctrl) ==
              offsetof(OwnStorage, exact32) + kCachedWordOffset);
[[gnu::tls_model("initial-exec")]] constinit thread_local OwnStorage own_storage;

constexpr unsigned long kAuxFeatureSize = 27;  // AT_RSEQ_FEATURE_SIZE
constexpr unsigned long kAuxAlign = 28;        // AT_RSEQ_ALIGN
constexpr uint32_t kOriginalLength = 32;       // what every kernel with rseq accepts
constexpr int kUnregister = 1;                 // RSEQ_FLAG_UNREGISTER
constexpr uint32_t kMmCidFeatureSize = 28;     // first feature size with mm_cid

// The most CPUs that any Linux architecture can be built for (NR_CPUS of x86_64).
constexpr uint32_t kMostCpus = 8192;

// <linux/membarrier.h> of an older system may lack these.
constexpr int kFence = 1 << 7;          // MEMBARRIER_CMD_PRIVATE_EXPEDITED_RSEQ
constexpr int kRegisterFence = 1 << 8;  // MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED_RSEQ
constexpr int kFenceOneCpu = 1;         // MEMBARRIER_CMD_FLAG_CPU

// Every caller that races in Discover() fills a slot of its own and the first to finish publishes
// his: no lock that a fork or a signal could leave held. More racers than slots wait.
constexpr unsigned kSlots = 4;
constinit Discovery slots[kSlots] = {};
constinit std::atomic<unsigned> slots_taken{0};
constinit std::atomic<const Discovery*> published{nullptr};

// A page that a forked child finds zeroed and a CLONE_VM child shares; it holds the process ID, so
// that the two can be told apart. Null: not made (only Owner::kOwn needs it), or refused.
constinit std::atomic<std::atomic<int>*> process_id_page{nullptr};

// Set by RequestLength32() before Discover() has chosen.
constinit std::atomic<bool> length32_requested{false};

// One above the key whose destructor ends a thread's registration; 0: not made.
constinit std::atomic<unsigned> end_key{0};

long Rseq(Area* area, uint32_t length, int flags) {
  return RawSyscall(SYS_rseq, area, length, flags, kSignature);
}

long Membarrier(int command, unsigned flags, int cpu) {
  return RawSyscall(SYS_membarrier, command, flags, cpu);
}

int32_t CpuId(const Area* area) {
  return static_cast<int32_t>(__atomic_load_n(&area->cpu_id, __ATOMIC_RELAXED));
}

Area* AreaAt(ptrdiff_t offset) {
  return reinterpret_cast<Area*>(static_cast<char*>(__builtin_thread_pointer()) + offset);
}

ptrdiff_t OffsetOf(const Area* area) {
  return reinterpret_cast<const char*>(area) - static_cast<char*>(__builtin_thread_pointer());
}

Area* OwnArea(uint32_t length) {
  return length == kOriginalLength ? &own_storage.exact32 : &own_storage.longer;
}

bool IsOwn(const Area* area) { return area == &own_storage.exact32 || area == &own_storage.longer; }

// Blocks every signal of this thread for a scope.
class SignalBlocker {
 public:
  SignalBlocker() {
    constexpr uint64_t kAll = ~uint64_t{0};
    blocked_ = RawSyscall(SYS_rt_sigprocmask, kSetMask, &kAll, &old_, sizeof(old_)) == 0;
  }
  ~SignalBlocker() {
    if (blocked_) RawSyscall(SYS_rt_sigprocmask, kSetMask, &old_, nullptr, sizeof(old_));
  }
  SignalBlocker(const SignalBlocker&) = delete;
  SignalBlocker& operator=(const SignalBlocker&) = delete;

 private:
  static constexpr int kSetMask = 2;  // the kernel's number, its mask being 8 bytes everywhere
  uint64_t old_ = 0;
  bool blocked_;
};

void MakeProcessIdPage() {
  if (process_id_page.load(std::memory_order_relaxed) != nullptr) return;
  const long address = RawSyscall(SYS_mmap, nullptr, 1ul, PROT_READ | PROT_WRITE,
                                  MAP_PRIVATE | MAP_ANONYMOUS, -1, 0l);
  if (address < 0 && address > -4096) return;
  auto* page = reinterpret_cast<std::atomic<int>*>(address);
  page->store(static_cast<int>(RawSyscall(SYS_getpid)));
  std::atomic<int>* expected = nullptr;
  if (RawSyscall(SYS_madvise, page, 1ul, MADV_WIPEONFORK) != 0 ||
      !process_id_page.compare_exchange_strong(expected, page)) {
    RawSyscall(SYS_munmap, page, 1ul);
  }
}

// True in a child made by vfork or by clone with CLONE_VM but without CLONE_THREAD. It runs on its
// parent's thread-local storage: were the area registered for the child, the parent would find a
// valid cpu_id in it that nobody keeps up to date once the child is gone.
bool SharesMemoryWithParent() {
  std::atomic<int>* const page = process_id_page.load();
  if (page == nullptr) return false;
  const int self = static_cast<int>(RawSyscall(SYS_getpid));
  int recorded = 0;
  return !page->compare_exchange_strong(recorded, self) && recorded != self;
}

// Registers the calling thread's own area; signals are blocked. Returns 0 with a usable cpu_id, or
// the error number with cpu_id = kFailed. ENODATA: the kernel agreed but filled nothing in.
int RegisterOwnArea(uint32_t length) {
  Area* const area = OwnArea(length);
  // A kernel may know a field there that has to begin with 0.
  if (area == &own_storage.longer) own_storage.exact32 = Area{};
  const long result = Rseq(area, length, 0);
  if (CpuId(area) >= 0) return 0;
  int error = static_cast<int>(-result);
  if (result == 0) {
    error = ENODATA;
    // Nothing may write to the area any more before cpu_id is stored below.
    Rseq(area, length, kUnregister);
  } else if (error == EBUSY) {
    return error;  // it is registered already: the kernel's to write, not ours
  }
  __atomic_store_n(&area->cpu_id, kFailed, __ATOMIC_RELAXED);
  return error;
}

// Thread end. The first pass of destructors only asks for a second one: other destructors free
// memory in it and should find the thread registered, and one of them may be what registers it in
// the first place. After the second pass the thread stays kFailed, whatever it still frees: were it
// registered again, nobody might be left to undo it.
constexpr uintptr_t kFirstEndPass = 1;
constexpr uintptr_t kLastEndPass = 2;
static_assert(kLastEndPass < _POSIX_THREAD_DESTRUCTOR_ITERATIONS);

// Keys from 32 on make glibc call calloc: that finds the thread registered and does not come back
// here. Refused for lack of memory, the thread ends as if there were no key.
void AnnounceEnd(uintptr_t pass) {
  const unsigned key = end_key.load(std::memory_order_acquire);
  if (key == 0) return;
  const ErrnoSaver saver;
  pthread_setspecific(key - 1, reinterpret_cast<void*>(pass));
}

void ThreadEnds(void* pass) {
  if (reinterpret_cast<uintptr_t>(pass) < kLastEndPass) {
    AnnounceEnd(reinterpret_cast<uintptr_t>(pass) + 1);
  } else {
    UnregisterThread();
  }
}

void MakeEndKey() {
  static_assert(sizeof(pthread_key_t) == sizeof(unsigned));
  pthread_key_t key;
  if (end_key.load() != 0 || pthread_key_create(&key, ThreadEnds) != 0) return;
  unsigned none = 0;
  if (!end_key.compare_exchange_strong(none, key + 1)) pthread_key_delete(key);
}

void ExplainRefusal(int error, TextBuffer& why) {
  switch (error) {
    case ENOSYS:
      why.Str(
          "this kernel or emulator has no rseq (before Linux 4.18, valgrind, qemu-user, gVisor)");
      break;
    case EPERM:
    case EACCES:
      why.Str("a seccomp filter refuses the rseq system call");
      break;
    case EINVAL:
      if (&__rseq_size != nullptr && __rseq_size != 0) {
        why.Str("the C library's rseq area is registered but its cpu_id is not usable");
      } else {
        why.Str("other code registered an rseq area in this thread, or the kernel rejects ours");
      }
      break;
    case EBUSY:
      why.Str("this thread's rseq area is registered already but the kernel does not fill it in");
      break;
    case ENODATA:
      why.Str("the rseq system call reports success but the kernel never fills in cpu_id");
      break;
    default:
      why.Str("the rseq system call failed");
  }
  why.Str(" (").ErrorName(error).Str(")");
}

void Refuse(Discovery& d, int error) {
  d.owner = Owner::kNone;
  d.refused_error = error;
  d.registered_length = 0;
}

// Which length did the C library register? Asking for a registered area again has no effect and
// answers EBUSY for the length it has, EINVAL for another, EPERM for another signature.
void AskLibcLength(Discovery& d, Area* area, TextBuffer& why) {
  uint32_t length = kOriginalLength;
  long answer = Rseq(area, length, 0);
  if (answer == -EINVAL && d.feature_size > kOriginalLength) {
    length = d.feature_size;
    answer = Rseq(area, length, 0);
  }
  if (answer == -EBUSY) d.registered_length = length;
  if (answer == -EPERM && Rseq(area, 0, 0) == -EINVAL) {
    Refuse(d, EPERM);
    why.Str("the C library registered rseq with a signature that is not this architecture's");
    return;
  }
  why.Str("shares the rseq area that the C library registered in every thread (");
  if (d.registered_length != 0) {
    why.Dec(d.registered_length).Str(" bytes)");
  } else {
    // A filter set up after the C library's start; the registration itself goes on working.
    why.Str("length unknown, rseq now answers ").ErrorName(static_cast<int>(-answer)).Str(")");
  }
}

bool AdoptLibcArea(Discovery& d, TextBuffer& why) {
  if (&__rseq_size == nullptr || &__rseq_offset == nullptr || __rseq_size == 0) return false;
  Area* const area = AreaAt(__rseq_offset);
  if (CpuId(area) < 0) return false;
  d.owner = Owner::kLibc;
  AskLibcLength(d, area, why);
  if (d.owner == Owner::kLibc) {
    __atomic_store_n(&pcmalloc_rseq_offset, __rseq_offset, __ATOMIC_RELAXED);
  }
  return true;
}

int RegisterFirstThread(Discovery& d, uint32_t length) {
  __atomic_store_n(&pcmalloc_rseq_offset, OffsetOf(OwnArea(length)), __ATOMIC_RELAXED);
  d.registered_length = length;
  return RegisterOwnArea(length);
}

// Where the C library does not register, which is rare.
ABSL_ATTRIBUTE_COLD ABSL_ATTRIBUTE_NOINLINE void UseOwnArea(Discovery& d, TextBuffer& why) {
  d.owner = Owner::kOwn;
  MakeProcessIdPage();
  MakeEndKey();
  const bool longer = d.feature_size > kOriginalLength && d.feature_size <= sizeof(own_storage) &&
                      d.alignment <= alignof(OwnStorage) && !length32_requested.load();
  int error;
  {
    SignalBlocker blocker;
    error = RegisterFirstThread(d, longer ? d.feature_size : kOriginalLength);
    if (error == EINVAL && longer) {
      own_storage.exact32 = kUnregisteredArea;
      error = RegisterFirstThread(d, kOriginalLength);
    }
    if (error == 0) AnnounceEnd(kFirstEndPass);
  }
  if (error != 0) {
    Refuse(d, error);
    ExplainRefusal(error, why);
    return;
  }
  why.Str("registers an own rseq area of ").Dec(d.registered_length).Str(" bytes in each thread: ");
  d.cached_word = d.registered_length == kOriginalLength &&
                  reinterpret_cast<uintptr_t>(&own_storage) % alignof(OwnStorage) == 0;
  why.Str(&__rseq_size == nullptr
              ? "the C library does not register rseq (musl, or glibc before 2.35)"
              : "glibc's registration is switched off (GLIBC_TUNABLES=glibc.pthread.rseq=0)");
}

void SetUpFence(Discovery& d) {
  const long commands = Membarrier(0, 0, 0);
  if (commands < 0) {
    d.fence_error = static_cast<int>(-commands);
    return;
  }
  if ((commands & kFence) == 0) {
    d.fence_error = EINVAL;  // what the kernel answers to a command it does not know
    return;
  }
  long result = Membarrier(kRegisterFence, 0, 0);
  if (result == 0) result = Membarrier(kFence, 0, 0);
  if (result != 0) {
    d.fence_error = static_cast<int>(-result);
    return;
  }
  d.fence_available = true;
  d.fence_one_cpu = Membarrier(kFence, kFenceOneCpu, 0) == 0;
}

uint32_t CpuBound(int current) {
  unsigned long mask[2 * kMostCpus / (8 * sizeof(unsigned long))];
  // Unlike the C library's wrapper the system call returns the size of the kernel's own mask.
  const long bytes = RawSyscall(SYS_sched_getaffinity, 0, sizeof(mask), mask);
  const uint32_t bound = bytes > 0 ? static_cast<uint32_t>(8 * bytes) : kMostCpus;
  return current < static_cast<int>(bound) ? bound : kMostCpus;
}

void FillIn(Discovery& d) {
  const ErrnoSaver saver;  // getauxval sets it for a missing entry
  d = Discovery{};
  d.feature_size = static_cast<uint32_t>(getauxval(kAuxFeatureSize));
  d.alignment = static_cast<uint32_t>(getauxval(kAuxAlign));
  TextBuffer why(d.reason, sizeof(d.reason));
  if (!AdoptLibcArea(d, why)) UseOwnArea(d, why);
  d.mm_cid_maintained = d.owner != Owner::kNone && d.feature_size >= kMmCidFeatureSize;
  SetUpFence(d);
  d.cpu_bound = CpuBound(CurrentCpu());
}

}  // namespace

const Discovery& Discover() {
  const Discovery* answer = published.load(std::memory_order_acquire);
  if (ABSL_PREDICT_TRUE(answer != nullptr)) return *answer;
  const unsigned slot = slots_taken.fetch_add(1, std::memory_order_relaxed);
  if (slot < kSlots) {
    FillIn(slots[slot]);
    if (published.compare_exchange_strong(answer, &slots[slot], std::memory_order_acq_rel)) {
      return slots[slot];
    }
    return *answer;
  }
  while ((answer = published.load(std::memory_order_acquire)) == nullptr) {
    RawSyscall(SYS_sched_yield);
  }
  return *answer;
}

bool RequestLength32() {
  length32_requested.store(true);
  return published.load() == nullptr;
}

Area* ThisArea() {
  const ptrdiff_t offset = __atomic_load_n(&pcmalloc_rseq_offset, __ATOMIC_RELAXED);
  return ABSL_PREDICT_TRUE(offset != 0) ? AreaAt(offset) : &own_storage.exact32;
}

bool EnsureThreadRegistered() {
  const Discovery& d = Discover();
  Area* const area = ThisArea();
  if (ABSL_PREDICT_TRUE(CpuId(area) >= 0)) return true;
  if (!IsOwn(area)) return false;  // the C library's to register, not ours
  if (CpuId(area) == static_cast<int32_t>(kFailed)) return false;
  if (d.owner != Owner::kOwn) {
    if (d.refused_error != EBUSY) __atomic_store_n(&area->cpu_id, kFailed, __ATOMIC_RELAXED);
    return false;
  }
  SignalBlocker blocker;
  // A handler may have come here between the look above and the blocking.
  if (CpuId(area) >= 0) return true;
  if (SharesMemoryWithParent()) return false;
  if (RegisterOwnArea(d.registered_length) != 0) return false;
  AnnounceEnd(kFirstEndPass);
  return true;
}

void UnregisterThread() {
  const Discovery* const d = published.load(std::memory_order_acquire);
  if (d == nullptr || d->owner != Owner::kOwn) return;
  Area* const area = OwnArea(d->registered_length);
  SignalBlocker blocker;
  // Only an area that we registered has a CPU in it.
  if (CpuId(area) < 0 || SharesMemoryWithParent()) return;
  __atomic_store_n(&area->rseq_cs, uint64_t{0}, __ATOMIC_RELAXED);
  if (Rseq(area, d->registered_length, kUnregister) != 0) return;
  __atomic_store_n(&area->cpu_id, kFailed, __ATOMIC_RELAXED);
}

void ForgetSections() { __atomic_store_n(&ThisArea()->rseq_cs, uint64_t{0}, __ATOMIC_RELAXED); }

int CurrentCpu() {
  const int32_t cpu = CpuId(ThisArea());
  if (ABSL_PREDICT_TRUE(cpu >= 0)) return cpu;
  const ErrnoSaver saver;
  return sched_getcpu();
}

bool FenceCpu(int cpu) {
  const Discovery& d = Discover();
  if (ABSL_PREDICT_FALSE(!d.fence_one_cpu)) return FenceAll();
  return Membarrier(kFence, kFenceOneCpu, cpu) == 0;
}

bool FenceAll() { return Discover().fence_available && Membarrier(kFence, 0, 0) == 0; }

}  // namespace pcmalloc::rseq
