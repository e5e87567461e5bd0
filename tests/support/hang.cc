// SPDX-License-Identifier: Apache-2.0
#include "tests/support/hang.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <spawn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <map>
#include <sstream>
#include <vector>

namespace pcmalloc::testing {
namespace {

constexpr int kMostProcesses = 6;  // of which gdb shows the stacks
constexpr size_t kMostOutput = 20000;
constexpr int kWatchMs = 200;

std::string Content(const std::string& path) {
  std::ifstream file(path);
  std::stringstream text;
  text << file.rdbuf();
  std::string content = text.str();
  while (!content.empty() && isspace(content.back())) content.pop_back();
  return content;
}

std::vector<pid_t> Numbers(const std::string& directory) {
  std::vector<pid_t> numbers;
  std::error_code gone;
  for (std::filesystem::directory_iterator entry(directory, gone), end; !gone && entry != end;
       entry.increment(gone)) {
    const int number = atoi(entry->path().filename().c_str());
    if (number > 0) numbers.push_back(number);
  }
  return numbers;
}

std::vector<pid_t> Members(pid_t group) {
  std::vector<pid_t> members;
  for (const pid_t pid : Numbers("/proc")) {
    if (getpgid(pid) == group) members.push_back(pid);
  }
  return members;
}

// The value of a line of a status file.
std::string Field(const std::string& status, const std::string& name) {
  const size_t at = status.find("\n" + name + ":\t");
  if (at == std::string::npos) return "?";
  const size_t begin = at + name.size() + 3;
  return status.substr(begin, status.find('\n', begin) - begin);
}

long Switches(const std::string& task) {
  const std::string status = Content(task + "/status");
  return atol(Field(status, "voluntary_ctxt_switches").c_str()) +
         atol(Field(status, "nonvoluntary_ctxt_switches").c_str());
}

// An address as the file that is mapped there and the place within that, for addr2line.
std::string Place(const std::string& maps, uint64_t address) {
  std::istringstream lines(maps);
  for (std::string line; std::getline(lines, line);) {
    uint64_t begin = 0, end = 0, offset = 0;
    int path = 0;
    if (sscanf(line.c_str(), "%" SCNx64 "-%" SCNx64 " %*s %" SCNx64 " %*s %*s %n", &begin, &end,
               &offset, &path) < 3) {
      continue;
    }
    if (address < begin || address >= end) continue;
    char text[64];
    snprintf(text, sizeof(text), "+0x%" PRIx64, address - begin + offset);
    return (path == 0 ? "" : line.substr(static_cast<size_t>(path))) + text;
  }
  return "nowhere";
}

std::string DescribeTask(const std::string& task, const std::string& maps, long switches_before) {
  const std::string status = "\n" + Content(task + "/status");
  const std::string syscall = Content(task + "/syscall");
  std::string text = Content(task + "/comm") + ": " + Field(status, "State") + ", scheduled " +
                     std::to_string(Switches(task) - switches_before) + " times in " +
                     std::to_string(kWatchMs) + " ms, kernel function " + Content(task + "/wchan") +
                     ", system call " + syscall;
  // The last of several numbers; of a thread that runs there are none.
  const size_t last = syscall.rfind(' ');
  if (last != std::string::npos) {
    text += " at " + Place(maps, strtoull(syscall.c_str() + last, nullptr, 16));
  }
  text += ", signals blocked " + Field(status, "SigBlk") + ", pending " + Field(status, "SigPnd") +
          " and for the process " + Field(status, "ShdPnd") + "\n";
  return text;
}

std::string Output(const std::vector<std::string>& command) {
  std::vector<char*> argv;
  for (const std::string& argument : command) argv.push_back(const_cast<char*>(argument.c_str()));
  argv.push_back(nullptr);
  // Not under the library, nor configured as the tests are.
  std::vector<char*> envp;
  for (char** entry = environ; *entry != nullptr; ++entry) {
    if (strncmp(*entry, "LD_", 3) != 0) envp.push_back(*entry);
  }
  envp.push_back(nullptr);
  int ends[2];
  if (pipe2(ends, O_CLOEXEC) != 0) return std::string("pipe2: ") + strerror(errno);
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_addopen(&actions, STDIN_FILENO, "/dev/null", O_RDONLY, 0);
  posix_spawn_file_actions_adddup2(&actions, ends[1], STDOUT_FILENO);
  posix_spawn_file_actions_adddup2(&actions, ends[1], STDERR_FILENO);
  pid_t child = 0;
  const int error = posix_spawnp(&child, argv[0], &actions, nullptr, argv.data(), envp.data());
  posix_spawn_file_actions_destroy(&actions);
  close(ends[1]);
  std::string text;
  if (error != 0) {
    text = command[0] + ": " + strerror(error) + "\n";
  } else {
    char buffer[4096];
    for (ssize_t got; (got = read(ends[0], buffer, sizeof(buffer))) > 0;) {
      text.append(buffer, static_cast<size_t>(got));
    }
    waitpid(child, nullptr, 0);
  }
  close(ends[0]);
  return text;
}

bool IsInstalled(const std::string& program) {
  const char* path = getenv("PATH");
  std::istringstream directories(path == nullptr ? "/usr/bin:/bin" : path);
  for (std::string directory; std::getline(directories, directory, ':');) {
    if (access((directory + "/" + program).c_str(), X_OK) == 0) return true;
  }
  return false;
}

std::string Stacks(pid_t pid) {
  std::string text = Output({"timeout", "-s", "KILL", "20", "gdb", "-p", std::to_string(pid), "-nx",
                             "-batch", "-ex", "set debuginfod enabled off", "-ex",
                             "set print frame-arguments scalars", "-ex", "thread apply all bt 40"});
  if (text.size() > kMostOutput) text = text.substr(0, kMostOutput) + "... (cut)\n";
  return text;
}

}  // namespace

std::string DescribeGroup(pid_t group) {
  std::map<std::string, long> switches;
  for (const pid_t pid : Members(group)) {
    const std::string tasks = "/proc/" + std::to_string(pid) + "/task/";
    for (const pid_t tid : Numbers(tasks)) {
      const std::string task = tasks + std::to_string(tid);
      switches[task] = Switches(task);
    }
  }
  usleep(kWatchMs * 1000);
  std::string text;
  const std::vector<pid_t> members = Members(group);
  for (const pid_t pid : members) {
    const std::string process = "/proc/" + std::to_string(pid);
    const std::string maps = Content(process + "/maps");
    text += "process " + std::to_string(pid) + ", child of " +
            Field("\n" + Content(process + "/status"), "PPid") + "\n";
    for (const pid_t tid : Numbers(process + "/task")) {
      const std::string task = process + "/task/" + std::to_string(tid);
      const auto before = switches.find(task);
      text += "  thread " + std::to_string(tid) + (before == switches.end() ? " (new) " : " ") +
              DescribeTask(task, maps, before == switches.end() ? 0 : before->second);
    }
  }
  if (!IsInstalled("gdb")) return text + "no stacks: gdb is not installed\n";
  for (size_t i = 0; i < members.size() && i < kMostProcesses; ++i) {
    text += "stacks of process " + std::to_string(members[i]) + "\n" + Stacks(members[i]);
  }
  return text;
}

void AllowDescription() { prctl(PR_SET_PTRACER, PR_SET_PTRACER_ANY, 0, 0, 0); }

}  // namespace pcmalloc::testing
