// SPDX-License-Identifier: Apache-2.0
//
// Purpose: text without allocation, for messages, statistics and JSON: a fixed buffer that numbers
//   and strings are appended to.
// Invariants: never allocates, never writes past its buffer (what does not fit is cut), always
//   NUL-terminated; async-signal-safe.
// Cost: a kilobyte of stack, or whatever buffer the caller lends.
#ifndef PCMALLOC_ALLOCATOR_BASE_TEXT_H_
#define PCMALLOC_ALLOCATOR_BASE_TEXT_H_

#include <stddef.h>
#include <stdint.h>

namespace pcmalloc {

class TextBuffer {
 public:
  // `size` >= 1; the buffer outlives this object.
  TextBuffer(char* buffer, size_t size) : begin_(buffer), limit_(size - 1) { begin_[0] = '\0'; }
  TextBuffer(const TextBuffer&) = delete;
  TextBuffer& operator=(const TextBuffer&) = delete;

  TextBuffer& Str(const char* text);                 // null prints as (null)
  TextBuffer& Str(const char* text, size_t length);  // need not end in NUL
  TextBuffer& Dec(uint64_t value, int width = 0);    // right-aligned in `width` columns
  TextBuffer& Int(int64_t value);
  TextBuffer& Hex(uint64_t value);  // 0x...
  TextBuffer& Ptr(const void* p) { return Hex(reinterpret_cast<uintptr_t>(p)); }
  TextBuffer& Bytes(uint64_t bytes);  // "48 B", "1.5 KiB", "2.0 GiB"
  TextBuffer& Fixed(uint64_t numerator, uint64_t denominator, int decimals);  // quotient
  TextBuffer& Pad(size_t column);    // spaces up to a column counted from the last newline
  TextBuffer& ErrorName(int error);  // "ENOMEM", or "error 71" for a rare one

  const char* c_str() const { return begin_; }
  size_t size() const { return size_; }
  bool truncated() const { return truncated_; }

 private:
  char* const begin_;
  const size_t limit_;
  size_t size_ = 0;
  bool truncated_ = false;
};

// A TextBuffer that brings its own storage.
template <size_t kSize = 1024>
class Text : public TextBuffer {
 public:
  Text() : TextBuffer(storage_, kSize) {}

 private:
  char storage_[kSize];
};

}  // namespace pcmalloc

#endif  // PCMALLOC_ALLOCATOR_BASE_TEXT_H_
