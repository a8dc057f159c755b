/* What the mock and the generator share: a growing buffer, and the end of an HTTP/1.1 message in it. */

#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

struct buffer {
    char *data;
    size_t used, size;
    size_t body;    /* where the body begins; 0 until the head is complete */
    size_t next;    /* where the next chunk of a chunked body begins */
    long length;    /* Content-Length; -1 for a chunked body */
};

static void die(const char *what) {
    perror(what);
    exit(1);
}

/* Return room for at least `wanted` more bytes. */
static char *reserve(struct buffer *buffer, size_t wanted) {
    if (buffer->size - buffer->used < wanted) {
        buffer->size = 2 * (buffer->size + wanted);
        buffer->data = realloc(buffer->data, buffer->size);
        if (!buffer->data) die("realloc");
    }
    return buffer->data + buffer->used;
}

/* Return the value of a field of a complete head, or NULL. */
static const char *field(const struct buffer *buffer, const char *name) {
    size_t length = strlen(name);
    for (const char *line = buffer->data, *end = buffer->data + buffer->body; line < end;) {
        if (!strncasecmp(line, name, length) && line[length] == ':') return line + length + 1;
        line = memchr(line, '\n', end - line);
        if (!line) return NULL;
        line++;
    }
    return NULL;
}

/* Return the size of the first message in the buffer, or 0 if it is not complete. */
static size_t complete(struct buffer *buffer) {
    if (!buffer->body) {
        char *end = memmem(buffer->data, buffer->used, "\r\n\r\n", 4);
        if (!end) return 0;
        buffer->next = buffer->body = end + 4 - buffer->data;
        const char *length = field(buffer, "content-length"), *coding = field(buffer, "transfer-encoding");
        buffer->length = coding && memmem(coding, strcspn(coding, "\r"), "chunked", 7) ? -1 : length ? atol(length) : 0;
    }
    if (buffer->length >= 0) return buffer->used >= buffer->body + buffer->length ? buffer->body + buffer->length : 0;
    for (;;) {
        char *line = buffer->data + buffer->next, *end = memmem(line, buffer->used - buffer->next, "\r\n", 2);
        if (!end) return 0;
        size_t size = strtoul(line, NULL, 16), after = end + 2 - buffer->data + size + 2;
        if (after > buffer->used) return 0;
        buffer->next = after;
        if (!size) return after;
    }
}

/* Take the first `size` bytes out of the buffer. */
static void drop(struct buffer *buffer, size_t size) {
    memmove(buffer->data, buffer->data + size, buffer->used - size);
    buffer->used -= size;
    buffer->body = buffer->next = 0;
}

/* Return the number that follows `--name` in the arguments, or `otherwise`. */
static double option(int count, char **words, const char *name, double otherwise) {
    for (int i = 1; i + 1 < count; i++)
        if (!strcmp(words[i], name)) return atof(words[i + 1]);
    return otherwise;
}
