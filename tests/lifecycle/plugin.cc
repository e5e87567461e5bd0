// SPDX-License-Identifier: Apache-2.0
//
// A library to open and close: allocates in its constructor, frees in its destructor, keeps
// something thread-local, hands out blocks that live on, and shows its malloc and free.
#include <stdlib.h>
#include <string.h>

#include <string>
#include <vector>

namespace {
std::vector<std::string> words(100, std::string(50, 'x'));
thread_local std::string local;
}  // namespace

extern "C" char* PluginBlock(size_t size) {
  local.assign(size, 'y');
  words.push_back(local);
  return strdup(local.c_str());
}

extern "C" void* PluginMalloc(size_t size) { return malloc(size); }

extern "C" void PluginFree(void* p) { free(p); }
