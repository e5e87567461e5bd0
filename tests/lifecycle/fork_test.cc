// SPDX-License-Identifier: Apache-2.0
//
// Processes made by a process whose threads allocate all the time: no child may hang, and none may
// see a torn heap.
#include <dlfcn.h>
#include <errno.h>
#include <link.h>
#include <signal.h>
#include <spawn.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <ucontext.h>
#include <unistd.h>

#include <atomic>
#include <thread>
#include <vector>

#include "gtest/gtest.h"
#include "tests/support/allocator.h"
#include "tests/support/process.h"

extern char** environ;

namespace pcmalloc::testing {
namespace {

constexpr int kSlots = 256;

// A piece of work with checked content; usable in a child of fork. False if a block was torn.
bool Churn(Random& random, int steps) {
  struct {
    void* p;
    size_t size;
  } slots[kSlots] = {};
  bool whole = true;
  for (int i = 0; i < steps + kSlots; ++i) {
    auto& slot = slots[i < steps ? random.Below(kSlots) : static_cast<size_t>(i - steps)];
    if (slot.p != nullptr) whole &= Holds(slot.p, slot.size, slot.size);
    free(slot.p);
    slot = {nullptr, 0};
    if (i >= steps) continue;
    slot.size = random.Size(i % 50 == 0 ? 19 : 12);
    slot.p = malloc(slot.size);
    if (slot.p == nullptr) return false;
    Fill(slot.p, slot.size, slot.size);
  }
  return whole;
}

// Threads that allocate until it goes out of scope.
class Allocators {
 public:
  explicit Allocators(int count) {
    for (int id = 0; id < count; ++id) {
      threads_.emplace_back([this, id] {
        sigset_t all;
        sigfillset(&all);
        pthread_sigmask(SIG_BLOCK, &all, nullptr);
        Random random(static_cast<uint64_t>(id) + 100);
        while (!stop_) whole_ = Churn(random, 2000) && whole_;
      });
    }
  }
  ~Allocators() {
    stop_ = true;
    for (std::thread& thread : threads_) thread.join();
    EXPECT_TRUE(whole_) << "a block of a thread was overwritten";
  }

 private:
  std::atomic<bool> stop_{false};
  std::atomic<bool> whole_{true};
  std::vector<std::thread> threads_;
};

// The child's exit status, -1 for a signal. One that hangs is left to the watchdog of InChild,
// which says where.
int Await(pid_t child) {
  int status = 0;
  while (waitpid(child, &status, 0) != child) {
    if (errno != EINTR) return -2;
  }
  return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

int Scaled(int count) { return Variant() == "valgrind" ? count / 20 : count; }

// Every fourth child is a parent itself, every fourth starts a thread.
int ChildsWork(int i) {
  Random random(static_cast<uint64_t>(i) + 7);
  if (!Churn(random, 500)) return 3;
  if (i % 4 == 1) {
    std::thread thread([&] { Churn(random, 200); });
    thread.join();
  }
  if (i % 4 == 2) {
    pid_t child = fork();
    if (child == 0) _exit(Churn(random, 200) ? 0 : 3);
    return Await(child);
  }
  return 0;
}

TEST(Fork, OfAProcessWhoseThreadsAllocate) {
  EXPECT_TRUE(InChild(
      [] {
        Allocators allocators(3);
        std::vector<void*> inherited;
        for (int i = 0; i < Scaled(600); ++i) {
          inherited.push_back(malloc(static_cast<size_t>(i) * 10));
          pid_t child = fork();
          ASSERT_GE(child, 0);
          if (child == 0) {
            for (void* p : inherited) free(p);
            _exit(ChildsWork(i));
          }
          ASSERT_EQ(Await(child), 0) << "child " << i << " (-1: killed, 3: torn blocks)";
        }
        for (void* p : inherited) free(p);
      },
      150));
}

// Signals whose handler forks, one at a time: the next is asked for by the code that they
// interrupt, once the one before has been handled. A timer that goes on by itself would, on a
// machine so busy that a handler takes longer than its interval, leave that code not one
// instruction between two handlers.
std::atomic<bool> signal_due{false};
std::atomic<int> forks{0}, forks_inside{0}, bad_children{0}, last_bad{0};

// Set around a fork of the interrupted code.
volatile sig_atomic_t in_fork = 0;

// Where the C library's code is, and of that the one function that pcmalloc itself calls:
// syscall().
struct Range {
  uintptr_t begin = 0, end = 0;
  bool Has(uintptr_t address) const { return address >= begin && address < end; }
};
Range c_library, system_call;

void FindCLibrary() {
  Dl_info info = {};
  void* entry = nullptr;
  ASSERT_NE(dladdr1(dlsym(RTLD_DEFAULT, "syscall"), &info, &entry, RTLD_DL_SYMENT), 0);
  system_call.begin = reinterpret_cast<uintptr_t>(info.dli_saddr);
  system_call.end = system_call.begin + static_cast<const ElfW(Sym)*>(entry)->st_size;
  dl_iterate_phdr(
      [](dl_phdr_info* object, size_t, void*) {
        for (int i = 0; i < object->dlpi_phnum; ++i) {
          const auto& segment = object->dlpi_phdr[i];
          const uintptr_t begin = object->dlpi_addr + segment.p_vaddr;
          const Range range = {begin, begin + segment.p_memsz};
          if (segment.p_type == PT_LOAD && range.Has(system_call.begin)) c_library = range;
        }
        return 0;
      },
      nullptr);
  ASSERT_NE(c_library.begin, 0u);
}

uintptr_t InterruptedAt(const void* context) {
  const mcontext_t& machine = static_cast<const ucontext_t*>(context)->uc_mcontext;
#if defined(__x86_64__)
  return static_cast<uintptr_t>(machine.gregs[REG_RIP]);
#else
  return machine.pc;
#endif
}

void ForkHandler(int, siginfo_t*, void* context) {
  const int kept = errno;
  const uintptr_t at = InterruptedAt(context);
  // glibc's fork holds a lock of its own while it walks the list of handlers, though not while one
  // of them runs, and waits for that lock for ever if it is called again by the same thread.
  if (in_fork && c_library.Has(at) && !system_call.Has(at)) {
    signal_due = false;
    return;
  }
  if (in_fork) ++forks_inside;
  const int number = forks.fetch_add(1);
  const pid_t child = fork();
  if (child == 0) {
    Random random(static_cast<uint64_t>(number) + 1);
    // A clean child exits with 0; it allocates in the handler it was born in.
    _exit(Churn(random, 300) ? 0 : 3);
  }
  const int status = child < 0 ? 0 : Await(child);
  if (status != 0) {
    bad_children.fetch_add(1);
    last_bad = status;
  }
  signal_due = false;
  errno = kept;
}

void ForkInSignalHandlers() {
  FindCLibrary();
  struct sigaction action = {};
  action.sa_sigaction = &ForkHandler;
  action.sa_flags = SA_RESTART | SA_SIGINFO;
  sigaction(SIGALRM, &action, nullptr);
}

// The calling thread is to be interrupted within so many microseconds.
void AskForSignal(Random& random, size_t within) {
  if (signal_due.exchange(true)) return;
  const itimerval timer = {{0, 0}, {0, static_cast<suseconds_t>(1 + random.Below(within))}};
  setitimer(ITIMER_REAL, &timer, nullptr);
}

void NoMoreSignals() {
  const itimerval none = {};
  setitimer(ITIMER_REAL, &none, nullptr);
  EXPECT_EQ(bad_children, 0) << "status " << last_bad << " (-1: killed, 3: torn blocks)";
}

// A fork that interrupts malloc wherever it is.
TEST(Fork, InASignalHandlerThatInterruptsMalloc) {
  for (int threads : {0, 2}) {
    EXPECT_TRUE(InChild(
        [threads] {
          Allocators allocators(threads);
          ForkInSignalHandlers();
          Random random(1), delays(2);
          bool whole = true;
          for (int goal = Scaled(300); forks < goal && bad_children == 0;) {
            AskForSignal(delays, 1000);
            whole &= Churn(random, 1000);
          }
          NoMoreSignals();
          EXPECT_TRUE(whole);
        },
        40))
        << threads << " other threads";
  }
}

// A signal that comes between the fork handlers, where the kernel copies the process for instance,
// is handled as soon as pcmalloc's have run.
TEST(Fork, InASignalHandlerThatInterruptsFork) {
  // Up to 2.35 the lock that ForkHandler tells of is held while handlers run, too.
  auto* const version = Lookup<const char*(void)>("gnu_get_libc_version");
  if (version == nullptr || strverscmp(version(), "2.36") < 0) {
    GTEST_SKIP() << "this C library's fork cannot be called in a handler that interrupts it";
  }
  for (int threads : {0, 2}) {
    EXPECT_TRUE(InChild(
        [threads] {
          Allocators allocators(threads);
          ForkInSignalHandlers();
          Random delays(3);
          const int goal = Scaled(300);
          for (int i = 0; i < goal && bad_children == 0; ++i) {
            AskForSignal(delays, 200);
            in_fork = 1;
            const pid_t child = fork();
            in_fork = 0;
            ASSERT_GE(child, 0);
            if (child == 0) {
              Random random(static_cast<uint64_t>(i) + 1);
              _exit(Churn(random, 300) ? 0 : 3);
            }
            ASSERT_EQ(Await(child), 0) << "child " << i;
          }
          NoMoreSignals();
          if (IsPcmalloc()) {
            EXPECT_GT(forks_inside, goal / 20) << "of " << forks << " in handlers";
          }
        },
        40))
        << threads << " other threads";
  }
}

// With one thread no lock is taken: each page of them would be copied by parent and child.
PCM_SCENARIO(OneThreadForks) {
  std::vector<void*> blocks;
  for (size_t size = 1; size < 2000; ++size) blocks.push_back(malloc(size));
  const auto fork_often = [](int count) {
    rusage before, after;
    getrusage(RUSAGE_SELF, &before);
    for (int i = 0; i < count; ++i) {
      const pid_t child = fork();
      if (child == 0) _exit(0);
      waitpid(child, nullptr, 0);
    }
    getrusage(RUSAGE_SELF, &after);
    return static_cast<int>(after.ru_minflt - before.ru_minflt);
  };
  fork_often(10);
  EXPECT_LT(fork_often(200), 200 * 7);
  // One more thread, and all is locked as it has to be.
  std::thread([] { EXPECT_NE(Escape(malloc(100)), nullptr); }).join();
  fork_often(10);
  for (void* p : blocks) free(p);
}

TEST(Fork, OfAProcessWithOneThreadCopiesFewPages) {
  if (!IsPcmalloc() || Variant() == "valgrind") GTEST_SKIP() << "other pages than the program's";
  EXPECT_TRUE(InFreshProcess("OneThreadForks"));
}

TEST(Spawn, OfAProcessWhoseThreadsAllocate) {
  EXPECT_TRUE(InChild([] {
    Allocators allocators(3);
    for (int i = 0; i < Scaled(200); ++i) {
      pid_t child = 0;
      char name[] = "true";
      char* argv[] = {name, nullptr};
      ASSERT_EQ(posix_spawnp(&child, name, nullptr, nullptr, argv, environ), 0);
      ASSERT_EQ(Await(child), 0);
      FILE* pipe = popen("echo out", "re");
      ASSERT_NE(pipe, nullptr);
      char line[16] = {};
      EXPECT_NE(fgets(line, sizeof(line), pipe), nullptr);
      EXPECT_EQ(pclose(pipe), 0);
    }
  }));
}

#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wdeprecated-declarations"  // vfork
// Only where a lock guards each slab. The kernel does not know the critical sections of such a
// child, which runs in its parent's memory: docs/limits.md says why no library can help it.
TEST(Vfork, ChildMayAllocateBesideItsParentsThreads) {
  if (Mode() != "locked") GTEST_SKIP() << "a vfork child must not allocate in mode " << Mode();
  EXPECT_TRUE(InChild([] {
    Allocators allocators(3);
    static Random random(77);
    static void* volatile from_child;
    for (int i = 0; i < Scaled(500); ++i) {
      pid_t child = vfork();
      ASSERT_GE(child, 0);
      if (child == 0) {
        from_child = malloc(5000);
        if (from_child == nullptr) _exit(4);
        Fill(from_child, 5000, 9);
        _exit(Churn(random, 300) ? 0 : 3);
      }
      ASSERT_EQ(Await(child), 0) << "child " << i;
      ASSERT_TRUE(Holds(from_child, 5000, 9));
      free(from_child);
    }
  }));
}
#pragma GCC diagnostic pop

}  // namespace
}  // namespace pcmalloc::testing
