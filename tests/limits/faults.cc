// SPDX-License-Identifier: Apache-2.0
#include "tests/limits/faults.h"

#include <errno.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

namespace pcmalloc::testing {
namespace {

constexpr uint32_t kLoadNumber = offsetof(seccomp_data, nr);
// Low and high half of argument i on a little-endian machine.
constexpr uint32_t Low(int i) {
  return offsetof(seccomp_data, args) + 8 * static_cast<uint32_t>(i);
}
constexpr uint32_t High(int i) { return Low(i) + 4; }

const sock_filter kAllow = BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
const sock_filter kDie = BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS);
const sock_filter kRefuse = BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | ENOMEM);

bool Install(std::vector<sock_filter> code) {
  sock_fprog program = {static_cast<unsigned short>(code.size()), code.data()};
  return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 &&
         syscall(__NR_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_TSYNC, &program) == 0;
}

bool InstallFor(const std::vector<int>& numbers, sock_filter verdict) {
  std::vector<sock_filter> code = {BPF_STMT(BPF_LD | BPF_W | BPF_ABS, kLoadNumber)};
  for (int number : numbers) {
    code.push_back(BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, static_cast<uint32_t>(number), 0, 1));
    code.push_back(verdict);
  }
  code.push_back(kAllow);
  return Install(std::move(code));
}

}  // namespace

bool RefuseSystemCalls(const std::vector<int>& numbers) { return InstallFor(numbers, kRefuse); }

bool DieOnSystemCalls(const std::vector<int>& numbers) { return InstallFor(numbers, kDie); }

bool RefuseLargeCommits() {
  constexpr uint32_t kGiB = 1u << 30;
  return Install({
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, kLoadNumber),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, __NR_mmap, 1, 0),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, __NR_mprotect, 0, 6),
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, Low(2)),
      BPF_JUMP(BPF_JMP | BPF_JSET | BPF_K, PROT_WRITE, 0, 4),
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, High(1)),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, 0, 0, 3),
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, Low(1)),
      BPF_JUMP(BPF_JMP | BPF_JGT | BPF_K, kGiB, 1, 0),
      kAllow,
      kRefuse,
  });
}

}  // namespace pcmalloc::testing
