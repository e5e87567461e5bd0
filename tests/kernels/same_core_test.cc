// SPDX-License-Identifier: Apache-2.0
//
// Does a section see what another thread does meanwhile on the same core? With the whole process on
// one core that thread can only have run by preempting the section, which the kernel must then have
// aborted. Run it with GLIBC_TUNABLES=glibc.pthread.rseq=0: the area is registered here. Status 0:
// no; 1: yes; 2: the test could not be made, or nothing was ever interrupted.
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "tests/kernels/section.h"

namespace kernels {
namespace {

uint32_t watched;
uint32_t entered;
uint32_t stop;

uint64_t NowNs() {
  timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return static_cast<uint64_t>(now.tv_sec) * 1000000000u + static_cast<uint64_t>(now.tv_nsec);
}

bool PinToOneCore() {
  cpu_set_t one;
  CPU_ZERO(&one);
  CPU_SET(sched_getcpu(), &one);
  return sched_setaffinity(0, sizeof(one), &one) == 0;
}

void* Change(void*) {
  while (__atomic_load_n(&stop, __ATOMIC_RELAXED) == 0) {
    const timespec pause = {0, 100'000};
    nanosleep(&pause, nullptr);
    __atomic_fetch_add(&watched, 1, __ATOMIC_RELAXED);
  }
  return nullptr;
}

int Main(int argc, char** argv) {
  const double seconds = argc > 1 ? atof(argv[1]) : 1;
  alignas(128) static Area area = {};
  area.cpu_id = 0xffffffffu;
  const int refused = Register(&area, 32);
  if (refused != 0 || !PinToOneCore()) {
    printf("PCM refused=%d\n", refused);
    return 2;
  }
  pthread_t changer;
  if (pthread_create(&changer, nullptr, &Change, nullptr) != 0) return 2;
  uint64_t changed = 0;
  uint64_t aborted = 0;
  uint64_t quiet = 0;
  const uint64_t end = NowNs() + static_cast<uint64_t>(seconds * 1e9);
  const uint32_t never = 0;
  while (NowNs() < end) {
    switch (Watch(&area, &entered, &watched, &never, 20'000)) {
      case Ended::kQuiet:
        ++quiet;
        break;
      case Ended::kChanged:
        ++changed;
        break;
      case Ended::kAborted:
        ++aborted;
        break;
    }
  }
  __atomic_store_n(&stop, 1, __ATOMIC_RELAXED);
  pthread_join(changer, nullptr);
  printf("PCM changed=%llu\nPCM aborted=%llu\nPCM quiet=%llu\n",
         static_cast<unsigned long long>(changed), static_cast<unsigned long long>(aborted),
         static_cast<unsigned long long>(quiet));
  if (changed != 0) return 1;
  return aborted != 0 ? 0 : 2;
}

}  // namespace
}  // namespace kernels

int main(int argc, char** argv) { return kernels::Main(argc, argv); }
