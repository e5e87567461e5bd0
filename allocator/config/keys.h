// SPDX-License-Identifier: Apache-2.0
//
// Purpose: the parser behind PCMALLOC_CONF: text "key:value,key:value" into the fields of a struct,
//   driven by a table of keys.
//
//      table row      {"decay", kDuration, offset of the field, 0, 60000, ...}
//      text           "decay:5s"      ->  field = 5000
//
// Invariants: whatever the text, only fields named by the table are written, and only with values
//   in range; nothing is allocated; errno is kept; the text is not changed.
// Cost: once at start.
#ifndef PCMALLOC_ALLOCATOR_CONFIG_KEYS_H_
#define PCMALLOC_ALLOCATOR_CONFIG_KEYS_H_

#include <stddef.h>
#include <stdint.h>

#include "allocator/base/text.h"

namespace pcmalloc {

enum class Unit : uint8_t { kBool, kChoice, kCount, kBytes, kDuration, kPath };

// The value of a kDuration key that is written "never"; accepted where `highest` is that large.
inline constexpr uint64_t kNever = UINT64_MAX;

// The field of a kPath key: a file name without ',' in it, empty by default.
struct Path {
  static constexpr size_t kMost = 255;
  char text[kMost + 1] = {};

  constexpr explicit operator uint64_t() const { return text[0] != '\0'; }
};

struct Key {
  const char* name;
  Unit unit;
  size_t offset;           // of the field in its struct: bool, uint8_t, uint64_t or Path by unit
  uint64_t default_value;  // the unit's base: bytes, milliseconds, number of the choice
  uint64_t lowest;
  uint64_t highest;
  const char* const* choices;  // kChoice: highest + 1 names
  const char* help;
};

struct KeyTable {
  const Key* first;
  size_t count;

  const Key* begin() const { return first; }
  const Key* end() const { return first + count; }
};

// Sets the fields that `text` names; the rest stays. Each item that is not understood is left out
// and told to `complain` in one line that names key, value and what is accepted. Returns the number
// of such items. A key given twice: the last one counts. Blanks around keys and values and empty
// items are skipped. Null text is empty.
int ParseKeys(KeyTable table, void* fields, const char* text,
              void (*complain)(const TextBuffer& line));

// "auto, legacy, locked", "true or false", "4K to 1G".
void AppendAccepted(const Key& key, TextBuffer& out);

// A value as one would write it: "legacy", "true", "64M", "5s".
void AppendValue(const Key& key, uint64_t value, TextBuffer& out);

// The field's value now, for AppendValue(); of a kPath key 1 if it is set.
uint64_t FieldValue(const Key& key, const void* fields);

// One paragraph a key: name, accepted values, default, help. For people.
void AppendHelp(KeyTable table, TextBuffer& out);

}  // namespace pcmalloc

#endif  // PCMALLOC_ALLOCATOR_CONFIG_KEYS_H_
