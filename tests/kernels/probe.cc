// SPDX-License-Identifier: Apache-2.0
//
// Which behaviour class is this kernel? Asks it by doing, independently of what the library finds,
// so that the one can be held against the other. Run it with GLIBC_TUNABLES=glibc.pthread.rseq=0:
// the areas are registered here. Prints "PCM key=value" lines; status 0 unless it could not ask.
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/mman.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <time.h>

#include "tests/kernels/section.h"

namespace kernels {
namespace {

constexpr int kRounds = 3;
constexpr uint32_t kForeign = 0x5a5a5a5a;  // no CPU number
constexpr uint32_t kOriginalLength = 32;
constexpr unsigned long kAuxFeatureSize = 27;  // AT_RSEQ_FEATURE_SIZE

struct Shared {
  uint32_t entered;
  uint32_t watched;
  uint32_t stop;
  uint32_t refused;  // error number of the registration
  uint32_t ended;    // 1 + Ended
  uint32_t cpu_id_start;
};

struct Answer {
  int rounds = 0;  // that were run to their end, or to the death of the process that was watched
  int aborted = 0;
  int rewritten = 0;
  int killed = 0;
  int refused = 0;
};

void PinToOneCpu() {
  cpu_set_t allowed;
  CPU_ZERO(&allowed);
  sched_getaffinity(0, sizeof(allowed), &allowed);
  int cpu = 0;
  while (cpu < CPU_SETSIZE - 1 && !CPU_ISSET(cpu, &allowed)) ++cpu;
  cpu_set_t one;
  CPU_ZERO(&one);
  CPU_SET(cpu, &one);
  sched_setaffinity(0, sizeof(one), &one);
}

void SleepMicroseconds(long us) {
  const timespec pause = {0, us * 1000};
  nanosleep(&pause, nullptr);
}

void RunWatched(Shared* shared, uint32_t length, bool mark) {
  alignas(128) static Area area = {};
  area.cpu_id = 0xffffffffu;
  shared->refused = static_cast<uint32_t>(Register(&area, length));
  if (shared->refused != 0) return;
  if (mark) __atomic_store_n(&area.cpu_id_start, kForeign, __ATOMIC_RELAXED);
  const Ended ended = Watch(&area, &shared->entered, &shared->watched, &shared->stop, ~uint64_t{0});
  shared->cpu_id_start = __atomic_load_n(&area.cpu_id_start, __ATOMIC_RELAXED);
  shared->ended = 1 + static_cast<uint32_t>(ended);
}

// Parent and child share one CPU: that the parent runs after the child has entered the section
// means that the child was preempted inside.
bool AskOnce(Shared* shared, uint32_t length, bool mark, Answer& answer) {
  memset(shared, 0, sizeof(*shared));
  const pid_t child = fork();
  if (child < 0) return false;
  if (child == 0) {
    RunWatched(shared, length, mark);
    _exit(0);
  }
  int status = 0;
  bool gone = false;
  while (__atomic_load_n(&shared->entered, __ATOMIC_ACQUIRE) == 0 && !gone) {
    SleepMicroseconds(20);
    gone = waitpid(child, &status, WNOHANG) == child;
  }
  // Further preemptions, should the first have come before the section was entered.
  for (int i = 0; i < 5 && !gone; ++i) SleepMicroseconds(200);
  __atomic_store_n(&shared->stop, 1, __ATOMIC_RELEASE);
  if (!gone) waitpid(child, &status, 0);
  ++answer.rounds;
  if (shared->refused != 0) {
    answer.refused = static_cast<int>(shared->refused);
    return true;
  }
  if (WIFSIGNALED(status)) {
    ++answer.killed;
    return true;
  }
  answer.aborted += shared->ended == 1 + static_cast<uint32_t>(Ended::kAborted);
  answer.rewritten += mark && shared->cpu_id_start != kForeign;
  return true;
}

Answer Ask(Shared* shared, uint32_t length, bool mark) {
  Answer answer;
  for (int i = 0; i < kRounds; ++i) {
    if (!AskOnce(shared, length, mark, answer)) break;
  }
  return answer;
}

const char* ClassOf(const Answer& original, const Answer& longer, bool has_longer) {
  if (original.refused != 0 || original.aborted < kRounds) return "NO_RSEQ";
  if (original.rewritten < kRounds) return "NO_CACHE";
  if (!has_longer) return "CACHE_OK";
  return longer.aborted < kRounds ? "NO_RSEQ" : "V2";
}

void Print(const char* what, const Answer& answer) {
  printf("PCM %s=rounds:%d aborted:%d rewritten:%d killed:%d refused:%d\n", what, answer.rounds,
         answer.aborted, answer.rewritten, answer.killed, answer.refused);
}

// rseq_debug=1 kills whoever writes a field that is the kernel's: then only aborts can be asked
// for, and the class follows from them as far as it can.
bool DebugMode() {
  char line[4096] = "";
  FILE* file = fopen("/proc/cmdline", "re");
  if (file == nullptr) return false;
  const bool read = fgets(line, sizeof(line), file) != nullptr;
  fclose(file);
  return read && strstr(line, "rseq_debug=1") != nullptr;
}

int Main() {
  PinToOneCpu();
  void* memory =
      mmap(nullptr, sizeof(Shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) return 2;
  auto* shared = static_cast<Shared*>(memory);
  utsname name;
  uname(&name);
  const uint32_t feature_size = static_cast<uint32_t>(getauxval(kAuxFeatureSize));
  const bool debug = DebugMode();
  const Answer original = Ask(shared, kOriginalLength, !debug);
  if (original.rounds != kRounds) return 2;
  const bool has_longer = feature_size > kOriginalLength;
  Answer longer;
  if (has_longer) {
    longer = Ask(shared, feature_size, false);
    if (longer.rounds != kRounds) return 2;
  }
  printf("PCM release=%s\nPCM feature_size=%u\n", name.release, feature_size);
  Print("length_32", original);
  if (has_longer) Print("length_long", longer);
  if (!debug) {
    printf("PCM class=%s\n", ClassOf(original, longer, has_longer));
  } else {
    printf("PCM killed=%d\n", original.killed + longer.killed);
  }
  return 0;
}

}  // namespace
}  // namespace kernels

int main() { return kernels::Main(); }
