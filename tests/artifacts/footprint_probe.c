// SPDX-License-Identifier: Apache-2.0
// Shows its own mappings and what of them is resident; with an argument, after a malloc.
#include <fcntl.h>
#include <stdlib.h>
#include <unistd.h>

int main(int argc, char** argv) {
  (void)argv;
  if (argc > 1) {
    void* volatile block = malloc(100);
    if (block == NULL) return 2;
    free(block);
  }
  char text[16384];  // of the stack, so that nothing else is allocated
  const int fd = open("/proc/self/smaps", O_RDONLY);
  ssize_t size;
  while ((size = read(fd, text, sizeof(text))) > 0) {
    if (write(STDOUT_FILENO, text, (size_t)size) != size) return 2;
  }
  return size < 0 ? 2 : 0;
}
