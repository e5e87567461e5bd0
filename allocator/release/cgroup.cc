// SPDX-License-Identifier: Apache-2.0
#include "allocator/release/cgroup.h"

#include <string.h>

#include <atomic>

#include "allocator/base/file.h"
#include "allocator/base/text.h"

namespace pcmalloc::release {
namespace {

// Longer lines are skipped: those of overlay mounts may have thousands of characters, those of
// cgroup mounts never do.
constexpr size_t kLineBytes = 2048;

struct Group {
  bool v2;
  char path[kPathBytes];  // as /proc/self/cgroup names it
};

struct Mount {
  char top[kPathBytes];    // the group that is mounted there, "/" the topmost
  char point[kPathBytes];  // where
};

// Not on the stack, which may be that of a small thread or a signal handler; one reader at a time.
constinit char buffer[kLineBytes] = {};
constinit Group group = {};
constinit Mount mount = {};
constinit char directory[2 * kPathBytes + 64] = {};
constinit char path_text[2 * kPathBytes] = {};
constinit std::atomic<bool> reader_is_at_it{false};

// A path to open next: there is one at a time.
TextBuffer NewPath() { return TextBuffer(path_text, sizeof(path_text)); }

// The lines of a file, one after another, NUL-terminated, in the one buffer.
class Lines {
 public:
  explicit Lines(const char* path) : file_(path) {}

  // Null at the end.
  char* Next() {
    bool too_long = false;
    while (true) {
      char* const line = buffer + begin_;
      if (auto* end = static_cast<char*>(memchr(line, '\n', end_ - begin_))) {
        *end = '\0';
        begin_ = static_cast<size_t>(end + 1 - buffer);
        if (!too_long) return line;
        too_long = false;
        continue;
      }
      memmove(buffer, line, end_ - begin_);
      end_ -= begin_;
      begin_ = 0;
      if (end_ == kLineBytes - 1) {
        too_long = true;
        end_ = 0;
      }
      const size_t got = file_.Read(buffer + end_, kLineBytes - 1 - end_);
      if (got == 0) {
        // A last line without a newline.
        if (end_ == 0 || too_long) return nullptr;
        buffer[end_] = '\0';
        begin_ = end_ = 0;
        return buffer;
      }
      end_ += got;
    }
  }

 private:
  File file_;
  size_t begin_ = 0;
  size_t end_ = 0;
};

// Cuts the next field off: what is before `separator`, or all of it.
char* NextField(char** rest, char separator) {
  char* const field = *rest;
  if (field == nullptr) return nullptr;
  char* const end = strchr(field, separator);
  *rest = end == nullptr ? nullptr : end + 1;
  if (end != nullptr) *end = '\0';
  return field;
}

bool ListHas(char* list, const char* word) {
  while (char* item = NextField(&list, ',')) {
    if (strcmp(item, word) == 0) return true;
  }
  return false;
}

bool Copy(char (&to)[kPathBytes], const char* from) {
  TextBuffer text(to, kPathBytes);
  text.Str(from);
  return !text.truncated();
}

// The kernel writes blanks in paths as \040 and the like.
void Unescape(char* path) {
  char* out = path;
  const auto octal = [](char c) { return c >= '0' && c <= '7'; };
  for (const char* in = path; *in != '\0'; ++out) {
    if (in[0] == '\\' && octal(in[1]) && octal(in[2]) && octal(in[3])) {
      *out = static_cast<char>((in[1] - '0') * 64 + (in[2] - '0') * 8 + (in[3] - '0'));
      in += 4;
    } else {
      *out = *in++;
    }
  }
  *out = '\0';
}

// The number that a file holds; kNoLimit for "max", for what is no number and for no file. Version
// 1 writes the largest multiple of a page for no limit.
uint64_t ReadNumber(const char* path) {
  char text[32];
  const size_t size = File(path).Read(text, sizeof(text));
  uint64_t value = 0;
  size_t i = 0;
  for (; i < size && text[i] >= '0' && text[i] <= '9'; ++i) {
    if (__builtin_mul_overflow(value, 10, &value) ||
        __builtin_add_overflow(value, static_cast<uint64_t>(text[i] - '0'), &value)) {
      return kNoLimit;
    }
  }
  return i == 0 || value >= uint64_t{1} << 62 ? kNoLimit : value;
}

// Version 1 where it has the memory controller, else version 2.
bool FindGroup(const char* root) {
  TextBuffer path = NewPath();
  path.Str(root).Str("/proc/self/cgroup");
  bool found = false;
  for (Lines lines(path.c_str()); char* line = lines.Next();) {
    char* rest = line;
    NextField(&rest, ':');
    char* const controllers = NextField(&rest, ':');
    if (controllers == nullptr || rest == nullptr || rest[0] != '/') continue;
    const bool v2 = controllers[0] == '\0';
    if (!v2 && !ListHas(controllers, "memory")) continue;
    if (!Copy(group.path, rest)) continue;
    group.v2 = v2;
    found = true;
    if (!v2) break;
  }
  return found;
}

// A line is: id parent device top point options [optional...] - type source super_options
bool FindMount(const char* root, bool v2) {
  TextBuffer path = NewPath();
  path.Str(root).Str("/proc/self/mountinfo");
  for (Lines lines(path.c_str()); char* line = lines.Next();) {
    char* rest = line;
    for (int skipped = 0; skipped < 3; ++skipped) NextField(&rest, ' ');
    char* const top = NextField(&rest, ' ');
    char* const point = NextField(&rest, ' ');
    char* field = NextField(&rest, ' ');
    while (field != nullptr && strcmp(field, "-") != 0) field = NextField(&rest, ' ');
    const char* const type = NextField(&rest, ' ');
    NextField(&rest, ' ');
    if (point == nullptr || type == nullptr || rest == nullptr) continue;
    if (strcmp(type, v2 ? "cgroup2" : "cgroup") != 0) continue;
    if (!v2 && !ListHas(rest, "memory")) continue;
    Unescape(top);
    Unescape(point);
    if (Copy(mount.top, top) && Copy(mount.point, point)) return true;
  }
  return false;
}

// What of the group's path lies below the mount. A container may see the path that its group has
// outside ("/docker/abc", with that group mounted), or one above its namespace ("/../x"): then the
// mount itself is the best that is known.
const char* BelowMount() {
  if (strncmp(group.path, "/..", 3) == 0) return "";
  if (strcmp(mount.top, "/") == 0) return strcmp(group.path, "/") == 0 ? "" : group.path;
  const size_t length = strlen(mount.top);
  if (strncmp(group.path, mount.top, length) != 0) return "";
  const char* const below = group.path + length;
  return below[0] == '/' ? below : "";
}

// By opening it: under a filter of system calls that is what we know to be allowed.
bool Exists(const char* path) { return File(path).opened(); }

void FindPressure(const char* root, const char* of, Cgroup* result) {
  TextBuffer path = NewPath();
  path.Str(of).Str("/memory.pressure");
  if (of[0] != '\0' && Exists(path.c_str()) && Copy(result->pressure, path.c_str())) return;
  TextBuffer machine = NewPath();
  machine.Str(root).Str("/proc/pressure/memory");
  if (!Exists(machine.c_str()) || !Copy(result->pressure, machine.c_str())) {
    result->pressure[0] = '\0';
  }
}

void Smaller(const char* file, uint64_t* limit) {
  TextBuffer path = NewPath();
  path.Str(directory).Str(file);
  const uint64_t value = ReadNumber(path.c_str());
  if (value < *limit) *limit = value;
}

void ReadLimits(const char* root, Cgroup* result) {
  if (!FindGroup(root) || !FindMount(root, group.v2)) {
    FindPressure(root, "", result);
    return;
  }
  TextBuffer text(directory, sizeof(directory));
  text.Str(root).Str(mount.point);
  const size_t shortest = text.size();
  text.Str(BelowMount());
  if (text.truncated()) return;
  FindPressure(root, group.v2 ? directory : "", result);
  // A limit of any group above holds too.
  for (size_t length = text.size(); length >= shortest; --length) {
    if (length != shortest && length != text.size() && directory[length] != '/') continue;
    directory[length] = '\0';
    if (group.v2) {
      Smaller("/memory.max", &result->limit_bytes);
      Smaller("/memory.high", &result->limit_bytes);
    } else {
      Smaller("/memory.limit_in_bytes", &result->limit_bytes);
    }
  }
}

}  // namespace

bool ReadCgroup(const char* root, Cgroup* result) {
  if (reader_is_at_it.exchange(true, std::memory_order_acquire)) return false;
  result->limit_bytes = kNoLimit;
  result->pressure[0] = '\0';
  ReadLimits(root, result);
  reader_is_at_it.store(false, std::memory_order_release);
  return true;
}

int ReadPressure(const char* path) {
  char text[128];
  const size_t size = path[0] == '\0' ? 0 : File(path).Read(text, sizeof(text) - 1);
  text[size] = '\0';
  constexpr char kBefore[] = "some avg10=";
  if (strncmp(text, kBefore, sizeof(kBefore) - 1) != 0) return -1;
  const char* at = text + sizeof(kBefore) - 1;
  if (*at < '0' || *at > '9') return -1;
  int hundredths = 0;
  int decimals = -1;  // the point has not come yet
  for (; decimals < 2; ++at) {
    if (*at == '.' && decimals < 0) {
      decimals = 0;
    } else if (*at >= '0' && *at <= '9') {
      hundredths = hundredths * 10 + (*at - '0');
      if (hundredths > 100'000) return -1;
      if (decimals >= 0) ++decimals;
    } else {
      break;
    }
  }
  for (int i = decimals < 0 ? 0 : decimals; i < 2; ++i) hundredths *= 10;
  return hundredths > 10'000 ? 10'000 : hundredths;
}

void ForgetReaders() { reader_is_at_it.store(false, std::memory_order_relaxed); }

}  // namespace pcmalloc::release
