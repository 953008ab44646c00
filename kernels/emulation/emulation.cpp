// Scheduler, launch table, cp.async queue, tensor-core emulation and memory checker behind emulation.h.
// Compiled without sanitizer flags: what -fsanitize=thread puts into the kernels calls the checker below.
#include "emulation.h"
#undef threadIdx
#undef blockIdx
#undef blockDim
#undef gridDim
#include <cstdarg>
#include <cstdlib>
#include <dlfcn.h>
#include <link.h>
#include <string>
#include <sys/mman.h>
#include <unistd.h>
#include <vector>
#if !defined(__x86_64__) && !defined(EMU_UCONTEXT)
#define EMU_UCONTEXT 1  // portable and slower
#endif
#if EMU_UCONTEXT
#include <ucontext.h>
#endif

namespace emu {
constexpr size_t STACK = 64 << 10, PAGE = 4096, SMEM_MAX = 232448;
enum State : uint8_t { RUN, WAIT_BLOCK, WAIT_WARP, DONE };

// ---- context switch ---------------------------------------------------------------------------------
#if EMU_UCONTEXT
struct Stack {
  ucontext_t uc;
};
static void jump(Stack &from, Stack &to) { swapcontext(&from.uc, &to.uc); }
static void prepare(Stack &s, char *lo, size_t n, void (*entry)()) {
  getcontext(&s.uc);
  s.uc.uc_stack.ss_sp = lo, s.uc.uc_stack.ss_size = n, s.uc.uc_link = nullptr;
  makecontext(&s.uc, entry, 0);
}
#else
struct Stack {
  void *sp;
};
extern "C" void emu_jump(void **save, void *to);
asm(".text\n.globl emu_jump\n.type emu_jump,@function\nemu_jump:\n"
    "push %rbp\npush %rbx\npush %r12\npush %r13\npush %r14\npush %r15\n"
    "mov %rsp,(%rdi)\nmov %rsi,%rsp\n"
    "pop %r15\npop %r14\npop %r13\npop %r12\npop %rbx\npop %rbp\nret\n.size emu_jump,.-emu_jump\n");
constexpr int SAVED = 6;
static void jump(Stack &from, Stack &to) { emu_jump(&from.sp, to.sp); }
static void prepare(Stack &s, char *lo, size_t n, void (*entry)()) {
  void **top = reinterpret_cast<void **>(lo + n);
  *--top = nullptr;  // return address of entry: it never returns; keeps the stack 16-byte aligned there
  *--top = reinterpret_cast<void *>(entry);
  for (int i = 0; i < SAVED; i++) *--top = nullptr;
  s.sp = top;
}
#endif

// ---- state of one launch (per OS thread) -----------------------------------------------------------------
struct Copy {
  char *dst;
  const char *src;
  unsigned bytes, valid;
  const char *f;
  int l;
};
struct Fiber {
  Stack st;
  char *lo;
  uint3 idx;
  unsigned lin, lane, warp;
  State state;
  const char *what, *f;  // where it waits
  int l;
  unsigned mask;
  void *payload;
  int value;
  std::vector<Copy> copies;    // cp.async issued, oldest first
  std::vector<size_t> groups;  // sizes of committed groups, oldest first
  size_t open = 0;             // copies in the group not yet committed
};
struct Region {
  uintptr_t lo, hi;
  std::string name;
  int gran;
  bool global;
  struct Cell *cells;
};
struct Ctx {
  Fiber fibers[1024];
  Fiber main;
  Fiber *cur = nullptr;
  unsigned ready[1024], n_ready = 0, n = 0, live = 0, waiting = 0;
  uint3 grid, block, bidx;
  const Kernel *kernel = nullptr;
  void **args = nullptr;
  uint64_t rng = 1;
  bool shuffle = false, running = false;
  unsigned shared = 0;
  uint32_t blk = 0, epoch = 1, launch0 = 1, block0 = 1, spins = 0;
  uint16_t warp_epoch[32] = {};
  uint32_t at_warp[32] = {};
  uint64_t ldmatrix_ideal = 0, ldmatrix_passes = 0;
  std::vector<uint32_t> released;  // per block: epoch of its last __threadfence
  bool acquired = false;           // this block has made an atomic update
  std::vector<Region> regions;
  Region *last = nullptr;
  Region tls{};
  char *stacks = nullptr;
  const void *main_lo = nullptr;
  size_t main_size = 0;
  std::string error;
};
static thread_local Ctx *c = nullptr;
static Ctx &ctx() {
  if (!c) c = new Ctx;
  return *c;
}
static Kernel *kernels;
Kernel::Kernel(const char *name_, void (*run_)(void **), const unsigned char *s, unsigned n)
    : name(name_), run(run_), arg_sizes(s), n_args(n), next(kernels) {
  kernels = this;
}

uint3 thread_idx() { return c->cur->idx; }
uint3 block_idx() { return c->bidx; }
uint3 block_dim() { return c->block; }
uint3 grid_dim() { return c->grid; }
unsigned lane() { return c->cur->lane; }
static uint64_t rnd() {
  c->rng ^= c->rng << 13, c->rng ^= c->rng >> 7, c->rng ^= c->rng << 17;
  return c->rng;
}
float fuzz(float x, int ulps) {
  if (!c || !c->shuffle || !(std::fabs(x) < 1e37f && std::fabs(x) > 1e-37f)) return x;
  return emu_bits<float>(emu_bits<int>(x) + int(rnd() % (2 * ulps + 1)) - ulps);
}
float fuzz_of(float in, float exact, int ulps) {
  if (exact == 1.f || !(std::fabs(exact) < 1e37f && std::fabs(exact) > 1e-37f)) return exact;
  const unsigned hash = emu_bits<unsigned>(in) * 2654435761u >> 16;
  return emu_bits<float>(emu_bits<int>(exact) + int(hash % (2 * ulps + 1)) - ulps);
}

// ---- scheduler ---------------------------------------------------------------------------------------
static void switch_to(Fiber &to) {
  Fiber &from = *c->cur;
  if (&from == &to) return;
  c->cur = &to;
  jump(from.st, to.st);
}
static void wake(Fiber &x) { x.state = RUN, c->ready[c->n_ready++] = x.lin; }
static void switch_away() {
  if (!c->n_ready) return switch_to(c->main);
  unsigned i = c->shuffle ? rnd() % c->n_ready : c->n_ready - 1, t = c->ready[i];
  c->ready[i] = c->ready[--c->n_ready];
  switch_to(c->fibers[t]);
}
static void park(State s, const char *what, const char *f, int l) {
  Fiber &me = *c->cur;
  me.state = s, me.what = what, me.f = f, me.l = l;
  switch_away();
}
void fail(const char *fmt, ...) {
  char b[512];
  va_list ap;
  va_start(ap, fmt);
  vsnprintf(b, sizeof b, fmt, ap);
  va_end(ap);
  Fiber &f = *c->cur;
  char w[256];
  snprintf(w, sizeof w, "%s: block (%u,%u,%u) thread (%u,%u,%u): ", c->kernel->name, c->bidx.x, c->bidx.y, c->bidx.z,
           f.idx.x, f.idx.y, f.idx.z);
  if (c->error.empty()) c->error = std::string(w) + b;
  switch_to(c->main);
  abort();
}
static void fiber_main() {
  Fiber &me = *c->cur;
  c->kernel->run(c->args);
  if (!me.copies.empty()) fail("thread exits with cp.async copies it never waited for");
  me.state = DONE, c->live--;
  switch_away();
  abort();
}

int barrier(const char *what, int v, int op, const char *f, int l) {
  Fiber &me = *c->cur;
  me.value = v;
  if (++c->waiting < c->n) {  // strict: threads that returned early never arrive
    park(WAIT_BLOCK, what, f, l);
    return me.value;
  }
  int r = op == 1;
  for (unsigned i = 0; i < c->n; i++) {
    Fiber &x = c->fibers[i];
    if (&x != &me && (x.what != what || x.l != l || strcmp(x.f, f)))
      fail("%s at %s:%d meets %s at %s:%d of thread (%u,%u,%u): divergent barriers", what, f, l, x.what, x.f, x.l,
           x.idx.x, x.idx.y, x.idx.z);
    r = op == 0 ? r + x.value : op == 1 ? r & x.value : r | x.value;
  }
  c->waiting = 0, c->epoch++;
  for (unsigned i = 0; i < c->n; i++) {
    c->fibers[i].value = r;
    if (&c->fibers[i] != &me) wake(c->fibers[i]);
  }
  wake(me);
  switch_away();  // the last to arrive is not the first to go on
  return r;
}

void warp(const char *what, unsigned mask, void *payload, void (*lead)(void **, unsigned), bool orders, const char *f,
          int l) {
  Fiber &me = *c->cur, *w = &c->fibers[me.warp * 32];
  unsigned lanes = std::min(32u, c->n - me.warp * 32);
  if (lanes < 32 && mask == 0xffffffffu) mask = (1u << lanes) - 1;  // partial last warp
  if (!(mask >> me.lane & 1)) fail("%s at %s:%d: the calling lane is not in its mask %08x", what, f, l, mask);
  me.mask = mask, me.payload = payload, me.what = what, me.f = f, me.l = l;
  uint32_t &here = c->at_warp[me.warp];  // lanes that wait in a warp operation
  here |= 1u << me.lane;
  bool all = (here & mask) == mask;
  for (unsigned i = 0; all && i < lanes; i++) all = !(mask >> i & 1) || w[i].mask == mask;
  if (!all) {
    park(WAIT_WARP, what, f, l);
  } else {
    here &= ~mask;
    void *p[32] = {};
    for (unsigned i = 0; i < lanes; i++)
      if (mask >> i & 1) {
        if (w[i].what != what || w[i].l != l || strcmp(w[i].f, f))
          fail("%s at %s:%d meets %s at %s:%d of lane %u", what, f, l, w[i].what, w[i].f, w[i].l, i);
        p[i] = w[i].payload;
      }
    lead(p, mask);
    if (orders) c->warp_epoch[me.warp]++;
    for (unsigned i = 0; i < lanes; i++)
      if (mask >> i & 1 && i != me.lane) wake(w[i]);
    wake(me);
    switch_away();
  }
}

// ---- memory checker -------------------------------------------------------------------------------------
enum { INIT = 1, PENDING = 2, AT_W = 4, LANES = 8, WARPS = 16, BLOCKS = 32 };
struct Cell {  // one granule of shadow: last write and last read(s)
  uint32_t w_ep, r_ep, w_blk, r_blk;
  uint16_t w_tid, r_tid, w_we, r_we;
  uint8_t f;
};
[[maybe_unused]] static std::string where(const void *pc, const char *f, int l) {
  char b[512];
  if (f) return snprintf(b, sizeof b, "%s:%d", f, l), b;
  Dl_info i;
  if (!pc || !dladdr(pc, &i)) return "?";
  snprintf(b, sizeof b, "addr2line -sie '%s' %#lx", i.dli_fname, (unsigned long)((char *)pc - 1 - (char *)i.dli_fbase));
  std::string out;
  if (FILE *p = popen(b, "r")) {  // inlined calls, innermost first, up to the first line of a kernel file
    while (fgets(b, sizeof b, p)) {
      out += (out.empty() ? "" : " < ") + std::string(b, strcspn(b, " \n"));
      if (strstr(b, ".cu:")) break;
    }
    pclose(p);
  }
  return out;
}
static void make_tls_region() {  // function-level __shared__ arrays are thread-local variables of this module
  *const_cast<volatile unsigned char *>(smem) = 0;  // a library that is loaded late gets them when they are used
  struct Find {
    Region *r;
  } arg{&c->tls};
  dl_iterate_phdr(
      +[](dl_phdr_info *i, size_t, void *p) {
        uintptr_t self = (uintptr_t)&kernels;
        bool mine = false;
        for (int k = 0; k < i->dlpi_phnum; k++) {
          auto &h = i->dlpi_phdr[k];
          mine |= h.p_type == PT_LOAD && self - (i->dlpi_addr + h.p_vaddr) < h.p_memsz;
        }
        for (int k = 0; mine && k < i->dlpi_phnum; k++)
          if (i->dlpi_phdr[k].p_type == PT_TLS && i->dlpi_tls_data) {
            Region &r = *static_cast<Find *>(p)->r;
            r = {(uintptr_t)i->dlpi_tls_data,
                 (uintptr_t)i->dlpi_tls_data + i->dlpi_phdr[k].p_memsz,
                 "shared memory",
                 0,
                 false,
                 nullptr};
          }
        return 0;
      },
      &arg);
  size_t n = c->tls.hi - c->tls.lo + 2;
  c->tls.cells = (Cell *)mmap(nullptr, n * sizeof(Cell), PROT_READ | PROT_WRITE,
                              MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
}
static Region *find(uintptr_t a) {
  if (c->last && a - c->last->lo < c->last->hi - c->last->lo) return c->last;
  if (a - c->tls.lo < c->tls.hi - c->tls.lo) return c->last = &c->tls;
  for (auto &r : c->regions)
    if (a - r.lo < r.hi - r.lo) return c->last = &r;
  return nullptr;
}
// "Last block" patterns: the other block fenced after its access, this one has since done an atomic.
// Which atomic variable carries the hand-over is not tracked.
static bool handed_over(uint32_t blk, uint32_t epoch) { return c->acquired && epoch <= c->released[blk]; }
static void check(uintptr_t a, size_t n, Kind k, const void *pc, const char *f, int l, bool pending = false,
                  bool aligned = true) {
  Fiber &me = *c->cur;
  if (a - (uintptr_t)me.lo < STACK) return;  // locals of this thread
  const char *verb = k == READ ? "read" : k == WRITE ? "write" : "atomic update";
  if (aligned && a % n && n <= 16 && !(n & (n - 1)))
    fail("misaligned %zu-byte %s at %s", n, verb, where(pc, f, l).c_str());
  Region *r = find(a);
  if (!r) {
    Dl_info i;  // constants and tables of the module itself
    if (k == READ && dladdr((void *)a, &i)) return;
    std::string near;
    for (auto &x : c->regions)
      if (a + 65536 > x.lo && a < x.hi + 65536)
        near += " (" + x.name + (a >= x.hi ? " + " + std::to_string(a - x.lo) : " - " + std::to_string(x.lo - a)) +
                ", size " + std::to_string(x.hi - x.lo) + ")";
    fail("out-of-bounds %zu-byte %s%s at %s", n, verb, near.c_str(), where(pc, f, l).c_str());
  }
  uintptr_t s = (uintptr_t)smem;
  if (r == &c->tls && a - s < SMEM_MAX && a + n > s + c->shared)
    fail("out-of-bounds %zu-byte %s of dynamic shared memory at offset %zu, size %u, at %s", n, verb, size_t(a - s),
         c->shared, where(pc, f, l).c_str());
  if (a + n > r->hi)
    fail("%zu-byte %s runs past the end of %s at %s", n, verb, r->name.c_str(), where(pc, f, l).c_str());
  uint32_t since = r->global ? c->launch0 : c->block0;  // what happened before does not race
  uint16_t we = c->warp_epoch[me.warp];
  for (size_t i = (a - r->lo) >> r->gran; i <= (a + n - 1 - r->lo) >> r->gran; i++) {
    Cell &x = r->cells[i];
    bool init = r->global ? x.f & INIT : x.w_ep >= since, atomics = k == ATOMIC && x.f & AT_W;
    size_t off =
        (i << r->gran) - (r == &c->tls && a - s < SMEM_MAX ? s - r->lo : 0);  // static arrays: offset in the TLS block
#define RACE(kind, tid, blk)                                                                                      \
  fail("race on %s + %zu: %s at %s, not ordered after a " kind " by thread %u of block %u", r->name.c_str(), off, \
       verb, where(pc, f, l).c_str(), tid, blk)
    if (k != WRITE && x.f & PENDING && x.w_ep >= since)
      fail("%s of %s + %zu before cp.async has been waited for, at %s", verb, r->name.c_str(), off,
           where(pc, f, l).c_str());
    if (x.w_ep >= since && !atomics && !pending) {
      if (x.w_blk != c->blk && !handed_over(x.w_blk, x.w_ep)) RACE("write", x.w_tid, x.w_blk);
      if (x.w_ep == c->epoch && x.w_tid != me.lin && (x.w_tid / 32 != me.warp || x.w_we == we))
        RACE("write", x.w_tid, x.w_blk);
    }
    if (k == READ && !init) fail("read of uninitialised %s + %zu at %s", r->name.c_str(), off, where(pc, f, l).c_str());
    if (k != READ && x.r_ep >= since) {
      if ((x.r_blk != c->blk && !handed_over(x.r_blk, x.r_ep)) || x.f & BLOCKS) RACE("read", x.r_tid, x.r_blk);
      if (x.r_ep == c->epoch &&
          (x.f & WARPS || x.r_tid / 32 != me.warp || (x.r_we == we && (x.f & LANES || x.r_tid != me.lin))))
        RACE("read", x.r_tid, x.r_blk);
    }
    if (k == READ) {
      if (x.r_ep < since)
        x.f &= ~(LANES | WARPS | BLOCKS);
      else if (x.r_blk != c->blk)
        x.f |= BLOCKS;
      else if (x.r_ep != c->epoch)
        x.f &= ~(LANES | WARPS);
      else if (x.r_tid / 32 != me.warp)
        x.f |= WARPS;
      else if (x.r_we != we)
        x.f &= ~LANES;
      else if (x.r_tid != me.lin)
        x.f |= LANES;
      x.r_ep = c->epoch, x.r_blk = c->blk, x.r_tid = me.lin, x.r_we = we;
    } else {
      x.w_ep = c->epoch, x.w_blk = c->blk, x.w_tid = me.lin, x.w_we = we;
      x.f = (x.f & ~(AT_W | PENDING)) | INIT | (k == ATOMIC ? AT_W : 0) | (pending ? PENDING : 0);
    }
  }
}
// Intrinsics that touch memory report here. An atomic lets other threads run first, so that a spin loop ends.
void access(const void *p, size_t n, Kind k, const char *f, int l) {
  check((uintptr_t)p, n, k, nullptr, f, l);
  (void)p, (void)n;
  if (k != ATOMIC) return;
  c->acquired = true;
  if (++c->spins > 20000000) fail("no progress: threads spin on an atomic at %s:%d", f, l);
  wake(*c->cur);
  std::swap(c->ready[0], c->ready[c->n_ready - 1]);
  switch_away();
}

void read_only([[maybe_unused]] const void *p, [[maybe_unused]] size_t n, [[maybe_unused]] const char *f,
               [[maybe_unused]] int l) {
  Region *r = find((uintptr_t)p);
  if (r && r->global && r->cells[((uintptr_t)p - r->lo) >> r->gran].w_ep >= c->launch0)
    fail("__ldg of %s, which this launch has written, at %s:%d", r->name.c_str(), f, l);
}
void fence() { c->released[c->blk] = c->epoch; }

// ---- cp.async: the bytes land when the issuing thread waits (or at once: the seed decides) -----------------
void cp_async(void *d, const void *s, unsigned bytes, unsigned valid, const char *f, int l) {
  if (((uintptr_t)d | (uintptr_t)s) % bytes) fail("cp.async: misaligned address (%s:%d)", f, l);
  if (valid) access(s, valid, READ, f, l);
  check((uintptr_t)d, bytes, WRITE, nullptr, f, l, false);
  check((uintptr_t)d, bytes, WRITE, nullptr, f, l, true);
  if (c->shuffle && rnd() & 1) memcpy(d, s, valid), memset((char *)d + valid, 0, bytes - valid);
  c->cur->copies.push_back({(char *)d, (const char *)s, bytes, valid, f, l});
  c->cur->open++;
}
void cp_commit() { c->cur->groups.push_back(c->cur->open), c->cur->open = 0; }
void cp_wait(unsigned keep) {
  Fiber &me = *c->cur;
  while (me.groups.size() > keep) {
    for (size_t i = 0; i < me.groups[0]; i++) {
      Copy &x = me.copies[i];
      memcpy(x.dst, x.src, x.valid);
      memset(x.dst + x.valid, 0, x.bytes - x.valid);
      check((uintptr_t)x.dst, x.bytes, WRITE, nullptr, x.f, x.l);
    }
    me.copies.erase(me.copies.begin(), me.copies.begin() + me.groups[0]);
    me.groups.erase(me.groups.begin());
  }
}

// ---- tensor cores -----------------------------------------------------------------------------------------
struct Ldm {
  const uint16_t *row;
  unsigned r[4];
  int n;
  bool trans;
};
static void lead_ldmatrix(void **v, unsigned) {
  Ldm **p = (Ldm **)v;
  for (int i = 0; i < p[0]->n;
       i++) {  // each 8x8 matrix: 8 rows of 16 bytes, one pass if they fall into 8 different bank groups
    int n[8] = {}, most = 0;
    for (int r = 0; r < 8; r++) most = std::max(most, ++n[(uintptr_t)p[8 * i + r]->row / 16 % 8]);
    c->ldmatrix_ideal++, c->ldmatrix_passes += most;
  }
  for (int l = 0; l < 32; l++)
    for (int i = 0; i < p[0]->n; i++) {
      unsigned w[2];
      for (int h = 0; h < 2; h++)
        w[h] = p[0]->trans ? p[8 * i + 2 * (l % 4) + h]->row[l / 4] : p[8 * i + l / 4]->row[2 * (l % 4) + h];
      p[l]->r[i] = w[0] | w[1] << 16;
    }
}
void ldmatrix(unsigned *r, const void *row, int n, bool trans, const char *f, int l) {
  if (int(lane()) < 8 * n) {  // only these lanes' addresses are used
    if ((uintptr_t)row % 16) fail("ldmatrix: row address not 16-byte aligned (%s:%d)", f, l);
    access(row, 16, READ, f, l);
  }
  Ldm x{(const uint16_t *)row, {}, n, trans};
  warp("ldmatrix", 0xffffffffu, &x, lead_ldmatrix, false, f, l);
  memcpy(r, x.r, 4 * n);
}
struct Mma {
  float *c;
  const unsigned *a, *b;
  bool bf16;
};
static float cvt(unsigned w, int hi, bool bf16) {
  uint16_t h = hi ? w >> 16 : w;
  return bf16 ? __bfloat162float({h}) : __half2float({h});
}
static void lead_mma(void **v, unsigned) {
  Mma **p = (Mma **)v;
  float A[16][16], B[8][16];  // B transposed
  for (int l = 0; l < 32; l++)
    for (int g = l / 4, t = l % 4, h = 0; h < 2; h++) {
      for (int r = 0; r < 4; r++) A[g + 8 * (r & 1)][2 * t + h + 8 * (r >> 1)] = cvt(p[l]->a[r], h, p[0]->bf16);
      for (int r = 0; r < 2; r++) B[g][2 * t + h + 8 * r] = cvt(p[l]->b[r], h, p[0]->bf16);
    }
  for (int l = 0; l < 32; l++)
    for (int g = l / 4, t = l % 4, r = 0; r < 4; r++) {
      const float *a = A[g + 8 * (r >> 1)], *b = B[2 * t + (r & 1)];
      float s = 0;
      for (int k = 0; k < 16; k++) s += a[k] * b[k];
      p[l]->c[r] += s;
    }
}
void mma_16816(float *c4, const unsigned *a, const unsigned *b, bool bf16, const char *f, int l) {
  Mma x{c4, a, b, bf16};
  warp("mma.m16n8k16", 0xffffffffu, &x, lead_mma, false, f, l);
}

// ---- launch -------------------------------------------------------------------------------------------------
static void run_block() {
  c->n_ready = c->waiting = c->spins = 0, c->live = c->n, c->acquired = false;
  c->block0 = ++c->epoch;
  memset(c->at_warp, 0, sizeof c->at_warp);
  memset(smem, 0xff, c->shared);  // NaN for every float format
  for (unsigned i = 0; i < c->n; i++) {
    Fiber &f = c->fibers[i];
    f.lin = i, f.lane = i % 32, f.warp = i / 32;
    f.idx = {i % c->block.x, i / c->block.x % c->block.y, i / (c->block.x * c->block.y)};
    f.copies.clear(), f.groups.clear(), f.open = 0;
    prepare(f.st, f.lo, STACK, fiber_main);
    wake(f);
  }
  for (unsigned i = 0; i < c->n / 2 && !c->shuffle; i++) std::swap(c->ready[i], c->ready[c->n - 1 - i]);
  c->cur = &c->main;
  switch_away();
  if (c->live && c->error.empty()) {
    std::string s = std::string(c->kernel->name) + ": deadlock in block (" + std::to_string(c->bidx.x) + "," +
                    std::to_string(c->bidx.y) + "," + std::to_string(c->bidx.z) + "):";
    for (unsigned i = 0, j; i < c->n; i = j) {  // runs of threads in the same place
      Fiber &a = c->fibers[i];
      for (j = i + 1; j < c->n && c->fibers[j].state == a.state &&
                      (a.state == DONE || (c->fibers[j].what == a.what && c->fibers[j].l == a.l));
           j++) {
      }
      s += " threads " + std::to_string(i) + ".." + std::to_string(j - 1) +
           (a.state == DONE ? " have returned;"
                            : std::string(" wait in ") + a.what + " at " + a.f + ":" + std::to_string(a.l) + ";");
    }
    c->error = s;
  }
}
}  // namespace emu
using namespace emu;
alignas(1024) thread_local unsigned char smem[SMEM_MAX];

extern "C" {
// Device memory of the emulation. gran: log2 of the element size (0..2). Filled with NaN, marked uninitialised.
void *emu_alloc(size_t bytes, unsigned gran, const char *name) {
  ctx();
  size_t pad = 256;
  char *p = (char *)aligned_alloc(256, (bytes + 2 * pad + 255) / 256 * 256 + (bytes ? 0 : 256)) + pad;
  memset(p, 0xff, bytes);
  Region r{(uintptr_t)p, (uintptr_t)p + bytes, name, (int)std::min(gran, 2u), true, nullptr};
  r.cells = (Cell *)calloc((bytes >> r.gran) + 2, sizeof(Cell));
  c->regions.push_back(r), c->last = nullptr;
  (void)name, (void)gran;
  return p;
}
static Region *region(void *p) {
  for (auto &r : ctx().regions)
    if (r.lo == (uintptr_t)p) return &r;
  return nullptr;
}
void emu_free(void *p) {
  if (Region *r = region(p)) free(r->cells), *r = c->regions.back(), c->regions.pop_back(), c->last = nullptr;
  free((char *)p - 256);
}
void emu_mark_init(void *p) {  // the host has filled it
  if (Region *r = region(p))
    for (size_t i = 0, n = r->hi - r->lo; i << r->gran < n; i++) r->cells[i].f |= INIT;
}
// Shared-memory passes per ldmatrix matrix in the last launch: 1 is free of bank conflicts. 0 without ldmatrix.
double emu_ldmatrix_conflicts() { return ctx().ldmatrix_ideal ? double(c->ldmatrix_passes) / c->ldmatrix_ideal : 0; }
// A large buffer of which little is touched (index-overflow tests): address space only, zero, uninitialised.
void *emu_alloc_sparse(size_t bytes, unsigned gran, const char *name) {
  ctx();
  auto map = [](size_t n) {
    return mmap(nullptr, n, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  };
  char *p = (char *)map(bytes);
  Region r{(uintptr_t)p, (uintptr_t)p + bytes, name, (int)std::min(gran, 2u), true, nullptr};
  r.cells = (Cell *)map(((bytes >> r.gran) + 2) * sizeof(Cell));
  c->regions.push_back(r), c->last = nullptr;
  (void)name, (void)gran;
  return p;
}
void emu_free_sparse(void *p, size_t bytes) {
  if (Region *r = region(p))
    munmap(r->cells, ((bytes >> r->gran) + 2) * sizeof(Cell)), *r = c->regions.back(), c->regions.pop_back(),
                                                               c->last = nullptr;
  munmap(p, bytes);
}
void emu_mark_init_range(void *base, size_t at, size_t bytes) {
  if (Region *r = region(base))
    for (size_t i = at >> r->gran; i << r->gran < at + bytes; i++) r->cells[i].f |= INIT;
}
static Region *around(const void *p) {
  for (auto &r : ctx().regions)
    if ((uintptr_t)p - r.lo < r.hi - r.lo) return &r;
  return nullptr;
}
// Bytes from here to the end of the buffer that this lies in, `bytes` at most.
size_t emu_room(const void *p, size_t bytes) {
  Region *r = around(p);
  return r ? std::min(bytes, size_t(r->hi - (uintptr_t)p)) : 0;
}
// Bytes were copied by something else than a kernel: they are as written as what they come from; without that they are.
void emu_copy_init(void *to, const void *from, size_t bytes) {
  Region *r = around(to), *source = from ? around(from) : nullptr;
  if (!r) return;
  const size_t first = (uintptr_t)to - r->lo, origin = source ? (uintptr_t)from - source->lo : 0;
  for (size_t i = 0; i < bytes; i++) {
    Cell &cell = r->cells[(first + i) >> r->gran];
    const bool init = !source || source->cells[(origin + i) >> source->gran].f & INIT;
    cell.f = init ? cell.f | INIT : cell.f & ~INIT;
  }
}
// How many parameters a kernel has, and the bytes of each; -1 where there is no such kernel.
int emu_kernel_arguments(const char *name, const unsigned char **sizes) {
  const Kernel *k = kernels;
  while (k && strcmp(k->name, name)) k = k->next;
  return k ? (*sizes = k->arg_sizes, int(k->n_args)) : -1;
}
size_t emu_uninit(void *p) {  // granules never written
  size_t n = 0;
  if (Region *r = region(p))
    for (size_t i = 0; i << r->gran < r->hi - r->lo; i++) n += !(r->cells[i].f & INIT);
  return n;
}
// The name of the kernel with this number, null behind the last one.
const char *emu_kernel_name(size_t number) {
  const Kernel *k = kernels;
  while (k && number--) k = k->next;
  return k ? k->name : nullptr;
}
// Same shape as cuLaunchKernel. Returns 0, or 1 with a message. seed 0: threads in order; else random order.
int emu_launch(const char *name, const unsigned *g, const unsigned *b, unsigned shared, void **args,
               const unsigned *sizes, unsigned n_args, uint64_t seed, char *err, size_t err_len) {
  ctx();
  c->error.clear();
  const Kernel *k = kernels;
  while (k && strcmp(k->name, name)) k = k->next;
  auto bad = [&](std::string s) { return snprintf(err, err_len, "%s: %s", name, s.c_str()), 1; };
  if (!k) return bad("no such kernel");
  if (n_args != k->n_args)
    return bad("takes " + std::to_string(k->n_args) + " arguments, launched with " + std::to_string(n_args));
  for (unsigned i = 0; i < n_args; i++)
    if (sizes[i] != k->arg_sizes[i])
      return bad("argument " + std::to_string(i) + " has " + std::to_string(k->arg_sizes[i]) +
                 " bytes, launched with " + std::to_string(sizes[i]));
  uint64_t n = uint64_t(b[0]) * b[1] * b[2], blocks = uint64_t(g[0]) * g[1] * g[2];
  if (!n || n > 1024 || b[2] > 64 || !blocks || g[0] > 0x7fffffffu || g[1] > 65535 || g[2] > 65535)
    return bad("launch configuration not allowed by the hardware");
  if (shared > SMEM_MAX) return bad("more dynamic shared memory than any supported GPU has");
  if (!c->stacks) {
    size_t each = STACK + PAGE;
    c->stacks =
        (char *)mmap(nullptr, each * 1024, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    for (int i = 0; i < 1024; i++)
      mprotect(c->stacks + each * i, PAGE, PROT_NONE), c->fibers[i].lo = c->stacks + each * i + PAGE;
    make_tls_region();
  }
  c->kernel = k, c->args = args, c->n = n, c->shared = shared;
  c->grid = {g[0], g[1], g[2]}, c->block = {b[0], b[1], b[2]};
  c->shuffle = seed != 0, c->rng = seed * 0x9e3779b97f4a7c15ull | 1;
  c->launch0 = ++c->epoch;
  c->released.assign(blocks, 0);
  c->ldmatrix_ideal = c->ldmatrix_passes = 0;
  std::vector<uint32_t> order(blocks);
  for (uint32_t i = 0; i < blocks; i++) order[i] = i;
  for (uint32_t i = blocks; seed && i > 1; i--) std::swap(order[i - 1], order[rnd() % i]);
  c->running = true;
  for (uint32_t id : order) {
    c->blk = id, c->bidx = {id % g[0], id / g[0] % g[1], id / g[0] / g[1]};
    run_block();
    if (!c->error.empty()) break;
  }
  c->running = false;
  if (c->error.empty()) return 0;
  return snprintf(err, err_len, "%s", c->error.c_str()), 1;
}

// Called by the instrumentation before every memory access of the kernels.
#define EMU_ON(n, k, al) \
  if (c && c->running) check((uintptr_t)a, n, k, __builtin_return_address(0), nullptr, 0, false, al)
#define HOOK(n)                                                      \
  void __tsan_read##n(void *a) { EMU_ON(n, READ, true); }            \
  void __tsan_write##n(void *a) { EMU_ON(n, WRITE, true); }          \
  void __tsan_unaligned_read##n(void *a) { EMU_ON(n, READ, false); } \
  void __tsan_unaligned_write##n(void *a) { EMU_ON(n, WRITE, false); }
HOOK(1)
HOOK(2)
HOOK(4)
HOOK(8)
HOOK(16)
void __tsan_read_range(void *a, size_t n) { EMU_ON(n, READ, false); }
void __tsan_write_range(void *a, size_t n) { EMU_ON(n, WRITE, false); }
void __tsan_init() {}
void __tsan_func_entry(void *) {}
void __tsan_func_exit() {}
struct SrcLoc {
  const char *f;
  uint32_t line, col;
};
static void ub(const char *what, SrcLoc *s) {
  if (c && c->running) fail("%s at %s:%u", what, s->f, s->line);
}
void __ubsan_handle_out_of_bounds(void *d, void *) { ub("array index out of bounds", (SrcLoc *)d); }
void __ubsan_handle_type_mismatch_v1(void *d, void *) { ub("misaligned or null pointer", (SrcLoc *)d); }
void __ubsan_handle_add_overflow(void *d, void *, void *) { ub("integer overflow in +", (SrcLoc *)d); }
void __ubsan_handle_sub_overflow(void *d, void *, void *) { ub("integer overflow in -", (SrcLoc *)d); }
void __ubsan_handle_mul_overflow(void *d, void *, void *) { ub("integer overflow in *", (SrcLoc *)d); }
void __ubsan_handle_negate_overflow(void *d, void *) { ub("integer overflow in negation", (SrcLoc *)d); }
void __ubsan_handle_divrem_overflow(void *d, void *, void *) { ub("division by zero", (SrcLoc *)d); }
void __ubsan_handle_shift_out_of_bounds(void *d, void *, void *) { ub("shift out of range", (SrcLoc *)d); }
}
