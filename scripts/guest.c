// The test guest's own program: small, exact loads whose effects a test can predict.
//
// Linked statically and started from busybox's shell. Every subcommand does its work and nothing else: static glibc
// opens no file at start, so `work open 100` is exactly 100 openat calls. Long-running subcommands print one line
// (`ready ...`) once what they promise exists, and end when their standard input does or when they are killed.

#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

// Where `map` maps its page: alone in its page-directory-pointer entry, so mapping it fills in every lower level.
#define MAP_ADDRESS ((void *)0x10000000000UL)
// What `touch` writes at the start of that page.
#define MAP_CONTENT "vmscope guest page"

static void fail(const char *what) {
    fprintf(stderr, "work: %s: %s\n", what, strerror(errno));
    exit(1);
}

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static void say(const char *line) {
    puts(line);
    fflush(stdout);
}

// Reads one line without its end; false at the end of standard input.
static int read_command(char *line, int size) {
    if (!fgets(line, size, stdin)) return 0;
    line[strcspn(line, "\n")] = 0;
    return 1;
}

// Keeps what was set up alive until standard input ends or says `exit`.
static void hold(void) {
    char line[64];
    while (read_command(line, sizeof line) && strcmp(line, "exit")) {}
}

// Opens one path N times; says how long it took and how many calls succeeded.
static void work_open(long count) {
    long opened = 0;
    double start = now();
    for (long i = 0; i < count; i++) {
        int fd = openat(AT_FDCWD, "/etc/passwd", O_RDONLY);
        if (fd >= 0) {
            opened++;
            close(fd);
        }
    }
    printf("open %.6f s %ld\n", now() - start, opened);
}

// Maps, touches, drops and unmaps one page at a known address, a step for each line read.
static void work_map(void) {
    char line[64];
    long page = sysconf(_SC_PAGESIZE);
    printf("ready %d %p\n", getpid(), MAP_ADDRESS);
    fflush(stdout);
    while (read_command(line, sizeof line)) {
        if (!strcmp(line, "map")) {
            void *at = mmap(MAP_ADDRESS, page, PROT_READ | PROT_WRITE,
                            MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
            if (at != MAP_ADDRESS) fail("map");
            say("mapped");
        } else if (!strcmp(line, "touch")) {
            strcpy(MAP_ADDRESS, MAP_CONTENT);
            say("touched");
        } else if (!strcmp(line, "drop")) {
            if (madvise(MAP_ADDRESS, page, MADV_DONTNEED)) fail("drop");
            say("dropped");
        } else if (!strcmp(line, "unmap")) {
            if (munmap(MAP_ADDRESS, page)) fail("unmap");
            say("unmapped");
        } else if (!strcmp(line, "exit")) {
            return;
        } else {
            say("unknown");
        }
    }
}

static volatile unsigned long calls;

// What `work calls` calls, and nothing else does.
__attribute__((noinline)) static void called(void) { calls++; }

// For each line N that it reads, calls one function N times; says first where that function is.
static void work_calls(void) {
    char line[64];
    printf("ready %d %p\n", getpid(), (void *)called);
    fflush(stdout);
    while (read_command(line, sizeof line) && strcmp(line, "exit")) {
        for (long n = atol(line); n > 0; n--) called();
        printf("called %lu\n", calls);
        fflush(stdout);
    }
}

// Maps, touches and unmaps N times 16 pages: a load on page tables.
static void work_mm(long count) {
    long size = 16 * sysconf(_SC_PAGESIZE);
    double start = now();
    for (long i = 0; i < count; i++) {
        char *at = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (at == MAP_FAILED) fail("mm");
        memset(at, 1, size);
        munmap(at, size);
    }
    printf("mm %.6f s %ld\n", now() - start, count);
}

// Spins N rounds in user mode.
static void work_cpu(long count) {
    volatile unsigned long sum = 0;
    double start = now();
    for (long i = 0; i < count; i++) sum += i;
    printf("cpu %.6f s %ld\n", now() - start, count);
}

// Forks N processes named sleeper-0, sleeper-1, ... which do nothing until this one ends.
static void work_sleepers(long count) {
    for (long i = 0; i < count; i++) {
        pid_t parent = getpid(), child = fork();
        if (child < 0) fail("fork");
        if (child == 0) {
            char name[32]; // the kernel keeps the first 15 characters
            snprintf(name, sizeof name, "sleeper-%ld", i);
            prctl(PR_SET_NAME, name);
            prctl(PR_SET_PDEATHSIG, SIGKILL);
            if (getppid() != parent) _exit(0);
            raise(SIGSTOP);
            for (;;) pause();
        }
        // The child stops once it carries its name: after `ready` every name is in place.
        int status;
        if (waitpid(child, &status, WUNTRACED) != child) fail("wait");
        kill(child, SIGCONT);
    }
    printf("ready %ld\n", count);
    fflush(stdout);
    hold();
}

// Starts and reaps processes as fast as it can: N of them, or without end for 0.
static void work_churn(long count) {
    say("ready");
    for (long i = 0; count == 0 || i < count; i++) {
        pid_t child = fork();
        if (child < 0) fail("fork");
        if (child == 0) {
            prctl(PR_SET_NAME, "churn");
            _exit(0);
        }
        waitpid(child, NULL, 0);
    }
    printf("churn %ld\n", count);
}

// A place that a breakpoint can be set at; this program is at the same addresses in each of its processes.
__attribute__((noinline)) static void reached(void) { asm volatile("" ::: "memory"); }

static void reach(long count) {
    for (long i = 0; i < count; i++) reached();
}

static void *reach_in_thread(void *count) {
    reach((long)count);
    return NULL;
}

// Starts the program anew out of a memfd, number 9.
static void exec_from_memory(void) {
    int own = open("/proc/self/exe", O_RDONLY), fd = memfd_create("out of memory", 0);
    char bytes[65536];
    ssize_t length;
    while ((length = read(own, bytes, sizeof bytes)) > 0) {
        if (write(fd, bytes, length) != length) fail("memfd");
    }
    close(own);
    if (dup2(fd, 9) != 9) fail("dup2");
    if (fd != 9) close(fd);
    execl("/proc/self/fd/9", "work", "reach", NULL);
    fail("exec");
}

// Comes to one place N times and ends. Without N, it says where that is, and then for each line (`here`, `thread`, `fork` or
// `vfork` and a number) comes there so often, in this process or in a child; `exec` starts the program anew in the same process, `memory` out of a memfd.
static void work_reach(long count) {
    if (count) {
        reach(count);
        return;
    }
    char line[64], how[16];
    printf("ready %d %p\n", getpid(), (void *)reached);
    fflush(stdout);
    while (read_command(line, sizeof line) && strcmp(line, "exit")) {
        pthread_t thread;
        pid_t child = 0;
        if (sscanf(line, "%15s %ld", how, &count) < 1) continue;
        if (!strcmp(how, "exec")) execl("/proc/self/exe", "work", "reach", NULL), fail("exec");
        if (!strcmp(how, "memory")) exec_from_memory();
        if (!strcmp(how, "here")) reach(count);
        if (!strcmp(how, "thread") && pthread_create(&thread, NULL, reach_in_thread, (void *)count)) fail("thread");
        if (!strcmp(how, "thread")) pthread_join(thread, NULL);
        if (!strcmp(how, "fork") && !(child = fork())) reach(count), _exit(0);
        if (!strcmp(how, "vfork") && !(child = vfork())) reach(count), _exit(0);
        if (child) waitpid(child, NULL, 0);
        printf("%s %ld\n", how, count);
        fflush(stdout);
    }
}

// Carries a name that would do harm to a terminal that shows it raw.
static void work_hostile_name(void) {
    prctl(PR_SET_NAME, "\x1b[31mx\x07\xff");
    printf("ready %d\n", getpid());
    fflush(stdout);
    hold();
}

static void *wait_for_ever(void *unused) {
    for (;;) pause();
    return unused;
}

// One process with N threads besides the first.
static void work_threads(long count) {
    pthread_attr_t small;
    pthread_attr_init(&small);
    pthread_attr_setstacksize(&small, 64 * 1024);
    for (long i = 0; i < count; i++) {
        pthread_t thread;
        if (pthread_create(&thread, &small, wait_for_ever, NULL)) fail("thread");
    }
    printf("ready %d %ld\n", getpid(), count);
    fflush(stdout);
    hold();
}

static atomic_ulong rounds, errors;

static void ignore_alarm(int signal) { (void)signal; }

// Fills registers of every kind with values of its own, waits, and says whether they are still there.
static int registers_hold(unsigned long seed) {
    unsigned long wrong, integer = seed & 0xffff, back = 0;
    asm volatile("mov %[s], %%r8; lea 1(%[s]), %%r9; lea 2(%[s]), %%r10; lea 3(%[s]), %%r11;"
                 "lea 4(%[s]), %%r12; lea 5(%[s]), %%r13; lea 6(%[s]), %%r14; lea 7(%[s]), %%r15;"
                 "movq %[s], %%xmm0; movq %%r9, %%xmm15; fildq %[integer]; mov $20000, %%rcx; stc;"
                 // Counts down and waits without touching the carry flag.
                 "1: lea -1(%%rcx), %%rcx; jrcxz 2f; jmp 1b; 2: setnc %%al; movzbl %%al, %%eax;"
                 "fistpq %[back]; sub %[s], %%r8; or %%r8, %%rax;"
                 "movq %%xmm15, %%r8; xor %%r9, %%r8; or %%r8, %%rax; movq %%xmm0, %%r8; xor %[s], %%r8; or %%r8, %%rax;"
                 "sub %[s], %%r9; xor $1, %%r9; or %%r9, %%rax; sub %[s], %%r10; xor $2, %%r10; or %%r10, %%rax;"
                 "sub %[s], %%r11; xor $3, %%r11; or %%r11, %%rax; sub %[s], %%r12; xor $4, %%r12; or %%r12, %%rax;"
                 "sub %[s], %%r13; xor $5, %%r13; or %%r13, %%rax; sub %[s], %%r14; xor $6, %%r14; or %%r14, %%rax;"
                 "sub %[s], %%r15; xor $7, %%r15; or %%r15, %%rax;"
                 : "=&a"(wrong), [back] "=m"(back)
                 : [s] "D"(seed), [integer] "m"(integer)
                 : "rcx", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15", "xmm0", "xmm15", "cc", "memory");
    return wrong == 0 && back == integer;
}

static void *hold_registers(void *seed) {
    for (unsigned long i = (unsigned long)seed;; i++) {
        if (!registers_hold(i * 0x9e3779b97f4a7c15)) errors++;
        rounds++;
    }
    return NULL;
}

// N threads that watch their own registers, and pages that this process never touches: at MAP_ADDRESS anonymous ones,
// the second without any permission; a megabyte behind that a page of this program's file, and another megabyte behind
// that one beyond the file's end. Signals come all the time.
// For each line read, after a while, the number of threads that lost a register; `touch` reads the pages as well.
static void work_missing(long count) {
    long page = sysconf(_SC_PAGESIZE);
    char *at = mmap(MAP_ADDRESS, 4 * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
    int fd = open("/proc/self/exe", O_RDONLY);
    char *file = mmap(at + (1 << 20), page, PROT_READ, MAP_PRIVATE | MAP_FIXED_NOREPLACE, fd, 0);
    char *beyond = mmap(file + (1 << 20), page, PROT_READ, MAP_PRIVATE | MAP_FIXED_NOREPLACE, fd, 1 << 30);
    if (at != MAP_ADDRESS || file == MAP_FAILED || beyond == MAP_FAILED || mprotect(at + page, page, PROT_NONE)) fail("missing");
    signal(SIGALRM, ignore_alarm);
    struct itimerval often = {{0, 3000}, {0, 3000}};
    setitimer(ITIMER_REAL, &often, NULL);
    for (long i = 0; i < count; i++) {
        pthread_t thread;
        if (pthread_create(&thread, NULL, hold_registers, (void *)i)) fail("thread");
    }
    printf("ready %d\n", getpid());
    fflush(stdout);
    char line[64];
    while (read_command(line, sizeof line) && strcmp(line, "exit")) {
        unsigned long before = rounds;
        while (rounds < before + 100) usleep(1000);
        printf("errors %lu", errors);
        if (!strcmp(line, "touch")) printf(" page %d file %d", at[0], !memcmp(file, "\177ELF", 4));
        puts("");
        fflush(stdout);
    }
}

// The physical frames of every program's code that is in memory, as FIRST+COUNT in hexadecimal: those that executable
// mappings of files show (proc(5), pagemap: bit 63 present, bit 61 a page of a file or shared).
static void work_text(void) {
    DIR *proc = opendir("/proc");
    if (!proc) fail("/proc");
    struct dirent *entry;
    while ((entry = readdir(proc))) {
        char path[64], line[512], permissions[8];
        unsigned long start, end, inode;
        snprintf(path, sizeof path, "/proc/%d/maps", atoi(entry->d_name));
        FILE *maps = fopen(path, "r");
        snprintf(path, sizeof path, "/proc/%d/pagemap", atoi(entry->d_name));
        int pagemap = maps ? open(path, O_RDONLY) : -1;
        while (pagemap >= 0 && fgets(line, sizeof line, maps)) {
            if (sscanf(line, "%lx-%lx %7s %*s %*s %lu", &start, &end, permissions, &inode) != 4) continue;
            if (permissions[2] != 'x' || !inode) continue;
            unsigned long first = 0, count = 0;
            for (unsigned long at = start; at <= end; at += 4096) {
                unsigned long page = 0;
                if (at < end && pread(pagemap, &page, 8, at / 4096 * 8) != 8) break;
                unsigned long frame = page >> 63 && page >> 61 & 1 ? page & ((1UL << 55) - 1) : 0;
                if (count && frame == first + count) {
                    count++;
                    continue;
                }
                if (count) printf("%lx+%lx\n", first, count);
                first = frame, count = frame != 0;
            }
        }
        if (pagemap >= 0) close(pagemap);
        if (maps) fclose(maps);
    }
    closedir(proc);
}

// Starts the kernel that `scripts/guest --kexec` has put into /boot in the place of this one, without a reset.
static void work_kexec(void) {
    char line[1024] = "";
    int kernel = open("/boot/vmlinuz", O_RDONLY), initrd = open("/boot/initrd", O_RDONLY), own = open("/proc/cmdline", O_RDONLY);
    ssize_t length = read(own, line, sizeof line - 1);
    if (kernel < 0 || initrd < 0 || length < 0) fail("kexec: /boot");
    line[strcspn(line, "\n")] = 0;
    if (syscall(SYS_kexec_file_load, kernel, initrd, strlen(line) + 1, line, 0L)) fail("kexec_file_load");
    say("kexec");
    syscall(SYS_reboot, 0xfee1dead, 672274793, 0x45584543, NULL); // LINUX_REBOOT_CMD_KEXEC
    fail("reboot");
}

int main(int argc, char **argv) {
    const char *what = argc > 1 ? argv[1] : "";
    long count = argc > 2 ? atol(argv[2]) : 0;
    if (!strcmp(what, "open")) work_open(count);
    else if (!strcmp(what, "map")) work_map();
    else if (!strcmp(what, "calls")) work_calls();
    else if (!strcmp(what, "mm")) work_mm(count);
    else if (!strcmp(what, "cpu")) work_cpu(count);
    else if (!strcmp(what, "sleepers")) work_sleepers(count);
    else if (!strcmp(what, "churn")) work_churn(count);
    else if (!strcmp(what, "reach")) work_reach(count);
    else if (!strcmp(what, "hostile-name")) work_hostile_name();
    else if (!strcmp(what, "threads")) work_threads(count);
    else if (!strcmp(what, "missing")) work_missing(count);
    else if (!strcmp(what, "text")) work_text();
    else if (!strcmp(what, "kexec")) work_kexec();
    else {
        fputs("usage: work open N | map | calls | mm N | cpu N | sleepers N | churn [N] | reach [N] | hostile-name | threads N | missing N | text | kexec\n", stderr);
        return 2;
    }
    return 0;
}
