// SPDX-License-Identifier: Apache-2.0
#include "allocator/base/text.h"

#include <errno.h>
#include <string.h>

#include <string>

#include "gtest/gtest.h"

namespace pcmalloc {
namespace {

template <typename Append>
std::string Made(Append append) {
  Text<256> text;
  append(text);
  EXPECT_FALSE(text.truncated());
  EXPECT_EQ(text.size(), strlen(text.c_str()));
  return text.c_str();
}

TEST(Text, Strings) {
  EXPECT_EQ(Made([](TextBuffer&) {}), "");
  EXPECT_EQ(Made([](TextBuffer& t) { t.Str("a").Str("").Str("bc"); }), "abc");
  EXPECT_EQ(Made([](TextBuffer& t) { t.Str("abcdef", 3); }), "abc");
  EXPECT_EQ(Made([](TextBuffer& t) { t.Str(nullptr); }), "(null)");
}

TEST(Text, Numbers) {
  EXPECT_EQ(Made([](TextBuffer& t) { t.Dec(0); }), "0");
  EXPECT_EQ(Made([](TextBuffer& t) { t.Dec(UINT64_MAX); }), "18446744073709551615");
  EXPECT_EQ(Made([](TextBuffer& t) { t.Dec(42, 5).Dec(123456, 3); }), "   42123456");
  EXPECT_EQ(Made([](TextBuffer& t) { t.Int(-1).Str(" ").Int(7); }), "-1 7");
  EXPECT_EQ(Made([](TextBuffer& t) { t.Int(INT64_MIN); }), "-9223372036854775808");
  EXPECT_EQ(Made([](TextBuffer& t) { t.Hex(0).Str(" ").Hex(0xdeadbeef); }), "0x0 0xdeadbeef");
  EXPECT_EQ(Made([](TextBuffer& t) { t.Hex(UINT64_MAX); }), "0xffffffffffffffff");
  EXPECT_EQ(Made([](TextBuffer& t) { t.Ptr(nullptr); }), "0x0");
}

TEST(Text, Quotients) {
  EXPECT_EQ(Made([](TextBuffer& t) { t.Fixed(7, 2, 3); }), "3.500");
  EXPECT_EQ(Made([](TextBuffer& t) { t.Fixed(2, 3, 4); }), "0.6666");
  EXPECT_EQ(Made([](TextBuffer& t) { t.Fixed(1000, 7, 0); }), "142");
  EXPECT_EQ(Made([](TextBuffer& t) { t.Fixed(5, 0, 2); }), "-");
  EXPECT_EQ(Made([](TextBuffer& t) { t.Fixed(UINT64_MAX - 1, UINT64_MAX, 2); }), "0.99");
}

TEST(Text, Bytes) {
  EXPECT_EQ(Made([](TextBuffer& t) { t.Bytes(0); }), "0 B");
  EXPECT_EQ(Made([](TextBuffer& t) { t.Bytes(1023); }), "1023 B");
  EXPECT_EQ(Made([](TextBuffer& t) { t.Bytes(1024); }), "1.0 KiB");
  EXPECT_EQ(Made([](TextBuffer& t) { t.Bytes(1536); }), "1.5 KiB");
  EXPECT_EQ(Made([](TextBuffer& t) { t.Bytes(uint64_t{2} << 30); }), "2.0 GiB");
  EXPECT_EQ(Made([](TextBuffer& t) { t.Bytes(UINT64_MAX); }), "15.9 EiB");
}

TEST(Text, PadsFromTheLastNewline) {
  EXPECT_EQ(Made([](TextBuffer& t) { t.Str("ab").Pad(4).Str("c\nd").Pad(3).Str("e"); }),
            "ab  c\nd  e");
  EXPECT_EQ(Made([](TextBuffer& t) { t.Str("abcdef").Pad(3).Str("g"); }), "abcdefg");
}

TEST(Text, ErrorNames) {
  EXPECT_EQ(Made([](TextBuffer& t) { t.ErrorName(ENOMEM); }), "ENOMEM");
  EXPECT_EQ(Made([](TextBuffer& t) { t.ErrorName(EPROTO); }), "error 71");
}

// Every length around the end: what does not fit is cut, the byte behind the buffer is not touched.
TEST(Text, NeverWritesPastItsBuffer) {
  for (size_t size = 1; size < 40; ++size) {
    char storage[64];
    memset(storage, '#', sizeof(storage));
    TextBuffer text(storage, size);
    text.Str("head ").Dec(123456, 9).Str(" ").Hex(0xabcdef).Bytes(5000).Pad(50);
    const std::string whole = "head    123456 0xabcdef4.8 KiB" + std::string(20, ' ');
    EXPECT_EQ(text.c_str(), whole.substr(0, size - 1));
    EXPECT_EQ(text.size(), size - 1);
    EXPECT_TRUE(text.truncated());
    for (size_t i = size; i < sizeof(storage); ++i) ASSERT_EQ(storage[i], '#') << size;
  }
}

TEST(Text, AFullBufferIsNotATruncatedOne) {
  char storage[4];
  TextBuffer text(storage, sizeof(storage));
  text.Str("abc");
  EXPECT_FALSE(text.truncated());
  text.Str("");
  EXPECT_FALSE(text.truncated());
  text.Str("d");
  EXPECT_TRUE(text.truncated());
  EXPECT_STREQ(text.c_str(), "abc");
}

}  // namespace
}  // namespace pcmalloc
