// SPDX-License-Identifier: Apache-2.0
#include "tests/stress/disturb.h"

#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>

#include "tests/stress/base.h"
#include "tests/stress/hooks.h"
#include "tests/stress/options.h"
#include "tests/stress/worker.h"

namespace stress {
namespace {

Counter drains, resizes, stops, trims, migrations, respawns;
std::atomic<unsigned> running{0};

// Sleeps for a random time around 1/rate seconds, in steps short enough to notice the end.
void Pause(Random& random, unsigned rate) {
  uint64_t left = (uint64_t{2'000'000'000} / rate) * random.Below(1000) / 1000 + 1000;
  while (left > 0 && !stopping.load(std::memory_order_relaxed)) {
    const uint64_t step = left < 50'000'000 ? left : 50'000'000;
    const timespec pause = {0, static_cast<long>(step)};
    nanosleep(&pause, nullptr);
    left -= step;
  }
}

Worker& RandomWorker(Random& random) { return Worker::At(random.Below(Worker::count())); }

void SignalStep(Random& random) {
  const pid_t tid = RandomWorker(random).tid();
  if (tid != 0) syscall(SYS_tgkill, getpid(), tid, Worker::StormSignal());
}

void MigrateStep(Random& random) {
  Worker& worker = RandomWorker(random);
  const pid_t tid = worker.tid();
  if (tid == 0 || worker.pinned()) return;
  cpu_set_t set = options.cpu_set;
  if (!random.OneIn(8)) {
    CPU_ZERO(&set);
    CPU_SET(options.cpus[random.Below(options.cpu_count)], &set);
  }
  if (sched_setaffinity(tid, sizeof(set), &set) == 0) migrations.Add();
}

void ForkStep(Random& random) { RandomWorker(random).AskToFork(); }

void RespawnStep(Random& random) {
  Worker& worker = RandomWorker(random);
  worker.AskToLeave();
  while (worker.running()) {
    if (stopping.load(std::memory_order_relaxed)) return;
    const timespec pause = {0, 200'000};
    nanosleep(&pause, nullptr);
  }
  if (!stopping.load(std::memory_order_relaxed) && worker.Start()) respawns.Add();
}

void TrimStep(Random&) {
  hooks.trim(0);
  trims.Add();
}

// A CPU's cache, mostly of the CPUs in use, sometimes any number the malloc knows: with mm_cid,
// with gaps and with absent CPUs those differ.
int RandomCacheNumber(Random& random) {
  if (hooks.cpu_bound != nullptr && random.OneIn(16)) {
    const int bound = hooks.cpu_bound();
    if (bound > 0) return static_cast<int>(random.Below(static_cast<uint32_t>(bound)));
  }
  return options.cpus[random.Below(options.cpu_count)];
}

void DrainStep(Random& random) {
  const int cpu = RandomCacheNumber(random);
  const uint32_t what = random.Below(8);
  if (what < 2 && hooks.stop_cpu != nullptr) {
    hooks.stop_cpu(cpu);
    // Closed for a moment, so that operations run into it: up to some 10 us.
    for (uint32_t spins = random.Below(4096); spins > 0; --spins) {
      __atomic_signal_fence(__ATOMIC_SEQ_CST);
    }
    hooks.start_cpu(cpu);
    stops.Add();
  } else if (what < 4 && hooks.resize_cpu != nullptr) {
    hooks.resize_cpu(cpu);
    resizes.Add();
  } else if (hooks.drain_cpu != nullptr) {
    hooks.drain_cpu(cpu);
    drains.Add();
  }
}

struct Disturbance {
  uint64_t stream;  // tells its random numbers from those of the others
  void (*step)(Random& random);
  unsigned rate;  // 0: no pause
};

void* Disturb(void* argument) {
  const Disturbance disturbance = *static_cast<const Disturbance*>(argument);
  UseSignalStack(nullptr);
  Random random(options.seed ^ disturbance.stream << 48);
  while (!stopping.load(std::memory_order_relaxed)) {
    if (disturbance.rate != 0) Pause(random, disturbance.rate);
    disturbance.step(random);
  }
  running.fetch_sub(1);
  return nullptr;
}

bool Start(Disturbance* disturbance) {
  pthread_t thread;
  running.fetch_add(1);
  if (pthread_create(&thread, nullptr, &Disturb, disturbance) != 0) {
    running.fetch_sub(1);
    return false;
  }
  pthread_detach(thread);
  return true;
}

}  // namespace

bool StartDisturbances() {
  static Disturbance signal = {0xf001, &SignalStep, options.signal_rate};
  static Disturbance migrate = {0xf002, &MigrateStep, options.migrate_rate};
  static Disturbance fork = {0xf003, &ForkStep, options.fork_rate};
  static Disturbance respawn = {0xf004, &RespawnStep, options.respawn_rate};
  static Disturbance trim = {0xf005, &TrimStep, options.trim_rate};
  static Disturbance drain = {0xf006, &DrainStep, options.drain_rate};
  bool started = true;
  for (Disturbance* disturbance : {&signal, &migrate, &fork, &respawn}) {
    if (disturbance->rate != 0) started &= Start(disturbance);
  }
  if (options.drain && hooks.CanDisturbCpus()) {
    started &= Start(&drain);
  }
  if (options.trim_rate != 0 && hooks.trim != nullptr) started &= Start(&trim);
  return started;
}

unsigned DisturbancesRunning() { return running.load(); }

DisturbanceCounts CountDisturbances() {
  return {drains.Get(), resizes.Get(), stops.Get(), trims.Get(), migrations.Get(), respawns.Get()};
}

}  // namespace stress
