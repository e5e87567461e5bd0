// SPDX-License-Identifier: Apache-2.0
//
// Starts 20,000 detached threads that allocate and free, at the end of their lives too. The
// argument says how many pthread keys are made before the library makes its own.
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

const char* pcmalloc_mode(void);

enum { kThreads = 20000, kMostAtOnce = 100, kSize = 100 };

static pthread_key_t last_key;
static atomic_long ended;

static void EndOfValue(void* value) { free(value); }

// Before any constructor, the library's among them.
static void MakeKeys(int argc, char** argv, char** environment) {
  (void)environment;
  for (int i = argc > 1 ? atoi(argv[1]) : 0; i > 0; --i) {
    pthread_key_t key;
    if (pthread_key_create(&key, NULL) != 0) abort();
  }
}
__attribute__((section(".preinit_array"), used)) static void (*make_keys)(int, char**,
                                                                          char**) = MakeKeys;

static void* Work(void* argument) {
  (void)argument;
  char* block = malloc(kSize);
  memset(block, 1, kSize);
  pthread_setspecific(last_key, block);
  free(malloc(2 * kSize));
  ++ended;
  return NULL;
}

int main(void) {
  pthread_attr_t attributes;
  pthread_attr_init(&attributes);
  pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
  if (pthread_key_create(&last_key, EndOfValue) != 0) return 1;
  for (long i = 0; i < kThreads; ++i) {
    while (i - ended > kMostAtOnce) sched_yield();
    pthread_t thread;
    if (pthread_create(&thread, &attributes, Work, NULL) != 0) return 2;
  }
  while (ended < kThreads) sched_yield();
  printf("ended=%ld\nper_cpu=%d\nkey=%d\n", (long)ended,
         strncmp(pcmalloc_mode(), "v2safe-", 7) == 0, (int)last_key);
  return 0;
}
