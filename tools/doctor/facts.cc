// SPDX-License-Identifier: Apache-2.0
#include "tools/doctor/facts.h"

#include <errno.h>
#include <linux/membarrier.h>
#include <sched.h>
#include <stddef.h>
#include <sys/auxv.h>
#include <sys/syscall.h>
#include <sys/utsname.h>
#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <iterator>
#include <set>
#include <thread>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"

// Absent in C libraries that register nothing.
extern "C" {
extern const unsigned int __rseq_size __attribute__((weak));
extern const ptrdiff_t __rseq_offset __attribute__((weak));
}

namespace pcmalloc::doctor {
namespace {

constexpr unsigned long kAuxRseqFeatureSize = 27;
constexpr unsigned long kAuxRseqAlign = 28;
#if defined(__x86_64__)
constexpr uint32_t kSignature = 0x53053053;
#elif defined(__aarch64__)
constexpr uint32_t kSignature = 0xd428bc00;
#endif
constexpr uint32_t kShortestLength = 32;
constexpr uint32_t kLongestLength = 1024;
constexpr int kUnregister = 1;
constexpr size_t kCpuIdWord = 1;  // of the area seen as 32-bit words

constexpr absl::Duration kWatch = absl::Milliseconds(15);
constexpr int kMaxWatchers = 256;

std::string ReadLine(absl::string_view root, absl::string_view path) {
  std::ifstream file(absl::StrCat(root, path));
  std::string line;
  if (!std::getline(file, line)) return std::string(kUnknown);
  return std::string(absl::StripAsciiWhitespace(line));
}

// The word in brackets of "always [madvise] never".
std::string Chosen(const std::string& line) {
  const std::vector<std::string> around = absl::StrSplit(line, absl::ByAnyChar("[]"));
  return around.size() == 3 ? around[1] : std::string(kUnknown);
}

std::string LibcVersion() {
  char version[128];
  const size_t size = confstr(_CS_GNU_LIBC_VERSION, version, sizeof(version));
  return size > 1 && size <= sizeof(version) ? version : std::string(kUnknown);
}

std::string ListOf(const std::set<int>& cpus) {
  std::vector<std::string> parts;
  for (auto it = cpus.begin(); it != cpus.end();) {
    const int first = *it;
    int last = first;
    while (++it != cpus.end() && *it == last + 1) last = *it;
    parts.push_back(first == last ? absl::StrCat(first) : absl::StrCat(first, "-", last));
  }
  return parts.empty() ? std::string(kUnknown) : absl::StrJoin(parts, ",");
}

std::set<int> AllowedCpus() {
  // Larger than any kernel's mask; the raw call says how much of it is filled.
  std::vector<unsigned long> mask(65536 / (8 * sizeof(unsigned long)));
  const long bytes =
      syscall(SYS_sched_getaffinity, 0, mask.size() * sizeof(unsigned long), mask.data());
  std::set<int> cpus;
  constexpr int kBits = 8 * sizeof(unsigned long);
  for (int cpu = 0; cpu < bytes * 8; ++cpu) {
    if (mask[cpu / kBits] >> (cpu % kBits) & 1) cpus.insert(cpu);
  }
  return cpus;
}

// The CPUs that a thread for each allowed CPU, unpinned, finds itself on.
std::set<int> UsedCpus(size_t allowed) {
  absl::Mutex mutex;
  std::set<int> used;
  const absl::Time deadline = absl::Now() + kWatch;
  std::vector<std::thread> watchers;
  for (size_t i = 0; i < std::clamp<size_t>(allowed, 1, kMaxWatchers); ++i) {
    watchers.emplace_back([&] {
      std::set<int> seen;
      do {
        unsigned cpu;
        if (syscall(SYS_getcpu, &cpu, nullptr, nullptr) == 0) seen.insert(static_cast<int>(cpu));
      } while (absl::Now() < deadline);
      absl::MutexLock lock(&mutex);
      used.insert(seen.begin(), seen.end());
    });
  }
  for (std::thread& watcher : watchers) watcher.join();
  return used;
}

int Rseq(void* area, uint32_t length, int flags) {
#if defined(SYS_rseq) && (defined(__x86_64__) || defined(__aarch64__))
  return syscall(SYS_rseq, area, length, flags, kSignature) == 0 ? 0 : errno;
#else
  return ENOSYS;
#endif
}

void GatherRseq(Facts& facts) {
  facts.feature_size = static_cast<uint32_t>(getauxval(kAuxRseqFeatureSize));
  facts.align = static_cast<uint32_t>(getauxval(kAuxRseqAlign));

  if (&__rseq_size != nullptr && __rseq_size != 0) {
    auto* area =
        reinterpret_cast<uint32_t*>(static_cast<char*>(__builtin_thread_pointer()) + __rseq_offset);
    const auto cpu_id = static_cast<int32_t>(*static_cast<volatile uint32_t*>(area + kCpuIdWord));
    if (cpu_id >= 0) {
      facts.libc_registers = true;
      // Registering a second time changes nothing and is refused: as busy where the length is the
      // registered one, as invalid where it is another.
      for (uint32_t length = kShortestLength; length <= kLongestLength; ++length) {
        if (Rseq(area, length, 0) == EBUSY) {
          facts.registered_length = length;
          return;
        }
      }
      return;
    }
  }

  alignas(kLongestLength) static char own[kLongestLength];
  const uint32_t length = std::min(std::max(kShortestLength, facts.feature_size), kLongestLength);
  facts.rseq_error = Rseq(own, length, 0);
  facts.registered_length = 0;
  if (facts.rseq_error == 0) facts.rseq_error = Rseq(own, length, kUnregister);
}

void GatherMembarrier(Facts& facts) {
  const auto call = [&facts](int command, int flags, int cpu) {
    const bool works = syscall(SYS_membarrier, command, flags, cpu) == 0;
    if (!works && facts.membarrier_error == 0) facts.membarrier_error = errno;
    return works;
  };
  facts.membarrier_rseq = call(MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED_RSEQ, 0, 0) &&
                          call(MEMBARRIER_CMD_PRIVATE_EXPEDITED_RSEQ, 0, 0);
  facts.membarrier_cpu = facts.membarrier_rseq &&
                         call(MEMBARRIER_CMD_PRIVATE_EXPEDITED_RSEQ, MEMBARRIER_CMD_FLAG_CPU, 0);
}

}  // namespace

std::optional<int> CountCpus(absl::string_view list) {
  int count = 0;
  for (absl::string_view part : absl::StrSplit(list, ',')) {
    const std::vector<absl::string_view> ends = absl::StrSplit(part, '-');
    int first;
    int last;
    if (ends.size() > 2 || !absl::SimpleAtoi(ends.front(), &first) ||
        !absl::SimpleAtoi(ends.back(), &last) || first < 0 || last < first) {
      return std::nullopt;
    }
    count += last - first + 1;
  }
  return count;
}

Facts GatherFacts(absl::string_view root) {
  Facts facts;
  utsname name;
  const bool named = uname(&name) == 0;
  facts.kernel = named ? name.release : std::string(kUnknown);
  facts.machine = named ? name.machine : std::string(kUnknown);
  facts.libc = LibcVersion();
  GatherRseq(facts);
  GatherMembarrier(facts);
  const std::set<int> allowed = AllowedCpus();
  facts.cpus_possible = ReadLine(root, "/sys/devices/system/cpu/possible");
  facts.cpus_online = ReadLine(root, "/sys/devices/system/cpu/online");
  facts.cpus_allowed = ListOf(allowed);
  facts.cpus_used = ListOf(UsedCpus(allowed.size()));
  facts.page_size = getauxval(AT_PAGESZ);
  facts.thp = Chosen(ReadLine(root, "/sys/kernel/mm/transparent_hugepage/enabled"));
  facts.overcommit = ReadLine(root, "/proc/sys/vm/overcommit_memory");
  return facts;
}

}  // namespace pcmalloc::doctor
