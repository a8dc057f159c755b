/* Model for benchmarks: one process that answers each chat at once with about 600 bytes.
 *
 * A request with "stream":true gets 50 events and [DONE], each by a write of its own, as models send them: as fast as
 * they are read, or one every N ms if the prompt contains "pace_ms=N". The port is printed on the first line.
 */

#include "http.h"

#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define EVENTS 50
#define EDGE 1024 /* bytes at both ends of a body in which the flags are looked for */

struct connection {
    struct buffer in;
    int fd, blocked;
    int left;      /* events and the end that are still to send; 0: no stream is open */
    double pace, due; /* ms between events, and the time of the next one */
    const char *rest; /* of a write that did not fit */
    size_t rest_size;
    struct connection *next, *previous; /* in the list of open streams */
};

static struct connection streams = {.next = &streams, .previous = &streams};
static int poller;
static char whole[2048], models[2048], head[256], event[2048], done[64];

static double now_ms(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * 1e3 + time.tv_nsec / 1e6;
}

static void prepare(void) {
    char filling[401], body[1024];
    memset(filling, 'x', 400);
    filling[400] = 0;
    snprintf(body, sizeof body,
             "{\"id\":\"chatcmpl-1\",\"object\":\"chat.completion\",\"created\":1,\"model\":\"bench\",\"choices\":"
             "[{\"index\":0,\"message\":{\"role\":\"assistant\",\"content\":\"%s\"},\"finish_reason\":\"stop\"}],"
             "\"usage\":{\"prompt_tokens\":10,\"completion_tokens\":100,\"total_tokens\":110}}", filling);
    const char *json = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %zu\r\n\r\n%s";
    snprintf(whole, sizeof whole, json, strlen(body), body);
    snprintf(body, sizeof body, "{\"object\":\"list\",\"data\":[{\"id\":\"bench\",\"object\":\"model\",\"created\":1,"
             "\"owned_by\":\"bench\"}]}");
    snprintf(models, sizeof models, json, strlen(body), body);
    snprintf(head, sizeof head,
             "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n");
    snprintf(body, sizeof body,
             "data: {\"id\":\"chatcmpl-1\",\"object\":\"chat.completion.chunk\",\"created\":1,\"model\":\"bench\","
             "\"choices\":[{\"index\":0,\"delta\":{\"content\":\" token\"},\"finish_reason\":null}]}\n\n");
    snprintf(event, sizeof event, "%zx\r\n%s\r\n", strlen(body), body);
    snprintf(done, sizeof done, "e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n");
}

static void close_stream(struct connection *connection) {
    if (!connection->left) return;
    connection->next->previous = connection->previous;
    connection->previous->next = connection->next;
    connection->left = 0;
}

static void leave(struct connection *connection) {
    close_stream(connection);
    close(connection->fd);
    free(connection->in.data);
    free(connection);
}

/* Wait until the socket can be written to again, or no longer. */
static void block(struct connection *connection, int blocked) {
    struct epoll_event wanted = {.events = blocked ? EPOLLIN | EPOLLOUT : EPOLLIN, .data.ptr = connection};
    if (connection->blocked != blocked) epoll_ctl(poller, EPOLL_CTL_MOD, connection->fd, &wanted);
    connection->blocked = blocked;
}

/* Write a text; return -1 if the peer is gone. What does not fit is written later. */
static int put(struct connection *connection, const char *text, size_t size) {
    ssize_t written = send(connection->fd, text, size, MSG_NOSIGNAL);
    if (written < 0 && errno != EAGAIN) return -1;
    if (written < 0) written = 0;
    connection->rest = text + written;
    connection->rest_size = size - written;
    block(connection, connection->rest_size > 0);
    return 0;
}

/* Answer the request of `size` bytes that is in the buffer; return -1 if the peer is gone. */
static int answer(struct connection *connection, size_t size) {
    struct buffer *in = &connection->in;
    const char *body = in->data + in->body, *pace;
    size_t length = size - in->body, edge = length < EDGE ? length : EDGE;
    const char *tail = body + length - edge;
    int stream = memmem(body, edge, "\"stream\":true", 13) || memmem(body, edge, "\"stream\": true", 14) ||
                 memmem(tail, edge, "\"stream\":true", 13) || memmem(tail, edge, "\"stream\": true", 14);
    if (!stream) {
        const char *text = in->data[0] == 'G' ? models : whole;
        return put(connection, text, strlen(text));
    }
    pace = memmem(body, edge, "pace_ms=", 8);
    connection->pace = pace ? atof(pace + 8) : 0;
    connection->due = now_ms();
    connection->left = EVENTS + 1;
    connection->next = &streams;
    connection->previous = streams.previous;
    streams.previous->next = connection;
    streams.previous = connection;
    return put(connection, head, strlen(head));
}

static int answer_all(struct connection *connection) {
    size_t size;
    while (!connection->left && !connection->rest_size && (size = complete(&connection->in))) {
        if (answer(connection, size) < 0) return -1;
        drop(&connection->in, size);
    }
    return 0;
}

static int on_readable(struct connection *connection) {
    char *room = reserve(&connection->in, 65536);
    ssize_t size = recv(connection->fd, room, 65536, 0);
    if (size == 0 || (size < 0 && errno != EAGAIN)) return -1;
    if (size > 0) connection->in.used += size;
    return answer_all(connection);
}

/* Send an event of each stream that is due; return the ms until the next one, or -1 if none is open. */
static int step(void) {
    double now = now_ms(), wait = -1;
    for (struct connection *each = streams.next, *next; each != &streams; each = next) {
        next = each->next;
        if (each->rest_size) continue;
        if (each->due > now) {
            if (wait < 0 || each->due - now < wait) wait = each->due - now;
            continue;
        }
        const char *text = each->left == 1 ? done : event;
        if (put(each, text, strlen(text)) < 0) {
            leave(each);
            continue;
        }
        each->due += each->pace;
        if (each->left == 1) {
            close_stream(each);
            if (answer_all(each) < 0) leave(each);
            else if (each->left) wait = 0;
        } else {
            each->left--;
            wait = each->pace ? wait < 0 || each->pace < wait ? each->pace : wait : 0;
        }
    }
    return wait < 0 ? -1 : (int)(wait + 0.999);
}

int main(int count, char **words) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof address;
    int one = 1, listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    address.sin_port = htons(option(count, words, "--port", 0));
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(listener, (struct sockaddr *)&address, size) || listen(listener, 4096)) die("listen");
    getsockname(listener, (struct sockaddr *)&address, &size);
    prepare();
    printf("%d\n", ntohs(address.sin_port));
    fflush(stdout);
    poller = epoll_create1(0);
    struct epoll_event wanted = {.events = EPOLLIN, .data.ptr = NULL}, ready[512];
    epoll_ctl(poller, EPOLL_CTL_ADD, listener, &wanted);
    for (;;) {
        int number = epoll_wait(poller, ready, 512, step());
        for (int i = 0; i < number; i++) {
            struct connection *connection = ready[i].data.ptr;
            if (!connection) {
                int fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK);
                if (fd < 0) continue;
                setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
                connection = calloc(1, sizeof *connection);
                connection->fd = fd;
                wanted.data.ptr = connection;
                epoll_ctl(poller, EPOLL_CTL_ADD, fd, &wanted);
                continue;
            }
            int gone = 0;
            if (connection->rest_size && ready[i].events & EPOLLOUT)
                gone = put(connection, connection->rest, connection->rest_size);
            if (!gone && ready[i].events & (EPOLLIN | EPOLLHUP | EPOLLERR)) gone = on_readable(connection);
            if (gone) leave(connection);
        }
    }
}
