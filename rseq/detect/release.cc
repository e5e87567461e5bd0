// SPDX-License-Identifier: Apache-2.0
#include <sys/auxv.h>
#include <sys/utsname.h>

#include "allocator/base/syscall.h"
#include "rseq/detect/probe.h"

namespace pcmalloc::rseq {
namespace {

// Reads a decimal number and moves on; false if there is none.
bool Number(const char*& text, unsigned& number) {
  if (*text < '0' || *text > '9') return false;
  for (number = 0; *text >= '0' && *text <= '9' && number < 100000; ++text) {
    number = 10 * number + static_cast<unsigned>(*text - '0');
  }
  return true;
}

}  // namespace

bool ReleaseAtLeast(const char* release, unsigned major, unsigned minor) {
  unsigned found_major;
  unsigned found_minor;
  if (!Number(release, found_major) || *release++ != '.' || !Number(release, found_minor)) {
    return false;
  }
  return found_major != major ? found_major > major : found_minor >= minor;
}

bool ReleaseIsSuspicious() {
#if defined(__aarch64__)
  const ErrnoSaver saver;
  utsname name;
  // A kernel that hides its release may be any.
  return uname(&name) != 0 || ReleaseAtLeast(name.release, 6, 19);
#else
  return false;
#endif
}

uint32_t LongerLength() {
  constexpr unsigned long kAuxFeatureSize = 27;  // AT_RSEQ_FEATURE_SIZE
  constexpr uint32_t kShortest = 33;
  const ErrnoSaver saver;  // getauxval sets it for a missing entry
  const auto size = static_cast<uint32_t>(getauxval(kAuxFeatureSize));
  return size > kShortest ? size : kShortest;
}

}  // namespace pcmalloc::rseq
