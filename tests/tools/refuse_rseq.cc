// SPDX-License-Identifier: Apache-2.0
//
// refuse_rseq [--errno=EPERM|ENOSYS] COMMAND ARGUMENTS...: runs a command for which the kernel
// seems to have no rseq (ENOSYS), or a container's filter to forbid it (EPERM). The C library of
// the command then registers nothing either.
#include <errno.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

int main(int argc, char** argv) {
  unsigned refusal = ENOSYS;
  int first = 1;
  if (argc > 1 && strncmp(argv[1], "--errno=", 8) == 0) {
    first = 2;
    if (strcmp(argv[1] + 8, "EPERM") == 0) {
      refusal = EPERM;
    } else if (strcmp(argv[1] + 8, "ENOSYS") != 0) {
      fprintf(stderr, "refuse_rseq: %s: EPERM or ENOSYS\n", argv[1]);
      return 2;
    }
  }
  if (first >= argc) {
    fprintf(stderr, "usage: refuse_rseq [--errno=EPERM|ENOSYS] COMMAND ARGUMENTS...\n");
    return 2;
  }
  sock_filter code[] = {
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, nr)),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, __NR_rseq, 0, 1),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | refusal),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
  };
  sock_fprog program = {sizeof(code) / sizeof(code[0]), code};
  if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0 ||
      prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) != 0) {
    perror("refuse_rseq: prctl");
    return 2;
  }
  execvp(argv[first], argv + first);
  perror(argv[first]);
  return 127;
}
