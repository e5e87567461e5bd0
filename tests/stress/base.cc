// SPDX-License-Identifier: Apache-2.0
#include "tests/stress/base.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

namespace stress {
namespace {

uint64_t start_ticks;
uint64_t start_ns;

}  // namespace

void* MapOrDie(size_t bytes) {
  void* p = mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (p == MAP_FAILED) {
    Message message;
    message.Add("double_alloc_stress: cannot map %zu bytes for its own books: errno %d\n", bytes,
                errno);
    message.Write(STDERR_FILENO);
    _exit(2);
  }
  return p;
}

void StartClock() {
  start_ns = NowNs();
  start_ticks = Ticks();
}

uint64_t TicksToNs(uint64_t ticks) {
  const uint64_t passed_ns = NowNs() - start_ns;
  const uint64_t passed_ticks = Ticks() - start_ticks;
  if (passed_ticks == 0) return 0;
  return static_cast<uint64_t>(static_cast<double>(ticks) * static_cast<double>(passed_ns) /
                               static_cast<double>(passed_ticks));
}

Message& Message::Add(const char* format, ...) {
  va_list args;
  va_start(args, format);
  const int n = vsnprintf(text_ + size_, sizeof(text_) - size_, format, args);
  va_end(args);
  if (n > 0) size_ += static_cast<size_t>(n);
  if (size_ >= sizeof(text_)) size_ = sizeof(text_) - 1;
  return *this;
}

Message& Message::Duration(uint64_t ns) {
  const unsigned long long n = ns;
  if (n < 1000) return Add("%llu ns", n);
  if (n < 1000000) return Add("%llu.%03llu us", n / 1000, n % 1000);
  if (n < 1000000000) return Add("%llu.%03llu ms", n / 1000000, n / 1000 % 1000);
  return Add("%llu.%03llu s", n / 1000000000, n / 1000000 % 1000);
}

void Message::Write(int fd) const {
  size_t done = 0;
  while (done < size_) {
    const ssize_t n = write(fd, text_ + done, size_ - done);
    if (n > 0) {
      done += static_cast<size_t>(n);
    } else if (n == 0 || errno != EINTR) {
      return;
    }
  }
}

}  // namespace stress
