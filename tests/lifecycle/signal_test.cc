// SPDX-License-Identifier: Apache-2.0
//
// malloc and free in signal handlers that interrupt malloc and free anywhere. POSIX does not
// promise it; this allocator does: it must neither deadlock nor hand out a block twice.
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#include <atomic>
#include <thread>
#include <vector>

#include "gtest/gtest.h"
#include "tests/support/allocator.h"
#include "tests/support/process.h"

namespace pcmalloc::testing {
namespace {

constexpr size_t kSlots = 128;
constexpr int kThreads = 3;

// The first words of a block say its size; the rest depends on it and on the address.
struct Header {
  size_t size;
  uint64_t seed;
};

std::atomic<long> torn{0}, refused{0}, handled{0};

void* Make(Random& random, bool in_handler) {
  size_t kind = random.Below(in_handler ? 1000 : 100);
  size_t size = sizeof(Header) + random.Size(kind < 85 ? 11 : kind < 98 ? 17 : kind < 100 ? 21 : 9);
  void* p = malloc(size);
  if (p == nullptr) {
    refused.fetch_add(1);
    return nullptr;
  }
  auto* header = static_cast<Header*>(p);
  *header = {size, random.Next() | (in_handler ? 1 : 0)};
  Fill(header + 1, size - sizeof(Header), header->seed);
  return p;
}

void Unmake(void* p) {
  if (p == nullptr) return;
  auto* header = static_cast<Header*>(p);
  size_t size = header->size;
  if (size > (size_t{4} << 20) || malloc_usable_size(p) < size ||
      !Holds(header + 1, size - sizeof(Header), header->seed)) {
    torn.fetch_add(1);
  }
  header->size = ~size;  // a second owner of the block will notice
  free(p);
}

// All threads and all handlers put blocks here and take others out.
std::atomic<void*> slots[kSlots];
thread_local Random handler_random(0);
std::atomic<bool> stop{false};

void Handler(int) {
  // Signals that outpace their handler would keep the thread from ever seeing the end.
  if (stop) return;
  int kept = errno;
  for (int i = 0; i < 3; ++i) {
    Unmake(slots[handler_random.Below(kSlots)].exchange(Make(handler_random, true)));
  }
  handled.fetch_add(1);
  errno = kept;
}

void Storm(int seconds) {
  struct sigaction action = {};
  action.sa_handler = &Handler;
  action.sa_flags = SA_RESTART;
  for (int number : {SIGALRM, SIGUSR1, SIGUSR2}) sigaction(number, &action, nullptr);
  std::vector<std::thread> threads;
  for (int id = 0; id < kThreads; ++id) {
    threads.emplace_back([id] {
      Random random(static_cast<uint64_t>(id) + 1);
      handler_random = Random(static_cast<uint64_t>(id) + 1000);
      sigevent event = {};
      event.sigev_notify = SIGEV_SIGNAL;
      event.sigev_signo = SIGUSR1;
      timer_t timer;
      bool has_timer = timer_create(CLOCK_THREAD_CPUTIME_ID, &event, &timer) == 0;
      itimerspec rate = {{0, 50000}, {0, 50000}};
      if (has_timer) timer_settime(timer, 0, &rate, nullptr);
      while (!stop) {
        Unmake(slots[random.Below(kSlots)].exchange(Make(random, false)));
        if (random.Below(64) == 0) {
          // Many of one size at once: refills and flushes, where the locks are.
          void* burst[300];
          for (void*& p : burst) p = Make(random, false);
          for (void* p : burst) Unmake(p);
        }
      }
      if (has_timer) timer_delete(timer);
    });
  }
  // This thread only makes the storm: it must get to its end.
  sigset_t mine;
  sigfillset(&mine);
  pthread_sigmask(SIG_BLOCK, &mine, nullptr);
  itimerval timer = {{0, 100}, {0, 100}};
  setitimer(ITIMER_REAL, &timer, nullptr);
  timespec begin, now;
  clock_gettime(CLOCK_MONOTONIC, &begin);
  do {
    for (std::thread& thread : threads) pthread_kill(thread.native_handle(), SIGUSR2);
    usleep(20);
    clock_gettime(CLOCK_MONOTONIC, &now);
  } while (now.tv_sec < begin.tv_sec + seconds);
  stop = true;
  timer = {};
  setitimer(ITIMER_REAL, &timer, nullptr);
  for (std::thread& thread : threads) thread.join();
  for (auto& slot : slots) Unmake(slot.exchange(nullptr));
  EXPECT_EQ(torn, 0);
  EXPECT_EQ(refused, 0);
  EXPECT_GT(handled, 1000 * seconds) << "the storm did not blow";
}

TEST(SignalHandler, MayAllocateAndFreeAnywhere) {
  EXPECT_TRUE(InChild([] { Storm(5); }, 30));
}

}  // namespace
}  // namespace pcmalloc::testing
