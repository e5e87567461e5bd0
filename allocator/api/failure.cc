// SPDX-License-Identifier: Apache-2.0
//
// The one file that is compiled with exceptions. The personality routine and what else the compiler
// refers to are made weak below, so that the shared object does not need libstdc++.
#include "allocator/api/failure.h"

#include "allocator/api/replaced.h"
#include "allocator/base/report.h"

namespace std {
using new_handler = void (*)();
new_handler get_new_handler() noexcept __attribute__((weak));
void __throw_bad_alloc() __attribute__((noreturn, weak));
void terminate() noexcept __attribute__((noreturn, weak));
}  // namespace std

extern "C" {
void* __cxa_begin_catch(void*) noexcept __attribute__((weak));
void __cxa_end_catch() __attribute__((weak));
void __gxx_personality_v0() __attribute__((weak));
}
// A reference of its own making alone does not make a compiler say that the symbol is weak.
__attribute__((used)) static void* (*const begin_catch)(void*) = __cxa_begin_catch;
__attribute__((used)) static void (*const others[])() = {__gxx_personality_v0, __cxa_end_catch,
                                                         std::terminate};

namespace pcmalloc {
namespace {

template <typename Throwing>
void* OrNull(Throwing throwing) noexcept {
  try {
    return throwing();
  } catch (...) {
    return nullptr;
  }
}

}  // namespace

void* NewFailed(size_t alignment, size_t size) {
  while (true) {
    const std::new_handler handler =
        std::get_new_handler != nullptr ? std::get_new_handler() : nullptr;
    if (handler == nullptr) break;
    handler();
    if (void* p = TakeForNew(alignment, size)) return p;
  }
  if (std::__throw_bad_alloc != nullptr) std::__throw_bad_alloc();
  Text<> text;
  text.Str("operator new(")
      .Dec(size)
      .Str(") failed and there is no C++ runtime to throw bad_alloc");
  Fatal(text);
}

void* NothrowNewFailed(size_t alignment, size_t size) noexcept {
  if (std::get_new_handler == nullptr || std::get_new_handler() == nullptr) return nullptr;
  return OrNull([=] { return NewFailed(alignment, size); });
}

namespace forward {

void* NewNothrow(size_t size) noexcept {
  return OrNull([=] { return ::operator new(size); });
}
void* NewArrayNothrow(size_t size) noexcept {
  return OrNull([=] { return ::operator new[](size); });
}
void* NewAlignedNothrow(size_t size, std::align_val_t alignment) noexcept {
  return OrNull([=] { return ::operator new(size, alignment); });
}
void* NewArrayAlignedNothrow(size_t size, std::align_val_t alignment) noexcept {
  return OrNull([=] { return ::operator new[](size, alignment); });
}

}  // namespace forward
}  // namespace pcmalloc
