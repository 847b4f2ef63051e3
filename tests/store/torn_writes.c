/* Before the C library: the Nth write, truncation or sync of a SQLite file fails, or kills, whole or half done. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

static long left = -1;
static int mode, met;

void tear_write(long nth, int how) { left = nth; mode = how; met = 0; }
int torn(void) { return met; }

static int ours(int file) {
    char link[64], name[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    ssize_t size = readlink(link, name, sizeof name - 1);
    if (size < 0) return 0;
    name[size] = 0;
    return strstr(name, ".db") != NULL && strstr(name, ".lock") == NULL;
}

static int now(int file) {
    if (left < 0 || !ours(file)) return 0;
    if (--left != 0) return 0;
    left = -1;
    met = 1;
    return 1;
}

static int end(int error) {
    if (mode >= 2) _exit(137);
    errno = error;
    return -1;
}

typedef ssize_t (*writer)(int, const void *, size_t, off_t);

static ssize_t torn_write(const char *name, int file, const void *bytes, size_t size, off_t at) {
    writer real = (writer)dlsym(RTLD_NEXT, name);
    if (!now(file)) return real(file, bytes, size, at);
    if (mode == 1 || mode == 2) real(file, bytes, size / 2, at);
    return end(ENOSPC);
}

ssize_t pwrite(int file, const void *bytes, size_t size, off_t at) { return torn_write("pwrite", file, bytes, size, at); }
ssize_t pwrite64(int file, const void *bytes, size_t size, off_t at) { return torn_write("pwrite64", file, bytes, size, at); }

static int failing(const char *name, int file) {
    if (now(file)) return end(EIO);
    return ((int (*)(int))dlsym(RTLD_NEXT, name))(file);
}

int fsync(int file) { return failing("fsync", file); }
int fdatasync(int file) { return failing("fdatasync", file); }

static int cutting(const char *name, int file, off_t size) {
    if (now(file)) return end(EIO);
    return ((int (*)(int, off_t))dlsym(RTLD_NEXT, name))(file, size);
}

int ftruncate(int file, off_t size) { return cutting("ftruncate", file, size); }
int ftruncate64(int file, off_t size) { return cutting("ftruncate64", file, size); }
