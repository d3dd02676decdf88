/* A program for one of ARM's MPS2 boards, real or in QEMU: reads images from the file images.bin of the machine it hangs on, runs the
   network on each, and writes to logits.bin; then to measured.bin the ticks of a 25 MHz timer that each of the first two runs took,
   the ticks of a loop of LOOP instructions, and the bytes of stack that the runs used. The files are reached by semihosting, the
   breakpoint by which a core asks its debugger for something. RUN, INPUT, OUTPUT and HEADER come from the compiler's command line. */
#include <stdint.h>
#include HEADER

#define PAINT 0x5ac3a53cU
#define LOOP 10000U                                                  /* times two instructions */

enum { SYS_OPEN = 1, SYS_CLOSE = 2, SYS_WRITE = 5, SYS_READ = 6, SYS_EXIT = 24 };
enum { READ_BINARY = 1, WRITE_BINARY = 5 };
enum { DONE = 0x20026, FAILED = 0x20023 };

#define TIMER ((volatile uint32_t *)0x40000000U)                     /* CMSDK timer 0: control, value, reload; counts down */

extern uint32_t stack_low[], stack_top[], data_low[], data_high[], data_stored[], bss_low[], bss_high[];
static int8_t image[INPUT], logits[OUTPUT];

static int32_t ask(int32_t what, const void *block)
{
    register int32_t r0 __asm__("r0") = what;
    register const void *r1 __asm__("r1") = block;
    __asm__ volatile("bkpt 0xab" : "+r"(r0) : "r"(r1) : "memory");
    return r0;
}

static void leave(uintptr_t how)
{
    for (;;) {
        ask(SYS_EXIT, (const void *)how);
    }
}

static uintptr_t open_file(const char *name, uintptr_t mode)
{
    uintptr_t length = 0;
    while (name[length]) {
        length++;
    }
    const uintptr_t block[3] = {(uintptr_t)name, mode, length};
    const int32_t handle = ask(SYS_OPEN, block);
    if (handle < 0) {
        leave(FAILED);
    }
    return (uintptr_t)handle;
}

static int32_t transfer(int32_t what, uintptr_t file, const void *bytes, uintptr_t length)
{
    const uintptr_t block[3] = {file, (uintptr_t)bytes, length};
    return ask(what, block);                                         /* how many bytes were not transferred */
}

static uint32_t ticks_of_loop(void)
{
    uint32_t times = LOOP;
    const uint32_t before = TIMER[1];
    __asm__ volatile("1: subs %0, %0, #1\n\tbne 1b" : "+r"(times) : : "cc");
    return before - TIMER[1];
}

static void __attribute__((noinline)) work(void)
{
    const uintptr_t images = open_file("images.bin", READ_BINARY), results = open_file("logits.bin", WRITE_BINARY);
    uint32_t measured[4] = {0, 0, 0, 0};
    for (uint32_t i = 0; transfer(SYS_READ, images, image, INPUT) == 0; i++) {
        const uint32_t before = TIMER[1];
        RUN(image, logits);
        const uint32_t ticks = before - TIMER[1];
        if (i < 2) {
            measured[i] = ticks;
        }
        if (transfer(SYS_WRITE, results, logits, OUTPUT) != 0) {
            leave(FAILED);
        }
    }
    ask(SYS_CLOSE, &results);
    measured[2] = ticks_of_loop();
    const uint32_t *touched = stack_low;
    while (*touched == PAINT) {
        touched++;
    }
    measured[3] = (uint32_t)((uintptr_t)stack_top - (uintptr_t)touched);
    const uintptr_t numbers = open_file("measured.bin", WRITE_BINARY);
    if (transfer(SYS_WRITE, numbers, measured, sizeof measured) != 0) {
        leave(FAILED);
    }
    ask(SYS_CLOSE, &numbers);
    leave(DONE);
}

static void fault(void)
{
    leave(FAILED);
}

void reset(void)
{
    const uint32_t *from = data_stored;
    for (uint32_t *to = data_low; to < data_high;) {
        *to++ = *from++;
    }
    for (uint32_t *to = bss_low; to < bss_high;) {
        *to++ = 0;
    }
    uint32_t *here = (uint32_t *)__builtin_frame_address(0) - 16;    /* below what this function itself may use */
    for (uint32_t *to = stack_low; to < here;) {
        *to++ = PAINT;
    }
    TIMER[2] = TIMER[1] = 0xffffffffU;
    TIMER[0] = 1;
    work();
}

const struct {
    uint32_t *stack;
    void (*handlers[15])(void);
} vectors __attribute__((section(".vectors"), used)) = {stack_top, {reset, fault, fault, fault, fault, fault}};
