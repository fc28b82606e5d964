// The fibers behind emulate.h.
#include "emulate.h"

#include <numeric>
#include <random>

namespace emulated {
dim3 thread, block, threads, blocks;
char *shared_memory;

namespace {
const size_t STACK = 256 << 10;
enum State { READY, AT_BLOCK_BARRIER, AT_WARP_BARRIER, DONE };
struct Fiber {
    ucontext_t context;
    std::vector<char> stack = std::vector<char>(STACK);
    State state;
};
std::vector<Fiber> fibers;
ucontext_t scheduler;
unsigned current;
const std::function<void()> *work;
float exchanged[1024];
std::mt19937 generator(1);

void enter() {
    (*work)();
    fibers[current].state = DONE;
    swapcontext(&fibers[current].context, &scheduler);
}

void wait(State state) {
    unsigned me = current;
    fibers[me].state = state;
    swapcontext(&fibers[me].context, &scheduler);
    current = me;
    thread.x = me;
}

// Lets those go on that all wait at the same barrier. A thread that has ended waits nowhere.
bool release(unsigned first, unsigned end, State barrier) {
    bool any = false;
    for (unsigned i = first; i < end; i++) {
        if (fibers[i].state == DONE) continue;
        if (fibers[i].state != barrier) return false;
        any = true;
    }
    for (unsigned i = first; any && i < end; i++)
        if (fibers[i].state == barrier) fibers[i].state = READY;
    return any;
}

void run_block(unsigned count) {
    for (unsigned i = 0; i < count; i++) {
        Fiber &fiber = fibers[i];
        getcontext(&fiber.context);
        fiber.context.uc_stack.ss_sp = fiber.stack.data();
        fiber.context.uc_stack.ss_size = STACK;
        fiber.context.uc_link = nullptr;
        makecontext(&fiber.context, enter, 0);
        fiber.state = READY;
    }
    // In another order each time, so that a missing barrier shows.
    std::vector<unsigned> order(count);
    std::iota(order.begin(), order.end(), 0);
    for (;;) {
        bool ran = false;
        std::shuffle(order.begin(), order.end(), generator);
        for (unsigned i : order) {
            if (fibers[i].state != READY) continue;
            ran = true;
            current = i;
            thread.x = i;
            swapcontext(&scheduler, &fibers[i].context);
        }
        if (std::all_of(fibers.begin(), fibers.begin() + count, [](const Fiber &f) { return f.state == DONE; })) return;
        bool released = release(0, count, AT_BLOCK_BARRIER);
        for (unsigned warp = 0; warp < count; warp += 32) released |= release(warp, std::min(warp + 32, count), AT_WARP_BARRIER);
        if (!ran && !released) {
            std::fprintf(stderr, "the threads of a block wait for each other at different barriers\n");
            std::abort();
        }
    }
}
}  // namespace

void block_barrier() { wait(AT_BLOCK_BARRIER); }
void warp_barrier() { wait(AT_WARP_BARRIER); }

float exchange(float value, int lane_mask) {
    exchanged[current] = value;
    warp_barrier();
    float other = exchanged[current ^ lane_mask];
    warp_barrier();
    return other;
}

void launch(dim3 grid, unsigned count, size_t shared_bytes, const std::function<void()> &body) {
    if (fibers.size() < count) fibers.resize(count);
    // What a block reads without having written it shows: it is not a number.
    std::vector<char> memory(shared_bytes + 256);
    shared_memory = (char *)(((uintptr_t)memory.data() + 127) / 128 * 128);
    const unsigned GUARD = 0xdeadbeef;
    work = &body;
    blocks = grid;
    threads = {count, 1, 1};
    for (block.y = 0; block.y < grid.y; block.y++) {
        for (block.x = 0; block.x < grid.x; block.x++) {
            std::memset(shared_memory, 0xff, shared_bytes);
            std::memcpy(shared_memory + shared_bytes, &GUARD, 4);
            run_block(count);
            if (std::memcmp(shared_memory + shared_bytes, &GUARD, 4)) {
                std::fprintf(stderr, "a block wrote beyond its shared memory of %zu bytes\n", shared_bytes);
                std::abort();
            }
        }
    }
}
}  // namespace emulated
