// SPDX-License-Identifier: Apache-2.0
//
// steal_cpu COMMAND ARGUMENTS...: runs a command on a machine that takes its CPUs away, as a host
// does with too many guests: a real-time thread on every CPU is busy for 0.2 to 20 ms, then idle
// for 0.05 to 5, another rhythm each half second. What fails only then depends on how much happens
// in a second.
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cstdio>
#include <thread>
#include <vector>

#include "absl/random/random.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"

namespace {

// Above every ordinary thread. The kernel leaves those a twentieth of each second even so
// (/proc/sys/kernel/sched_rt_runtime_us).
constexpr int kPriority = 50;

std::atomic<bool> stop{false};

int BeginToSteal(int cpu) {
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET(cpu, &set);
  if (const int error = pthread_setaffinity_np(pthread_self(), sizeof set, &set)) return error;
  sched_param param = {};
  param.sched_priority = kPriority;
  return pthread_setschedparam(pthread_self(), SCHED_FIFO, &param);
}

void Steal() {
  const absl::Duration busy[] = {absl::Microseconds(200), absl::Milliseconds(1),
                                 absl::Milliseconds(5), absl::Milliseconds(20)};
  const absl::Duration idle[] = {absl::Microseconds(50), absl::Microseconds(200),
                                 absl::Milliseconds(1), absl::Milliseconds(5)};
  absl::BitGen random;
  while (!stop) {
    const absl::Duration taken = busy[absl::Uniform(random, 0, 4)];
    const absl::Duration left = idle[absl::Uniform(random, 0, 4)];
    const absl::Time change = absl::Now() + absl::Milliseconds(500);
    while (!stop && absl::Now() < change) {
      const absl::Time until = absl::Now() + taken;
      while (absl::Now() < until) {
      }
      absl::SleepFor(left);
    }
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 2) {
    fprintf(stderr, "usage: steal_cpu COMMAND ARGUMENTS...\n");
    return 2;
  }
  const pid_t child = fork();
  if (child == 0) {
    execvp(argv[1], argv + 1);
    perror(argv[1]);
    _exit(127);
  }
  if (child < 0) {
    perror("steal_cpu: fork");
    return 2;
  }
  cpu_set_t allowed;
  sched_getaffinity(0, sizeof allowed, &allowed);
  std::vector<std::thread> threads;
  for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
    if (!CPU_ISSET(cpu, &allowed)) continue;
    threads.emplace_back([cpu] {
      if (const int error = BeginToSteal(cpu)) {
        fprintf(stderr, "steal_cpu: CPU %d: no real-time thread (%s), nothing is taken there\n",
                cpu, strerror(error));
      } else {
        Steal();
      }
    });
  }
  int status = 0;
  while (waitpid(child, &status, 0) < 0 && errno == EINTR) {
  }
  stop = true;
  for (std::thread& thread : threads) thread.join();
  return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}
