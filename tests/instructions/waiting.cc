// SPDX-License-Identifier: Apache-2.0
#include "tests/instructions/waiting.h"

#include <errno.h>
#include <link.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

namespace pcmalloc::instructions {
namespace {

constexpr int kPatience = 20;  // seconds

}  // namespace

[[noreturn]] void Die(const std::string& what) {
  fprintf(stderr, "FAILED: %s (%s)\n", what.c_str(), strerror(errno));
  exit(1);
}

void WaitFor(sem_t* semaphore, const char* what) {
  timespec deadline;
  clock_gettime(CLOCK_REALTIME, &deadline);
  deadline.tv_sec += kPatience;
  while (sem_timedwait(semaphore, &deadline) != 0) {
    if (errno != EINTR) Die(what);
  }
}

uintptr_t LoadBias() {
  uintptr_t bias = 0;
  dl_iterate_phdr(
      [](dl_phdr_info* info, size_t, void* out) {
        *static_cast<uintptr_t*>(out) = info->dlpi_addr;
        return 1;  // the executable comes first
      },
      &bias);
  return bias;
}

}  // namespace pcmalloc::instructions
