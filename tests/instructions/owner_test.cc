// SPDX-License-Identifier: Apache-2.0
//
// Whoever owns a slab changes it by one store after all others, so that a fork in the middle leaves
// its child a slab. The owner is executed instruction by instruction, and after each one a child is
// forked that takes the slab over. What the children find must be the slab before the change, then
// the slab after it, and nothing else; where there are several changes, each of them in turn.
#include "tests/instructions/owner.h"

#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <iterator>
#include <new>
#include <ostream>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "gtest/gtest.h"
#include "rseq/rseq.h"
#include "tests/instructions/cpu.h"
#include "tests/instructions/waiting.h"

namespace pcmalloc::owner {
namespace {

using percpu::Mode;

using instructions::Die;
using instructions::WaitFor;
// No operation here has as many instructions; a loop that is disturbed at each step has no end.
constexpr long kMostSteps = 100'000;

struct ModelStack {
  bool used;
  uint32_t capacity;
  uint32_t most;
  std::vector<uint64_t> items;  // the oldest first

  friend bool operator==(const ModelStack& a, const ModelStack& b) {
    return a.used == b.used && a.capacity == b.capacity && a.most == b.most && a.items == b.items;
  }
};

// Of the slab; and of what its owner has in the hands at the end.
struct State {
  ModelStack stacks[kNumClasses];
  bool second_there = false;

  friend bool operator==(const State& a, const State& b) {
    return std::equal(std::begin(a.stacks), std::end(a.stacks), std::begin(b.stacks)) &&
           a.second_there == b.second_there;
  }
};

// The newest items only.
std::string Describe(const State& state) {
  constexpr size_t kShown = 16;
  std::string text;
  for (const ModelStack& stack : state.stacks) {
    absl::StrAppendFormat(&text, "%s%d of %d slots, %d items:", stack.used ? "" : "unused, ",
                          stack.capacity, stack.most, stack.items.size());
    const size_t n = std::min(stack.items.size(), kShown);
    for (auto it = stack.items.end() - static_cast<ptrdiff_t>(n); it != stack.items.end(); ++it) {
      absl::StrAppendFormat(&text, " %x", *it);
    }
    text += "; ";
  }
  return text + (state.second_there ? "a second slab" : "");
}

State ToModel(const View& view) {
  State state;
  state.second_there = view.second_there;
  for (int k = 0; k < kNumClasses; ++k) {
    const Stack& stack = view.stacks[k];
    state.stacks[k] = {stack.used,
                       stack.capacity,
                       stack.most,
                       {stack.items, stack.items + std::min(stack.count, kMost)}};
  }
  return state;
}

State Initial(Kind kind) {
  const bool narrow = kind == Kind::kResizeToKept;
  State state;
  for (int k = 0; k < kNumClasses; ++k) {
    ModelStack& stack = state.stacks[k];
    stack.capacity = narrow ? kNarrowCapacity[k] : kCapacity[k];
    stack.most = narrow ? kNarrow[k] : kWide[k];
    stack.used = stack.capacity != 0;
    const uint32_t items = narrow ? kNarrowItems[k] : kItems[k];
    for (uint32_t j = 0; j < items; ++j) stack.items.push_back(InitialItem(k, j));
  }
  return state;
}

// What is seen of an operation, in this order, and what has come out at its end.
struct Course {
  std::vector<State> states;
  std::vector<uint64_t> taken;
  uint32_t moved = 0;
};

// Does what the owner does, to the model of a slab.
class Model {
 public:
  explicit Model(State initial) : state_(std::move(initial)) { Seen(); }

  Course TakeCourse() { return std::move(course_); }

  void PopBatch() {
    Take(Pop(few_, kBatch));
    course_.moved = kBatch;
    Seen();
  }

  void PushBatch(uint32_t n) {
    for (uint32_t j = 0; j < n && few_.items.size() < few_.capacity; ++j) {
      few_.items.push_back(PushedItem(j));
      ++course_.moved;
    }
    Seen();
  }

  void RaiseCapacity() { SetCapacity(few_, few_.capacity + 3); }
  void LowerCapacity() { SetCapacity(few_, 3); }

  void FirstCapacity() {
    ModelStack& unused = state_.stacks[2];
    unused.used = true;
    SetCapacity(unused, 12);
  }

  void Drain() {
    for (ModelStack& stack : state_.stacks) {
      while (!stack.items.empty()) {
        Take(Pop(stack, percpu::kOwnedAtOnce));
        Seen();
      }
    }
  }

  void DrainWithCapacity() {
    Drain();
    for (ModelStack& stack : state_.stacks) {
      if (stack.capacity != 0) SetCapacity(stack, 0);
    }
  }

  // Shows the old slab until it is empty, then the new one, with all that it will have.
  void Resize(const uint32_t (&most)[kNumClasses]) {
    State fresh = state_;
    for (int k = 0; k < kNumClasses; ++k) {
      ModelStack& stack = fresh.stacks[k];
      stack.most = most[k];
      stack.capacity = std::min(stack.capacity, stack.most);
      stack.items.clear();
      while (!state_.stacks[k].items.empty()) {
        PushOrTake(Pop(state_.stacks[k], percpu::kOwnedAtOnce), stack);
        Seen();
      }
    }
    state_ = fresh;
    Seen();
  }

  void Ensure() {
    state_.second_there = true;
    Seen();
  }

 private:
  void Seen() { course_.states.push_back(state_); }

  void SetCapacity(ModelStack& stack, uint32_t capacity) {
    stack.capacity = capacity;
    Seen();
  }

  static std::vector<uint64_t> Pop(ModelStack& stack, size_t n) {
    std::vector<uint64_t> popped;
    for (; n > 0 && !stack.items.empty(); --n) {
      popped.push_back(stack.items.back());
      stack.items.pop_back();
    }
    return popped;
  }

  void Take(const std::vector<uint64_t>& items) {
    course_.taken.insert(course_.taken.end(), items.begin(), items.end());
  }

  // Pushes as many of the items as there is room for.
  void PushOrTake(const std::vector<uint64_t>& items, ModelStack& stack) {
    for (const uint64_t item : items) {
      if (stack.items.size() < stack.capacity) {
        stack.items.push_back(item);
      } else {
        Take({item});
      }
    }
  }

  State state_;
  Course course_;
  ModelStack& few_ = state_.stacks[1];
};

Course CourseOf(Kind kind) {
  Model model(Initial(kind));
  switch (kind) {
    case Kind::kPopBatch:
      model.PopBatch();
      break;
    case Kind::kPushBatch:
      model.PushBatch(kBatch);
      break;
    case Kind::kPushMoreThanFits:
      model.PushBatch(kLargeBatch);
      break;
    case Kind::kRaiseCapacity:
      model.RaiseCapacity();
      break;
    case Kind::kLowerCapacity:
      model.LowerCapacity();
      break;
    case Kind::kFirstCapacity:
      model.FirstCapacity();
      break;
    case Kind::kStopAndStart:
      break;
    case Kind::kDrain:
      model.Drain();
      break;
    case Kind::kDrainWithCapacity:
      model.DrainWithCapacity();
      break;
    case Kind::kResize:
    case Kind::kTryResize:
      model.Resize(kNarrow);
      break;
    case Kind::kResizeToKept:
      model.Resize(kWide);
      break;
    case Kind::kEnsure:
      model.Ensure();
      break;
  }
  return model.TakeCourse();
}

// The process, with its victim in front of the operation.
class Owner {
 public:
  Owner(Mode mode, Kind kind, int cpu) {
    void* const memory =
        mmap(nullptr, sizeof(Shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) Die("mmap");
    shared_ = new (memory) Shared();
    shared_->mode = mode;
    shared_->kind = kind;
    shared_->cpu = cpu;
    shared_->second = cpu == 0 ? 1 : 0;
    for (sem_t* s : {&shared_->ready, &shared_->attached, &shared_->go, &shared_->done}) {
      if (sem_init(s, 1, 0) != 0) Die("sem_init");
    }
    fflush(nullptr);
    process_ = fork();
    if (process_ < 0) Die("fork");
    if (process_ == 0) RunOwner(shared_);
    WaitFor(&shared_->ready, "the owner did not start");
    victim_ = shared_->victim_id;
    if (ptrace(PTRACE_SEIZE, victim_, nullptr, nullptr) != 0) Die("PTRACE_SEIZE");
    sem_post(&shared_->attached);
    WaitForStop();
    Tell(Command::kPrepare);
    if (!instructions::PassHandOver(victim_)) Die("no program counter can be set");
  }
  ~Owner() {
    kill(process_, SIGKILL);
    waitpid(victim_, nullptr, __WALL);
    waitpid(process_, nullptr, 0);
    munmap(shared_, sizeof(Shared));
  }
  Owner(const Owner&) = delete;
  Owner& operator=(const Owner&) = delete;

  const Shared& shared() const { return *shared_; }

  const View& Fork() {
    Tell(Command::kFork);
    return shared_->view;
  }

  // One instruction; false if the operation was finished before it.
  bool Step() {
    if (__atomic_load_n(&shared_->finished, __ATOMIC_ACQUIRE)) return false;
    if (ptrace(PTRACE_SINGLESTEP, victim_, nullptr, 0) != 0) Die("PTRACE_SINGLESTEP");
    WaitForStop();
    return true;
  }

  uintptr_t ProgramCounter() const {
    uintptr_t counter = 0;
    if (!instructions::GetProgramCounter(victim_, &counter)) Die("no program counter");
    return counter - instructions::LoadBias();  // for nm and objdump
  }

 private:
  void Tell(Command command) {
    shared_->command = command;
    sem_post(&shared_->go);
    WaitFor(&shared_->done, "the owner's other thread did not answer");
    if (shared_->failed) Die("the owner's other thread was refused");
  }

  void WaitForStop() {
    int status = 0;
    if (waitpid(victim_, &status, __WALL) != victim_) Die("waitpid");
    if (!WIFSTOPPED(status)) Die(absl::StrFormat("the victim ended with status %#x", status));
    if (WSTOPSIG(status) != SIGTRAP) Die(absl::StrFormat("signal %d", WSTOPSIG(status)));
  }

  Shared* shared_;
  pid_t process_ = -1;
  pid_t victim_ = -1;
};

struct Case {
  const char* name;
  Mode mode;
  Kind kind;

  friend std::ostream& operator<<(std::ostream& out, const Case& what) { return out << what.name; }
};

// With sections the owner is who has stopped the slab; what sections change is for
// instructions_test.cc: executed step by step they would never end. Each of the owner's functions
// in one mode, and in both where it reads the mode itself.
constexpr Case kCases[] = {
    {"LockedPopBatch", Mode::kLocked, Kind::kPopBatch},
    {"LockedPushBatch", Mode::kLocked, Kind::kPushBatch},
    {"LockedPushMoreThanFits", Mode::kLocked, Kind::kPushMoreThanFits},
    {"LockedRaiseCapacity", Mode::kLocked, Kind::kRaiseCapacity},
    {"LockedLowerCapacity", Mode::kLocked, Kind::kLowerCapacity},
    {"LockedFirstCapacity", Mode::kLocked, Kind::kFirstCapacity},
    {"LockedStopAndStart", Mode::kLocked, Kind::kStopAndStart},
    {"LockedDrainWithCapacity", Mode::kLocked, Kind::kDrainWithCapacity},
    {"LockedResize", Mode::kLocked, Kind::kResize},
    {"LockedTryResize", Mode::kLocked, Kind::kTryResize},
    {"LockedEnsure", Mode::kLocked, Kind::kEnsure},
    {"StoppedStopAndStart", Mode::kCpuId, Kind::kStopAndStart},
    {"StoppedDrain", Mode::kCpuId, Kind::kDrain},
    {"StoppedResizeToKept", Mode::kCpuId, Kind::kResizeToKept},
    {"StoppedTryResize", Mode::kCpuId, Kind::kTryResize},
    {"StoppedEnsure", Mode::kCpuId, Kind::kEnsure},
};

class OwnerTest : public ::testing::TestWithParam<Case> {
 protected:
  static int Cpu() {
    cpu_set_t allowed;
    if (sched_getaffinity(0, sizeof(allowed), &allowed) != 0) Die("sched_getaffinity");
    int cpu = 0;
    while (!CPU_ISSET(cpu, &allowed)) ++cpu;
    return cpu;
  }

  static void Check(Mode mode, Kind kind) {
    const Course course = CourseOf(kind);
    ASSERT_FALSE(course.states.empty());
    Owner owner(mode, kind, Cpu());
    long steps = 0;
    size_t at = 0;
    do {
      ASSERT_LT(steps, kMostSteps) << "no end of it";
      const View& view = owner.Fork();
      const State state = ToModel(view);
      const auto where = [&] {
        return absl::StrFormat("a child after instruction %d, before the one at %#x: ", steps,
                               owner.ProgramCounter());
      };
      ASSERT_STREQ(view.problem, "") << where() << Describe(state);
      if (at + 1 < course.states.size() && state == course.states[at + 1]) ++at;
      ASSERT_TRUE(state == course.states[at])
          << where() << "\nfound    " << Describe(state) << "\ninstead of "
          << Describe(course.states[at])
          << (at + 1 < course.states.size() ? "\nor         " + Describe(course.states[at + 1])
                                            : "");
      ++steps;
    } while (owner.Step());
    EXPECT_EQ(at + 1, course.states.size()) << "the operation did less";
    const Shared& shared = owner.shared();
    EXPECT_EQ(std::vector<uint64_t>(shared.taken, shared.taken + shared.taken_count), course.taken);
    EXPECT_EQ(shared.moved, course.moved);
    printf("PCM children=%ld changes=%zu\n", steps, course.states.size() - 1);
  }
};

TEST_P(OwnerTest, EachChangeIsOneStore) {
  const rseq::Discovery& discovery = rseq::Discover();
  if (GetParam().mode != Mode::kLocked) {
    if (discovery.owner == rseq::Owner::kNone) GTEST_SKIP() << discovery.reason;
    if (!discovery.fence_available) GTEST_SKIP() << "there is no fence here";
  }
  if (GetParam().kind == Kind::kEnsure && discovery.cpu_bound < 2) GTEST_SKIP() << "one CPU";
#ifdef __aarch64__
  if ((getauxval(AT_HWCAP) & HWCAP_ATOMICS) == 0) {
    GTEST_SKIP() << "exclusive pairs never succeed step by step: NOTHING IS TESTED HERE";
  }
#endif
  Check(GetParam().mode, GetParam().kind);
}

INSTANTIATE_TEST_SUITE_P(Each, OwnerTest, ::testing::ValuesIn(kCases),
                         [](const auto& info) { return std::string(info.param.name); });

}  // namespace
}  // namespace pcmalloc::owner
