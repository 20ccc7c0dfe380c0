/*
 * relay: the floor every proxy is compared with, a byte relay that understands nothing.
 *
 *     relay LISTEN_PORT UPSTREAM_PORT          both on 127.0.0.1
 *
 * One thread, one edge-triggered epoll set, one upstream connection for each downstream connection.
 * It parses nothing, pools nothing, logs nothing, balances nothing and has no timeouts: what it
 * spends per request is what the kernel charges for two recv and two send with a wake-up on either
 * side, and a proxy over plain sockets cannot spend less.
 *
 * Invariants:
 * 1. A connection is registered once, for input and output together, and never modified: epoll_ctl
 *    costs 0.4 us and would be charged to the floor.
 * 2. A read that returns less than it asked for has drained the socket (epoll(7)), unless the peer
 *    has shut down: then reading goes on until 0.
 * 3. While an end holds unsent bytes, the other end is not read (back-pressure), so an end holds at
 *    most one buffer.
 * 4. A pair is freed after the batch of events it died in, since the batch may still name it.
 *
 * Tests: bench/tests/test_relay.py.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

enum { BUFFER_BYTES = 64 * 1024, EVENTS_MAX = 256, BACKLOG = 4096 };

struct pair;

struct end {
    int fd;
    struct pair *pair;
    char *unsent;        /* bytes this end has still to send; NULL when there are none */
    size_t unsent_start; /* 0 <= unsent_start <= unsent_end <= BUFFER_BYTES */
    size_t unsent_end;
    bool hung_up; /* EPOLLRDHUP was seen: read until 0 */
    bool read_ended;
    bool write_ended;
};

struct pair {
    struct end downstream, upstream;
    struct pair *next_dead;
    bool dead;
};

static char shared_buffer[BUFFER_BYTES];
static struct pair *dead_pairs;

static void fail(const char *what) {
    perror(what);
    exit(1);
}

static struct end *other(struct end *end) {
    return end == &end->pair->downstream ? &end->pair->upstream : &end->pair->downstream;
}

static void bury(struct pair *pair) {
    if (pair->dead) return;
    pair->dead = true;
    close(pair->downstream.fd);
    close(pair->upstream.fd);
    pair->next_dead = dead_pairs;
    dead_pairs = pair;
}

static void free_dead(void) {
    while (dead_pairs) {
        struct pair *pair = dead_pairs;
        dead_pairs = pair->next_dead;
        free(pair->downstream.unsent);
        free(pair->upstream.unsent);
        free(pair);
    }
}

/* Sends what it can; returns how much, or -1 when the pair had to be buried. */
static ssize_t send_some(struct end *to, const char *bytes, size_t count) {
    size_t sent = 0;
    while (sent < count) {
        ssize_t n = send(to->fd, bytes + sent, count - sent, MSG_NOSIGNAL);
        if (n >= 0) {
            sent += (size_t)n;
        } else if (errno == EAGAIN) {
            break;
        } else if (errno != EINTR) {
            bury(to->pair);
            return -1;
        }
    }
    return (ssize_t)sent;
}

/* The other end said it will send no more: say so here once everything went out. */
static void pass_end(struct end *to) {
    if (to->unsent || to->write_ended) return;
    to->write_ended = true;
    shutdown(to->fd, SHUT_WR);
    if (other(to)->write_ended) bury(to->pair);
}

/* Moves bytes from one end to the other until the source is drained or the sink is full. */
static void pump(struct end *from) {
    struct end *to = other(from);
    while (!from->pair->dead && !from->read_ended && !to->unsent) {
        ssize_t n = recv(from->fd, shared_buffer, BUFFER_BYTES, 0);
        if (n < 0) {
            if (errno == EINTR) continue;
            if (errno != EAGAIN) bury(from->pair);
            return;
        }
        if (n == 0) {
            from->read_ended = true;
            pass_end(to);
            return;
        }
        ssize_t sent = send_some(to, shared_buffer, (size_t)n);
        if (sent < 0) return;
        if (sent < n) {
            to->unsent = malloc(BUFFER_BYTES);
            if (!to->unsent) fail("malloc");
            to->unsent_start = 0;
            to->unsent_end = (size_t)(n - sent);
            memcpy(to->unsent, shared_buffer + sent, to->unsent_end);
        }
        if (n < BUFFER_BYTES && !from->hung_up) return;
    }
}

static void on_writable(struct end *end) {
    ssize_t sent = send_some(end, end->unsent + end->unsent_start,
                             end->unsent_end - end->unsent_start);
    if (sent < 0) return;
    end->unsent_start += (size_t)sent;
    if (end->unsent_start < end->unsent_end) return;
    free(end->unsent);
    end->unsent = NULL;
    if (other(end)->read_ended) pass_end(end);
    else pump(other(end));
}

static void register_end(int epoll, struct end *end) {
    struct epoll_event event = {.events = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET};
    event.data.ptr = end;
    int one = 1;
    setsockopt(end->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    if (epoll_ctl(epoll, EPOLL_CTL_ADD, end->fd, &event) < 0) fail("epoll_ctl");
}

/* Connects synchronously: on loopback the handshake is over when connect returns. */
static int connect_upstream(const struct sockaddr_in *upstream) {
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0) return -1;
    if (connect(fd, (const struct sockaddr *)upstream, sizeof *upstream) < 0) {
        close(fd);
        return -1;
    }
    if (fcntl(fd, F_SETFL, O_NONBLOCK) < 0) fail("fcntl");
    return fd;
}

static void accept_all(int epoll, int listener, const struct sockaddr_in *upstream) {
    for (;;) {
        int fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd < 0) {
            if (errno == EINTR || errno == ECONNABORTED) continue;
            if (errno == EAGAIN) return;
            fail("accept4");
        }
        int upstream_fd = connect_upstream(upstream);
        if (upstream_fd < 0) {
            close(fd);
            continue;
        }
        struct pair *pair = calloc(1, sizeof *pair);
        if (!pair) fail("calloc");
        pair->downstream.fd = fd;
        pair->upstream.fd = upstream_fd;
        pair->downstream.pair = pair->upstream.pair = pair;
        register_end(epoll, &pair->downstream);
        register_end(epoll, &pair->upstream);
    }
}

static struct sockaddr_in loopback(const char *port) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(port))};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    return address;
}

static int listen_on(const struct sockaddr_in *address) {
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0) fail("socket");
    int one = 1;
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(fd, (const struct sockaddr *)address, sizeof *address) < 0) fail("bind");
    if (listen(fd, BACKLOG) < 0) fail("listen");
    return fd;
}

static void on_event(const struct epoll_event *event) {
    struct end *end = event->data.ptr;
    if (end->pair->dead) return;
    if (event->events & EPOLLERR) {
        bury(end->pair);
        return;
    }
    if (event->events & (EPOLLRDHUP | EPOLLHUP)) end->hung_up = true;
    if (end->unsent && (event->events & EPOLLOUT)) on_writable(end);
    if (event->events & (EPOLLIN | EPOLLRDHUP | EPOLLHUP)) pump(end);
}

int main(int argc, char **argv) {
    if (argc != 3) {
        fprintf(stderr, "usage: relay LISTEN_PORT UPSTREAM_PORT\n");
        return 2;
    }
    const struct sockaddr_in address = loopback(argv[1]), upstream = loopback(argv[2]);
    int listener = listen_on(&address);
    int epoll = epoll_create1(EPOLL_CLOEXEC);
    if (epoll < 0) fail("epoll_create1");
    struct epoll_event listening = {.events = EPOLLIN, .data.ptr = NULL};
    if (epoll_ctl(epoll, EPOLL_CTL_ADD, listener, &listening) < 0) fail("epoll_ctl");

    static struct epoll_event events[EVENTS_MAX];
    for (;;) {
        int count = epoll_wait(epoll, events, EVENTS_MAX, -1);
        if (count < 0 && errno != EINTR) fail("epoll_wait");
        for (int i = 0; i < count; i++) {
            if (events[i].data.ptr) on_event(&events[i]);
            else accept_all(epoll, listener, &upstream);
        }
        free_dead();
    }
}
