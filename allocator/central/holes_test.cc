// SPDX-License-Identifier: Apache-2.0
#include "allocator/central/holes.h"

#include <algorithm>
#include <iterator>
#include <random>

#include "allocator/os/memory.h"
#include "allocator/sizes/size_classes.h"
#include "gtest/gtest.h"

namespace pcmalloc::central {
namespace {

// Outside of a SpanStore's block.
struct TestSpan : Span {
  TestSpan() : Span{} { free_bits.SetAt(bits); }
  TestSpan(const TestSpan& from) : Span(from) {
    std::copy(std::begin(from.bits), std::end(from.bits), bits);
    free_bits.SetAt(bits);
  }
  uint64_t bits[kMaxObjects / 64] = {};
};

// A span of the class at some address, nothing of it free.
TestSpan MakeSpan(unsigned size_class, uintptr_t start) {
  TestSpan span;
  span.start = start;
  span.pages = static_cast<uint32_t>(SpanPages(size_class));
  span.object_size = static_cast<uint32_t>(ClassSize(size_class));
  const size_t objects = span.bytes() / span.object_size;
  span.objects = static_cast<uint16_t>(objects < Span::kMaxObjects ? objects : Span::kMaxObjects);
  return span;
}

// Behind the last object lies what is not worth a call: it goes with that object.
bool IsFree(const Span& span, size_t object) {
  if (object >= span.objects) object = span.objects - 1u;
  return ((span.free_bits[object / 64] >> (object % 64)) & 1) != 0;
}

// Byte by byte, or rather 16 bytes by 16.
bool UnitIsFree(const Span& span, unsigned shift, unsigned unit) {
  const uintptr_t begin = HoleBase(&span, shift) + (uintptr_t{unit} << shift);
  const uintptr_t end = begin + (uintptr_t{1} << shift);
  if (begin < span.start || end > span.end()) return false;
  for (uintptr_t at = begin; at < end; at += kMinAlignment) {
    if (!IsFree(span, (at - span.start) / span.object_size)) return false;
  }
  return true;
}

TEST(HolesTest, UnitsCoverEverySpan) {
  for (unsigned c = 1; c < kNumClasses; ++c) {
    const TestSpan span = MakeSpan(c, uintptr_t{1} << 40);
    const unsigned shift = HoleShift(&span);
    EXPECT_GE(size_t{1} << shift, os::KernelPageSize());
    EXPECT_LE(span.bytes(), size_t{64} << shift) << c;
    if (span.bytes() <= 64 * os::KernelPageSize()) {
      EXPECT_EQ(size_t{1} << shift, os::KernelPageSize()) << c;
    }
  }
}

TEST(HolesTest, FreeUnitsAreThoseWithoutAnObjectInUse) {
  std::mt19937_64 random(1);
  int some = 0;
  for (unsigned c = 1; c < kNumClasses; ++c) {
    for (int round = 0; round < 60; ++round) {
      // Anywhere between the borders of units.
      TestSpan span = MakeSpan(c, (uintptr_t{1} << 40) + random() % 64 * kPageSize);
      const unsigned percent = round < 10 ? 100 : round < 20 ? 0 : 50 + random() % 50;
      // In runs, or one by one.
      const size_t run = round % 2 == 0 ? 1 : 1 + random() % 40;
      for (size_t object = 0; object < span.objects;) {
        const bool free = random() % 100 < percent;
        for (size_t i = 0; i < run && object < span.objects; ++i, ++object) {
          if (free) span.free_bits[object / 64] |= uint64_t{1} << (object % 64);
        }
      }
      const unsigned shift = HoleShift(&span);
      const uint64_t units = FreeUnits(&span, shift);
      for (unsigned unit = 0; unit < 64; ++unit) {
        ASSERT_EQ((units >> unit) & 1, UnitIsFree(span, shift, unit))
            << "class " << c << ", unit " << unit << ", round " << round;
      }
      some += units != 0 && units != ~uint64_t{0};
    }
  }
  EXPECT_GT(some, 1000);
}

TEST(HolesTest, UnitsOfABlockAreThoseItTouches) {
  const TestSpan span = MakeSpan(SizeClassOf(48 * 1024), uintptr_t{1} << 40);
  const unsigned shift = HoleShift(&span);
  const size_t unit = size_t{1} << shift;
  EXPECT_EQ(UnitsOf(&span, shift, span.start, 1), 1u);
  EXPECT_EQ(UnitsOf(&span, shift, span.start, unit), 1u);
  EXPECT_EQ(UnitsOf(&span, shift, span.start, unit + 1), 3u);
  EXPECT_EQ(UnitsOf(&span, shift, span.start + unit - 1, 2), 3u);
  EXPECT_EQ(UnitsOf(&span, shift, span.start + 5 * unit, unit), uint64_t{1} << 5);
  EXPECT_EQ(BytesOf(&span, UnitsOf(&span, shift, span.start + unit / 2, 3 * unit)), 4 * unit);
  // What lies behind the 64th unit has no bit.
  EXPECT_EQ(UnitsOf(&span, shift, span.start + 63 * unit, 2 * unit), uint64_t{1} << 63);
  EXPECT_EQ(UnitsOf(&span, shift, span.start + 64 * unit, unit), 0u);
}

TEST(HolesTest, LongRunsLeaveOutShortOnes) {
  EXPECT_EQ(LongRuns(0, 1), 0u);
  EXPECT_EQ(LongRuns(0b1011'0111, 1), 0b1011'0111u);
  EXPECT_EQ(LongRuns(0b1011'0111, 2), 0b0011'0111u);
  EXPECT_EQ(LongRuns(0b1011'0111, 3), 0b0000'0111u);
  EXPECT_EQ(LongRuns(0b1011'0111, 4), 0u);
  EXPECT_EQ(LongRuns(~uint64_t{0}, 64), ~uint64_t{0});
  EXPECT_EQ(LongRuns(uint64_t{3} << 62, 2), uint64_t{3} << 62);
}

}  // namespace
}  // namespace pcmalloc::central
