/* chaosload: plays Asterisk for a chaos run, and notes what Asterisk would have made of every call.
 *
 *   cc -O2 -o chaosload chaosload.c
 *   chaosload -p PORT -o FILE [-n CALLS] [-t SECONDS] [-r RATE] [-c MOST_AT_ONCE] [-d DEADLINE] [-s SEED]
 *
 * RATE calls start every second, whatever the server does, until CALLS have begun, SECONDS are over or SIGTERM
 * comes; then the calls in progress go on to their end. A call that the server has not ended after DEADLINE seconds
 * is given up and noted as HANG. Callers are 127.0.0.2 to 127.0.0.5, as four Asterisk servers.
 *
 * Kinds of calls:  r  the script "record", the call's number as its argument
 *                  i  the script "ivr", the same; its commands are answered after a while
 *                  s  VICIdial's START of a leg; e  its END, some 0.3 s after the START has ended, whatever became of it
 *                  p  a probe: connects and closes; no call, and not counted as one
 *
 * One line a call is written to FILE when it has ended:
 *     KIND NUMBER VERDICT HOW FAGI_STATUS BEGAN TOOK COMMANDS
 * VERDICT is what the dialplan sees in AGISTATUS (SUCCESS, FAILURE or HANGUP), or HANG; HOW is refused, timeout, line (a
 * line "failure"), closed, reset or deadline; FAGI_STATUS is - if it was not set; BEGAN is the wall clock, TOOK seconds.
 *
 * Source: recordings of Asterisk 16 and 22: a connect takes at most 2 s; a connection that ends in whatever way is a
 * success unless the line "failure" came; HANGUP is sent when the caller hangs up, and at the end of every session.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define CONNECT_S 2.0
#define END_AFTER_S 0.3
#define PEERS 4
#define MOST_ENDS (1 << 20)

enum { FREE, CONNECTING, SENDING, TALKING };

struct call {
    int fd, state, peer, commands, pieces, hangs_up, hung, eof, how_reset;
    char kind, status[32], env[2048], buf[8192];
    long number;
    size_t env_len, sent, used;
    double began, wall, next;
};

static struct sockaddr_in server;
static FILE *out;
static int port, ep;
static double deadline_s = 60;
static uint64_t state_of_chance;
static struct call **active;
static long in_progress;
static struct { long number; double due; } *ends;
static long first_end, last_end;
static volatile sig_atomic_t told_to_end;

static void on_term(int signal_number) { (void)signal_number; told_to_end = 1; }

static double clock_s(clockid_t which) {
    struct timespec t;
    clock_gettime(which, &t);
    return t.tv_sec + t.tv_nsec * 1e-9;
}

static double now(void) { return clock_s(CLOCK_MONOTONIC); }

/* xorshift64*: the same calls for the same seed. */
static unsigned chance(unsigned below) {
    state_of_chance ^= state_of_chance >> 12;
    state_of_chance ^= state_of_chance << 25;
    state_of_chance ^= state_of_chance >> 27;
    return (unsigned)((state_of_chance * 2685821657736338717ULL) >> 33) % below;
}

static void end_call(struct call *c, const char *verdict, const char *how) {
    if (c->fd >= 0) close(c->fd);
    if (c->kind != 'p')
        fprintf(out, "%c %ld %s %s %s %.6f %.6f %d\n", c->kind, c->number, verdict, how, c->status[0] ? c->status : "-",
                c->wall, now() - c->began, c->commands);
    if (c->kind == 's' && last_end - first_end < MOST_ENDS) {
        ends[last_end % MOST_ENDS].number = c->number;
        ends[last_end++ % MOST_ENDS].due = now() + END_AFTER_S;
    }
    c->state = FREE;
}

static void write_environment(struct call *c) {
    const char *script = c->kind == 'r' ? "record" : c->kind == 'i' ? "ivr" : c->kind == 's' ? "call_log"
        : "call_log--HVcauses--PRI-----NODEBUG-----16-----ANSWER-----30-----20-----SIP 200 OK";
    const char *extension = c->kind == 's' ? "913125551212" : c->kind == 'e' ? "h" : "100";
    int n = snprintf(c->env, sizeof c->env,
        "agi_network: yes\nagi_network_script: %s\nagi_request: agi://127.0.0.1:%d/%s\nagi_channel: SIP/gs102-%08lx\n"
        "agi_language: en\nagi_type: SIP\nagi_uniqueid: %ld.%ld\nagi_version: 22.0.0\nagi_callerid: 7%09ld\n"
        "agi_calleridname: 102\nagi_callingpres: 0\nagi_callingani2: 0\nagi_callington: 0\nagi_callingtns: 0\n"
        "agi_dnid: unknown\nagi_rdnis: unknown\nagi_context: default\nagi_extension: %s\nagi_priority: 1\n"
        "agi_enhanced: 0.0\nagi_accountcode: \nagi_threadid: 140000000000000\n",
        script, port, script, c->number, 1700000000L + c->number, c->number, c->number, extension);
    if (c->kind == 'r' || c->kind == 'i')
        n += snprintf(c->env + n, sizeof c->env - n, "agi_arg_1: %ld\n", c->number);
    n += snprintf(c->env + n, sizeof c->env - n, "\n");
    c->env_len = n;
}

static void watch(struct call *c, uint32_t events, int operation) {
    struct epoll_event e = {.events = events, .data.ptr = c};
    epoll_ctl(ep, operation, c->fd, &e);
}

static void start_call(struct call *c, char kind, long number) {
    memset(c, 0, offsetof(struct call, env));
    c->used = c->sent = c->env_len = 0;
    c->kind = kind; c->number = number; c->began = now(); c->wall = clock_s(CLOCK_REALTIME);
    c->pieces = 1 + chance(4);
    c->hangs_up = (kind == 'i' || kind == 'r') && chance(100) < 4;
    c->next = 0;
    c->state = CONNECTING;
    active[in_progress++] = c;
    c->fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (c->fd < 0) { perror("socket"); exit(2); }
    int one = 1;
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    setsockopt(c->fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &one, sizeof one);
    struct sockaddr_in self = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(0x7f000002 + number % PEERS)};
    bind(c->fd, (struct sockaddr *)&self, sizeof self);
    if (kind != 'p') write_environment(c);
    if (connect(c->fd, (struct sockaddr *)&server, sizeof server) < 0 && errno != EINPROGRESS) {
        end_call(c, "FAILURE", "refused");
        return;
    }
    watch(c, EPOLLOUT, EPOLL_CTL_ADD);
}

/* Asterisk's stdio writes what there is in a few pieces, cut between lines. */
static void send_piece(struct call *c) {
    size_t end = c->env_len;
    if (--c->pieces > 0 && c->sent < c->env_len) {
        size_t middle = c->sent + (c->env_len - c->sent) / (c->pieces + 1);
        char *line_end = memchr(c->env + middle, '\n', c->env_len - middle);
        end = line_end - c->env + 1;
    }
    ssize_t n = send(c->fd, c->env + c->sent, end - c->sent, MSG_NOSIGNAL);
    if (n < 0 && errno != EAGAIN) { end_call(c, "SUCCESS", "reset"); return; }
    if (n > 0) c->sent += n;
    if (c->sent == c->env_len) { c->state = TALKING; c->next = 0; }
    else c->next = now() + 0.001 * chance(3);
}

static void on_connected(struct call *c) {
    int error = 0;
    socklen_t size = sizeof error;
    getsockopt(c->fd, SOL_SOCKET, SO_ERROR, &error, &size);
    if (error) { end_call(c, "FAILURE", "refused"); return; }
    if (c->kind == 'p') { end_call(c, "", ""); return; }
    c->state = SENDING;
    watch(c, EPOLLIN, EPOLL_CTL_MOD);
    send_piece(c);
}

static int say(struct call *c, const char *text) {
    return send(c->fd, text, strlen(text), MSG_NOSIGNAL) >= 0;
}

static void note_status(struct call *c, const char *line) {
    static const char name[] = "SET VARIABLE FAGI_STATUS ";
    if (strncasecmp(line, name, sizeof name - 1)) return;
    size_t n = 0;
    for (const char *s = line + sizeof name - 1; *s && n < sizeof c->status - 1; s++)
        if (*s != '"' && *s != ' ') c->status[n++] = *s;
    c->status[n] = 0;
}

static const char *reply_to(struct call *c, const char *line) {
    if (!strncasecmp(line, "GET ", 4) && strcasestr(line, "VARIABLE")) return "200 result=1 (v)\n";
    if (c->hung && strncasecmp(line, "SET VARIABLE", 12) && strncasecmp(line, "VERBOSE", 7) && strncasecmp(line, "NOOP", 4)
        && strncasecmp(line, "EXEC", 4)) return "511 Command Not Permitted on a dead channel or intercept routine\n";
    return "200 result=0\n";
}

/* Carry out the lines that are there; false if the call is over. A command takes its time unless the server is gone. */
static int carry_out(struct call *c) {
    char *line = c->buf, *nl;
    size_t left = c->used;
    while (left && (c->next == 0 || c->eof)) {
        nl = memchr(line, '\n', left);
        if (!nl && !c->eof) break;
        size_t length = nl ? (size_t)(nl - line) + 1 : left;
        if (!nl && c->used == sizeof c->buf) break;
        line[nl ? length - 1 : length] = 0;
        if (!strncasecmp(line, "failure", 7)) {
            say(c, "HANGUP\n");
            end_call(c, c->hung ? "HANGUP" : "FAILURE", "line");
            return 0;
        }
        note_status(c, line);
        c->commands++;
        if (!c->eof) {
            if (c->hangs_up && !c->hung && !chance(2)) { c->hung = 1; say(c, "HANGUP\n"); }
            if (!strncasecmp(line, "STREAM FILE", 11) && !c->hung) {
                c->next = now() + 0.001 * (20 + chance(200));
            } else say(c, reply_to(c, line));
        }
        line += length;
        left -= length;
    }
    memmove(c->buf, line, c->used = left);
    return 1;
}

static void on_input(struct call *c) {
    while (c->used < sizeof c->buf - 1) {
        ssize_t r = recv(c->fd, c->buf + c->used, sizeof c->buf - 1 - c->used, 0);
        if (r < 0 && (errno == EAGAIN || errno == EINTR)) break;
        if (r <= 0) { c->eof = 1; c->how_reset = r < 0; break; }
        c->used += r;
    }
    if (!carry_out(c) || !c->eof) return;
    say(c, "HANGUP\n");
    end_call(c, c->hung ? "HANGUP" : "SUCCESS", c->how_reset ? "reset" : "closed");
}

static void on_time(struct call *c, double t) {
    if (c->state == CONNECTING && t > c->began + CONNECT_S) { end_call(c, "FAILURE", "timeout"); return; }
    if (t > c->began + deadline_s) { end_call(c, "HANG", "deadline"); return; }
    if (!c->next || t < c->next) return;
    if (c->state == SENDING) { send_piece(c); return; }
    c->next = 0;
    if (!c->eof) say(c, "200 result=0 endpos=8000\n");
    carry_out(c);
}

int main(int argc, char **argv) {
    long most = 8192, total = 0, begun = 0, probes = 0, dropped = 0, numbers = 0;
    double seconds = 10, rate = 100;
    const char *path = NULL;
    int o;
    while ((o = getopt(argc, argv, "p:o:n:t:r:c:d:s:")) != -1) switch (o) {
        case 'p': port = atoi(optarg); break;
        case 'o': path = optarg; break;
        case 'n': total = atol(optarg); break;
        case 't': seconds = atof(optarg); break;
        case 'r': rate = atof(optarg); break;
        case 'c': most = atol(optarg); break;
        case 'd': deadline_s = atof(optarg); break;
        case 's': state_of_chance = 0x9e3779b97f4a7c15ULL * (strtoull(optarg, NULL, 10) + 1); break;
        default: return 2;
    }
    if (!port || !path || !(out = fopen(path, "w"))) { fprintf(stderr, "chaosload: a port and a file are needed\n"); return 2; }
    if (!state_of_chance) state_of_chance = 1;
    server = (struct sockaddr_in){.sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    signal(SIGTERM, on_term);
    signal(SIGPIPE, SIG_IGN);
    ep = epoll_create1(EPOLL_CLOEXEC);
    struct call *calls = calloc(most, sizeof *calls), **idle = malloc(most * sizeof *idle);
    active = malloc(most * sizeof *active);
    ends = malloc(MOST_ENDS * sizeof *ends);
    if (!calls || !idle || !active || !ends) { perror("chaosload"); return 2; }
    for (long i = 0; i < most; i++) idle[i] = &calls[i];
    double t0 = now(), next = t0, next_look = t0;
    struct epoll_event ev[256];
    for (;;) {
        double t = now();
        int more = !told_to_end && (!total || begun < total) && t < t0 + seconds;
        while (more && next <= t && (!total || begun < total)) {
            next += 1 / rate;
            if (in_progress == most) { dropped++; continue; }
            struct call *c = idle[most - in_progress - 1];
            if (first_end < last_end && ends[first_end % MOST_ENDS].due <= t) {
                begun++;
                start_call(c, 'e', ends[first_end++ % MOST_ENDS].number);
                continue;
            }
            unsigned chosen = chance(100);
            char kind = chosen < 40 ? 'r' : chosen < 62 ? 'i' : chosen < 98 ? 's' : 'p';
            if (kind == 'p') probes++; else begun++;
            start_call(c, kind, ++numbers);
        }
        if (!more && !in_progress) break;
        int n = epoll_wait(ep, ev, 256, 2);
        for (int i = 0; i < n; i++) {
            struct call *c = ev[i].data.ptr;
            if (c->state == CONNECTING) on_connected(c);
            else if (c->state != FREE) on_input(c);
        }
        t = now();
        if (t < next_look) continue;
        next_look = t + 0.002;
        for (long i = 0; i < in_progress;) {
            struct call *c = active[i];
            if (c->state != FREE) on_time(c, t);
            if (c->state == FREE) { idle[most - in_progress] = c; active[i] = active[--in_progress]; }
            else i++;
        }
    }
    fclose(out);
    double dt = now() - t0;
    printf("calls %ld probes %ld dropped %ld seconds %.2f cpu %.2f\n", begun, probes, dropped, dt,
        clock_s(CLOCK_PROCESS_CPUTIME_ID));
    return 0;
}
