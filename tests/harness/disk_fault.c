/* Make the n-th disk operation of a process fail. Loaded with LD_PRELOAD; off until armed.
 *
 *   disk_fault_arm("/volumes", OPERATION, n, ERRNO, sticky, counts)     n = 0: only count
 *
 * Only operations on files below the folder count. With sticky, all that follow fail too, as on a
 * full disk. A failing write first writes half of its bytes, and fails when it is continued.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

enum { WRITE, FSYNC, RENAME, CREATE, MKDIR, TRUNCATE };

static char root[4096];
static int chosen, target, error_number, sticky;
static int was_short;
static int *counts; /* by operation; shared with the process that forked this one */

void disk_fault_arm(const char *folder, int which, int n, int number, int stays, int *shared) {
    snprintf(root, sizeof root, "%s/", folder);
    chosen = which, target = n, error_number = number, sticky = stays;
    __atomic_store_n(&counts, shared, __ATOMIC_SEQ_CST);
}

static int is_below(const char *path) { return strncmp(path, root, strlen(root)) == 0; }

static int fails(int operation) {
    int now = __atomic_add_fetch(&counts[operation], 1, __ATOMIC_SEQ_CST);
    if (operation != chosen || !target || (sticky ? now < target : now != target)) return 0;
    errno = error_number;
    return 1;
}

static int fails_at(int operation, int folder, const char *path) {
    char full[8192], base[4096] = "";
    if (!counts) return 0;
    if (path[0] != '/') {
        char link[64];
        snprintf(link, sizeof link, folder == AT_FDCWD ? "/proc/self/cwd" : "/proc/self/fd/%d", folder);
        ssize_t size = readlink(link, base, sizeof base - 1);
        base[size > 0 ? size : 0] = 0;
    }
    snprintf(full, sizeof full, "%s%s%s", base, base[0] ? "/" : "", path);
    return is_below(full) && fails(operation);
}

static int fails_on(int operation, int descriptor) {
    if (!counts) return 0;
    int saved = errno;
    char link[64], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    ssize_t size = readlink(link, path, sizeof path - 1);
    path[size > 0 ? size : 0] = 0;
    errno = saved;
    return is_below(path) && fails(operation);
}

#define REAL(name) \
    static __typeof__(&name) real; \
    if (!real) real = (__typeof__(&name))dlsym(RTLD_NEXT, #name)

ssize_t write(int descriptor, const void *bytes, size_t size) {
    REAL(write);
    if (!fails_on(WRITE, descriptor)) return real(descriptor, bytes, size);
    if (size < 2 || was_short) return -1;
    was_short = 1; /* as the kernel does: first a part, then the error */
    __atomic_sub_fetch(&counts[WRITE], 1, __ATOMIC_SEQ_CST);
    return real(descriptor, bytes, size / 2);
}

ssize_t pwrite(int descriptor, const void *bytes, size_t size, off_t at) {
    REAL(pwrite);
    return fails_on(WRITE, descriptor) ? -1 : real(descriptor, bytes, size, at);
}

ssize_t pwrite64(int descriptor, const void *bytes, size_t size, off64_t at) {
    REAL(pwrite64);
    return fails_on(WRITE, descriptor) ? -1 : real(descriptor, bytes, size, at);
}

ssize_t writev(int descriptor, const struct iovec *parts, int number) {
    REAL(writev);
    return fails_on(WRITE, descriptor) ? -1 : real(descriptor, parts, number);
}

int fsync(int descriptor) {
    REAL(fsync);
    return fails_on(FSYNC, descriptor) ? -1 : real(descriptor);
}

int fdatasync(int descriptor) {
    REAL(fdatasync);
    return fails_on(FSYNC, descriptor) ? -1 : real(descriptor);
}

int rename(const char *from, const char *to) {
    REAL(rename);
    return fails_at(RENAME, AT_FDCWD, to) ? -1 : real(from, to);
}

int renameat(int from_folder, const char *from, int to_folder, const char *to) {
    REAL(renameat);
    return fails_at(RENAME, to_folder, to) ? -1 : real(from_folder, from, to_folder, to);
}

int ftruncate(int descriptor, off_t size) {
    REAL(ftruncate);
    return fails_on(TRUNCATE, descriptor) ? -1 : real(descriptor, size);
}

int ftruncate64(int descriptor, off64_t size) {
    REAL(ftruncate64);
    return fails_on(TRUNCATE, descriptor) ? -1 : real(descriptor, size);
}

int mkdir(const char *path, mode_t mode) {
    REAL(mkdir);
    return fails_at(MKDIR, AT_FDCWD, path) ? -1 : real(path, mode);
}

#define OPEN(name) \
    int name(const char *path, int flags, ...) { \
        REAL(name); \
        va_list list; \
        va_start(list, flags); \
        mode_t mode = va_arg(list, mode_t); \
        va_end(list); \
        if (flags & O_CREAT && access(path, F_OK) && fails_at(CREATE, AT_FDCWD, path)) return -1; \
        return real(path, flags, mode); \
    }
OPEN(open)
OPEN(open64)

#define OPENAT(name) \
    int name(int folder, const char *path, int flags, ...) { \
        REAL(name); \
        va_list list; \
        va_start(list, flags); \
        mode_t mode = va_arg(list, mode_t); \
        va_end(list); \
        if (flags & O_CREAT && faccessat(folder, path, F_OK, 0) && fails_at(CREATE, folder, path)) \
            return -1; \
        return real(folder, path, flags, mode); \
    }
OPENAT(openat)
OPENAT(openat64)
