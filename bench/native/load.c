/* Load generator for benchmarks: HTTP/1.1 over connections that stay open, with one request at a time on each.
 *
 * load --port P --connections C --seconds S [--warmup W] [--least L] [--requests N] [--rate R] [--events E]
 *      --template FILE
 *
 * FILE is the request as it goes over the wire; "@@@@@@@@@@@@" in it becomes another number for each request. Without
 * a rate, each connection sends its next request as soon as it has its answer. With a rate, request i is due at i / R
 * seconds, and its latency counts from then, even if no connection was free: waiting is not omitted. The answers
 * of W seconds before the S seconds do not count, but for their number; S grows until there are L answers, to LONGEST at
 * most. An answer must have a status from 200 on, below 300, and E events.
 * The result is one line of JSON; latencies are in microseconds.
 */

#include "http.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

#define DRAIN_SECONDS 10
#define LONGEST 3.0
#define WAIT_MS 100
#define MARK "@@@@@@@@@@@@"

struct connection {
    struct buffer in;
    int fd;
    char *request;
    size_t sent;
    double since, first; /* when the request was due, and when its answer began */
    int busy;
};

static struct connection *all;
static int *idle, idle_count, poller, port, count;
static char *template;
static size_t template_size, mark;
static double began, since, until, last, rate;
static long started, finished, counted, in_time, least, wanted_requests, events, failures, reconnects;
static double *latencies, *firsts;
static size_t room;
static unsigned long salt;

static double now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec + time.tv_nsec / 1e9;
}

static void join(struct connection *connection) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int one = 1;
    address.sin_port = htons(port);
    connection->fd = socket(AF_INET, SOCK_STREAM, 0);
    setsockopt(connection->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    if (connect(connection->fd, (struct sockaddr *)&address, sizeof address)) die("connect");
    struct epoll_event wanted = {.events = EPOLLIN, .data.ptr = connection};
    epoll_ctl(poller, EPOLL_CTL_ADD, connection->fd, &wanted);
}

static void await_room(struct connection *connection, int blocked) {
    struct epoll_event wanted = {.events = blocked ? EPOLLIN | EPOLLOUT : EPOLLIN, .data.ptr = connection};
    epoll_ctl(poller, EPOLL_CTL_MOD, connection->fd, &wanted);
}

static void fail(struct connection *connection, const char *why) {
    if (failures++ == 0)
        fprintf(stderr, "%s: %.*s\n", why, (int)(connection->in.used < 600 ? connection->in.used : 600),
                connection->in.used ? connection->in.data : "");
}

static void push(struct connection *connection) {
    while (connection->sent < template_size) {
        ssize_t size = send(connection->fd, connection->request + connection->sent, template_size - connection->sent,
                            MSG_NOSIGNAL | MSG_DONTWAIT);
        if (size < 0 && errno == EAGAIN) {
            await_room(connection, 1);
            return;
        }
        if (size < 0) return; /* the end is read next */
        connection->sent += size;
    }
}

static void begin(struct connection *connection, double due) {
    if (mark) {
        char digits[sizeof MARK];
        snprintf(digits, sizeof digits, "%012lu", (salt + started) % 1000000000000);
        memcpy(connection->request + mark, digits, sizeof MARK - 1);
    }
    started++;
    connection->busy = 1;
    connection->since = due;
    connection->first = 0;
    connection->sent = 0;
    push(connection);
}

/* Join the chunks of a body, because an event may lie in two of them, and return where it then ends. */
static char *join_chunks(struct buffer *in, size_t size) {
    char *at = in->data + in->body, *to = at;
    for (size_t length; in->length < 0 && (length = strtoul(at, NULL, 16)); at += length + 2) {
        at = memmem(at, in->data + size - at, "\r\n", 2) + 2;
        memmove(to, at, length);
        to += length;
    }
    return in->length < 0 ? to : in->data + size;
}

static long number_of_events(struct buffer *in, size_t size) {
    long number = 0;
    const char *at = in->data + in->body, *end = join_chunks(in, size);
    while ((at = memmem(at, end - at, "data: {", 7))) number++, at += 7;
    return number;
}

static void end(struct connection *connection, size_t size) {
    double time = now();
    struct buffer *in = &connection->in;
    long seen = events ? number_of_events(in, size) : 0;
    if (memcmp(in->data, "HTTP/1.1 2", 10)) fail(connection, "status");
    else if (events && seen < events) fail(connection, "events");
    if (connection->since >= since) {
        if ((size_t)counted == room) {
            room = room ? 2 * room : 65536;
            latencies = realloc(latencies, room * sizeof *latencies);
            firsts = realloc(firsts, room * sizeof *firsts);
        }
        latencies[counted] = time - connection->since;
        firsts[counted++] = connection->first - connection->since;
    }
    if (time > since && time <= until) in_time++;
    finished++;
    last = time;
    connection->busy = 0;
    drop(in, size);
}

/* Return whether one more request may begin. */
static int open_for_more(void) {
    double time = now(), longest = since + LONGEST;
    if (wanted_requests && started >= wanted_requests) return 0;
    /* Twice as long as the loop waits, so that no answer comes after the end that would move it. */
    if (in_time < least && until < time + 2 * WAIT_MS / 1e3 && until < longest)
        until = time + 2 * WAIT_MS / 1e3 < longest ? time + 2 * WAIT_MS / 1e3 : longest;
    return time < until;
}

static void take_next(struct connection *connection) {
    double due = rate ? began + started / rate : now();
    if (open_for_more() && due <= now()) begin(connection, due);
    else idle[idle_count++] = connection - all;
}

static void on_ready(struct connection *connection, unsigned int flags) {
    if (flags & EPOLLOUT) {
        await_room(connection, 0);
        push(connection);
    }
    if (!(flags & (EPOLLIN | EPOLLHUP | EPOLLERR))) return;
    ssize_t size = recv(connection->fd, reserve(&connection->in, 65536), 65536, MSG_DONTWAIT);
    if (size < 0 && errno == EAGAIN) return;
    if (size <= 0) {
        close(connection->fd);
        if (connection->busy) {
            fail(connection, "the connection ended");
            connection->busy = 0;
            idle[idle_count++] = connection - all;
        }
        reconnects++;
        connection->in.used = connection->in.body = connection->in.next = 0;
        join(connection);
        return;
    }
    if (!connection->first) connection->first = now();
    connection->in.used += size;
    size_t message = complete(&connection->in);
    if (!message) return;
    end(connection, message);
    take_next(connection);
}

static int ascending(const void *left, const void *right) {
    double difference = *(const double *)left - *(const double *)right;
    return (difference > 0) - (difference < 0);
}

static double share(const double *values, double part) {
    return counted ? values[(long)((counted - 1) * part)] * 1e6 : 0;
}

static void set_timer(int timer, double at) {
    struct itimerspec time = {.it_value = {.tv_sec = (time_t)at, .tv_nsec = (long)((at - (time_t)at) * 1e9)}};
    timerfd_settime(timer, TFD_TIMER_ABSTIME, &time, NULL);
}

static void read_template(const char *path) {
    FILE *file = fopen(path, "rb");
    if (!file) die(path);
    fseek(file, 0, SEEK_END);
    template_size = ftell(file);
    rewind(file);
    template = malloc(template_size);
    if (fread(template, 1, template_size, file) != template_size) die(path);
    char *at = memmem(template, template_size, MARK, sizeof MARK - 1);
    mark = at ? at - template : 0;
}

int main(int argument_count, char **words) {
    const char *path = NULL;
    for (int i = 1; i + 1 < argument_count; i++)
        if (!strcmp(words[i], "--template")) path = words[i + 1];
    if (!path) return fprintf(stderr, "--template FILE is missing\n"), 2;
    port = option(argument_count, words, "--port", 0);
    count = option(argument_count, words, "--connections", 1);
    rate = option(argument_count, words, "--rate", 0);
    events = option(argument_count, words, "--events", 0);
    wanted_requests = option(argument_count, words, "--requests", 0);
    least = option(argument_count, words, "--least", 0);
    double seconds = option(argument_count, words, "--seconds", 1);
    struct timespec wall;
    clock_gettime(CLOCK_REALTIME, &wall);
    salt = wall.tv_sec * 1000000ul + wall.tv_nsec / 1000;
    read_template(path);
    poller = epoll_create1(0);
    all = calloc(count, sizeof *all);
    idle = malloc(count * sizeof *idle);
    for (int i = 0; i < count; i++) {
        all[i].request = malloc(template_size);
        memcpy(all[i].request, template, template_size);
        join(&all[i]);
        idle[idle_count++] = i;
    }
    int timer = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK);
    struct epoll_event wanted = {.events = EPOLLIN, .data.ptr = NULL}, ready[512];
    epoll_ctl(poller, EPOLL_CTL_ADD, timer, &wanted);
    began = now();
    since = began + option(argument_count, words, "--warmup", 0);
    until = since + seconds;
    for (;;) {
        while (idle_count && open_for_more()) {
            double due = rate ? began + started / rate : now();
            if (due > now()) break;
            begin(&all[idle[--idle_count]], due);
        }
        if (!open_for_more() && (idle_count == count || now() > until + DRAIN_SECONDS)) break;
        if (rate && idle_count && open_for_more()) set_timer(timer, began + started / rate);
        int number = epoll_wait(poller, ready, 512, WAIT_MS);
        for (int i = 0; i < number; i++) {
            uint64_t expirations;
            if (ready[i].data.ptr) on_ready(ready[i].data.ptr, ready[i].events);
            else if (read(timer, &expirations, sizeof expirations) < 0 && errno != EAGAIN) die("timer");
        }
    }
    double elapsed = wanted_requests && now() < until ? now() - since : until - since;
    long due = rate && !wanted_requests ? (long)(rate * (until - began)) : started;
    if (idle_count < count) fprintf(stderr, "%d answers did not come\n", count - idle_count);
    failures += count - idle_count;
    qsort(latencies, counted, sizeof *latencies, ascending);
    qsort(firsts, counted, sizeof *firsts, ascending);
    printf("{\"seconds\": %.4f, \"last\": %.4f, \"requests\": %ld, \"in_time\": %ld, \"due\": %ld, \"failures\": %ld, "
           "\"reconnects\": %ld, \"p50_us\": %.0f, \"p90_us\": %.0f, \"p99_us\": %.0f, \"max_us\": %.0f, "
           "\"first_p50_us\": %.0f}\n",
           elapsed, last - began, finished, in_time, due, failures, reconnects, share(latencies, 0.5), share(latencies, 0.9),
           share(latencies, 0.99), share(latencies, 1), share(firsts, 0.5));
    return 0;
}
