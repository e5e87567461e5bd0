/* SPDX-License-Identifier: Apache-2.0
 *
 * A program of musl, linked statically with libpcmalloc.a: musl registers no rseq area, so the
 * library's own is at work. Threads hand stamped blocks to one another for as many seconds as the
 * argument says. Prints "PCM key=value" lines; status 0 if every block kept its stamp.
 */
#include <pcmalloc/pcmalloc.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { kThreads = 4, kSlots = 512, kMost = 2000 };

struct Block {
  size_t size;
  unsigned char stamp;
  unsigned char bytes[];
};

static _Atomic(struct Block*) slots[kSlots];
static atomic_bool stop;
static atomic_long passed_on;
static atomic_long broken;

static struct Block* Make(uint64_t number) {
  const size_t size = (size_t)(number % kMost);
  struct Block* block = malloc(sizeof(*block) + size);
  if (block == NULL) abort();
  block->size = size;
  block->stamp = (unsigned char)(number >> 32);
  memset(block->bytes, block->stamp, size);
  return block;
}

static void Check(struct Block* block) {
  for (size_t i = 0; i < block->size; ++i) {
    if (block->bytes[i] != block->stamp) {
      atomic_fetch_add(&broken, 1);
      break;
    }
  }
  free(block);
}

static void Pass(uint64_t random) {
  struct Block* block = atomic_exchange(&slots[(random >> 40) % kSlots], Make(random >> 8));
  if (block != NULL) {
    Check(block);
    atomic_fetch_add(&passed_on, 1);
  }
}

static void* PassOne(void* argument) {
  Pass((uintptr_t)argument * 0x9e3779b97f4a7c15);
  return NULL;
}

static void* Work(void* argument) {
  uint64_t random = (uintptr_t)argument;
  while (!atomic_load(&stop)) {
    random = random * 6364136223846793005 + 1442695040888963407;
    Pass(random);
  }
  return NULL;
}

int main(int argc, char** argv) {
  pthread_t threads[kThreads];
  for (uintptr_t i = 0; i < kThreads; ++i) {
    if (pthread_create(&threads[i], NULL, Work, (void*)(i + 1)) != 0) return 2;
  }
  /* Threads come and go meanwhile, each with an area that is registered and taken back. */
  const time_t end = time(NULL) + (argc > 1 ? atoi(argv[1]) : 1);
  for (int next = 0; time(NULL) < end; ++next) {
    pthread_t guest;
    if (pthread_create(&guest, NULL, PassOne, (void*)(uintptr_t)next) != 0) return 2;
    if (pthread_join(guest, NULL) != 0) return 2;
    pcmalloc_drain_cpu(next % pcmalloc_cpu_bound());
  }
  atomic_store(&stop, 1);
  for (int i = 0; i < kThreads; ++i) pthread_join(threads[i], NULL);
  for (int i = 0; i < kSlots; ++i) {
    if (slots[i] != NULL) Check(slots[i]);
  }
  printf("PCM mode=%s\nPCM reason=%s\nPCM passed_on=%ld\nPCM broken=%ld\n", pcmalloc_mode(),
         pcmalloc_reason(), atomic_load(&passed_on), atomic_load(&broken));
  return atomic_load(&broken) != 0 || atomic_load(&passed_on) < kSlots;
}
