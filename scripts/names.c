// The test guest's files: one of each kind that the kernel names by a rule of its own.
//
// `names` runs itself anew from a memfd, opens and maps one file of each kind that this kernel has, and prints
// `ready PID PID PID PID`: itself, a child in a chroot, one in a mount namespace of its own, one that has overwritten its
// arguments. What /proc says of the four is what a test compares with. It ends when its standard input does.

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/aio_abi.h>
#include <linux/io_uring.h>
#include <linux/perf_event.h>
#include <mqueue.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/fanotify.h>
#include <sys/inotify.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/shm.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <sys/un.h>
#include <unistd.h>

#define PAGE 4096
#define HUGE (2 << 20)
#ifndef PR_SET_VMA
#define PR_SET_VMA 0x53564d41
#define PR_SET_VMA_ANON_NAME 0
#endif

static void fail(const char *what) {
    fprintf(stderr, "names: %s: %s\n", what, strerror(errno));
    exit(1);
}

// Kinds that a kernel may lack; it says so, and the test compares what is there.
static int maybe(const char *what, long result) {
    if (result < 0) fprintf(stderr, "names: no %s: %s\n", what, strerror(errno));
    return result;
}

static void write_to(const char *path, const char *text) {
    int fd = open(path, O_WRONLY | O_CREAT, 0644);
    if (fd < 0 || write(fd, text, strlen(text)) < 0) fail(path);
    close(fd);
}

static char *map(int fd, long bytes) {
    char *at = mmap(NULL, bytes, PROT_READ, MAP_SHARED, fd, 0);
    return at;
}

// Opens a file of a page and maps it.
static int mapped(const char *path) {
    int fd = open(path, O_RDWR | O_CREAT, 0644);
    if (fd < 0 || ftruncate(fd, PAGE) || map(fd, PAGE) == MAP_FAILED) fail(path);
    return fd;
}

static void in_a_file_system(void) {
    mkdir("/tmp/n", 0755);
    if (mount("names", "/tmp/n", "tmpfs", 0, NULL)) fail("tmpfs");
    const char *folders[] = {"a", "b", "jail", "jail/tmp", "gone", "lazy", "root", "root/old", "low", "up", "work", "over", "stack"};
    for (unsigned i = 0; i < sizeof folders / sizeof *folders; i++) {
        char path[64];
        snprintf(path, sizeof path, "/tmp/n/%s", folders[i]);
        if (mkdir(path, 0755)) fail(path);
    }
    mapped("/tmp/n/plain");
    mapped("/tmp/n/new\nline\\012 and\ttab \xc3\xa4 \xff");
    mapped("/tmp/n/deleted"), unlink("/tmp/n/deleted");
    mapped("/tmp/n/odd (deleted)");
    mapped("/tmp/n/before"), rename("/tmp/n/before", "/tmp/n/after");
    open("/tmp/n/gone", O_RDONLY | O_DIRECTORY), rmdir("/tmp/n/gone");
    open("/tmp/n", O_RDWR | O_TMPFILE, 0600);
    open("/tmp/n/plain", O_PATH);
    char longest[300] = "/tmp/n/";
    memset(longest + 7, 'l', 255);
    mapped(longest);
    // A path of more than a page is nothing that a link can say, but a map can.
    if (chdir("/tmp/n")) fail("chdir");
    for (int i = 0; i < 300; i++) {
        if (mkdir("deep-down", 0755) || chdir("deep-down")) fail("deep");
    }
    mapped("bottom");
    if (chdir("/tmp")) fail("chdir");
    // A folder that shows another one, one mount on top of another one, and one that is taken away while a file is open.
    if (mount("/tmp/n/a", "/tmp/n/b", NULL, MS_BIND, NULL)) fail("bind");
    mapped("/tmp/n/b/bound");
    for (int i = 0; i < 2; i++) {
        if (mount("names", "/tmp/n/stack", "tmpfs", 0, NULL)) fail("stack");
    }
    mapped("/tmp/n/stack/upper");
    if (mount("names", "/tmp/n/lazy", "tmpfs", 0, NULL)) fail("lazy");
    mapped("/tmp/n/lazy/left"), open("/tmp/n/lazy", O_RDONLY);
    if (umount2("/tmp/n/lazy", MNT_DETACH)) fail("detach");
    write_to("/tmp/n/low/lower", "a page of the lower layer");
    if (!maybe("overlay", mount("names", "/tmp/n/over", "overlay", 0, "lowerdir=/tmp/n/low,upperdir=/tmp/n/up,workdir=/tmp/n/work"))) {
        int fd = open("/tmp/n/over/lower", O_RDONLY);
        if (fd < 0 || map(fd, PAGE) == MAP_FAILED) fail("overlay");
        mapped("/tmp/n/over/upper");
    }
    const char *others[] = {"/dev/null", "/dev/zero", "/proc/self/maps", "/proc/self/fd", "/sys/kernel/mm", "/proc/self/root"};
    for (unsigned i = 0; i < sizeof others / sizeof *others; i++) open(others[i], O_RDONLY);
}

static void without_one(void) {
    int fds[2];
    struct sockaddr_un name = {.sun_family = AF_UNIX, .sun_path = "/tmp/n/socket"};
    if (pipe(fds) || socketpair(AF_UNIX, SOCK_STREAM, 0, fds)) fail("pipe");
    int bound = socket(AF_UNIX, SOCK_DGRAM, 0);
    if (bind(bound, (void *)&name, sizeof name)) fail("bind");
    socket(AF_NETLINK, SOCK_RAW, 0);
    maybe("tcp", socket(AF_INET, SOCK_STREAM, 0));
    mkfifo("/tmp/n/fifo", 0600), open("/tmp/n/fifo", O_RDWR);
    sigset_t none;
    sigemptyset(&none);
    maybe("epoll", epoll_create1(0));
    maybe("eventfd", eventfd(0, 0));
    maybe("timerfd", timerfd_create(CLOCK_MONOTONIC, 0));
    maybe("signalfd", signalfd(-1, &none, 0));
    maybe("inotify", inotify_init());
    maybe("fanotify", fanotify_init(0, O_RDONLY));
    maybe("userfaultfd", syscall(SYS_userfaultfd, 0));
    maybe("pidfd", syscall(SYS_pidfd_open, getpid(), 0));
    struct perf_event_attr clock = {.type = PERF_TYPE_SOFTWARE, .size = sizeof clock, .config = PERF_COUNT_SW_CPU_CLOCK};
    maybe("perf event", syscall(SYS_perf_event_open, &clock, 0, -1, -1, 0));
    // BPF_MAP_CREATE of an array: type, bytes of a key and of a value, entries.
    unsigned array[32] = {2, 4, 8, 1};
    maybe("bpf map", syscall(SYS_bpf, 0, array, sizeof array));
    struct io_uring_params ring = {0};
    int io = maybe("io_uring", syscall(SYS_io_uring_setup, 4, &ring));
    if (io >= 0) mmap(NULL, PAGE, PROT_READ, MAP_SHARED | MAP_POPULATE, io, IORING_OFF_SQ_RING);
    aio_context_t aio = 0;
    maybe("aio", syscall(SYS_io_setup, 4, &aio));
    maybe("posix queue", mq_open("/letters", O_RDWR | O_CREAT, 0600, NULL));
    const char *spaces[] = {"net", "mnt", "uts", "ipc", "pid", "pid_for_children", "user", "cgroup", "time"};
    for (unsigned i = 0; i < sizeof spaces / sizeof *spaces; i++) {
        char path[64];
        snprintf(path, sizeof path, "/proc/self/ns/%s", spaces[i]);
        maybe(path, open(path, O_RDONLY));
    }
    // As `ip netns` keeps one.
    write_to("/tmp/n/netns", "");
    if (mount("/proc/self/ns/net", "/tmp/n/netns", NULL, MS_BIND, NULL)) fail("netns");
    open("/tmp/n/netns", O_RDONLY);
    // A buffer of a device's, where there is a heap or udmabuf.
    struct { unsigned long bytes; unsigned fd, flags; unsigned long heap; } heap = {PAGE, 0, O_RDWR, 0};
    int heaps = open("/dev/dma_heap/system", O_RDWR);
    if (!maybe("dma heap", heaps < 0 ? -1 : ioctl(heaps, _IOWR('H', 0, heap), &heap))) map(heap.fd, PAGE);
    int sealed = memfd_create("pages of a buffer", MFD_ALLOW_SEALING);
    if (sealed < 0 || ftruncate(sealed, PAGE) || fcntl(sealed, F_ADD_SEALS, F_SEAL_SHRINK)) fail("seal");
    struct { unsigned fd, flags; unsigned long offset, bytes; } buffer = {sealed, 0, 0, PAGE};
    int devices = open("/dev/udmabuf", O_RDWR);
    int device = maybe("udmabuf", devices < 0 ? -1 : ioctl(devices, _IOW('u', 0x42, buffer), &buffer));
    if (device >= 0) {
        map(device, PAGE);
        ioctl(device, _IOW('b', 1, unsigned long), "a name");
    }
}

static void memory(void) {
    char longest[250] = "";
    memset(longest, 'm', 249);
    const char *names[] = {"", "plain", "new\nline", longest};
    for (unsigned i = 0; i < sizeof names / sizeof *names; i++) {
        int fd = memfd_create(names[i], 0);
        if (fd < 0 || ftruncate(fd, PAGE) || map(fd, PAGE) == MAP_FAILED) fail("memfd");
    }
    int secret = maybe("memfd_secret", syscall(447, 0));
    if (secret >= 0 && !ftruncate(secret, PAGE)) map(secret, PAGE);
    mmap(NULL, PAGE, PROT_READ, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    mmap(NULL, PAGE, PROT_READ, MAP_SHARED, open("/dev/zero", O_RDWR), 0);
    write_to("/proc/sys/vm/nr_hugepages", "4");
    if (mmap(NULL, HUGE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB, -1, 0) == MAP_FAILED) maybe("huge pages", -1);
    int huge = maybe("huge memfd", memfd_create("huge", MFD_HUGETLB));
    if (huge >= 0 && !ftruncate(huge, HUGE)) map(huge, HUGE);
    int segment = shmget(0x1234, PAGE, IPC_CREAT | 0600), private = shmget(IPC_PRIVATE, PAGE, 0600);
    if (segment < 0 || private < 0 || shmat(segment, NULL, 0) == (void *)-1 || shmat(private, NULL, 0) == (void *)-1) fail("shm");
    shmctl(private, IPC_RMID, NULL);
    int large = maybe("huge shm", shmget(IPC_PRIVATE, HUGE, SHM_HUGETLB | 0600));
    if (large >= 0) shmat(large, NULL, 0), shmctl(large, IPC_RMID, NULL);
    // Regions with a name that the program gave them.
    char *own = mmap(NULL, PAGE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    char *shared = mmap(NULL, PAGE, PROT_READ, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    maybe("name of memory", prctl(PR_SET_VMA, PR_SET_VMA_ANON_NAME, own, PAGE, "a name of its own"));
    maybe("name of shared memory", prctl(PR_SET_VMA, PR_SET_VMA_ANON_NAME, shared, PAGE, "shared by name"));
    if (!sbrk(PAGE)) fail("brk");
}

// Starts a child that prepares something and then waits.
static pid_t child(void (*prepare)(void)) {
    int done[2];
    char byte;
    if (pipe2(done, O_CLOEXEC)) fail("pipe");
    pid_t pid = fork();
    if (pid < 0) fail("fork");
    if (!pid) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        prepare();
        close(done[1]);
        for (;;) pause();
    }
    close(done[1]);
    if (read(done[0], &byte, 1) < 0) fail("child");
    close(done[0]);
    return pid;
}

static void in_a_jail(void) {
    if (chdir("/tmp/n/jail") || chroot(".")) fail("chroot");
    mapped("/tmp/inside");
}

static void in_a_namespace(void) {
    if (unshare(CLONE_NEWNS) || mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL)) fail("unshare");
    if (mount("names", "/tmp/n/root", "tmpfs", 0, NULL) || chdir("/tmp/n/root")) fail("root");
    mapped("inside");
    mkdir("folder", 0755), mkdir("old", 0755);
    // The first root of all is nothing that can be turned; it is covered instead, as an initramfs does it.
    if (mount(".", "/", NULL, MS_MOVE, NULL) || chroot(".") || chdir("/folder")) fail("move");
    mapped("/folder/other");
}

static char **arguments;
extern char **environ;

static void by_another_title(void) {
    // From the first argument to the end of the environment is a process's own; it may spread as far.
    char *from = arguments[0], *to = from;
    for (char **at = arguments; *at; at++) to = *at + strlen(*at);
    for (char **at = environ; *at; at++) to = *at + strlen(*at);
    memset(from, 't', to - from > 300 ? 300 : to - from);
    strcpy(from + (to - from > 300 ? 290 : to - from - 1), "");
    memcpy(from, "title: ", 7);
}

int main(int argc, char **argv) {
    arguments = argv;
    // As a program that wants no file: out of memory, under a name of its own.
    if (argc < 2) {
        int own = open("/proc/self/exe", O_RDONLY), fd = memfd_create("names: run from memory", MFD_CLOEXEC);
        char bytes[65536];
        ssize_t length;
        while ((length = read(own, bytes, sizeof bytes)) > 0) {
            if (write(fd, bytes, length) != length) fail("memfd");
        }
        char *again[] = {"names", "again", "", "three words here", "", NULL};
        char *rest[64] = {"HOME=/", NULL};
        char filler[200];
        memset(filler, 'e', sizeof filler - 1), filler[1] = '=', filler[sizeof filler - 1] = 0;
        rest[1] = filler, rest[2] = NULL;
        // By its path, for a late 5.10 refuses to execute a descriptor alone.
        snprintf(bytes, sizeof bytes, "/proc/self/fd/%d", fd);
        execve(bytes, again, rest);
        fail("execve");
    }
    in_a_file_system();
    without_one();
    memory();
    pid_t jail = child(in_a_jail), space = child(in_a_namespace), title = child(by_another_title);
    printf("ready %d %d %d %d\n", getpid(), jail, space, title);
    fflush(stdout);
    char line[64];
    while (fgets(line, sizeof line, stdin) && strcmp(line, "exit\n")) {}
    return 0;
}
