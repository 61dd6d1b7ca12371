// The test guest's pages: one of each kind that is not mapped, or not as it seems.
//
// `pages` prints `ready PID`, then for each kind `NAME ADDRESS`, then `end`; kinds that this kernel lacks are left out.
// It ends when its standard input does.

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#define PAGE 4096UL
#define HUGE (2UL << 20)
#ifndef MADV_GUARD_INSTALL
#define MADV_GUARD_INSTALL 102
#endif
#define REGISTER_MODE_MISSING 1UL
#define REGISTER_MODE_WP 2UL

static void fail(const char *what) {
    fprintf(stderr, "pages: %s: %s\n", what, strerror(errno));
    exit(1);
}

static void tell(const char *name, char *at) { printf("%s %lx\n", name, (unsigned long)at); }

static char *fresh(unsigned long bytes, int flags) {
    char *at = mmap(NULL, bytes, PROT_READ | PROT_WRITE, flags | MAP_ANONYMOUS, -1, 0);
    if (at == MAP_FAILED) fail("mmap");
    return at;
}

// Has a userfaultfd serve a range; whether the kernel can.
static int serve(char *at, unsigned long bytes, unsigned long mode) {
    int fd = syscall(SYS_userfaultfd, 0);
    struct uffdio_api api = {.api = UFFD_API};
    struct { unsigned long start, bytes, mode, calls; } range = {(unsigned long)at, bytes, mode, 0};
    if (fd < 0 || ioctl(fd, UFFDIO_API, &api) || ioctl(fd, _IOWR(0xaa, 0, range), &range)) return -1;
    return fd;
}

static int protect(int fd, char *at, unsigned long bytes) {
    struct { unsigned long start, bytes, mode; } range = {(unsigned long)at, bytes, 1};
    return ioctl(fd, _IOWR(0xaa, 6, range), &range);
}

static void go_on(int signal) { (void)signal; }

int main(void) {
    char line[64];
    printf("ready %d\n", getpid());
    tell("present", strcpy(fresh(PAGE, MAP_PRIVATE), "present"));
    tell("untouched", fresh(PAGE, MAP_PRIVATE));
    tell("nothing", (char *)0x7000000000);
    char *none = strcpy(fresh(2 * PAGE, MAP_PRIVATE), "none");
    if (mprotect(none, 2 * PAGE, PROT_NONE)) fail("mprotect");
    tell("none", none), tell("none-untouched", none + PAGE);
    // A huge page, where there are any: all of it, and one of which a part was taken away.
    char *huge = fresh(2 * HUGE, MAP_PRIVATE);
    huge = (char *)(((unsigned long)huge + HUGE - 1) & ~(HUGE - 1));
    madvise(huge, HUGE, MADV_HUGEPAGE);
    strcpy(huge, "huge");
    if (mprotect(huge, HUGE, PROT_NONE)) fail("mprotect");
    tell("huge-none", huge + 5 * PAGE);
    int file = open("/proc/self/exe", O_RDONLY);
    tell("file", mmap(NULL, PAGE, PROT_READ, MAP_PRIVATE, file, 0));
    tell("beyond", mmap(NULL, PAGE, PROT_READ, MAP_PRIVATE, file, 1 << 30));
    tell("shared", fresh(PAGE, MAP_SHARED));
    // Whose memory breaks hears of it, by a signal that must not be ignored.
    signal(SIGBUS, go_on);
    char *poison = strcpy(fresh(PAGE, MAP_PRIVATE), "poison");
    if (!madvise(poison, PAGE, MADV_HWPOISON)) tell("poisoned", poison);
    char *guard = fresh(PAGE, MAP_PRIVATE);
    if (!madvise(guard, PAGE, MADV_GUARD_INSTALL)) tell("guard", guard);
    char *served = fresh(PAGE, MAP_PRIVATE);
    if (serve(served, PAGE, REGISTER_MODE_MISSING) >= 0) tell("served", served);
    // Write protection of pages that are not there is kept in markers, for shared memory from 5.19 on.
    char *marked = fresh(2 * PAGE, MAP_SHARED);
    int fd = serve(marked, 2 * PAGE, REGISTER_MODE_WP);
    if (fd >= 0 && !protect(fd, marked, 2 * PAGE)) tell("marked", marked);
    // UFFDIO_POISON, from 6.6 on.
    char *faulty = fresh(PAGE, MAP_PRIVATE);
    struct { unsigned long start, bytes, mode; long done; } range = {(unsigned long)faulty, PAGE, 0, 0};
    fd = serve(faulty, PAGE, REGISTER_MODE_MISSING);
    if (fd >= 0 && !ioctl(fd, _IOWR(0xaa, 8, range), &range)) tell("faulty", faulty);
    // Written out, where there is something to write to.
    char *out = strcpy(fresh(PAGE, MAP_PRIVATE), "out");
    unsigned char there = 1;
    if (!madvise(out, PAGE, MADV_PAGEOUT) && !mincore(out, PAGE, &there) && !(there & 1)) tell("out", out);
    puts("end");
    fflush(stdout);
    while (fgets(line, sizeof line, stdin) && strcmp(line, "exit\n")) {}
    return 0;
}
