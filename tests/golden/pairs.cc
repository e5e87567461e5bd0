// SPDX-License-Identifier: Apache-2.0
//
// Counts the instructions that a loop of malloc and free executes for each pair, with the malloc
// that is preloaded; prints one line a size and method:
//
//     <method> <bytes> <instructions a pair>        or:   <method> unavailable: <why>
//
//   perf    a hardware counter, over millions of pairs.
//   ptrace  another process steps through the loop instruction by instruction: exact, and works
//           everywhere. A step inside a critical section of a registered thread aborts it, so the
//           loop would never end: the thread pins itself to a CPU, gives up its registration and
//           writes that CPU's number into the area by hand, which nobody else touches any more.
#include <dlfcn.h>
#include <errno.h>
#include <linux/perf_event.h>
#include <sched.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/ioctl.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <unistd.h>

#include <string>

extern "C" {
extern const unsigned int __rseq_size __attribute__((weak));
extern const ptrdiff_t __rseq_offset __attribute__((weak));
}

namespace {

constexpr size_t kSizes[] = {16, 32, 256, 1024, 4096, 65536};
constexpr long kCountedPairs = 10'000'000;
constexpr long kSteppedPairs = 50;
// The first warms up; the difference of the other two is free of what lies around the loop.
constexpr long kRuns[] = {kSteppedPairs, kSteppedPairs, 3 * kSteppedPairs};
constexpr int kUnregister = 1;
constexpr unsigned kSignature = 0x53053053;
constexpr unsigned long kAuxFeatureSize = 27;  // AT_RSEQ_FEATURE_SIZE

__attribute__((noinline)) void Pairs(long n, size_t size) {
  for (long i = 0; i < n; ++i) {
    void* p = malloc(size);
    asm volatile("" : "+r"(p) : : "memory");
    free(p);
  }
}

// Where the tracer begins and ends to count.
__attribute__((noinline)) void Begin() { asm volatile(""); }
__attribute__((noinline)) void End() { asm volatile("nop"); }

int OpenCounter() {
  perf_event_attr attributes = {};
  attributes.type = PERF_TYPE_HARDWARE;
  attributes.size = sizeof(attributes);
  attributes.config = PERF_COUNT_HW_INSTRUCTIONS;
  attributes.exclude_kernel = 1;
  attributes.exclude_hv = 1;
  return static_cast<int>(syscall(SYS_perf_event_open, &attributes, 0, -1, -1, 0));
}

uint64_t ReadCounter(int fd) {
  uint64_t value = 0;
  if (read(fd, &value, sizeof(value)) != sizeof(value)) value = 0;
  return value;
}

void CountWithCounter() {
  const int fd = OpenCounter();
  if (fd < 0) {
    printf("perf unavailable: %s\n", strerror(errno));
    return;
  }
  for (const size_t size : kSizes) {
    Pairs(1000, size);
    const uint64_t before = ReadCounter(fd);
    Pairs(kCountedPairs, size);
    printf("perf %zu %.2f\n", size,
           static_cast<double>(ReadCounter(fd) - before) / static_cast<double>(kCountedPairs));
  }
  close(fd);
}

[[noreturn]] void Quit(const std::string& why) {
  printf("ptrace unavailable: %s\n", why.c_str());
  fflush(stdout);
  _exit(0);
}

// The thread's critical sections go on working, on this CPU alone, without the kernel's help.
void LeaveRseqToOurselves() {
  if (&__rseq_size == nullptr || __rseq_size == 0) {
    Quit("the C library registers no rseq area");
  }
  const int cpu = sched_getcpu();
  cpu_set_t one;
  CPU_ZERO(&one);
  CPU_SET(cpu, &one);
  if (sched_setaffinity(0, sizeof(one), &one) != 0) Quit("sched_setaffinity failed");
  char* const area = static_cast<char*>(__builtin_thread_pointer()) + __rseq_offset;
  if (syscall(SYS_rseq, area, 32u, kUnregister, kSignature) != 0 &&
      syscall(SYS_rseq, area, static_cast<unsigned>(getauxval(kAuxFeatureSize)), kUnregister,
              kSignature) != 0) {
    Quit(std::string("the area cannot be unregistered: ") + strerror(errno));
  }
  auto* const fields = reinterpret_cast<volatile uint32_t*>(area);
  fields[0] = static_cast<uint32_t>(cpu);
  fields[1] = static_cast<uint32_t>(cpu);
}

[[noreturn]] void Tracee(size_t size) {
  LeaveRseqToOurselves();
  // Long enough for the class to have its capacity, and twice around the blocks it holds.
  Pairs(10000, size);
  if (ptrace(PTRACE_TRACEME, 0, nullptr, nullptr) != 0) Quit("ptrace is refused");
  raise(SIGSTOP);
  for (const long n : kRuns) {
    Begin();
    Pairs(n, size);
    End();
  }
  _exit(0);
}

[[noreturn]] void Fail(const char* what) {
  fprintf(stderr, "%s: %s\n", what, strerror(errno));
  exit(1);
}

// Steps through `child` until it ends; false if it was not there to be traced.
bool StepThrough(pid_t child, long instructions[3]) {
  int status = 0;
  if (waitpid(child, &status, 0) != child) Fail("waitpid");
  if (WIFEXITED(status) && WEXITSTATUS(status) == 0) return false;
  int run = -1;
  bool counting = false;
  while (WIFSTOPPED(status)) {
    if (WSTOPSIG(status) != SIGTRAP && WSTOPSIG(status) != SIGSTOP) {
      fprintf(stderr, "the traced process got signal %d\n", WSTOPSIG(status));
      exit(1);
    }
    user_regs_struct registers;
    if (ptrace(PTRACE_GETREGS, child, nullptr, &registers) != 0) Fail("PTRACE_GETREGS");
    if (registers.rip == reinterpret_cast<uintptr_t>(&Begin)) {
      counting = true;
      if (++run > 2) Fail("too many runs");
    }
    if (registers.rip == reinterpret_cast<uintptr_t>(&End)) counting = false;
    if (counting) ++instructions[run];
    if (ptrace(PTRACE_SINGLESTEP, child, nullptr, nullptr) != 0) Fail("PTRACE_SINGLESTEP");
    if (waitpid(child, &status, 0) != child) Fail("waitpid");
  }
  if (!WIFEXITED(status) || WEXITSTATUS(status) != 0 || run != 2) Fail("the traced process died");
  return true;
}

void CountBySteps(size_t size) {
  fflush(nullptr);
  const pid_t child = fork();
  if (child < 0) Fail("fork");
  if (child == 0) Tracee(size);
  long instructions[3] = {};
  if (!StepThrough(child, instructions)) return;
  printf("ptrace %zu %.2f\n", size,
         static_cast<double>(instructions[2] - instructions[1]) / (2.0 * kSteppedPairs));
}

}  // namespace

int main() {
  const auto mode = reinterpret_cast<const char* (*)()>(dlsym(RTLD_DEFAULT, "pcmalloc_mode"));
  printf("mode %s\n", mode == nullptr ? "none" : mode());
  CountWithCounter();
  for (const size_t size : kSizes) CountBySteps(size);
  return 0;
}
