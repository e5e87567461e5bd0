// SPDX-License-Identifier: Apache-2.0
#include "tests/support/process.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <filesystem>
#include <map>

#include "tests/support/allocator.h"
#include "tests/support/hang.h"

namespace pcmalloc::testing {
namespace {

using ::testing::AssertionFailure;
using ::testing::AssertionResult;
using ::testing::AssertionSuccess;

constexpr char kScenarioFlag[] = "--scenario=";

std::map<std::string, void (*)()>& Scenarios() {
  static auto* scenarios = new std::map<std::string, void (*)()>;
  return *scenarios;
}

double Now() {
  timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return static_cast<double>(now.tv_sec) + static_cast<double>(now.tv_nsec) * 1e-9;
}

AssertionResult Await(pid_t child, double deadline) {
  int status = 0;
  bool late = false;
  std::string where;
  while (true) {
    pid_t got = waitpid(child, &status, WNOHANG);
    if (got == child) break;
    if (got < 0 && errno != EINTR) return AssertionFailure() << "waitpid: " << strerror(errno);
    if (Now() > deadline && !late) {
      late = true;
      where = DescribeGroup(child);
      kill(child, SIGKILL);
    }
    usleep(500);
  }
  kill(-child, SIGKILL);  // whatever it left behind in its group
  if (late) return AssertionFailure() << "process hung: killed by the watchdog\n" << where;
  if (WIFSIGNALED(status)) {
    return AssertionFailure() << "process killed by signal " << WTERMSIG(status) << " ("
                              << strsignal(WTERMSIG(status)) << ")";
  }
  if (WEXITSTATUS(status) != 0) {
    return AssertionFailure() << "process exited with " << WEXITSTATUS(status);
  }
  return AssertionSuccess();
}

pid_t ForkGroup() {
  fflush(nullptr);
  pid_t child = fork();
  if (child == 0) {
    setpgid(0, 0);
    AllowDescription();
  } else if (child > 0) {
    setpgid(child, child);
  }
  return child;
}

[[noreturn]] void RunAndExit(const std::function<void()>& body) {
  body();
  fflush(nullptr);
  _exit(::testing::Test::HasFailure() ? 1 : 0);
}

}  // namespace

Scenario::Scenario(const char* name, void (*body)()) { Scenarios()[name] = body; }

std::string Variant() {
  const char* variant = getenv("PCM_TEST_VARIANT");
  return variant == nullptr ? "" : variant;
}

std::string ThisExecutable() {
  char path[4096];
  ssize_t length = readlink("/proc/self/exe", path, sizeof(path));
  return std::string(path, length < 0 ? 0 : static_cast<size_t>(length));
}

AssertionResult InChild(const std::function<void()>& body, int seconds) {
  double deadline = Now() + seconds;
  pid_t child = ForkGroup();
  if (child < 0) return AssertionFailure() << "fork: " << strerror(errno);
  if (child == 0) RunAndExit(body);
  return Await(child, deadline);
}

AssertionResult InChildWithOutput(const std::function<void()>& body, std::string* output,
                                  int seconds) {
  double deadline = Now() + seconds;
  int ends[2];
  if (pipe2(ends, O_CLOEXEC) != 0) return AssertionFailure() << "pipe2: " << strerror(errno);
  pid_t child = ForkGroup();
  if (child < 0) return AssertionFailure() << "fork: " << strerror(errno);
  if (child == 0) {
    dup2(ends[1], STDOUT_FILENO);
    dup2(ends[1], STDERR_FILENO);
    close(ends[1]);
    RunAndExit(body);
  }
  close(ends[1]);
  char buffer[4096];
  for (pollfd end = {ends[0], POLLIN, 0}; Now() < deadline;) {
    if (poll(&end, 1, 100) <= 0) continue;
    ssize_t got = read(ends[0], buffer, sizeof(buffer));
    if (got <= 0) break;
    output->append(buffer, static_cast<size_t>(got));
  }
  close(ends[0]);
  return Await(child, deadline) << "\n" << *output;
}

AssertionResult InFreshProcess(const std::string& scenario, const FreshProcess& options) {
  double deadline = Now() + options.seconds;
  std::vector<std::string> environment = options.environment;
  for (char** entry = environ; *entry != nullptr; ++entry) {
    std::string name = std::string(*entry).substr(0, std::string(*entry).find('=') + 1);
    bool replaced = false;
    for (const std::string& own : options.environment) replaced |= own.rfind(name, 0) == 0;
    if (!replaced) environment.push_back(*entry);
  }
  std::vector<char*> envp;
  for (std::string& entry : environment) envp.push_back(entry.data());
  envp.push_back(nullptr);
  std::string flag = kScenarioFlag + scenario;
  char* argv[] = {const_cast<char*>("scenario"), flag.data(), nullptr};
  std::error_code not_a_link;
  std::string executable = std::filesystem::read_symlink(options.executable, not_a_link);
  if (not_a_link) executable = options.executable;
  pid_t child = ForkGroup();
  if (child < 0) return AssertionFailure() << "fork: " << strerror(errno);
  if (child == 0) {
    options.before_exec();
    execve(executable.c_str(), argv, envp.data());
    perror("execve");
    _exit(127);
  }
  return Await(child, deadline) << " (scenario " << scenario << ")";
}

}  // namespace pcmalloc::testing

// Runs the one scenario named on the command line, or else all tests; nothing if the environment
// did not lead to the allocator and mode that it was to lead to (tools/run_variant.py).
int main(int argc, char** argv) {
  using pcmalloc::testing::kScenarioFlag;
  ::testing::InitGoogleTest(&argc, argv);
  if (!pcmalloc::testing::InExpectedMode()) {
    fprintf(stderr, "mode '%s' instead of %s\n", pcmalloc::testing::Mode().c_str(),
            getenv("PCM_EXPECT_MODE"));
    return 125;
  }
  if (argc == 2 && strncmp(argv[1], kScenarioFlag, strlen(kScenarioFlag)) == 0) {
    auto found = pcmalloc::testing::Scenarios().find(argv[1] + strlen(kScenarioFlag));
    if (found == pcmalloc::testing::Scenarios().end()) return 126;
    found->second();
    fflush(stdout);
    return ::testing::Test::HasFailure() ? 1 : 0;
  }
  return RUN_ALL_TESTS();
}
