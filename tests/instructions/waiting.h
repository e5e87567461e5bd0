// SPDX-License-Identifier: Apache-2.0
//
// Purpose: what the tests that stop a process in the middle share: to wait for it, to give up, and
//   where it was loaded.
// Invariants: nobody waits for ever.
// Cost: none worth a word.
#ifndef PCMALLOC_TESTS_INSTRUCTIONS_WAITING_H_
#define PCMALLOC_TESTS_INSTRUCTIONS_WAITING_H_

#include <semaphore.h>
#include <stdint.h>

#include <string>

namespace pcmalloc::instructions {

// Nothing can be learned after that, and what is being traced dies with this process.
[[noreturn]] void Die(const std::string& what);

// Dies, with `what`, after some seconds.
void WaitFor(sem_t* semaphore, const char* what);

// What addresses of the executable have more than nm and objdump say.
uintptr_t LoadBias();

}  // namespace pcmalloc::instructions

#endif  // PCMALLOC_TESTS_INSTRUCTIONS_WAITING_H_
