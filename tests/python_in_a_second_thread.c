// Preloaded into a Python interpreter: runs all of it in a second thread, as a program of another language may.

#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>
#include <stdlib.h>

typedef int Main(int, char **, char **);
typedef int Start(Main *, int, char **, void (*)(void), void (*)(void), void (*)(void), void *);

static struct {
    Main *main;
    int count;
    char **arguments;
    char **environment;
} program;

static void *run(void *unused) {
    (void)unused;
    exit(program.main(program.count, program.arguments, program.environment));
}

static int run_in_a_thread(int count, char **arguments, char **environment) {
    pthread_t thread;
    program.count = count;
    program.arguments = arguments;
    program.environment = environment;
    if (pthread_create(&thread, NULL, run, NULL) != 0)
        return 1;
    return pthread_join(thread, NULL);
}

int __libc_start_main(Main *main, int count, char **arguments, void (*init)(void), void (*fini)(void),
                      void (*linker_fini)(void), void *stack_end) {
    Start *start = (Start *)dlsym(RTLD_NEXT, "__libc_start_main");
    program.main = main;
    return start(run_in_a_thread, count, arguments, init, fini, linker_fini, stack_end);
}
