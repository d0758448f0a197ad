/*
 * Answers every request with one line: what it is and what it was built from.
 *
 * One connection at a time, no dependencies, no allocation: small enough to compile in the blink of an eye and
 * real enough to be asked by a probe. SIGTERM and SIGINT end it at once, as process 1 too.
 */
#include <arpa/inet.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#ifndef VERSION
#define VERSION "unversioned"
#endif
#ifndef COMMIT
#define COMMIT "unknown"
#endif

static const char line[] = "hello from slipway's demo " VERSION ", built from " COMMIT "\n";

static void end(int signal) {
  (void)signal;
  _exit(0);
}

static void fail(const char *what) {
  perror(what);
  exit(1);
}

/* A client that says nothing, or takes nothing, is left after a second. */
static void answer(int client) {
  const struct timeval patience = {.tv_sec = 1};
  setsockopt(client, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
  setsockopt(client, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience);

  char request[2048];
  ssize_t length = read(client, request, sizeof request);
  if (length <= 0) return;
  int get = length >= 4 && memcmp(request, "GET ", 4) == 0;

  char response[512];
  int size = snprintf(response, sizeof response,
                      "HTTP/1.1 %s\r\nContent-Type: text/plain; charset=utf-8\r\n"
                      "Content-Length: %zu\r\nConnection: close\r\n\r\n%s",
                      get ? "200 OK" : "405 Method Not Allowed", get ? sizeof line - 1 : 0, get ? line : "");
  if (write(client, response, (size_t)size) != size) perror("write");
}

int main(void) {
  const struct sigaction on_end = {.sa_handler = end};
  sigaction(SIGTERM, &on_end, NULL);
  sigaction(SIGINT, &on_end, NULL);
  signal(SIGPIPE, SIG_IGN);

  int listener = socket(AF_INET, SOCK_STREAM, 0);
  if (listener < 0) fail("socket");
  const int yes = 1;
  setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
  const struct sockaddr_in everywhere = {
      .sin_family = AF_INET, .sin_port = htons(8080), .sin_addr.s_addr = htonl(INADDR_ANY)};
  if (bind(listener, (const struct sockaddr *)&everywhere, sizeof everywhere) < 0) fail("bind");
  if (listen(listener, 64) < 0) fail("listen");
  fputs(line, stderr);

  for (;;) {
    int client = accept(listener, NULL, NULL);
    if (client < 0) continue;
    answer(client);
    close(client);
  }
}
