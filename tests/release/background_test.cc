// SPDX-License-Identifier: Apache-2.0
//
// The thread that gives memory back: when there is one, what it does, and what it must not disturb.
#include <dirent.h>
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <fstream>
#include <string>
#include <thread>
#include <vector>

#include "gtest/gtest.h"
#include "tests/limits/faults.h"
#include "tests/release/extension.h"
#include "tests/support/affinity.h"
#include "tests/support/process.h"

namespace pcmalloc::testing {
namespace {

void WorkInThreads(int count, size_t bytes, size_t size) {
  std::vector<std::thread> threads;
  for (int i = 0; i < count; ++i) threads.emplace_back([=] { EXPECT_TRUE(Burst(bytes, size)); });
  for (std::thread& thread : threads) thread.join();
}

::testing::AssertionResult RunWith(const char* scenario, const std::string& keys,
                                   int seconds = 60) {
  FreshProcess options;
  options.environment = {Conf(keys)};
  options.seconds = seconds;
  return InFreshProcess(scenario, options);
}

PCM_SCENARIO(OneThreadStaysAlone) {
  for (int i = 0; i < 20; ++i) {
    ASSERT_TRUE(Burst(20 * kMiB, 200));
    SleepMs(10);
    ASSERT_EQ(Threads(), 1);
  }
  EXPECT_STREQ(State(), "watching");
  // What a process with a second thread may not do.
  EXPECT_EQ(unshare(CLONE_NEWUSER), 0) << strerror(errno);
}
TEST(Background, NoneInASingleThreadedProcess) {
  EXPECT_TRUE(RunWith("OneThreadStaysAlone", "decay:100ms"));
}

PCM_SCENARIO(SecondThreadBringsOne) {
  ASSERT_EQ(Threads(), 1);
  WorkInThreads(1, 10 * kMiB, 200);
  ASSERT_TRUE(Soon([] { return Threads() == 2; })) << Threads() << " " << State();
  EXPECT_STREQ(State(), "running");
  EXPECT_EQ(Statistic("background_threads"), 1);
  // It has the name, and blocks what is not the C library's own.
  bool found = false;
  DIR* tasks = opendir("/proc/self/task");
  for (dirent* entry; (entry = readdir(tasks)) != nullptr;) {
    std::ifstream status("/proc/self/task/" + std::string(entry->d_name) + "/status");
    std::string line, name;
    while (std::getline(status, line)) {
      if (line.rfind("Name:\t", 0) == 0) name = line.substr(6);
      if (name != "pcmalloc" || line.rfind("SigBlk:\t", 0) != 0) continue;
      found = true;
      // All but 32 and 33 and what a thread causes itself (4, 5, 7, 8, 11, 31); SIGKILL and SIGSTOP
      // cannot be blocked.
      EXPECT_EQ(std::stoull(line.substr(8), nullptr, 16), 0xfffffffe3ffbfa27ull) << line;
    }
  }
  closedir(tasks);
  EXPECT_TRUE(found);
}
TEST(Background, OneOnceAnotherThreadAllocates) {
  EXPECT_TRUE(RunWith("SecondThreadBringsOne", "decay:60s"));
}

// The thread that works is the first one; another only exists.
PCM_SCENARIO(SleepingThreadBringsOne) {
  std::atomic<bool> stop{false};
  std::thread sleeper([&] {
    while (!stop) SleepMs(1);
  });
  EXPECT_TRUE(Soon([] {
    Burst(kMiB, 200);
    return Threads() == 3;
  }));
  stop = true;
  sleeper.join();
}
TEST(Background, OneOnceThereAreThreads) {
  EXPECT_TRUE(RunWith("SleepingThreadBringsOne", "decay:60s"));
}

PCM_SCENARIO(Off) {
  WorkInThreads(3, 20 * kMiB, 200);
  for (int i = 0; i < 30; ++i) {
    Burst(kMiB, 200);
    SleepMs(10);
    ASSERT_EQ(Threads(), 1);
  }
  EXPECT_EQ(strncmp(State(), "off: ", 5), 0) << State();
}
TEST(Background, NoneIfSwitchedOff) {
  EXPECT_TRUE(RunWith("Off", "background_thread:off"));
  EXPECT_TRUE(RunWith("Off", "decay:never"));
}

PCM_SCENARIO(On) {
  EXPECT_TRUE(Soon([] {
    Burst(kMiB, 200);
    return Threads() == 2;
  }));
}
TEST(Background, OneAtOnceIfAskedFor) {
  EXPECT_TRUE(RunWith("On", "background_thread:on,decay:60s"));
}

// With nobody calling malloc, what four threads freed is gone within the time.
PCM_SCENARIO(Decays) {
  const size_t at_start = Measure().resident;
  WorkInThreads(4, 200 * kMiB, 200);
  const bool gone = Soon([&] { return Measure().resident < at_start + 5 * kMiB; }, 3000);
  EXPECT_TRUE(gone) << at_start << " -> " << Measure().resident;
  // Caches of the CPUs as well, and then there is nothing left to wait for.
  EXPECT_TRUE(Soon([] { return Threads() == 1; }, 6000)) << Threads();
  EXPECT_LE(Statistic("slab_held_bytes"), 8 << 10);
  EXPECT_GE(Statistic("idle_drains"), 1);
  EXPECT_STREQ(State(), "watching");
  // And again, whenever there is something.
  WorkInThreads(2, 50 * kMiB, 500);
  EXPECT_EQ(Statistic("background_threads"), 2);
  EXPECT_TRUE(Soon([&] { return Measure().resident < at_start + 5 * kMiB; }, 3000));
}
TEST(Background, MemoryDecaysWhileNobodyCalls) { EXPECT_TRUE(RunWith("Decays", "decay:2s")); }

// A heap of mixed sizes in which every span has lost some blocks to a cache: freed, it is kept by
// what caches hold. One thread, and no age at which memory would go.
PCM_SCENARIO(EmptiedHeapGoes) {
  const size_t at_start = Measure().resident;
  Random random(1);
  std::vector<void*> blocks(60'000);
  const auto replace = [&random](void*& block) {
    free(block);
    const size_t size = 16 + random.Below(2000);
    block = memset(malloc(size), 1, size);
  };
  for (void*& block : blocks) replace(block);
  for (int i = 0; i < 300'000; ++i) replace(blocks[random.Below(blocks.size())]);
  ASSERT_GT(Measure().resident, at_start + 60 * kMiB);
  for (void* block : blocks) free(block);
  const bool gone = Soon([&] {
    // Slow paths, as a program that goes on has them.
    Burst(kMiB / 4, 1000);
    return Measure().resident < at_start + 25 * kMiB;
  });
  EXPECT_TRUE(gone) << at_start << " -> " << Measure().resident;
  EXPECT_GE(Statistic("idle_drains"), 1);
  EXPECT_EQ(Threads(), 1);
}
TEST(Background, AnEmptiedHeapGoesWithoutOneToo) {
  EXPECT_TRUE(RunWith("EmptiedHeapGoes", "decay:60s"));
}

// Idle slabs alone: a CPU on which a thread has stopped loses what it held, one at work keeps it.
PCM_SCENARIO(DrainsIdleCpus) {
  const std::vector<int> cpus = AllowedCpus();
  if (cpus.size() < 2) GTEST_SKIP() << "one CPU";
  std::atomic<bool> stop{false};
  std::thread busy([&] {
    PinTo(cpus[0]);
    // Different depths, so that two looks do not see the same state by chance.
    for (int i = 0; !stop; ++i) Burst(static_cast<size_t>(1000 + i % 1000), 100);
  });
  PinTo(cpus[1]);
  Burst(kMiB, 100);
  const bool drained = Soon([] { return Statistic("idle_drains") > 0; }, 5000);
  EXPECT_TRUE(drained);
  stop = true;
  busy.join();
}
TEST(Background, IdleSlabsAreDrainedBesideBusyOnes) {
  EXPECT_TRUE(RunWith("DrainsIdleCpus", "decay:1s"));
}

int ExitStatus(pid_t child) {
  int status = 0;
  while (waitpid(child, &status, 0) < 0 && errno == EINTR) {
  }
  return WIFEXITED(status) ? WEXITSTATUS(status) : 1000 + WTERMSIG(status);
}

PCM_SCENARIO(Forks) {
  WorkInThreads(2, 20 * kMiB, 200);
  ASSERT_TRUE(Soon([] { return Threads() == 2; }));
  for (int i = 0; i < 1000; ++i) {
    // Keeps the thread busy.
    if (i % 10 == 0) WorkInThreads(1, kMiB, 300);
    const pid_t child = fork();
    ASSERT_GE(child, 0);
    if (child == 0) {
      bool good = Threads() == 1 && Burst(100'000, 200);
      if (i % 100 == 0) {
        good = good && Threads() == 1;
        std::thread([&] { good = good && Burst(kMiB, 200); }).join();
        good = good && Soon([] {
                 Burst(kMiB, 100);
                 return Threads() == 2;
               });
      }
      _exit(good ? 0 : 1);
    }
    ASSERT_EQ(ExitStatus(child), 0) << "child " << i;
  }
}
TEST(Background, AThousandForks) { EXPECT_TRUE(RunWith("Forks", "decay:40ms", 120)); }

// exit() at every point of the thread's life.
PCM_SCENARIO(Exits) {
  for (int i = 0; i < 200; ++i) {
    const pid_t child = fork();
    ASSERT_GE(child, 0);
    if (child == 0) {
      WorkInThreads(1, 3 * kMiB, 200);
      SleepMs(i % 20);
      exit(7);
    }
    ASSERT_EQ(ExitStatus(child), 7);
  }
}
TEST(Background, ExitWhileItRuns) { EXPECT_TRUE(RunWith("Exits", "decay:20ms")); }

std::atomic<bool> handler_ran{false};

// The process ends with the last thread of its own, and exit handlers run.
PCM_SCENARIO(MainThreadLeaves) {
  ASSERT_EQ(atexit([] { _exit(::testing::Test::HasFailure() ? 1 : 42); }), 0);
  WorkInThreads(1, 20 * kMiB, 200);
  ASSERT_TRUE(Soon([] { return Threads() == 2; }));
  std::thread([] { SleepMs(50); }).detach();
  pthread_exit(nullptr);
}
TEST(Background, DoesNotOutliveTheLastThread) {
  const pid_t child = fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    setenv("PCMALLOC_CONF", Conf("decay:60s").substr(strlen("PCMALLOC_CONF=")).c_str(), 1);
    execl(ThisExecutable().c_str(), "scenario", "--scenario=MainThreadLeaves", nullptr);
    _exit(127);
  }
  int status = -1;
  const bool ended = Soon([&] { return waitpid(child, &status, WNOHANG) == child; }, 10'000);
  if (!ended) {
    kill(child, SIGKILL);
    waitpid(child, nullptr, 0);
  }
  ASSERT_TRUE(ended) << "the process waits for the background thread";
  ASSERT_TRUE(WIFEXITED(status));
  EXPECT_EQ(WEXITSTATUS(status), 42);
}

// setuid reaches every thread by a signal of the C library, which waits for all of them.
PCM_SCENARIO(SetUid) {
  WorkInThreads(1, 20 * kMiB, 200);
  ASSERT_TRUE(Soon([] { return Threads() == 2; }));
  if (geteuid() != 0) GTEST_SKIP() << "not root";
  ASSERT_EQ(setresuid(65534, 65534, 65534), 0);
  ASSERT_EQ(Threads(), 2);
  DIR* tasks = opendir("/proc/self/task");
  for (dirent* entry; (entry = readdir(tasks)) != nullptr;) {
    if (entry->d_name[0] == '.') continue;
    std::ifstream status("/proc/self/task/" + std::string(entry->d_name) + "/status");
    for (std::string line; std::getline(status, line);) {
      if (line.rfind("Uid:", 0) == 0) {
        EXPECT_EQ(line, "Uid:\t65534\t65534\t65534\t65534");
      }
    }
  }
  closedir(tasks);
}
TEST(Background, SetUidReachesIt) { EXPECT_TRUE(RunWith("SetUid", "decay:60s", 20)); }

// Signals for the process reach its own threads, exec works, and so does a program that blocks all
// signals before it starts a thread.
PCM_SCENARIO(Signals) {
  sigset_t all, before;
  sigfillset(&all);
  pthread_sigmask(SIG_BLOCK, &all, &before);
  WorkInThreads(2, 10 * kMiB, 200);
  EXPECT_TRUE(Soon([] {
    WorkInThreads(1, kMiB, 200);
    return Threads() == 2;
  })) << State();
  signal(SIGUSR1, [](int) { handler_ran = gettid() == getpid(); });
  kill(getpid(), SIGUSR1);
  SleepMs(20);
  EXPECT_FALSE(handler_ran);
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
  EXPECT_TRUE(handler_ran);
  execl("/bin/true", "true", nullptr);
}
TEST(Background, SignalsAndExec) { EXPECT_TRUE(RunWith("Signals", "decay:60s", 20)); }

// A handler in one thread never starts it, whatever it allocates; ordinary code does.
std::atomic<int> started_in_handler{0};
PCM_SCENARIO(Handlers) {
  static std::atomic<bool> ready{false}, stop{false};
  std::thread target([] {
    sigset_t none;
    sigemptyset(&none);
    ready = true;
    while (!stop) sigsuspend(&none);
  });
  while (!ready) SleepMs(1);
  struct sigaction action = {};
  action.sa_handler = [](int) {
    const int before = Threads();
    Burst(kMiB / 4, 200);
    if (Threads() != before) started_in_handler.fetch_add(1);
  };
  sigaction(SIGUSR1, &action, nullptr);
  pthread_kill(target.native_handle(), SIGUSR1);
  SleepMs(30);
  EXPECT_EQ(Threads(), 2);
  EXPECT_EQ(started_in_handler, 0);
  stop = true;
  pthread_kill(target.native_handle(), SIGUSR1);
  target.join();
}
TEST(Background, NotFromASignalHandler) { EXPECT_TRUE(RunWith("Handlers", "decay:60s", 20)); }

// Threads that the program made while it could; ours is refused, and everything goes on without.
PCM_SCENARIO(Refused) {
  std::atomic<int> stage{0};
  std::thread worker([&] {
    while (stage == 0) SleepMs(1);
    while (stage == 1) {
      EXPECT_TRUE(Burst(kMiB, 200));
      SleepMs(5);
    }
  });
  ASSERT_TRUE(RefuseSystemCalls({__NR_clone, __NR_clone3}));
  stage = 1;
  EXPECT_TRUE(Soon([] { return strncmp(State(), "off: pthread_create", 19) == 0; })) << State();
  EXPECT_EQ(Threads(), 2);
  stage = 2;
  worker.join();
  EXPECT_TRUE(Burst(50 * kMiB, 300));
}
TEST(Background, GoesOnWithoutWhereNoneCanBeMade) { EXPECT_TRUE(RunWith("Refused", "decay:1s")); }

// A filter that knows the program but not us.
PCM_SCENARIO(Sandboxed) {
  ASSERT_TRUE(
      DieOnSystemCalls({__NR_prctl, __NR_sched_setaffinity, __NR_sched_setscheduler,
                        __NR_sched_getscheduler, __NR_readlinkat, __NR_nanosleep, __NR_unshare}));
  WorkInThreads(2, 30 * kMiB, 200);
  ASSERT_TRUE(Soon([] { return Threads() == 2; }));
  EXPECT_TRUE(Soon([] { return Threads() == 1; }));
  EXPECT_GE(Statistic("idle_drains"), 1);
}
TEST(Background, MakesNoForeignSystemCallInASandbox) {
  EXPECT_TRUE(RunWith("Sandboxed", "decay:200ms"));
}

// Nobody is woken for nothing: an idle process is not run at all.
PCM_SCENARIO(Rests) {
  WorkInThreads(2, 20 * kMiB, 200);
  ASSERT_TRUE(Soon([] { return Threads() == 1; }, 10'000));
  const int64_t wakeups = Statistic("background_wakeups");
  SleepMs(1000);
  EXPECT_EQ(Statistic("background_wakeups"), wakeups);
  EXPECT_EQ(Threads(), 1);
}
TEST(Background, IdleMeansIdle) { EXPECT_TRUE(RunWith("Rests", "decay:200ms", 20)); }

}  // namespace
}  // namespace pcmalloc::testing
