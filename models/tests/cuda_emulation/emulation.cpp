// Runs a kernel by its name; the kernels' own sources are compiled into this.
#include "emulation.h"

#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

#include <algorithm>
#include <map>
#include <string>
#include <vector>

Index threadIdx, blockIdx, blockDim, gridDim;

namespace emulation {

static const unsigned MOST_THREADS = 1024, WARP_SIZE = 32;
static const size_t STACK = 128 << 10;

enum State { RUNNING, AT_BLOCK_BARRIER, AT_WARP_BARRIER, DONE };

struct Fiber {
    State state;
    jmp_buf place;
    ucontext_t context;
    bool started;
};

struct Kernel {
    const char *kinds;
    void *function;
    Caller caller;
};

static std::map<std::string, Kernel> &kernels() {
    static std::map<std::string, Kernel> all;
    return all;
}

void Registered::add(const char *name, const char *kinds, std::pair<void *, Caller> kernel) {
    kernels()[name] = Kernel{kinds, kernel.first, kernel.second};
}

static Fiber fibers[MOST_THREADS];
static jmp_buf scheduler;
static ucontext_t outside;
static unsigned current;
static Cell exchange_slots[MOST_THREADS];
static float *shared_memory;
static const Kernel *kernel;
static const Cell *arguments;
static std::string failure;

struct Copy {
    void *to;
    const void *from;
    size_t bytes;
};
static std::vector<Copy> asked_for[MOST_THREADS];

static void switch_to(unsigned thread) {
    current = thread;
    threadIdx = {thread, 0, 0};
    if (!_setjmp(scheduler)) {
        _longjmp(fibers[thread].place, 1);
    }
}

static void back(State state) {
    fibers[current].state = state;
    if (!_setjmp(fibers[current].place)) {
        _longjmp(scheduler, 1);
    }
}

// A fiber lives for many blocks: it waits for the next one where it has done its part of the last.
static void live() {
    const unsigned own = current;
    if (!_setjmp(fibers[own].place)) {
        swapcontext(&fibers[own].context, &outside);
    }
    for (;;) {
        kernel->caller(kernel->function, arguments);
        if (!asked_for[own].empty()) {
            failure = "a copy that its thread does not wait for";
            asked_for[own].clear();
        }
        back(DONE);
    }
}

static void start(unsigned thread) {
    Fiber &fiber = fibers[thread];
    if (fiber.started) {
        return;
    }
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = mmap(nullptr, STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    fiber.context.uc_stack.ss_size = STACK;
    makecontext(&fiber.context, live, 0);
    current = thread;
    swapcontext(&outside, &fiber.context);
    fiber.started = true;
}

float *shared_floats() { return shared_memory; }

unsigned lane() { return threadIdx.x % WARP_SIZE; }

void block_barrier() { back(AT_BLOCK_BARRIER); }

void refuse(const char *what) { failure = what; }

void ask_for_copy(void *to, const void *from, size_t bytes) {
    asked_for[current].push_back({to, from, bytes});
    memset(to, 0xff, bytes);
}

void make_copies() {
    for (const Copy &copy : asked_for[current]) {
        memcpy(copy.to, copy.from, copy.bytes);
    }
    asked_for[current].clear();
}

Cell exchanged(unsigned mask, Cell value, unsigned from) {
    if (mask != 0xffffffffu) {
        failure = "a shuffle among some lanes only";
    }
    const unsigned own = current, warp = own - own % WARP_SIZE;
    exchange_slots[own] = value;
    back(AT_WARP_BARRIER);
    const Cell result = exchange_slots[warp + from];
    back(AT_WARP_BARRIER);
    return result;
}

// Lets the threads `[first, end)` pass the barrier at which all of them wait; false while some do not.
static bool passed(unsigned first, unsigned end, State barrier) {
    unsigned waiting = 0;
    for (unsigned thread = first; thread < end; thread++) {
        waiting += fibers[thread].state == barrier;
    }
    if (waiting < end - first) {
        return false;
    }
    for (unsigned thread = first; thread < end; thread++) {
        fibers[thread].state = RUNNING;
    }
    return true;
}

// Threads in the order in which they run, each as far as it gets.
typedef std::vector<unsigned> Order;

// Runs threads until all of them wait at the block's barrier or are done; whether any moved.
static bool run_threads(const Order &threads) {
    bool moved = false;
    for (bool again = true; again;) {
        again = false;
        for (unsigned thread : threads) {
            if (fibers[thread].state == RUNNING) {
                switch_to(thread);
                moved = true;
            }
        }
        for (unsigned thread : threads) {
            again |= thread % WARP_SIZE == 0 && passed(thread, thread + WARP_SIZE, AT_WARP_BARRIER);
        }
    }
    return moved;
}

// Runs a block, one group of whole warps after the other from barrier to barrier.
static bool run_block(const std::vector<Order> &groups) {
    const unsigned threads = blockDim.x;
    for (unsigned thread = 0; thread < threads; thread++) {
        fibers[thread].state = RUNNING;
    }
    for (;;) {
        bool moved = false, done = true;
        for (const Order &group : groups) {
            moved |= run_threads(group);
        }
        moved |= passed(0, threads, AT_BLOCK_BARRIER);
        for (unsigned thread = 0; thread < threads; thread++) {
            done &= fibers[thread].state == DONE;
        }
        if (done) {
            return failure.empty();
        }
        if (!moved) {
            failure = "threads wait at a barrier that others never reach";
            return false;
        }
    }
}

// Memory that ends at a page nobody may touch, with a known pattern before it.
struct Guarded {
    char *pages;
    size_t length, slack, bytes;
    char *data() const { return pages + slack; }
};

static const char PATTERN = 0x5a;

static Guarded guarded(size_t bytes) {
    const size_t page = 4096, inside = (bytes + page - 1) / page * page;
    char *pages = static_cast<char *>(
        mmap(nullptr, inside + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    mprotect(pages + inside, page, PROT_NONE);
    memset(pages, PATTERN, inside);
    return {pages, inside + page, inside - bytes, bytes};
}

static bool intact(const Guarded &memory) {
    return std::all_of(memory.pages, memory.pages + memory.slack, [](char byte) { return byte == PATTERN; });
}

static void outside_of_memory(int, siginfo_t *info, void *) {
    fprintf(stderr, "a kernel reached %p, outside of its buffers: block (%u, %u), thread %u\n", info->si_addr, blockIdx.x,
            blockIdx.y, threadIdx.x);
    _exit(86);
}

static void watch() {
    static bool watching = false;
    if (watching) {
        return;
    }
    static char stack[64 << 10];
    stack_t alternate = {};
    alternate.ss_sp = stack;
    alternate.ss_size = sizeof stack;
    sigaltstack(&alternate, nullptr);
    struct sigaction action = {};
    action.sa_sigaction = outside_of_memory;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK;
    sigaction(SIGSEGV, &action, nullptr);
    watching = true;
}

// Warp after warp from the first or from the last thread, or all warps at once with their threads mixed.
static std::vector<Order> groups_of(unsigned number, unsigned threads) {
    Order order(threads);
    for (unsigned thread = 0; thread < threads; thread++) {
        order[thread] = number == 1 ? threads - 1 - thread : thread;
    }
    unsigned state = 12345;
    for (unsigned thread = threads; number == 2 && thread > 1; thread--) {
        state = state * 1664525u + 1013904223u;
        std::swap(order[thread - 1], order[(state >> 8) % thread]);
    }
    const unsigned together = number == 2 ? threads : WARP_SIZE;
    std::vector<Order> groups;
    for (auto first = order.begin(); first != order.end(); first += together) {
        groups.emplace_back(first, first + together);
    }
    return groups;
}

}  // namespace emulation

using namespace emulation;

extern "C" {

void *guarded_new(size_t bytes) { return new Guarded(guarded(bytes)); }

char *guarded_data(void *memory) { return static_cast<Guarded *>(memory)->data(); }

// Whether nothing was written before the data.
int guarded_intact(void *memory) { return intact(*static_cast<Guarded *>(memory)); }

void guarded_delete(void *memory) {
    Guarded *guarded = static_cast<Guarded *>(memory);
    munmap(guarded->pages, guarded->length);
    delete guarded;
}

// The parameters of a kernel, or null if there is none of this name.
const char *kernel_kinds(const char *name) {
    auto found = kernels().find(name);
    return found == kernels().end() ? nullptr : found->second.kinds;
}

// Runs a kernel with its threads in order `order` (0 to 2); null, or what went wrong.
const char *kernel_run(const char *name, unsigned grid_x, unsigned grid_y, unsigned block, size_t shared_bytes,
                       const unsigned long long *cells, unsigned order) {
    watch();
    failure.clear();
    if (block == 0 || block > MOST_THREADS || block % WARP_SIZE != 0) {
        return "expected a block of whole warps and at most 1024 threads";
    }
    kernel = &kernels().at(name);
    arguments = cells;
    blockDim = {block, 1, 1};
    gridDim = {grid_x, grid_y, 1};
    for (std::vector<Copy> &copies : asked_for) {
        copies.clear();
    }
    for (unsigned thread = 0; thread < block; thread++) {
        start(thread);
    }
    const std::vector<Order> groups = groups_of(order, block);
    Guarded memory = guarded(shared_bytes);
    shared_memory = reinterpret_cast<float *>(memory.data());
    for (unsigned y = 0; y < grid_y && failure.empty(); y++) {
        for (unsigned x = 0; x < grid_x && failure.empty(); x++) {
            // Shared memory comes with whatever was there: no number.
            memset(memory.data(), 0xff, shared_bytes);
            blockIdx = {x, y, 0};
            run_block(groups);
            if (!intact(memory)) {
                failure = "wrote before its shared memory";
            }
        }
    }
    munmap(memory.pages, memory.length);
    return failure.empty() ? nullptr : failure.c_str();
}
}
