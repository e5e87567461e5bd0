// SPDX-License-Identifier: Apache-2.0
#include "allocator/config/keys.h"

#include <string.h>

namespace pcmalloc {
namespace {

// A piece of the text that is being parsed.
struct Piece {
  const char* begin;
  size_t size;
};

bool operator==(Piece piece, const char* text) {
  return strlen(text) == piece.size && memcmp(piece.begin, text, piece.size) == 0;
}

bool IsBlank(char c) { return c == ' ' || c == '\t' || c == '\n'; }

Piece Trim(Piece piece) {
  while (piece.size > 0 && IsBlank(piece.begin[0])) ++piece.begin, --piece.size;
  while (piece.size > 0 && IsBlank(piece.begin[piece.size - 1])) --piece.size;
  return piece;
}

struct Suffix {
  char text[8];  // no pointer: it would be a relocation in every process
  uint64_t factor;
};
constexpr Suffix kByteSuffixes[] = {
    {"G", 1 << 30}, {"g", 1 << 30}, {"M", 1 << 20}, {"m", 1 << 20},
    {"K", 1 << 10}, {"k", 1 << 10}, {"", 1},
};
constexpr Suffix kDurationSuffixes[] = {{"s", 1000}, {"ms", 1}};
constexpr Suffix kNoSuffixes[] = {{"", 1}};

template <size_t kCount>
bool ParseNumber(Piece piece, const Suffix (&suffixes)[kCount], uint64_t* value) {
  uint64_t number = 0;
  size_t digits = 0;
  while (digits < piece.size && piece.begin[digits] >= '0' && piece.begin[digits] <= '9') {
    if (__builtin_mul_overflow(number, uint64_t{10}, &number) ||
        __builtin_add_overflow(number, static_cast<uint64_t>(piece.begin[digits] - '0'), &number)) {
      return false;
    }
    ++digits;
  }
  if (digits == 0) return false;
  const Piece rest = {piece.begin + digits, piece.size - digits};
  if (rest.size == 0 && number == 0) {  // zero needs no unit
    *value = 0;
    return true;
  }
  for (const Suffix& suffix : suffixes) {
    if (rest == suffix.text) return !__builtin_mul_overflow(number, suffix.factor, value);
  }
  return false;
}

bool ParseValue(const Key& key, Piece piece, uint64_t* value) {
  switch (key.unit) {
    case Unit::kBool:
      *value = piece == "true";
      return *value == 1 || piece == "false";
    case Unit::kChoice:
      for (*value = 0; *value <= key.highest; ++*value) {
        if (piece == key.choices[*value]) return true;
      }
      return false;
    case Unit::kCount:
      return ParseNumber(piece, kNoSuffixes, value);
    case Unit::kBytes:
      return ParseNumber(piece, kByteSuffixes, value);
    case Unit::kDuration:
      if (piece == "never") {
        *value = kNever;
        return true;
      }
      return ParseNumber(piece, kDurationSuffixes, value);
    case Unit::kPath:
      *value = piece.size;
      return true;
  }
  return false;
}

void SetField(const Key& key, void* fields, uint64_t value, Piece piece) {
  char* const field = static_cast<char*>(fields) + key.offset;
  switch (key.unit) {
    case Unit::kBool: {
      const bool flag = value != 0;
      memcpy(field, &flag, sizeof(flag));
      break;
    }
    case Unit::kChoice: {
      const uint8_t choice = static_cast<uint8_t>(value);
      memcpy(field, &choice, sizeof(choice));
      break;
    }
    case Unit::kCount:
    case Unit::kBytes:
    case Unit::kDuration:
      memcpy(field, &value, sizeof(value));
      break;
    case Unit::kPath:
      memcpy(field, piece.begin, piece.size);
      field[piece.size] = '\0';
      break;
  }
}

// What the user wrote, fit for a terminal: no control characters, and not a page of it.
void AppendQuoted(Piece piece, TextBuffer& out) {
  constexpr size_t kMost = 60;
  out.Str("\"");
  for (size_t i = 0; i < piece.size && i < kMost; ++i) {
    const char c = piece.begin[i];
    const char shown = c >= ' ' && c <= '~' ? c : '?';
    out.Str(&shown, 1);
  }
  out.Str(piece.size > kMost ? "...\"" : "\"");
}

// Number of characters to insert, delete or replace to make one of the other, if at most `most`.
int Distance(Piece a, const char* b, int most) {
  constexpr size_t kLongest = 40;
  const size_t b_size = strlen(b);
  if (a.size > kLongest || b_size > kLongest) return most + 1;
  int row[kLongest + 1];
  for (size_t j = 0; j <= b_size; ++j) row[j] = static_cast<int>(j);
  for (size_t i = 1; i <= a.size; ++i) {
    int diagonal = row[0];
    row[0] = static_cast<int>(i);
    for (size_t j = 1; j <= b_size; ++j) {
      const int above = row[j];
      int best = diagonal + (a.begin[i - 1] == b[j - 1] ? 0 : 1);
      if (above + 1 < best) best = above + 1;
      if (row[j - 1] + 1 < best) best = row[j - 1] + 1;
      row[j] = best;
      diagonal = above;
    }
  }
  return row[b_size] <= most ? row[b_size] : most + 1;
}

const Key* Closest(KeyTable table, Piece name) {
  // One slip in three letters is a slip; more is another word.
  int most = static_cast<int>(name.size / 3) + 1;
  const Key* closest = nullptr;
  for (const Key& key : table) {
    const int distance = Distance(name, key.name, most);
    if (distance > most) continue;
    closest = &key;
    most = distance - 1;
  }
  return closest;
}

// `value` is null if there was no colon.
void ComplainOfUnknown(KeyTable table, Piece name, const Piece* value, TextBuffer& line) {
  line.Str("key ");
  AppendQuoted(name, line);
  if (value != nullptr) {
    line.Str(" with value ");
    AppendQuoted(*value, line);
  }
  line.Str(" is unknown");
  if (const Key* closest = Closest(table, name); closest != nullptr) {
    line.Str("; did you mean ").Str(closest->name).Str("?");
  } else {
    line.Str(".");
  }
  line.Str(" Accepted keys:");
  const char* separator = " ";
  for (const Key& key : table) {
    line.Str(separator).Str(key.name);
    separator = ", ";
  }
}

// Handles one item. False: not understood, and `line` says why.
bool ParseItem(KeyTable table, void* fields, Piece item, TextBuffer& line) {
  const char* const colon = static_cast<const char*>(memchr(item.begin, ':', item.size));
  Piece name = item, value = {item.begin + item.size, 0};
  if (colon != nullptr) {
    name = Trim({item.begin, static_cast<size_t>(colon - item.begin)});
    value = Trim({colon + 1, static_cast<size_t>(item.begin + item.size - colon - 1)});
  }
  for (const Key& key : table) {
    if (!(name == key.name)) continue;
    uint64_t number;
    if (colon != nullptr && ParseValue(key, value, &number) && number >= key.lowest &&
        number <= key.highest) {
      SetField(key, fields, number, value);
      return true;
    }
    line.Str("key \"").Str(key.name);
    if (colon == nullptr) {
      line.Str("\" has no value");
    } else {
      line.Str("\" does not take the value ");
      AppendQuoted(value, line);
    }
    line.Str(". Accepted: ");
    AppendAccepted(key, line);
    return false;
  }
  ComplainOfUnknown(table, name, colon == nullptr ? nullptr : &value, line);
  return false;
}

}  // namespace

int ParseKeys(KeyTable table, void* fields, const char* text,
              void (*complain)(const TextBuffer& line)) {
  int complaints = 0;
  if (text == nullptr) return complaints;
  while (true) {
    const size_t length = strcspn(text, ",");
    const Piece item = Trim({text, length});
    if (item.size > 0) {
      Text<> line;
      if (!ParseItem(table, fields, item, line)) {
        ++complaints;
        complain(line);
      }
    }
    if (text[length] == '\0') return complaints;
    text += length + 1;
  }
}

void AppendValue(const Key& key, uint64_t value, TextBuffer& out) {
  switch (key.unit) {
    case Unit::kBool:
      out.Str(value != 0 ? "true" : "false");
      break;
    case Unit::kChoice:
      out.Str(value <= key.highest ? key.choices[value] : nullptr);
      break;
    case Unit::kCount:
      out.Dec(value);
      break;
    case Unit::kBytes: {
      static constexpr char kLarger[][2] = {"K", "M", "G"};
      const char* suffix = "";
      for (const char(&larger)[2] : kLarger) {
        if (value == 0 || value % 1024 != 0) break;
        value /= 1024;
        suffix = larger;
      }
      out.Dec(value).Str(suffix);
      break;
    }
    case Unit::kDuration:
      if (value == kNever) {
        out.Str("never");
      } else if (value % 1000 == 0) {
        out.Dec(value / 1000).Str("s");
      } else {
        out.Dec(value).Str("ms");
      }
      break;
    case Unit::kPath:
      out.Str(value == 0 ? "(none)" : "(set)");
      break;
  }
}

void AppendAccepted(const Key& key, TextBuffer& out) {
  switch (key.unit) {
    case Unit::kBool:
      out.Str("true or false");
      return;
    case Unit::kChoice:
      for (uint64_t i = 0; i <= key.highest; ++i) {
        if (i > 0) out.Str(i == key.highest ? " or " : ", ");
        out.Str(key.choices[i]);
      }
      return;
    case Unit::kCount:
      out.Str("a number from ");
      break;
    case Unit::kBytes:
      out.Str("bytes, or K, M, G, from ");
      break;
    case Unit::kDuration:
      if (key.highest == kNever) {
        out.Str("a time in ms or s, or never");
        return;
      }
      out.Str("a time in ms or s from ");
      break;
    case Unit::kPath:
      out.Str("a path of at most ").Dec(key.highest).Str(" characters");
      return;
  }
  AppendValue(key, key.lowest, out);
  out.Str(" to ");
  AppendValue(key, key.highest, out);
}

uint64_t FieldValue(const Key& key, const void* fields) {
  const char* const field = static_cast<const char*>(fields) + key.offset;
  uint64_t value = 0;
  if (key.unit == Unit::kBool || key.unit == Unit::kChoice) {
    uint8_t byte;
    memcpy(&byte, field, sizeof(byte));
    return byte;
  }
  if (key.unit == Unit::kPath) return *field != '\0';
  memcpy(&value, field, sizeof(value));
  return value;
}

void AppendHelp(KeyTable table, TextBuffer& out) {
  for (const Key& key : table) {
    out.Str(key.name).Str(":");
    AppendValue(key, key.default_value, out);
    out.Str("\n    ").Str(key.help).Str("\n    accepted: ");
    AppendAccepted(key, out);
    out.Str("\n");
  }
}

}  // namespace pcmalloc
