// SPDX-License-Identifier: Apache-2.0
//
// The first process of a booted kernel: does what /plan says, one line after the other, and
// switches the machine off. Everything the host needs is a console line "PCM key=value".
//
//   mount                                    /proc, /sys, /dev, /tmp and the cpuset controller
//   offline CPU                              takes a CPU out
//   show PATH                                the first line of a file, as PCM show_NAME
//   run NAME SECONDS FLAGS [K=V...] ARGV...  runs a program with that environment and time limit
//
// FLAGS is "-", or "toggle" (CPUs other than 0 go off-line and on-line meanwhile), or "cpuset" (the
// allowed CPUs change meanwhile), or "hotadd" (the host is asked for one more CPU, by PCM hot_add,
// and it is put to use). Of a program's output, lines "PCM key=value" are passed on as "PCM
// NAME.key=value", GoogleTest's totals as NAME.passed and NAME.failed, a line of JSON as NAME.json;
// if it fails its last lines follow as "LOG NAME: ...". NAME.status is its exit status, or 128 +
// the signal that ended it, or 124 for the time limit.
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

namespace {

constexpr int kMostWords = 64;
constexpr int kLogLines = 40;
constexpr int kTimeLimitStatus = 124;
constexpr size_t kLineBytes = 4096;

void Say(const char* format, ...) {
  char line[kLineBytes + 256];
  va_list arguments;
  va_start(arguments, format);
  int size = vsnprintf(line, sizeof(line) - 1, format, arguments);
  va_end(arguments);
  if (size > static_cast<int>(sizeof(line)) - 2) size = sizeof(line) - 2;
  line[size++] = '\n';
  for (const char* at = line; size > 0;) {
    const ssize_t written = write(STDOUT_FILENO, at, static_cast<size_t>(size));
    if (written <= 0) return;
    at += written;
    size -= static_cast<int>(written);
  }
}

double Now() {
  timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return static_cast<double>(now.tv_sec) + static_cast<double>(now.tv_nsec) / 1e9;
}

bool WriteFile(const char* path, const char* text) {
  const int fd = open(path, O_WRONLY | O_CLOEXEC);
  if (fd < 0) return false;
  const bool ok = write(fd, text, strlen(text)) == static_cast<ssize_t>(strlen(text));
  close(fd);
  return ok;
}

void Mount(const char* type, const char* where) {
  mkdir(where, 0755);
  if (mount(type, where, type, 0, nullptr) != 0) Say("PCM mount_failed=%s %d", where, errno);
}

void MountAll() {
  Mount("proc", "/proc");
  Mount("sysfs", "/sys");
  Mount("devtmpfs", "/dev");
  Mount("tmpfs", "/tmp");
  Mount("cgroup2", "/cgroup");
}

bool SetOnline(int cpu, bool online) {
  char path[64];
  snprintf(path, sizeof(path), "/sys/devices/system/cpu/cpu%d/online", cpu);
  return WriteFile(path, online ? "1" : "0");
}

// What happens to the CPUs while a program runs.
class Disturbance {
 public:
  Disturbance(const char* kind, pid_t child)
      : toggle_(strcmp(kind, "toggle") == 0),
        cpuset_(strcmp(kind, "cpuset") == 0),
        hot_add_(strcmp(kind, "hotadd") == 0) {
    if (hot_add_) first_absent_ = Others() + 1;
    if (cpuset_) {
      char pid[16];
      snprintf(pid, sizeof(pid), "%d", child);
      WriteFile("/cgroup/cgroup.subtree_control", "+cpuset");
      mkdir("/cgroup/test", 0755);
      if (!WriteFile("/cgroup/test/cgroup.procs", pid)) cpuset_ = false;
    }
  }

  // Called about ten times a second.
  void Step() {
    if (++steps_ % 3 != 0) return;
    const bool odd = steps_ / 3 % 2 != 0;
    if (hot_add_ && steps_ == kStepsBeforeHotAdd) Say("PCM hot_add=%d", first_absent_);
    if (hot_add_ && changes_ == 0) changes_ += SetOnline(first_absent_, true);
    if (toggle_) {
      const int cpu = 1 + steps_ / 6 % Others();
      changes_ += SetOnline(cpu, !odd);
      last_ = cpu;
    }
    if (cpuset_) changes_ += WriteFile("/cgroup/test/cpuset.cpus", odd ? "0" : "1");
  }

  void End() {
    if (last_ != 0) SetOnline(last_, true);
  }
  bool any() const { return toggle_ || cpuset_ || hot_add_; }
  int changes() const { return changes_; }

 private:
  // The highest number of a CPU that is there; numbers may have gaps.
  static int Others() {
    constexpr int kMostCpus = 64;
    int highest = 1;
    char path[64];
    for (int cpu = 1; cpu < kMostCpus; ++cpu) {
      snprintf(path, sizeof(path), "/sys/devices/system/cpu/cpu%d/online", cpu);
      if (access(path, F_OK) == 0) highest = cpu;
    }
    return highest;
  }

  static constexpr int kStepsBeforeHotAdd = 30;
  bool toggle_;
  bool cpuset_;
  bool hot_add_;
  int first_absent_ = 0;
  int steps_ = 0;
  int last_ = 0;
  int changes_ = 0;
};

// The output of one program, cut into lines.
class Output {
 public:
  explicit Output(const char* name) : name_(name) {}

  void Add(const char* bytes, ssize_t size) {
    for (ssize_t i = 0; i < size; ++i) {
      if (bytes[i] == '\n' || length_ == kLineBytes - 1) {
        current_[length_] = '\0';
        length_ = 0;
        Line();
      }
      if (bytes[i] != '\n') current_[length_++] = bytes[i];
    }
  }

  void TellLog() {
    current_[length_] = '\0';
    if (length_ != 0) Line();
    for (int i = lines_ > kLogLines ? lines_ - kLogLines : 0; i < lines_; ++i) {
      Say("LOG %s: %s", name_, log_[i % kLogLines]);
    }
  }

 private:
  void Line() {
    int number;
    if (strncmp(current_, "PCM ", 4) == 0) {
      Say("PCM %s.%s", name_, current_ + 4);
    } else if (current_[0] == '{') {
      Say("PCM %s.json=%s", name_, current_);
    } else if (sscanf(current_, "[  PASSED  ] %d test", &number) == 1) {
      Say("PCM %s.passed=%d", name_, number);
    } else if (sscanf(current_, "[  FAILED  ] %d test", &number) == 1) {
      Say("PCM %s.failed=%d", name_, number);
    }
    snprintf(log_[lines_++ % kLogLines], kLogBytes, "%.*s", static_cast<int>(kLogBytes - 1),
             current_);
  }

  static constexpr size_t kLogBytes = 512;
  const char* name_;
  size_t length_ = 0;
  int lines_ = 0;
  char current_[kLineBytes];
  char log_[kLogLines][kLogBytes];
};

// fork and exec; the read end of what it prints in *out.
pid_t StartProgram(char** environment, char** argv, int* out) {
  int ends[2];
  if (pipe2(ends, O_CLOEXEC) != 0) return -1;
  const pid_t child = fork();
  if (child == 0) {
    setpgid(0, 0);
    dup2(ends[1], STDOUT_FILENO);
    dup2(ends[1], STDERR_FILENO);
    execve(argv[0], argv, environment);
    dprintf(STDERR_FILENO, "cannot run %s: %s\n", argv[0], strerror(errno));
    _exit(127);
  }
  close(ends[1]);
  *out = ends[0];
  return child;
}

void Run(char** words) {
  const char* name = words[0];
  const double limit = atof(words[1]);
  const char* flags = words[2];
  char* environment[kMostWords] = {};
  char** argv = words + 3;
  for (int i = 0; *argv != nullptr && (*argv)[0] != '/'; ++argv) environment[i++] = *argv;
  const double start = Now();
  static Output output("");
  output = Output(name);
  int out = -1;
  const pid_t child = *argv == nullptr ? -1 : StartProgram(environment, argv, &out);
  if (child < 0) {
    Say("PCM %s.status=127", name);
    return;
  }
  Disturbance disturbance(flags, child);
  bool late = false;
  bool open = true;
  int status = 0;
  bool ended = false;
  while (open || !ended) {
    pollfd ready = {out, POLLIN, 0};
    if (open && poll(&ready, 1, 100) > 0) {
      char bytes[4096];
      const ssize_t size = read(out, bytes, sizeof(bytes));
      if (size > 0) output.Add(bytes, size);
      open = size > 0;
    } else if (!open) {
      usleep(10'000);
    }
    if (!ended) ended = waitpid(child, &status, WNOHANG) == child;
    // A descendant that outlives the program may hold the pipe; what it prints is nobody's.
    if (ended && open && (ready.revents & POLLIN) == 0) open = false;
    disturbance.Step();
    if (!ended && !late && Now() - start > limit) {
      late = true;
      kill(-child, SIGKILL);
    }
  }
  close(out);
  kill(-child, SIGKILL);
  while (waitpid(-1, nullptr, WNOHANG) > 0) {
  }
  disturbance.End();
  const int result = late                  ? kTimeLimitStatus
                     : WIFSIGNALED(status) ? 128 + WTERMSIG(status)
                                           : WEXITSTATUS(status);
  if (result != 0) output.TellLog();
  if (disturbance.any()) Say("PCM %s.changes=%d", name, disturbance.changes());
  Say("PCM %s.seconds=%.1f", name, Now() - start);
  Say("PCM %s.status=%d", name, result);
}

void Show(const char* path) {
  char text[256] = "";
  FILE* const file = fopen(path, "re");
  if (file != nullptr && fgets(text, sizeof(text), file) != nullptr) {
    text[strcspn(text, "\n")] = '\0';
  }
  if (file != nullptr) fclose(file);
  const char* const name = strrchr(path, '/');
  Say("PCM show_%s=%s", name == nullptr ? path : name + 1, text);
}

void Obey(char* line) {
  char* words[kMostWords + 1] = {};
  int count = 0;
  for (char* word = strtok(line, " \n"); word != nullptr && count < kMostWords;
       word = strtok(nullptr, " \n")) {
    words[count++] = word;
  }
  if (count == 0) return;
  if (strcmp(words[0], "mount") == 0) {
    MountAll();
  } else if (strcmp(words[0], "offline") == 0 && count == 2) {
    Say("PCM offline=%s %d", words[1], SetOnline(atoi(words[1]), false));
  } else if (strcmp(words[0], "show") == 0 && count == 2) {
    Show(words[1]);
  } else if (strcmp(words[0], "run") == 0 && count >= 5) {
    Run(words + 1);
  } else {
    Say("PCM not_understood=%s", words[0]);
  }
}

}  // namespace

int main() {
  Say("PCM init=1");
  FILE* plan = fopen("/plan", "re");
  if (plan == nullptr) Say("PCM no_plan=%d", errno);
  static char line[kLineBytes];
  while (plan != nullptr && fgets(line, sizeof(line), plan) != nullptr) Obey(line);
  Say("PCM end=1");
  sync();
  reboot(RB_POWER_OFF);
  // Without a way to switch off, ending process 1 panics, and the kernel restarts at once.
  return 1;
}
