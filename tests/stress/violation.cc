// SPDX-License-Identifier: Apache-2.0
#include "tests/stress/violation.h"

#include <stdarg.h>
#include <stdio.h>
#include <unistd.h>

#include "tests/stress/options.h"

namespace stress {
namespace {

std::atomic<uint64_t> counts[static_cast<int>(Kind::kCount)];
std::atomic<uint64_t> total;
bool fork_child;

void AddOwner(Message& message, const char* role, const Owner& owner) {
  const uint64_t now = Ticks();
  message.Add("  %-6s thread %u%s, sequence %u, block 0x%llx, size %u, allocated on cpu %d, held ",
              role, owner.tag.thread(), owner.tag.handler() ? " (signal handler)" : "",
              owner.tag.sequence(), static_cast<unsigned long long>(owner.address),
              owner.tag.size(), owner.cpu);
  if (owner.until == 0) {
    message.Duration(TicksToNs(now - owner.since)).Add(", still held\n");
  } else {
    message.Duration(TicksToNs(owner.until - owner.since)).Add(", released ");
    message.Duration(TicksToNs(now - owner.until)).Add(" ago\n");
  }
}

}  // namespace

const char* KindName(Kind kind) {
  switch (kind) {
    case Kind::kDuplicate:
      return "duplicate";
    case Kind::kOverlap:
      return "overlap";
    case Kind::kLostContents:
      return "lost_contents";
    case Kind::kMisaligned:
      return "misaligned";
    case Kind::kNonzeroCalloc:
      return "nonzero_calloc";
    case Kind::kShortBlock:
      return "short_block";
    case Kind::kForkChild:
      return "fork_child";
    case Kind::kStall:
      return "stall";
    case Kind::kRssGrowth:
      return "rss_growth";
    case Kind::kAccounting:
      return "accounting";
    case Kind::kCrash:
      return "crash";
    case Kind::kCount:
      break;
  }
  return "?";
}

uint64_t Violations::Count(Kind kind) { return counts[static_cast<int>(kind)].load(); }
uint64_t Violations::Total() { return total.load(); }
void Violations::EnterForkChild() { fork_child = true; }

bool Violations::Begin(Kind kind, Message& message) {
  counts[static_cast<int>(kind)].fetch_add(1);
  const uint64_t number = total.fetch_add(1) + 1;
  if (number > options.reports) return false;
  message.Add("double_alloc_stress: %sVIOLATION %llu: %s: ", fork_child ? "fork child: " : "",
              static_cast<unsigned long long>(number), KindName(kind));
  return true;
}

void Violations::ReportClaim(const Block& mine, const char* call, uintptr_t taken,
                             const Owner* other) {
  Owner owner;
  ReadOwner(mine, &owner);
  const bool same = (other != nullptr ? other->address : taken) == owner.address;
  const Kind kind = same ? Kind::kDuplicate : Kind::kOverlap;
  Message message;
  if (!Begin(kind, message)) return;
  message.Add("%s gave 0x%llx, size %u, but 0x%llx is held already\n", call,
              static_cast<unsigned long long>(owner.address), owner.tag.size(),
              static_cast<unsigned long long>(taken));
  AddOwner(message, "new:", owner);
  if (other != nullptr) {
    AddOwner(message, "other:", *other);
  } else {
    message.Add("  other: gone before it could be named\n");
  }
  message.Write(STDERR_FILENO);
}

void Violations::ReportContents(const Block& block, const char* when, const uint8_t* data,
                                const Mismatch& mismatch) {
  Message message;
  if (!Begin(Kind::kLostContents, message)) return;
  Owner owner;
  ReadOwner(block, &owner);
  const uintptr_t at = reinterpret_cast<uintptr_t>(data) + mismatch.offset;
  message.Add("block 0x%llx, size %u, at byte %u, seen %s: 0x%016llx where 0x%016llx was written\n",
              static_cast<unsigned long long>(owner.address), owner.tag.size(), mismatch.offset,
              when, static_cast<unsigned long long>(mismatch.found),
              static_cast<unsigned long long>(mismatch.expected));
  AddOwner(message, "owner:", owner);
  // A word that decodes to a block somebody has or had is no accident.
  const Tag writer = TagOfWord(mismatch.found, at);
  const uint32_t end = BlockTable::count();
  bool known = false;
  for (uint32_t i = 1; i < end && !known; ++i) {
    Owner other;
    known = ReadOwner(BlockTable::At(i), &other) && other.tag.bits() == writer.bits();
    if (known) AddOwner(message, "other:", other);
  }
  if (!known) message.Add("  other: unknown, not a stamp of a block known now\n");
  message.Write(STDERR_FILENO);
}

void Violations::ReportBlock(Kind kind, const char* call, const void* address, Tag tag,
                             const char* detail_name, uint64_t detail) {
  Message message;
  if (!Begin(kind, message)) return;
  message.Add("%s gave %p, size %u, %s %llu\n", call, address, tag.size(), detail_name,
              static_cast<unsigned long long>(detail));
  message.Add("  owner: thread %u%s, sequence %u\n", tag.thread(),
              tag.handler() ? " (signal handler)" : "", tag.sequence());
  message.Write(STDERR_FILENO);
}

void Violations::Report(Kind kind, const char* format, ...) {
  Message message;
  if (!Begin(kind, message)) return;
  char text[512];
  va_list args;
  va_start(args, format);
  vsnprintf(text, sizeof(text), format, args);
  va_end(args);
  message.Add("%s\n", text).Write(STDERR_FILENO);
}

}  // namespace stress
