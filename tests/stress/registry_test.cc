// SPDX-License-Identifier: Apache-2.0
#include "tests/stress/registry.h"

#include <string.h>

#include <atomic>
#include <map>
#include <thread>
#include <vector>

#include "gtest/gtest.h"
#include "tests/stress/base.h"
#include "tests/stress/block.h"

namespace stress {
namespace {

constexpr uintptr_t kBase = uintptr_t{0x7f12} << 32;
constexpr uintptr_t kChunk = uintptr_t{64} << 20;

class RegistryTest : public ::testing::Test {
 protected:
  void SetUp() override { Registry::Init(); }
};

TEST_F(RegistryTest, SecondClaimFailsAndClaimsNothing) {
  EXPECT_EQ(Registry::Claim(kBase, 64), 0u);
  EXPECT_EQ(Registry::Claim(kBase, 64), kBase);
  EXPECT_EQ(Registry::Claim(kBase + 56, 1), kBase + 56);
  EXPECT_EQ(Registry::Claim(kBase - 4096, 8192), kBase);
  EXPECT_EQ(Registry::CountClaimed(), 8u);
  EXPECT_EQ(Registry::Claim(kBase + 64, 8), 0u);
  EXPECT_EQ(Registry::Claim(kBase - 8, 8), 0u);
  EXPECT_TRUE(Registry::Release(kBase, 64));
  EXPECT_EQ(Registry::CountClaimed(), 2u);
  EXPECT_EQ(Registry::Claim(kBase, 64), 0u);
}

TEST_F(RegistryTest, ReleaseOfWhatIsNotClaimedIsNoticed) {
  EXPECT_FALSE(Registry::Release(kBase, 8));
  EXPECT_EQ(Registry::Claim(kBase, 16), 0u);
  EXPECT_FALSE(Registry::Release(kBase, 24));
}

TEST_F(RegistryTest, BlocksAcrossChunksAreClaimedWhole) {
  const uintptr_t address = kBase + kChunk - 1024;
  EXPECT_EQ(Registry::Claim(address, 2048), 0u);
  EXPECT_EQ(Registry::CountClaimed(), 256u);
  EXPECT_EQ(Registry::Claim(kBase + kChunk + 1016, 8), kBase + kChunk + 1016);
  EXPECT_EQ(Registry::Claim(kBase + kChunk + 1024, 8), 0u);
  EXPECT_TRUE(Registry::Release(address, 2048));
  EXPECT_EQ(Registry::CountClaimed(), 1u);
}

// Against a map of bytes, with ranges that start and end anywhere.
TEST_F(RegistryTest, AgreesWithAModel) {
  Random random(7);
  std::vector<bool> taken(1 << 14);
  std::map<uintptr_t, size_t> held;
  for (int i = 0; i < 200000; ++i) {
    if (!held.empty() && random.OneIn(2)) {
      auto it = held.lower_bound(random.Below(1 << 14) * 8);
      if (it == held.end()) it = held.begin();
      EXPECT_TRUE(Registry::Release(kBase + it->first, it->second));
      for (size_t g = it->first / 8; g < (it->first + it->second + 7) / 8; ++g) taken[g] = false;
      held.erase(it);
      continue;
    }
    const uintptr_t at = random.Below((1 << 14) - 300) * 8;
    const size_t size = 1 + random.Below(random.OneIn(8) ? 2400 : 80);
    uintptr_t expected = 0;
    for (size_t g = at / 8; g < (at + size + 7) / 8 && expected == 0; ++g) {
      if (taken[g]) expected = kBase + g * 8;
    }
    ASSERT_EQ(Registry::Claim(kBase + at, size), expected);
    if (expected != 0) continue;
    held[at] = size;
    for (size_t g = at / 8; g < (at + size + 7) / 8; ++g) taken[g] = true;
  }
}

// However many try, one wins.
TEST_F(RegistryTest, RacingClaimsHaveOneWinner) {
  constexpr int kRounds = 20000;
  std::vector<std::atomic<int>> winners(kRounds);
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      for (int round = 0; round < kRounds; ++round) {
        // Ranges that differ but share the granule in the middle.
        const uintptr_t middle = kBase + static_cast<uintptr_t>(round) * 1024 + 512;
        const uintptr_t reach = static_cast<uintptr_t>(t) * 40;
        if (Registry::Claim(middle - reach, 2 * reach + 8) == 0) winners[round].fetch_add(1);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (int round = 0; round < kRounds; ++round) ASSERT_EQ(winners[round].load(), 1) << round;
}

TEST(TagTest, KeepsItsParts) {
  const Tag tag = Tag::Make(3999, true, kMaxBlockSize, 0x7fffffff);
  EXPECT_EQ(tag.thread(), 3999u);
  EXPECT_TRUE(tag.handler());
  EXPECT_EQ(tag.size(), kMaxBlockSize);
  EXPECT_EQ(tag.sequence(), 0x7fffffffu);
  EXPECT_EQ(TagOfWord(StampWord(tag, 12345), 12345).bits(), tag.bits());
}

// Every byte of a small block counts; of a large one both ends and points between.
TEST(StampTest, DamageIsNoticed) {
  const Tag tag = Tag::Make(1, false, 4096, 5);
  for (uint32_t size : {1u, 7u, 8u, 9u, 100u, 511u, 512u, 513u, 1000u, 5000u, 100003u}) {
    for (bool dense : {false, true}) {
      std::vector<uint64_t> memory(size / 8 + 2, 0x7777777777777777u);
      uint8_t* const data = reinterpret_cast<uint8_t*>(memory.data());
      const uintptr_t origin = reinterpret_cast<uintptr_t>(data);
      WriteStamp(data, tag, size, dense);
      Mismatch mismatch;
      EXPECT_TRUE(CheckStamp(data, origin, tag, size, dense, size, &mismatch)) << size;
      for (uint32_t i = size; i < memory.size() * 8; ++i) EXPECT_EQ(data[i], 0x77) << size;
      uint32_t noticed = 0;
      for (uint32_t i = 0; i < size; ++i) {
        data[i] ^= 0x10;
        const bool intact = CheckStamp(data, origin, tag, size, dense, size, &mismatch);
        if (!intact) {
          ++noticed;
          EXPECT_EQ(mismatch.offset, i & ~7u);
        }
        data[i] ^= 0x10;
        if (i < 64 || i + 56 > size) {
          EXPECT_FALSE(intact) << size << " at " << i;
        }
      }
      if (dense || size <= 512) {
        EXPECT_EQ(noticed, size);
      } else {
        EXPECT_GE(noticed, std::min(size, 128u + 6 * 8));
      }
    }
  }
}

// As after realloc: moved, and cut at any byte.
TEST(StampTest, SurvivesAMoveAndACut) {
  const Tag tag = Tag::Make(2, false, 700, 9);
  std::vector<uint64_t> from(200), to(200);
  uint8_t* const data = reinterpret_cast<uint8_t*>(from.data());
  WriteStamp(data, tag, 700, false);
  for (uint32_t kept = 1; kept <= 700; ++kept) {
    std::fill(to.begin(), to.end(), 0);
    memcpy(to.data(), data, kept);
    Mismatch mismatch;
    EXPECT_TRUE(CheckStamp(reinterpret_cast<uint8_t*>(to.data()), reinterpret_cast<uintptr_t>(data),
                           tag, 700, false, kept, &mismatch))
        << kept;
  }
}

}  // namespace
}  // namespace stress
