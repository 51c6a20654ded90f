/* flood: connections that are no calls, for as little processor time as possible: it runs beside what is measured.
 *
 *   cc -O2 -o flood flood.c
 *   flood knock HOST PORT RATE SOURCES
 *   flood trickle HOST PORT CONNECTIONS DATA
 *
 * knock:   connects and closes at once, RATE times a second, evenly spaced, from SOURCES addresses (127.0.1.1 and
 *          following) in turn: one has not ports enough for so many. What comes late is made up for.
 * trickle: opens CONNECTIONS connections and prints "open"; then each sends a byte of DATA every second, all the same
 *          one, but one connection after the other, evenly spread over the second. After the last byte it is silent.
 *
 * SIGTERM ends it. It prints one line of figures then: "knocks N", or "cut N", how many of the connections the server
 * has closed or answered; and the processor time that it took itself, and how long it ran, in seconds.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define SECOND_NS 1000000000LL
#define FIRST_SOURCE 0x7f000101

static struct sockaddr_in peer;
static volatile sig_atomic_t told_to_end;

static void on_term(int signal_number) {
    (void)signal_number;
    told_to_end = 1;
}

static long long clock_ns(clockid_t clock) {
    struct timespec t;
    clock_gettime(clock, &t);
    return t.tv_sec * SECOND_NS + t.tv_nsec;
}

static void sleep_until(long long due_ns) {
    struct timespec due = {due_ns / SECOND_NS, due_ns % SECOND_NS};
    clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &due, NULL);
}

static void fail(const char *what) {
    fprintf(stderr, "flood: %s: %s\n", what, strerror(errno));
    exit(1);
}

/* -1 if it was told to end meanwhile. */
static int open_line(in_addr_t source) {
    struct sockaddr_in from = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(source)};
    int one = 1, fd = socket(AF_INET, SOCK_STREAM, 0);
    if (fd < 0) fail("socket");
    if (source) {
        /* So that the port is chosen among those that are free towards the peer. */
        setsockopt(fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &one, sizeof one);
        if (bind(fd, (struct sockaddr *)&from, sizeof from) < 0) fail("bind");
    }
    if (connect(fd, (struct sockaddr *)&peer, sizeof peer) == 0) return fd;
    if (!told_to_end) fail("connect");
    close(fd);
    return -1;
}

static void knock(long rate, long sources) {
    long long begun_ns = clock_ns(CLOCK_MONOTONIC), knocks = 0;
    for (;;) {
        sleep_until(begun_ns + knocks * SECOND_NS / rate);
        int fd = told_to_end ? -1 : open_line(FIRST_SOURCE + knocks % sources);
        if (fd < 0) break;
        close(fd);
        knocks++;
    }
    printf("knocks %lld", knocks);
}

static int is_cut(int fd) {
    char byte;
    return recv(fd, &byte, 1, MSG_DONTWAIT) >= 0 || errno != EAGAIN;
}

static void trickle(long connections, const char *data) {
    long open = 0, cut = 0;
    long long bytes = strlen(data);
    int one = 1, *lines = malloc(connections * sizeof *lines);
    if (!lines) fail("malloc");
    while (open < connections && (lines[open] = open_line(0)) >= 0)
        setsockopt(lines[open++], IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    puts("open");
    fflush(stdout);
    long long begun_ns = clock_ns(CLOCK_MONOTONIC);
    for (long long sent = 0; !told_to_end; sent++) {
        sleep_until(begun_ns + sent * SECOND_NS / connections);
        /* One that the server has closed is told apart at the end. */
        if (sent / connections < bytes) send(lines[sent % connections], &data[sent / connections], 1, MSG_NOSIGNAL);
    }
    for (long i = 0; i < open; i++) cut += is_cut(lines[i]);
    printf("cut %ld", cut);
}

int main(int argc, char **argv) {
    struct sigaction on_end = {.sa_handler = on_term}; /* Without SA_RESTART: a connect that hangs ends, too. */
    sigaction(SIGTERM, &on_end, NULL);
    long long begun_ns = clock_ns(CLOCK_MONOTONIC);
    int knocks = argc == 6 && strcmp(argv[1], "knock") == 0, trickles = argc == 6 && strcmp(argv[1], "trickle") == 0;
    long count = argc == 6 ? atol(argv[4]) : 0;
    if (!(knocks || trickles) || count < 1 || (knocks && atol(argv[5]) < 1)
        || inet_pton(AF_INET, argv[2], &peer.sin_addr) != 1) {
        fprintf(stderr, "flood: knock HOST PORT RATE SOURCES, or trickle HOST PORT CONNECTIONS DATA\n");
        return 2;
    }
    peer.sin_family = AF_INET;
    peer.sin_port = htons(atoi(argv[3]));
    if (knocks) knock(count, atol(argv[5]));
    else trickle(count, argv[5]);
    printf(" cpu %.3f seconds %.3f\n", clock_ns(CLOCK_PROCESS_CPUTIME_ID) / 1e9,
           (clock_ns(CLOCK_MONOTONIC) - begun_ns) / 1e9);
    return 0;
}
