// SPDX-License-Identifier: Apache-2.0
#include "benchmarks/scale_threads.h"

#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace pcmalloc::bench {
namespace {

struct Crew {
  Phases phases;
  void* context;
  pthread_barrier_t barrier;
};

struct Member {
  Crew* crew;
  int index;
  pthread_t thread;
};

void* Run(void* argument) {
  Member* member = static_cast<Member*>(argument);
  Crew* crew = member->crew;
  if (crew->phases.prepare != nullptr) crew->phases.prepare(crew->context, member->index);
  pthread_barrier_wait(&crew->barrier);  // everyone is ready
  pthread_barrier_wait(&crew->barrier);  // counters run
  crew->phases.body(crew->context, member->index);
  pthread_barrier_wait(&crew->barrier);  // all work done
  if (crew->phases.finish != nullptr) crew->phases.finish(crew->context, member->index);
  return nullptr;
}

}  // namespace

void MustCreate(pthread_t* thread, void* (*function)(void*), void* argument) {
  const int error = pthread_create(thread, nullptr, function, argument);
  if (error != 0) {
    dprintf(2, "benchmark: pthread_create: %s\n", strerror(error));
    _exit(2);
  }
}

Cost RunThreads(int threads, const Phases& phases, void* context) {
  Crew crew{phases, context, {}};
  Member members[kMaxThreads];
  Counters counters(Scope::kProcess);  // before the threads, which inherit the counters
  pthread_barrier_init(&crew.barrier, nullptr, static_cast<unsigned>(threads) + 1);
  for (int i = 0; i < threads; ++i) {
    members[i] = {&crew, i, {}};
    MustCreate(&members[i].thread, Run, &members[i]);
  }
  pthread_barrier_wait(&crew.barrier);
  counters.Start();
  pthread_barrier_wait(&crew.barrier);
  pthread_barrier_wait(&crew.barrier);
  const Cost cost = counters.Stop();
  for (int i = 0; i < threads; ++i) pthread_join(members[i].thread, nullptr);
  pthread_barrier_destroy(&crew.barrier);
  return cost;
}

void EmitMemory(const char* row, const Arguments& arguments) {
  Emit(row, "peak_rss_bytes", "B", static_cast<double>(PeakResidentBytes()));
  SleepSeconds(arguments.Get("settle", 0.5));
  Emit(row, "rss_bytes", "B", static_cast<double>(ResidentBytes()));
}

int ThreadsOf(const char* row) { return atoi(strrchr(row, '/') + 1); }

uint64_t Operations(const Arguments& arguments, uint64_t full) {
  return static_cast<uint64_t>(static_cast<double>(full) * arguments.Get("scale", 1));
}

}  // namespace pcmalloc::bench
