// SPDX-License-Identifier: Apache-2.0
//
// echo_server: listens on a free port of 127.0.0.1, prints "port N" and the allocator's mode, and
// sends every message back until SIGTERM. A message is its length in 4 bytes, big-endian, and that
// many bytes. Each connection has a thread, each message a vector and some strings: it allocates as
// servers do.
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <list>
#include <map>
#include <string>
#include <thread>
#include <vector>

// As <pcmalloc/pcmalloc.h> declares it; a plain g++ compiles this file too.
extern "C" const char* pcmalloc_mode(void);

namespace {

constexpr uint32_t kMaxMessage = 1 << 20;
std::atomic<long> messages{0};

bool ReadAll(int fd, void* to, size_t size) {
  auto* next = static_cast<char*>(to);
  while (size > 0) {
    ssize_t got = read(fd, next, size);
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) return false;
    next += got;
    size -= static_cast<size_t>(got);
  }
  return true;
}

bool WriteAll(int fd, const void* from, size_t size) {
  auto* next = static_cast<const char*>(from);
  while (size > 0) {
    ssize_t put = send(fd, next, size, MSG_NOSIGNAL);
    if (put < 0 && errno == EINTR) continue;
    if (put <= 0) return false;
    next += put;
    size -= static_cast<size_t>(put);
  }
  return true;
}

void Serve(int fd) {
  std::map<std::string, std::string> history;
  uint32_t length = 0;
  while (ReadAll(fd, &length, sizeof(length))) {
    uint32_t size = ntohl(length);
    if (size > kMaxMessage) break;
    std::vector<char> body(size);
    if (!ReadAll(fd, body.data(), size)) break;
    // Through several owners of several sizes before it goes back.
    std::string message(body.begin(), body.end());
    history[std::to_string(messages % 100)] = message.substr(0, 100);
    std::string answer(reinterpret_cast<char*>(&length), sizeof(length));
    answer += message;
    if (!WriteAll(fd, answer.data(), answer.size())) break;
    messages.fetch_add(1);
  }
  shutdown(fd, SHUT_RDWR);
}

}  // namespace

int main() {
  // Threads inherit the mask: SIGTERM arrives only where it is waited for.
  sigset_t stop;
  sigemptyset(&stop);
  sigaddset(&stop, SIGTERM);
  pthread_sigmask(SIG_BLOCK, &stop, nullptr);
  int stopped = signalfd(-1, &stop, SFD_CLOEXEC);
  int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_in address = {};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t length = sizeof(address);
  if (bind(listener, reinterpret_cast<sockaddr*>(&address), length) != 0 ||
      listen(listener, 512) != 0 ||
      getsockname(listener, reinterpret_cast<sockaddr*>(&address), &length) != 0) {
    perror("echo_server");
    return 1;
  }
  printf("port %d\nmode %s\n", ntohs(address.sin_port), pcmalloc_mode());
  fflush(stdout);
  struct Connection {
    int fd;
    std::thread thread;
  };
  std::list<Connection> connections;
  pollfd events[2] = {{listener, POLLIN, 0}, {stopped, POLLIN, 0}};
  while (poll(events, 2, -1) >= 0 || errno == EINTR) {
    if (events[1].revents != 0) break;
    if (events[0].revents == 0) continue;
    int fd = accept4(listener, nullptr, nullptr, SOCK_CLOEXEC);
    if (fd < 0) continue;
    int on = 1;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
    connections.push_back({fd, std::thread(&Serve, fd)});
  }
  for (Connection& connection : connections) {
    shutdown(connection.fd, SHUT_RDWR);
    connection.thread.join();
    close(connection.fd);
  }
  printf("messages %ld\n", messages.load());
  return 0;
}
