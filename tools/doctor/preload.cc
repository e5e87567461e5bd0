// SPDX-License-Identifier: Apache-2.0
#include "tools/doctor/preload.h"

#include <dlfcn.h>
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <string>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"

namespace pcmalloc::doctor {
namespace {

constexpr absl::Duration kTimeout = absl::Seconds(10);
constexpr int kNotPreloaded = 3;
constexpr absl::string_view kPreloadVariable = "LD_PRELOAD=";

// A pipe that the copy writes to.
struct Pipe {
  int ends[2] = {-1, -1};
  std::string text;

  Pipe() {
    if (pipe(ends) != 0) ends[0] = ends[1] = -1;
  }
  ~Pipe() {
    CloseWriter();
    if (ends[0] >= 0) close(ends[0]);
  }
  void CloseWriter() {
    if (ends[1] >= 0) close(ends[1]);
    ends[1] = -1;
  }
};

std::vector<std::string> EnvironmentWith(const std::string& library) {
  std::string preload = absl::StrCat(kPreloadVariable, library);
  std::vector<std::string> environment;
  for (char** entry = environ; *entry != nullptr; ++entry) {
    if (absl::StartsWith(*entry, kPreloadVariable)) {
      absl::StrAppend(&preload, ":", *entry + kPreloadVariable.size());
    } else {
      environment.emplace_back(*entry);
    }
  }
  environment.push_back(preload);
  return environment;
}

// Reads both pipes to their ends; false when that takes too long.
bool ReadAll(Pipe& first, Pipe& second) {
  const absl::Time deadline = absl::Now() + kTimeout;
  pollfd polled[2] = {{first.ends[0], POLLIN, 0}, {second.ends[0], POLLIN, 0}};
  std::string* texts[2] = {&first.text, &second.text};
  while (polled[0].fd >= 0 || polled[1].fd >= 0) {
    const int64_t left = absl::ToInt64Milliseconds(deadline - absl::Now());
    if (left <= 0) return false;
    if (poll(polled, 2, static_cast<int>(left)) < 0 && errno != EINTR) return false;
    for (int i = 0; i < 2; ++i) {
      if (polled[i].fd < 0 || polled[i].revents == 0) continue;
      char buffer[4096];
      const ssize_t size = read(polled[i].fd, buffer, sizeof(buffer));
      if (size > 0) texts[i]->append(buffer, size);
      if (size == 0 || (size < 0 && errno != EINTR)) polled[i].fd = -1;
    }
  }
  return true;
}

std::string EndingOf(int status) {
  if (WIFSIGNALED(status)) {
    return absl::StrCat("the preloaded program was ended by signal ", WTERMSIG(status), " (",
                        strsignal(WTERMSIG(status)), ")");
  }
  if (WEXITSTATUS(status) == kNotPreloaded) return "the library was not loaded";
  if (WEXITSTATUS(status) != 0) {
    return absl::StrCat("the preloaded program ended with status ", WEXITSTATUS(status));
  }
  return "";
}

}  // namespace

Answer ParseAnswer(absl::string_view output, absl::string_view messages, absl::string_view ending) {
  Answer answer;
  answer.messages = std::string(absl::StripAsciiWhitespace(messages));
  const std::vector<std::string> lines = absl::StrSplit(output, '\n');
  if (!ending.empty()) {
    answer.error = std::string(ending);
  } else if (lines.size() < 2 || lines[0].empty()) {
    answer.error = "the preloaded program gave no answer";
  } else {
    answer.mode = lines[0];
    answer.reason = lines[1];
  }
  return answer;
}

Answer AskLibrary(const std::string& library) {
  Answer answer;
  if (access(library.c_str(), R_OK) != 0) {
    answer.error = absl::StrCat(library, ": ", strerror(errno));
    return answer;
  }
  // The dynamic linker splits LD_PRELOAD at both.
  if (library.find_first_of(" :") != std::string::npos) {
    answer.error = absl::StrCat("LD_PRELOAD cannot name a path with blanks or colons: ", library);
    return answer;
  }

  Pipe output;
  Pipe messages;
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_adddup2(&actions, output.ends[1], STDOUT_FILENO);
  posix_spawn_file_actions_adddup2(&actions, messages.ends[1], STDERR_FILENO);
  for (const int end : {output.ends[0], output.ends[1], messages.ends[0], messages.ends[1]}) {
    posix_spawn_file_actions_addclose(&actions, end);
  }
  std::vector<std::string> environment = EnvironmentWith(library);
  std::vector<char*> pointers;
  for (std::string& entry : environment) pointers.push_back(entry.data());
  pointers.push_back(nullptr);
  // The name the kernel started this program by serves where /proc is missing.
  const char* started_as = reinterpret_cast<const char*>(getauxval(AT_EXECFN));
  const char* self = access("/proc/self/exe", X_OK) == 0 ? "/proc/self/exe" : started_as;
  std::string name = "doctor";
  std::string flag = kAnswerFlag;
  char* const arguments[] = {name.data(), flag.data(), nullptr};
  pid_t child;
  const int error = posix_spawn(&child, self, &actions, nullptr, arguments, pointers.data());
  posix_spawn_file_actions_destroy(&actions);
  if (error != 0) {
    answer.error = absl::StrCat("cannot start ", self, ": ", strerror(error));
    return answer;
  }
  output.CloseWriter();
  messages.CloseWriter();
  const bool done = ReadAll(output, messages);
  if (!done) kill(child, SIGKILL);
  int status;
  while (waitpid(child, &status, 0) < 0 && errno == EINTR) {
  }
  return ParseAnswer(output.text, messages.text,
                     done ? EndingOf(status)
                          : absl::StrCat("the preloaded program gave no answer within ",
                                         absl::FormatDuration(kTimeout)));
}

int GiveAnswer() {
  // What the library finds out, it finds out at the latest when memory is asked for.
  free(malloc(1));
  using Text = const char* (*)();
  const auto mode = reinterpret_cast<Text>(dlsym(RTLD_DEFAULT, "pcmalloc_mode"));
  const auto reason = reinterpret_cast<Text>(dlsym(RTLD_DEFAULT, "pcmalloc_reason"));
  if (mode == nullptr || reason == nullptr) return kNotPreloaded;
  std::string why = reason();
  std::replace(why.begin(), why.end(), '\n', ' ');
  printf("%s\n%s\n", mode(), why.c_str());
  return fflush(stdout) == 0 ? 0 : 1;
}

}  // namespace pcmalloc::doctor
