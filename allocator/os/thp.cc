// SPDX-License-Identifier: Apache-2.0
#include "allocator/os/thp.h"

#include <string.h>

#include "allocator/base/file.h"
#include "allocator/base/text.h"
#include "allocator/os/memory.h"

namespace pcmalloc::os {
namespace {

// The word in brackets, or null.
const char* Chosen(const char* text, size_t length, size_t* word_length) {
  const char* const open = static_cast<const char*>(memchr(text, '[', length));
  if (open == nullptr) return nullptr;
  const char* const word = open + 1;
  const char* const close =
      static_cast<const char*>(memchr(word, ']', length - static_cast<size_t>(word - text)));
  if (close == nullptr) return nullptr;
  *word_length = static_cast<size_t>(close - word);
  return word;
}

bool Is(const char* word, size_t length, const char* text) {
  return strlen(text) == length && memcmp(word, text, length) == 0;
}

// 0 where there is no such file.
size_t ReadFile(const char* folder, const char* name, char* buffer, size_t size) {
  Text<256> path;
  path.Str(folder).Str(name);
  return File(path.c_str()).Read(buffer, size);
}

// What prctl(PR_SET_THP_DISABLE) did, from a file: sandboxes that let a program open files need not
// know prctl. Since Linux 5.0; before, asking is in vain and does no harm.
bool SwitchedOffForProcess() {
  return File("/proc/self/status").ByteAfter("\nTHP_enabled:\t") == '0';
}

}  // namespace

HugePages ParseHugePages(const char* text, size_t length) {
  size_t word_length;
  const char* const word = Chosen(text, length, &word_length);
  if (word == nullptr) return HugePages::kOnRequest;
  if (Is(word, word_length, "always")) return HugePages::kAlways;
  if (Is(word, word_length, "never")) return HugePages::kNever;
  return HugePages::kOnRequest;
}

HugePages FindHugePages(const char* folder) {
  // A filter of system calls is no reason to do without: every container has one. Opening files is
  // all that is asked of it.
  if (KernelPageSize() != 4096) return HugePages::kNever;
  if (SwitchedOffForProcess()) return HugePages::kNever;
  char text[128];
  size_t length = ReadFile(folder, "/hpage_pmd_size", text, sizeof(text));
  if (length != 0 && !Is(text, length, "2097152\n")) return HugePages::kNever;
  length = ReadFile(folder, "/hugepages-2048kB/enabled", text, sizeof(text));
  size_t word_length;
  const char* const word = Chosen(text, length, &word_length);
  if (word == nullptr || Is(word, word_length, "inherit")) {
    length = ReadFile(folder, "/enabled", text, sizeof(text));
  }
  return ParseHugePages(text, length);
}

}  // namespace pcmalloc::os
