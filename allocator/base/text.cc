// SPDX-License-Identifier: Apache-2.0
#include "allocator/base/text.h"

#include <errno.h>
#include <string.h>

namespace pcmalloc {

TextBuffer& TextBuffer::Str(const char* text, size_t length) {
  const size_t room = limit_ - size_;
  if (length > room) {
    length = room;
    truncated_ = true;
  }
  memcpy(begin_ + size_, text, length);
  size_ += length;
  begin_[size_] = '\0';
  return *this;
}

TextBuffer& TextBuffer::Str(const char* text) {
  if (text == nullptr) text = "(null)";
  return Str(text, strlen(text));
}

TextBuffer& TextBuffer::Dec(uint64_t value, int width) {
  char digits[20];
  int n = 0;
  do {
    digits[sizeof(digits) - ++n] = static_cast<char>('0' + value % 10);
    value /= 10;
  } while (value != 0);
  for (int i = n; i < width; ++i) Str(" ", 1);
  return Str(digits + sizeof(digits) - n, n);
}

TextBuffer& TextBuffer::Int(int64_t value) {
  if (value >= 0) return Dec(static_cast<uint64_t>(value));
  return Str("-", 1).Dec(0 - static_cast<uint64_t>(value));
}

TextBuffer& TextBuffer::Hex(uint64_t value) {
  char digits[16];
  int n = 0;
  do {
    digits[sizeof(digits) - ++n] = "0123456789abcdef"[value & 15];
    value >>= 4;
  } while (value != 0);
  return Str("0x", 2).Str(digits + sizeof(digits) - n, n);
}

TextBuffer& TextBuffer::Fixed(uint64_t numerator, uint64_t denominator, int decimals) {
  if (denominator == 0) return Str("-", 1);
  Dec(numerator / denominator);
  if (decimals == 0) return *this;
  Str(".", 1);
  uint64_t rest = numerator % denominator;
  for (int i = 0; i < decimals; ++i) {
    // Divides first where the product would overflow; the last digits of huge ratios do not matter.
    if (rest > UINT64_MAX / 10) {
      rest /= 10;
      denominator = denominator / 10 + 1;
    }
    rest *= 10;
    Dec(rest / denominator);
    rest %= denominator;
  }
  return *this;
}

TextBuffer& TextBuffer::Bytes(uint64_t bytes) {
  static constexpr char kUnits[][5] = {" B", " KiB", " MiB", " GiB", " TiB", " PiB", " EiB"};
  int unit = 0;
  while (unit < 6 && (bytes >> (10 * unit)) >= 1024) ++unit;
  if (unit == 0) return Dec(bytes).Str(kUnits[0]);
  return Fixed(bytes, uint64_t{1} << (10 * unit), 1).Str(kUnits[unit]);
}

TextBuffer& TextBuffer::Pad(size_t column) {
  size_t line_start = size_;
  while (line_start > 0 && begin_[line_start - 1] != '\n') --line_start;
  for (size_t used = size_ - line_start; used < column; ++used) Str(" ", 1);
  return *this;
}

TextBuffer& TextBuffer::ErrorName(int error) {
  // strerrorname_np is glibc's alone, strerror may allocate and translate.
  struct Name {
    int error;
    char name[12];  // no pointer: it would be a relocation in every process
  };
  static constexpr Name kNames[] = {
      {EPERM, "EPERM"},   {ENOENT, "ENOENT"}, {EINTR, "EINTR"},   {EAGAIN, "EAGAIN"},
      {ENOMEM, "ENOMEM"}, {EACCES, "EACCES"}, {EFAULT, "EFAULT"}, {EBUSY, "EBUSY"},
      {EEXIST, "EEXIST"}, {EINVAL, "EINVAL"}, {ENOSYS, "ENOSYS"}, {EOPNOTSUPP, "EOPNOTSUPP"},
  };
  for (const Name& known : kNames) {
    if (known.error == error) return Str(known.name);
  }
  return Str("error ").Int(error);
}

}  // namespace pcmalloc
