// SPDX-License-Identifier: Apache-2.0
//
// A program that wraps pthread_create, as tools that follow threads do: it allocates under a lock
// of its own, which whoever starts a thread inside of malloc would meet again.
#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

namespace {

pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
void* known = nullptr;
int created = 0;

void* Leaf(void*) { return nullptr; }

void* Boss(void*) {
  for (int i = 0; i < 200; ++i) {
    pthread_t leaf;
    if (pthread_create(&leaf, nullptr, &Leaf, nullptr) != 0) _Exit(2);
    pthread_join(leaf, nullptr);
  }
  return nullptr;
}

}  // namespace

extern "C" __attribute__((visibility("default"))) int pthread_create(pthread_t* thread,
                                                                     const pthread_attr_t* attr,
                                                                     void* (*body)(void*),
                                                                     void* argument) {
  using Create = int(pthread_t*, const pthread_attr_t*, void* (*)(void*), void*);
  static Create* const next = reinterpret_cast<Create*>(dlsym(RTLD_NEXT, "pthread_create"));
  pthread_mutex_lock(&lock);
  ++created;
  void** const entry = static_cast<void**>(malloc(5000));  // kept, so that caches miss
  if (entry == nullptr) _Exit(4);
  *entry = known;
  known = entry;
  const int result = next(thread, attr, body, argument);
  pthread_mutex_unlock(&lock);
  return result;
}

int main() {
  alarm(60);  // it would wait for itself for ever
  pthread_t boss;
  if (pthread_create(&boss, nullptr, &Boss, nullptr) != 0) return 2;
  pthread_join(boss, nullptr);
  using State = const char*();
  auto* const state = reinterpret_cast<State*>(dlsym(RTLD_DEFAULT, "pcmalloc_background_thread"));
  if (state == nullptr || strcmp(state(), "running") != 0) {
    fprintf(stderr, "no background thread: %s\n", state == nullptr ? "no pcmalloc" : state());
    return 3;
  }
  if (created != 201) {
    fprintf(stderr, "the wrapper saw %d threads of 201\n", created);
    return 1;
  }
  return 0;
}
