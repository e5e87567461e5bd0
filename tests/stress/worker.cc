// SPDX-License-Identifier: Apache-2.0
#include "tests/stress/worker.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <new>

#include "tests/stress/options.h"
#include "tests/stress/violation.h"

namespace stress {
namespace {

constexpr size_t kSignalStackBytes = 64 << 10;
constexpr size_t kThreadStackBytes = 512 << 10;
constexpr uint32_t kBurstBytes = 1 << 20;

Worker* workers;
unsigned worker_count;
unsigned lasting_count;  // slots of each worker
std::atomic<uint32_t>* cells;
unsigned cell_count;
std::atomic<unsigned> keepsakes_ready{0};  // workers that have theirs
thread_local Worker* current;
thread_local int current_index = -1;

// Set in a fork child: the worker whose thread lives on there.
const Worker* forker;

Block& BlockIn(uint32_t* slot) {
  if (*slot == 0) *slot = BlockTable::Make();
  return BlockTable::At(*slot);
}

}  // namespace

std::atomic<bool> stopping{false};

void* UseSignalStack(void* stack) {
  if (stack == nullptr) stack = MapOrDie(kSignalStackBytes);
  stack_t description = {};
  description.ss_sp = stack;
  description.ss_size = kSignalStackBytes;
  sigaltstack(&description, nullptr);
  return stack;
}

void Worker::InitAll(unsigned count) {
  worker_count = count;
  // A live set of about 24,000 blocks, however many threads share it.
  lasting_count = std::clamp(24576u / count, 32u, 4096u);
  cell_count = std::clamp(16 * count, 64u, 512u);
  BlockTable::Init(count * (lasting_count + kScratch + kHandlerSlots + kKeepsakes) + cell_count);
  workers = static_cast<Worker*>(MapOrDie(count * sizeof(Worker)));
  cells = static_cast<std::atomic<uint32_t>*>(MapOrDie(cell_count * sizeof(cells[0])));
  for (unsigned i = 0; i < count; ++i) (new (&workers[i]) Worker)->Init(i);
}

Worker& Worker::At(unsigned index) { return workers[index]; }
unsigned Worker::count() { return worker_count; }

void Worker::Init(unsigned index) {
  index_ = index;
  main_.Init(index, false, options.seed);
  handler_.Init(index, true, options.seed);
  lasting_ = static_cast<uint32_t*>(MapOrDie(lasting_count * sizeof(uint32_t)));
  memset(scratch_, 0, sizeof(scratch_));
  memset(handler_slots_, 0, sizeof(handler_slots_));
  memset(keepsakes_, 0, sizeof(keepsakes_));
  // Every other pair of threads shares one CPU and never leaves it: they preempt each other there.
  if (options.pin && worker_count >= 4 && (index / 2) % 2 == 0) {
    pinned_cpu_ = options.cpus[index / 4 % options.cpu_count];
  }
}

bool Worker::Start() {
  leave_.store(false, std::memory_order_relaxed);
  running_.store(true, std::memory_order_release);
  pthread_attr_t attributes;
  pthread_attr_init(&attributes);
  pthread_attr_setstacksize(&attributes, kThreadStackBytes);
  pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
  pthread_t thread;
  const int error = pthread_create(&thread, &attributes, &ThreadMain, this);
  pthread_attr_destroy(&attributes);
  if (error != 0) running_.store(false, std::memory_order_release);
  return error == 0;
}

void* Worker::ThreadMain(void* self) {
  Worker* const worker = static_cast<Worker*>(self);
  worker->SetUpThread();
  worker->Run();
  worker->tid_.store(0, std::memory_order_release);
  current = nullptr;
  __atomic_signal_fence(__ATOMIC_SEQ_CST);
  worker->running_.store(false, std::memory_order_release);
  return nullptr;
}

void Worker::SetUpThread() {
  signal_stack_ = UseSignalStack(signal_stack_);
  cpu_set_t set = options.cpu_set;
  if (pinned()) {
    CPU_ZERO(&set);
    CPU_SET(pinned_cpu_, &set);
  }
  sched_setaffinity(0, sizeof(set), &set);
  current_index = static_cast<int>(index_);
  current = this;
  __atomic_signal_fence(__ATOMIC_SEQ_CST);
  tid_.store(static_cast<pid_t>(syscall(SYS_gettid)), std::memory_order_release);
}

void Worker::Run() {
  if (!keepsakes_made_) {
    for (uint32_t& slot : keepsakes_) main_.Allocate(BlockIn(&slot), main_.PickSize());
    keepsakes_made_ = true;
    keepsakes_ready.fetch_add(1);
  }
  while (!stopping.load(std::memory_order_relaxed) && !leave_.load(std::memory_order_relaxed)) {
    switch (main_.random().Below(8)) {
      case 0:
      case 1:
      case 2:
        HotPairs();
        break;
      case 3:
      case 4:
        Churn();
        break;
      case 5:
      case 6:
        Burst();
        break;
      case 7:
        Exchange();
        break;
    }
    if (fork_wanted_.load(std::memory_order_relaxed)) {
      fork_wanted_.store(false, std::memory_order_relaxed);
      ForkOnce();
    }
  }
}

// One size again and again: the top of a per-CPU cache, where a preempted operation and the
// preempting one meet on the same few words.
void Worker::HotPairs() {
  const uint32_t size = main_.PickSize();
  const unsigned pairs = size > 16384 ? 4 : 16 + main_.random().Below(240);
  for (unsigned i = 0; i < pairs; ++i) {
    // Slots in turn, so that a description outlives its block a little and a report can name it.
    Block& block = BlockIn(&scratch_[scratch_next_++ % kScratch]);
    if (main_.Allocate(block, size)) main_.Free(block);
  }
}

// Random sizes, random ages.
void Worker::Churn() {
  const unsigned steps = 64 + main_.random().Below(192);
  for (unsigned i = 0; i < steps; ++i) {
    uint32_t* const slot = &lasting_[main_.random().Below(lasting_count)];
    Block& block = BlockIn(slot);
    if (!block.held) {
      main_.Allocate(block, main_.PickSize());
      continue;
    }
    const uint32_t what = main_.random().Below(32);
    if (what < 3) {
      main_.Reallocate(block, main_.PickSize());
    } else if (what < 6) {
      HandOver(slot);
    } else {
      main_.Free(block);
    }
  }
}

// Many of one size, then all of them back: past the capacity of a cache in both directions.
void Worker::Burst() {
  Random& random = main_.random();
  const uint32_t size = main_.PickSize();
  const unsigned most = std::clamp(kBurstBytes / size, 1u, kScratch);
  const unsigned count = 1 + random.Below(most);
  for (unsigned i = 0; i < count; ++i) main_.Allocate(BlockIn(&scratch_[i]), size);
  const bool give = random.OneIn(4);
  const unsigned order = random.Below(3);
  const unsigned first = random.Below(count);
  for (unsigned i = 0; i < count; ++i) {
    const unsigned at = order == 0 ? i : order == 1 ? count - 1 - i : (first + i) % count;
    if (give && BlockTable::At(scratch_[at]).held) HandOver(&scratch_[at]);
    Block& block = BlockIn(&scratch_[at]);
    if (block.held) main_.Free(block);
  }
}

void Worker::Exchange() {
  const unsigned count = 16 + main_.random().Below(112);
  for (unsigned i = 0; i < count; ++i) {
    uint32_t* const slot = &lasting_[main_.random().Below(lasting_count)];
    if (!BlockIn(slot).held && !main_.Allocate(BlockIn(slot), main_.PickSize())) continue;
    HandOver(slot);
    if (Block& block = BlockIn(slot); block.held && main_.random().OneIn(2)) main_.Free(block);
  }
}

void Worker::HandOver(uint32_t* slot) {
  std::atomic<uint32_t>& cell = cells[main_.random().Below(cell_count)];
  *slot = cell.exchange(*slot, std::memory_order_acq_rel);
  main_.counters().handovers.Add();
}

int Worker::StormSignal() { return SIGUSR2; }

void Worker::InstallStormHandler() {
  struct sigaction action = {};
  action.sa_handler = &OnStorm;
  action.sa_flags = SA_RESTART;
  sigaction(StormSignal(), &action, nullptr);
}

void Worker::OnStorm(int) {
  Worker* const worker = current;
  if (worker == nullptr) return;
  const int saved_errno = errno;
  worker->signals_.Add();
  if (options.handler_malloc == HandlerMalloc::kAlways ||
      (options.handler_malloc == HandlerMalloc::kOutside && !worker->main_.inside_malloc())) {
    worker->HandlerStep();
  }
  errno = saved_errno;
}

void Worker::HandlerStep() {
  const unsigned steps = 1 + handler_.random().Below(4);
  for (unsigned i = 0; i < steps; ++i) {
    Block& block = BlockIn(&handler_slots_[handler_.random().Below(kHandlerSlots)]);
    if (block.held) {
      handler_.Free(block);
    } else {
      handler_.Allocate(block, std::min(handler_.PickSize(), 2048u));
    }
  }
}

void Worker::ForkOnce() {
  // Half-made keepsakes would look damaged in the child.
  if (keepsakes_ready.load() != worker_count) return;
  // A handler that allocates while fork holds the malloc's locks would wait for itself.
  main_.set_inside_malloc(true);
  const pid_t child = fork();
  main_.set_inside_malloc(false);
  if (child == 0) RunForkChild();
  if (child > 0) {
    forks_.Add();
    WaitForChild(child);
  }
}

// The forking thread's own blocks and everybody's keepsakes held still while the kernel copied the
// process; what the other threads did meanwhile the copy may show in any order.
bool Worker::IsHeldByForker(const Block& block) {
  const uint32_t index = static_cast<uint32_t>(&block - &BlockTable::At(0));
  auto among = [index](const uint32_t* slots, unsigned count) {
    return std::find(slots, slots + count, index) != slots + count;
  };
  if (among(forker->lasting_, lasting_count) || among(forker->scratch_, kScratch)) return true;
  return std::any_of(workers, workers + worker_count,
                     [&](const Worker& worker) { return among(worker.keepsakes_, kKeepsakes); });
}

void Worker::RunForkChild() {
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  Violations::EnterForkChild();
  forker = this;
  Actor::EnterForkChild(&IsHeldByForker);
  const uint64_t before = Violations::Total();
  for (unsigned w = 0; w < worker_count; ++w) {
    for (uint32_t slot : workers[w].keepsakes_) {
      if (BlockTable::At(slot).held) main_.Verify(BlockTable::At(slot), "in a fork child");
    }
  }
  for (unsigned i = 0; i < lasting_count; ++i) {
    Block& block = BlockIn(&lasting_[i]);
    if (!block.held) {
      main_.Allocate(block, main_.PickSize());
    } else if (i % 2 == 0) {
      main_.Free(block);
    } else {
      main_.Verify(block, "in a fork child");
    }
  }
  for (unsigned i = 0; i < 4; ++i) {
    HotPairs();
    Burst();
  }
  _exit(Violations::Total() == before ? 0 : 1);
}

void Worker::WaitForChild(pid_t child) {
  const uint64_t start = NowNs();
  int status = 0;
  for (;;) {
    const pid_t done = waitpid(child, &status, WNOHANG);
    if (done == child) break;
    if (done < 0 && errno != EINTR) return;
    if (static_cast<double>(NowNs() - start) > options.fork_limit_seconds * 1e9) {
      kill(child, SIGKILL);
      waitpid(child, &status, 0);
      Violations::Report(Kind::kForkChild, "child of thread %u hung for %u s and was killed",
                         index_, static_cast<unsigned>(options.fork_limit_seconds));
      return;
    }
    const timespec pause = {0, 500'000};
    nanosleep(&pause, nullptr);
  }
  if (WIFSIGNALED(status)) {
    Violations::Report(Kind::kForkChild, "child of thread %u was killed by signal %d (%s)", index_,
                       WTERMSIG(status), strsignal(WTERMSIG(status)));
  } else if (WEXITSTATUS(status) != 0) {
    Violations::Report(Kind::kForkChild, "child of thread %u failed with exit status %d", index_,
                       WEXITSTATUS(status));
  }
}

uint64_t Worker::FreeAll(Actor& actor) {
  uint64_t freed = 0;
  auto free_slots = [&](uint32_t* slots, unsigned count) {
    for (unsigned i = 0; i < count; ++i) {
      if (slots[i] == 0 || !BlockTable::At(slots[i]).held) continue;
      actor.Free(BlockTable::At(slots[i]));
      ++freed;
    }
  };
  for (unsigned w = 0; w < worker_count; ++w) {
    Worker& worker = workers[w];
    free_slots(worker.lasting_, lasting_count);
    free_slots(worker.scratch_, kScratch);
    free_slots(worker.handler_slots_, kHandlerSlots);
    free_slots(worker.keepsakes_, kKeepsakes);
  }
  for (unsigned c = 0; c < cell_count; ++c) {
    uint32_t slot = cells[c].exchange(0);
    free_slots(&slot, 1);
  }
  return freed;
}

int Worker::CurrentThread() { return current_index; }

bool Worker::CurrentInsideMalloc() {
  return current != nullptr &&
         (current->main_.inside_malloc() || current->handler_.inside_malloc());
}

}  // namespace stress
