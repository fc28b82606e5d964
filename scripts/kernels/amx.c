// The instructions of AMX that src/ops/avx512/amx.rs uses, for processors that lack them: preloaded into a program, this
// catches the signal for an unknown instruction, does what the manual says of it, and goes on behind it. A request for the
// registers is granted.
//
//     gcc -O2 -shared -fPIC -o amx.so scripts/kernels/amx.c
//
// It ends the program where one is wrong: a register that is not configured, or another instruction. At the end it tells how
// many products it made.

#define _GNU_SOURCE
#include <dlfcn.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

struct tile { int rows, bytes; uint8_t data[16][64]; };
static __thread struct tile tiles[8];
static __thread int configured;
static atomic_long products;

static void fail(const char *what) {
    fprintf(stderr, "emulated AMX: %s\n", what);
    _exit(99);
}

// In the order of the processor's numbers.
static const int REGISTERS[16] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI,
                                  REG_R8, REG_R9, REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15};

static float widened(const uint8_t *at) {
    uint32_t bits = (uint32_t)(at[0] | at[1] << 8) << 16;
    // Denormals count as zero.
    if (!(bits & 0x7f800000)) bits &= 0x80000000;
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

static void multiply(struct tile *sum, const struct tile *a, const struct tile *b) {
    atomic_fetch_add(&products, 1);
    if (a->rows != sum->rows || b->bytes != sum->bytes || a->bytes / 4 != b->rows) fail("tiles that do not fit");
    for (int m = 0; m < sum->rows; m++) {
        float even[16] = {0}, odd[16] = {0};
        for (int k = 0; k < a->bytes / 4; k++)
            for (int n = 0; n < sum->bytes / 4; n++) {
                even[n] = __builtin_fmaf(widened(&a->data[m][4 * k]), widened(&b->data[k][4 * n]), even[n]);
                odd[n] = __builtin_fmaf(widened(&a->data[m][4 * k + 2]), widened(&b->data[k][4 * n + 2]), odd[n]);
            }
        for (int n = 0; n < sum->bytes / 4; n++) {
            float value;
            memcpy(&value, &sum->data[m][4 * n], 4);
            value += even[n] + odd[n];
            memcpy(&sum->data[m][4 * n], &value, 4);
        }
    }
}

static void configure(const uint8_t *from) {
    if (from[0] != 1 || from[1] != 0) fail("a palette or a start that is not understood");
    for (int i = 0; i < 8; i++) {
        memset(&tiles[i], 0, sizeof tiles[i]);
        tiles[i].bytes = from[16 + 2 * i] | from[17 + 2 * i] << 8;
        tiles[i].rows = from[48 + i];
        if (tiles[i].rows > 16 || tiles[i].bytes > 64) fail("a tile that is too large");
    }
    configured = 1;
}

static void unknown_instruction(int number, siginfo_t *info, void *context) {
    (void)number, (void)info;
    greg_t *registers = ((ucontext_t *)context)->uc_mcontext.gregs;
    const uint8_t *code = (const uint8_t *)registers[REG_RIP];
    if (code[0] != 0xc4 || (code[1] & 0x1f) != 2) fail("an instruction that is not AMX");
    int extend_reg = !(code[1] & 0x80), extend_index = !(code[1] & 0x40), extend_base = !(code[1] & 0x20);
    int second = ~(code[2] >> 3) & 15, prefix = code[2] & 3, opcode = code[3], modrm = code[4];
    int mode = modrm >> 6, reg = (modrm >> 3 & 7) | extend_reg << 3, rm = modrm & 7;
    if (reg > 7) fail("a tile that there is not");
    const uint8_t *next = code + 5;
    uint8_t *address = NULL;
    int64_t stride = 0;
    if (mode != 3) {
        int has_index = rm == 4, scale = 0, index = 4, base = rm;
        if (has_index) {
            scale = *next >> 6;
            index = (*next >> 3 & 7) | extend_index << 3;
            base = *next++ & 7;
        }
        if (base == 5 && mode == 0) fail("an address without a base");
        address = (uint8_t *)registers[REGISTERS[base | extend_base << 3]];
        if (has_index && index != 4) stride = (int64_t)registers[REGISTERS[index]] << scale;
        if (mode == 1) address += (int8_t)*next++;
        if (mode == 2) {
            int32_t offset;
            memcpy(&offset, next, 4);
            address += offset;
            next += 4;
        }
    }
    if (opcode == 0x49 && prefix == 0 && mode != 3) configure(address);
    else if (!configured) fail("no tiles are configured");
    else if (opcode == 0x49 && prefix == 0) configured = 0;
    else if (opcode == 0x49 && prefix == 3 && mode == 3) memset(tiles[reg].data, 0, sizeof tiles[reg].data);
    else if (opcode == 0x4b && prefix == 3 && mode != 3)
        for (int row = 0; row < tiles[reg].rows; row++) memcpy(tiles[reg].data[row], address + row * stride, tiles[reg].bytes);
    else if (opcode == 0x4b && prefix == 2 && mode != 3)
        for (int row = 0; row < tiles[reg].rows; row++) memcpy(address + row * stride, tiles[reg].data[row], tiles[reg].bytes);
    else if (opcode == 0x5c && prefix == 2 && mode == 3) multiply(&tiles[reg], &tiles[rm], &tiles[second & 7]);
    else fail("an instruction that is not emulated");
    registers[REG_RIP] = (greg_t)next;
}

// ARCH_REQ_XCOMP_PERM of XFEATURE_XTILEDATA succeeds; every other call goes its way.
long syscall(long number, ...) {
    long arguments[6];
    va_list list;
    va_start(list, number);
    for (int i = 0; i < 6; i++) arguments[i] = va_arg(list, long);
    va_end(list);
    if (number == SYS_arch_prctl && arguments[0] == 0x1023) return arguments[1] == 18 ? 0 : -1;
    long (*next)(long, ...) = (long (*)(long, ...))dlsym(RTLD_NEXT, "syscall");
    return next(number, arguments[0], arguments[1], arguments[2], arguments[3], arguments[4], arguments[5]);
}

__attribute__((constructor)) static void catch_unknown_instructions(void) {
    struct sigaction action = {.sa_sigaction = unknown_instruction, .sa_flags = SA_SIGINFO};
    sigaction(SIGILL, &action, NULL);
}

__attribute__((destructor)) static void tell(void) {
    fprintf(stderr, "emulated AMX: %ld products\n", atomic_load(&products));
}
