// SPDX-License-Identifier: Apache-2.0
//
// Processes made by a process whose threads allocate all the time: no child may hang, and none may
// see a torn heap.
#include <errno.h>
#include <signal.h>
#include <spawn.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/time.h>
#include <sys/wait.h>
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

// The child's exit status, -1 for a signal, -2 if it hung.
int Await(pid_t child) {
  int status = 0;
  for (int i = 0; i < 20000; ++i) {
    pid_t got = waitpid(child, &status, WNOHANG);
    if (got == child) return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
    usleep(i < 200 ? 100 : 1000);
  }
  kill(child, SIGKILL);
  waitpid(child, &status, 0);
  return -2;
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
          ASSERT_EQ(Await(child), 0) << "child " << i << " (-2: hung, -1: killed, 3: torn blocks)";
        }
        for (void* p : inherited) free(p);
      },
      150));
}

// A fork that interrupts malloc wherever it is.
std::atomic<int> forks{0}, bad_children{0}, last_bad{0};

void ForkHandler(int) {
  int kept = errno;
  int number = forks.fetch_add(1);
  pid_t child = fork();
  if (child == 0) {
    Random random(static_cast<uint64_t>(number) + 1);
    // A clean child exits with 0; its timer is off, it allocates in the handler it was born in.
    _exit(Churn(random, 300) ? 0 : 3);
  }
  int status = child < 0 ? 0 : Await(child);
  if (status != 0) {
    bad_children.fetch_add(1);
    last_bad = status;
  }
  errno = kept;
}

TEST(Fork, InASignalHandlerThatInterruptsMalloc) {
  for (int threads : {0, 2}) {
    EXPECT_TRUE(InChild(
        [threads] {
          Allocators allocators(threads);
          struct sigaction action = {};
          action.sa_handler = &ForkHandler;
          action.sa_flags = SA_RESTART;
          sigaction(SIGALRM, &action, nullptr);
          itimerval timer = {{0, 3000}, {0, 3000}};
          setitimer(ITIMER_REAL, &timer, nullptr);
          Random random(1);
          bool whole = true;
          for (int goal = Scaled(300); forks < goal && bad_children == 0;) {
            whole &= Churn(random, 1000);
          }
          timer = {};
          setitimer(ITIMER_REAL, &timer, nullptr);
          EXPECT_EQ(bad_children, 0) << "status " << last_bad << " (-2: hung, -1: killed)";
          EXPECT_TRUE(whole);
        },
        40))
        << threads << " other threads";
  }
}

// The system call is begun anew after a signal that comes while it copies the process: the handler
// runs between the fork handlers of its own thread.
TEST(Fork, InASignalHandlerThatInterruptsFork) {
  for (int threads : {0, 2}) {
    EXPECT_TRUE(InChild(
        [threads] {
          Allocators allocators(threads);
          struct sigaction action = {};
          action.sa_handler = &ForkHandler;
          action.sa_flags = SA_RESTART;
          sigaction(SIGALRM, &action, nullptr);
          itimerval timer = {{0, 3000}, {0, 3000}};
          setitimer(ITIMER_REAL, &timer, nullptr);
          for (int goal = Scaled(300), i = 0; forks < goal && bad_children == 0; ++i) {
            pid_t child = fork();
            ASSERT_GE(child, 0);
            if (child == 0) {
              Random random(static_cast<uint64_t>(i) + 1);
              _exit(Churn(random, 300) ? 0 : 3);
            }
            ASSERT_EQ(Await(child), 0) << "child " << i;
          }
          timer = {};
          setitimer(ITIMER_REAL, &timer, nullptr);
          EXPECT_EQ(bad_children, 0) << "status " << last_bad << " (-2: hung, -1: killed)";
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
// Only where a lock guards each slab. The kernel does not know the critical sections of such a child,
// which runs in its parent's memory: docs/limits.md says why no library can help it.
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
