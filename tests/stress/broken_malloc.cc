// SPDX-License-Identifier: Apache-2.0
//
// A preloadable toy malloc that can be told to fail, so that double_alloc_stress can be shown to
// notice. Never use it for anything else: one lock, powers of two, nothing returned to the system.
//
//   BROKEN_MALLOC=FAULT[:N]   every N-th chance (default 1000) the fault happens; unset: no fault
//
//      duplicate   a live block is handed out again
//      overlap     the size is rounded down, so that the next block lies inside this one
//      scribble    eight bytes in the middle of a live block are overwritten
//      wild        what is returned is no address
//      misaligned  the block starts 8 bytes late
//      nonzero     calloc leaves one byte that is not 0
//      truncate    realloc forgets the last bytes
//      short       malloc_usable_size is less than was asked for
//      leak        free forgets the block
//      hang        malloc never returns, with the lock held
//      crash       malloc writes to address 8
//      forkhang    the lock is not made whole in a fork child
//
// All book-keeping lies beside the blocks, so that the faults break the contents of blocks only and
// the process lives on to be told about them.
#include <errno.h>
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <atomic>

#define BROKEN_EXPORT extern "C" __attribute__((visibility("default")))

namespace {

enum class Fault {
  kUnread,
  kNone,
  kDuplicate,
  kOverlap,
  kScribble,
  kWild,
  kMisaligned,
  kNonzero,
  kTruncate,
  kShort,
  kLeak,
  kHang,
  kCrash,
  kForkHang,
};

constexpr struct {
  const char* name;
  Fault fault;
} kFaults[] = {
    {"duplicate", Fault::kDuplicate}, {"overlap", Fault::kOverlap},
    {"scribble", Fault::kScribble},   {"misaligned", Fault::kMisaligned},
    {"wild", Fault::kWild},           {"nonzero", Fault::kNonzero},
    {"truncate", Fault::kTruncate},   {"short", Fault::kShort},
    {"leak", Fault::kLeak},           {"hang", Fault::kHang},
    {"crash", Fault::kCrash},         {"forkhang", Fault::kForkHang},
};

constexpr unsigned kMinShift = 4;
constexpr unsigned kChunkShift = 20;
constexpr unsigned kClasses = kChunkShift - kMinShift + 1;
constexpr size_t kChunkBytes = size_t{1} << kChunkShift;
constexpr size_t kArenaBytes = size_t{8} << 30;
constexpr size_t kChunks = kArenaBytes >> kChunkShift;
constexpr uint8_t kLargeClass = 0xff;

// The free blocks of one size, by their distance from the arena's start in units of 16 bytes.
struct SizeClass {
  uint32_t* free_blocks;
  size_t free_count;
  size_t free_room;
  char* fresh;  // not handed out yet, up to fresh_end
  char* fresh_end;
  char* last;  // the last block handed out, while it is live
};

volatile int* volatile nowhere = reinterpret_cast<volatile int*>(8);
pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
Fault fault = Fault::kUnread;
unsigned every = 1000;
unsigned chances;
char* arena;
size_t chunks_used;
uint8_t class_of_chunk[kChunks];
uint32_t large_chunks[kChunks];
SizeClass classes[kClasses];

class Holder {
 public:
  Holder() { pthread_mutex_lock(&mutex); }
  ~Holder() { pthread_mutex_unlock(&mutex); }
};

void* Map(size_t bytes) {
  void* p = mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  return p == MAP_FAILED ? nullptr : p;
}

void Die(const char* text) {
  const ssize_t ignored = write(STDERR_FILENO, text, strlen(text));
  (void)ignored;
  abort();
}

void LockForFork() { pthread_mutex_lock(&mutex); }
void UnlockAfterFork() { pthread_mutex_unlock(&mutex); }

void ReadFault() {
  fault = Fault::kNone;
  const char* const text = getenv("BROKEN_MALLOC");
  if (text == nullptr || *text == '\0') return;
  const char* const colon = strchr(text, ':');
  const size_t length = colon != nullptr ? static_cast<size_t>(colon - text) : strlen(text);
  for (const auto& row : kFaults) {
    if (strlen(row.name) == length && memcmp(row.name, text, length) == 0) fault = row.fault;
  }
  if (fault == Fault::kNone) Die("broken_malloc: BROKEN_MALLOC names no fault\n");
  if (colon != nullptr) every = static_cast<unsigned>(strtoul(colon + 1, nullptr, 10));
  if (every == 0) every = 1;
}

__attribute__((constructor)) void HandleForks() {
  {
    Holder held;
    if (fault == Fault::kUnread) ReadFault();
  }
  if (fault != Fault::kForkHang) {
    pthread_atfork(&LockForFork, &UnlockAfterFork, &UnlockAfterFork);
  }
}

// True on every N-th call while `which` is switched on. The lock must be held.
bool Fails(Fault which) { return fault == which && ++chances % every == 0; }

unsigned ClassOf(size_t size) {
  unsigned shift = kMinShift;
  while ((size_t{1} << shift) < size) ++shift;
  return shift - kMinShift;
}

size_t BlockBytes(unsigned size_class) { return size_t{1} << (size_class + kMinShift); }

char* TakeChunks(size_t count, uint8_t size_class) {
  if (arena == nullptr) {
    char* const raw = static_cast<char*>(Map(kArenaBytes + kChunkBytes));
    if (raw == nullptr) return nullptr;
    arena = reinterpret_cast<char*>((reinterpret_cast<uintptr_t>(raw) + kChunkBytes - 1) &
                                    ~(kChunkBytes - 1));
  }
  if (kChunks - chunks_used < count) return nullptr;
  const size_t first = chunks_used;
  chunks_used += count;
  for (size_t i = 0; i < count; ++i) class_of_chunk[first + i] = size_class;
  large_chunks[first] = static_cast<uint32_t>(count);
  return arena + (first << kChunkShift);
}

void GiveBlock(unsigned size_class, char* block) {
  SizeClass& c = classes[size_class];
  if (c.free_count == c.free_room) {
    const size_t room = c.free_room == 0 ? 1 << 16 : 2 * c.free_room;
    uint32_t* const bigger = static_cast<uint32_t*>(Map(room * sizeof(uint32_t)));
    if (bigger == nullptr) Die("broken_malloc: out of memory\n");
    if (c.free_count != 0) memcpy(bigger, c.free_blocks, c.free_count * sizeof(uint32_t));
    c.free_blocks = bigger;
    c.free_room = room;
  }
  c.free_blocks[c.free_count++] = static_cast<uint32_t>((block - arena) >> kMinShift);
}

char* TakeBlock(unsigned size_class) {
  SizeClass& c = classes[size_class];
  if (c.last != nullptr && Fails(Fault::kDuplicate)) return c.last;
  if (c.last != nullptr && Fails(Fault::kScribble)) {
    memset(c.last + BlockBytes(size_class) / 2 - 8, 0x5a, 8);
  }
  char* block;
  if (c.free_count != 0) {
    block = arena + (static_cast<size_t>(c.free_blocks[--c.free_count]) << kMinShift);
  } else {
    if (c.fresh == c.fresh_end) {
      c.fresh = TakeChunks(1, static_cast<uint8_t>(size_class));
      if (c.fresh == nullptr) {
        c.fresh_end = nullptr;
        return nullptr;
      }
      c.fresh_end = c.fresh + kChunkBytes;
    }
    block = c.fresh;
    c.fresh += BlockBytes(size_class);
  }
  c.last = block;
  return block;
}

// `size` already covers the alignment: a block of 2^k bytes is 2^k-aligned.
void* Allocate(size_t size) {
  if (size > kArenaBytes) {
    errno = ENOMEM;
    return nullptr;
  }
  Holder held;
  if (fault == Fault::kUnread) ReadFault();
  if (Fails(Fault::kHang)) {
    for (;;) pause();
  }
  if (Fails(Fault::kCrash)) *nowhere = 1;
  if (Fails(Fault::kWild)) return reinterpret_cast<void*>(0x1db2c0001db20);
  char* block;
  if (size > kChunkBytes) {
    block = TakeChunks((size + kChunkBytes - 1) >> kChunkShift, kLargeClass);
  } else {
    unsigned size_class = ClassOf(size);
    if (size >= 32 && Fails(Fault::kOverlap)) --size_class;
    block = TakeBlock(size_class);
    if (block != nullptr && size + 8 <= BlockBytes(size_class) && Fails(Fault::kMisaligned)) {
      block += 8;
    }
  }
  if (block == nullptr) errno = ENOMEM;
  return block;
}

size_t UsableSize(const void* p) {
  const size_t at = static_cast<size_t>(static_cast<const char*>(p) - arena);
  if (at >= kArenaBytes) return SIZE_MAX;  // a wild one
  const size_t chunk = at >> kChunkShift;
  const uint8_t size_class = class_of_chunk[chunk];
  if (size_class == kLargeClass) return size_t{large_chunks[chunk]} << kChunkShift;
  return BlockBytes(size_class) - (at & (BlockBytes(size_class) - 1));
}

}  // namespace

BROKEN_EXPORT void* malloc(size_t size) { return Allocate(size); }

BROKEN_EXPORT void free(void* p) {
  if (p == nullptr) return;
  Holder held;
  char* block = static_cast<char*>(p);
  const size_t at = static_cast<size_t>(block - arena);
  if (arena == nullptr || at >= kArenaBytes) Die("broken_malloc: free of a foreign pointer\n");
  const size_t chunk = at >> kChunkShift;
  const uint8_t size_class = class_of_chunk[chunk];
  if (size_class == kLargeClass) {
    madvise(block, size_t{large_chunks[chunk]} << kChunkShift, MADV_DONTNEED);
    return;
  }
  block -= at & (BlockBytes(size_class) - 1);
  if (classes[size_class].last == block) classes[size_class].last = nullptr;
  if (Fails(Fault::kLeak)) return;
  GiveBlock(size_class, block);
}

BROKEN_EXPORT void* calloc(size_t count, size_t size) {
  size_t bytes;
  if (__builtin_mul_overflow(count, size, &bytes)) {
    errno = ENOMEM;
    return nullptr;
  }
  char* const p = static_cast<char*>(Allocate(bytes));
  if (p == nullptr) return nullptr;
  memset(p, 0, bytes);
  Holder held;
  if (bytes != 0 && Fails(Fault::kNonzero)) p[bytes / 2] = 1;
  return p;
}

BROKEN_EXPORT void* realloc(void* p, size_t size) {
  if (p == nullptr) return malloc(size);
  if (size == 0) {
    free(p);
    return nullptr;
  }
  void* const moved = malloc(size);
  if (moved == nullptr) return nullptr;
  size_t bytes = UsableSize(p) < size ? UsableSize(p) : size;
  {
    Holder held;
    if (Fails(Fault::kTruncate)) bytes -= bytes / 4;
  }
  memcpy(moved, p, bytes);
  free(p);
  return moved;
}

BROKEN_EXPORT size_t malloc_usable_size(void* p) {
  if (p == nullptr) return 0;
  Holder held;
  return Fails(Fault::kShort) ? 0 : UsableSize(p);
}

BROKEN_EXPORT void* aligned_alloc(size_t alignment, size_t size) {
  return Allocate(size > alignment ? size : alignment);
}
BROKEN_EXPORT void* memalign(size_t alignment, size_t size) {
  return aligned_alloc(alignment, size);
}
BROKEN_EXPORT int posix_memalign(void** p, size_t alignment, size_t size) {
  void* const block = aligned_alloc(alignment, size);
  if (block == nullptr) return ENOMEM;
  *p = block;
  return 0;
}
