// Lets a CUDA kernel file compile unchanged as C++17 and run on the CPU: one fiber per CUDA thread.
// Declarations and device-side intrinsics only; the scheduler and the memory checker are in emulation.cpp.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <limits>
#include <type_traits>
#include <utility>

// ---- language -------------------------------------------------------------------------------
#define __global__
#define __device__
#define __host__
#define __constant__
#define __grid_constant__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))
#define __shared__ thread_local  // one launch runs on one OS thread, its blocks one after another
// Code of the emulator itself must not be instrumented by the sanitizers.
#define EMU_RAW __attribute__((no_sanitize("thread", "address", "undefined")))
#define EMU_AT const char *at_f = __builtin_FILE(), int at_l = __builtin_LINE()

// ---- vector types -----------------------------------------------------------------------------
struct uint3 {
  unsigned x, y, z;
};
struct dim3 {
  unsigned x, y, z;
  dim3(unsigned a = 1, unsigned b = 1, unsigned c = 1) : x(a), y(b), z(c) {}
};
#define EMU_VEC(T, N)                                     \
  struct __align__(2 * sizeof(T)) N##2 { T x, y; };       \
  struct __align__(4 * sizeof(T)) N##4 { T x, y, z, w; }; \
  inline N##2 make_##N##2(T x, T y) { return {x, y}; }    \
  inline N##4 make_##N##4(T x, T y, T z, T w) { return {x, y, z, w}; }
EMU_VEC(unsigned char, uchar)
EMU_VEC(unsigned short, ushort)
EMU_VEC(int, int)
EMU_VEC(unsigned, uint)
EMU_VEC(float, float)
#undef EMU_VEC

// ---- services of emulation.cpp ------------------------------------------------------------------------
namespace emu {
enum Kind { READ, WRITE, ATOMIC };
uint3 thread_idx() __attribute__((const));
uint3 block_idx() __attribute__((const));
uint3 block_dim() __attribute__((const));
uint3 grid_dim() __attribute__((const));
unsigned lane() __attribute__((const));
[[noreturn]] void fail(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
// Checks an access made on behalf of the running thread (what an intrinsic reads or writes).
void access(const void *p, size_t bytes, Kind k, const char *f, int l);
// Block barrier; every thread passes a value, the leader combines them. op: 0 sum, 1 and, 2 or.
int barrier(const char *what, int v, int op, const char *f, int l);
// Warp rendezvous: waits until every lane in `mask` has arrived, then one lane runs
// lead(payload-of-each-lane, mask). `orders_memory` is true for __syncwarp only.
void warp(const char *what, unsigned mask, void *payload, void (*lead)(void **, unsigned), bool orders_memory,
          const char *f, int l);
void read_only(const void *p, size_t bytes, const char *f, int l);  // __ldg: not written in this launch
void fence();
void cp_async(void *smem, const void *gmem, unsigned bytes, unsigned valid, const char *f, int l);
void cp_commit();
void cp_wait(unsigned keep);
// Launch table: the Rust side launches by name, like cuModuleGetFunction + cuLaunchKernel.
struct Kernel {
  const char *name;
  void (*run)(void **args);
  const unsigned char *arg_sizes;
  unsigned n_args;
  Kernel *next;
  Kernel(const char *name, void (*run)(void **), const unsigned char *sizes, unsigned n);
};
template <auto F>
struct Entry;
template <class... A, void (*F)(A...)>
struct Entry<F> {
  static constexpr unsigned char sizes[] = {sizeof(A)...};
  static constexpr unsigned n = sizeof...(A);
  template <size_t... I>
  EMU_RAW static void go(void **a, std::index_sequence<I...>) {
    F(*static_cast<A *>(a[I])...);
  }
  EMU_RAW static void run(void **a) { go(a, std::index_sequence_for<A...>{}); }
};
inline void no_lead(void **, unsigned) {}
}  // namespace emu
// A faulty copy of a kernel file (build.rs makes them) registers its kernels as "fault:kernel".
#ifndef EMU_PREFIX
#define EMU_PREFIX ""
#endif
#define KERNEL(fn) \
  static emu::Kernel emu_reg_##fn(EMU_PREFIX #fn, emu::Entry<&fn>::run, emu::Entry<&fn>::sizes, emu::Entry<&fn>::n);
// Dynamic shared memory: kernels declare `extern __shared__ __align__(16) unsigned char smem[];`
extern thread_local __align__(128) unsigned char smem[];

#define threadIdx (emu::thread_idx())
#define blockIdx (emu::block_idx())
#define blockDim (emu::block_dim())
#define gridDim (emu::grid_dim())
#define warpSize 32

// ---- barriers and votes ---------------------------------------------------------------------------
inline void __syncthreads(EMU_AT) { emu::barrier("__syncthreads", 0, 0, at_f, at_l); }
inline int __syncthreads_count(int p, EMU_AT) { return emu::barrier("__syncthreads_count", !!p, 0, at_f, at_l); }
inline int __syncthreads_and(int p, EMU_AT) { return emu::barrier("__syncthreads_and", !!p, 1, at_f, at_l); }
inline int __syncthreads_or(int p, EMU_AT) { return emu::barrier("__syncthreads_or", !!p, 2, at_f, at_l); }
inline void __syncwarp(unsigned m = 0xffffffffu, EMU_AT) {
  emu::warp("__syncwarp", m, nullptr, emu::no_lead, true, at_f, at_l);
}
inline void __threadfence() { emu::fence(); }
inline void __threadfence_block() {}
[[noreturn]] inline void __trap(EMU_AT) { emu::fail("trap at %s:%d", at_f, at_l); }

namespace emu {
template <class T>
struct Shfl {
  T v;
  int src;
};
template <class T>
EMU_RAW void lead_shfl(void **p, unsigned m) {
  T out[32];
  for (int l = 0; l < 32; l++)
    if (m >> l & 1) {
      int s = static_cast<Shfl<T> *>(p[l])->src;
      if (!(m >> s & 1)) fail("shuffle: lane %d reads lane %d, which is not in the mask %08x", l, s, m);
      out[l] = static_cast<Shfl<T> *>(p[s])->v;
    }
  for (int l = 0; l < 32; l++)
    if (m >> l & 1) static_cast<Shfl<T> *>(p[l])->v = out[l];
}
template <class T>
EMU_RAW T shfl(const char *what, unsigned m, T v, int src, const char *f, int l) {
  Shfl<T> s{v, src};
  warp(what, m, &s, lead_shfl<T>, false, f, l);
  return s.v;
}
template <class T>
struct Red {
  T v;
  int op;
};
template <class T>
EMU_RAW void lead_red(void **p, unsigned m) {
  bool first = true;
  T r{};
  for (int l = 0; l < 32; l++)
    if (m >> l & 1) {
      auto *x = static_cast<Red<T> *>(p[l]);
      T v = x->v;
      r = first        ? v
          : x->op == 0 ? T(r + v)
          : x->op == 1 ? std::min(r, v)
          : x->op == 2 ? std::max(r, v)
          : x->op == 3 ? T(r & v)
          : x->op == 4 ? T(r | v)
                       : T(r ^ v);
      first = false;
    }
  for (int l = 0; l < 32; l++)
    if (m >> l & 1) static_cast<Red<T> *>(p[l])->v = r;
}
template <class T>
EMU_RAW T red(const char *what, unsigned m, T v, int op, const char *f, int l) {
  Red<T> s{v, op};
  warp(what, m, &s, lead_red<T>, false, f, l);
  return s.v;
}
}  // namespace emu
template <class T>
T __shfl_sync(unsigned m, T v, int src, int w = 32, EMU_AT) {
  int l = emu::lane(), base = l & ~(w - 1);
  return emu::shfl("__shfl_sync", m, v, base | (src & (w - 1)), at_f, at_l);
}
template <class T>
T __shfl_xor_sync(unsigned m, T v, int x, int w = 32, EMU_AT) {
  int l = emu::lane(), s = l ^ x;
  return emu::shfl("__shfl_xor_sync", m, v, s > (l | (w - 1)) ? l : s, at_f, at_l);
}
template <class T>
T __shfl_down_sync(unsigned m, T v, unsigned d, int w = 32, EMU_AT) {
  int l = emu::lane(), s = l + int(d);
  return emu::shfl("__shfl_down_sync", m, v, s > (l | (w - 1)) ? l : s, at_f, at_l);
}
template <class T>
T __shfl_up_sync(unsigned m, T v, unsigned d, int w = 32, EMU_AT) {
  int l = emu::lane(), s = l - int(d);
  return emu::shfl("__shfl_up_sync", m, v, s < (l & ~(w - 1)) ? l : s, at_f, at_l);
}
inline unsigned __ballot_sync(unsigned m, int p, EMU_AT) {
  return emu::red("__ballot_sync", m, unsigned(!!p) << emu::lane(), 4, at_f, at_l);
}
inline int __any_sync(unsigned m, int p, EMU_AT) { return emu::red("__any_sync", m, int(!!p), 4, at_f, at_l); }
inline int __all_sync(unsigned m, int p, EMU_AT) { return emu::red("__all_sync", m, int(!!p), 3, at_f, at_l); }
#define EMU_REDUCE(name, op)                                               \
  inline unsigned __reduce_##name##_sync(unsigned m, unsigned v, EMU_AT) { \
    return emu::red("__reduce_" #name "_sync", m, v, op, at_f, at_l);      \
  }                                                                        \
  inline int __reduce_##name##_sync(unsigned m, int v, EMU_AT) {           \
    return emu::red("__reduce_" #name "_sync", m, v, op, at_f, at_l);      \
  }
EMU_REDUCE(add, 0)
EMU_REDUCE(min, 1)
EMU_REDUCE(max, 2)
EMU_REDUCE(and, 3)
EMU_REDUCE(or, 4)
EMU_REDUCE(xor, 5)
#undef EMU_REDUCE

// ---- atomics (one OS thread per launch, so a plain update is atomic) -----------------------------------
#define EMU_ATOMIC(name, expr)                          \
  template <class T, class U>                           \
  EMU_RAW T name(T *p, U u, EMU_AT) {                   \
    emu::access(p, sizeof(T), emu::ATOMIC, at_f, at_l); \
    T old = *p, v = static_cast<T>(u);                  \
    *p = (expr);                                        \
    return old;                                         \
  }
EMU_ATOMIC(atomicAdd, old + v)
EMU_ATOMIC(atomicSub, old - v)
EMU_ATOMIC(atomicMax, std::max(old, v))
EMU_ATOMIC(atomicMin, std::min(old, v))
EMU_ATOMIC(atomicExch, v)
EMU_ATOMIC(atomicAnd, old &v)
EMU_ATOMIC(atomicOr, old | v)
#undef EMU_ATOMIC
template <class T>
EMU_RAW T atomicCAS(T *p, T cmp, T v, EMU_AT) {
  emu::access(p, sizeof(T), emu::ATOMIC, at_f, at_l);
  T old = *p;
  if (old == cmp) *p = v;
  return old;
}

// ---- scalar intrinsics ------------------------------------------------------------------------------
template <class T>
T __ldg(const T *p, EMU_AT) {
  emu::read_only(p, sizeof(T), at_f, at_l);
  return *p;
}
template <class D, class S>
D emu_bits(S s) {
  static_assert(sizeof(D) == sizeof(S));
  D d;
  std::memcpy(&d, &s, sizeof d);
  return d;
}
inline float __int_as_float(int i) { return emu_bits<float>(i); }
inline float __uint_as_float(unsigned i) { return emu_bits<float>(i); }
inline int __float_as_int(float f) { return emu_bits<int>(f); }
inline unsigned __float_as_uint(float f) { return emu_bits<unsigned>(f); }
namespace emu {
float fuzz(float exact, int ulps);
// The same for the same input, as a function of a GPU is.
float fuzz_of(float in, float exact, int ulps);
}  // namespace emu
inline float __expf(float x) { return emu::fuzz(std::exp(x), 2 + int(std::fabs(1.173f * x))); }
namespace emu {
inline float ex2(float x) { return fuzz(std::exp2(x), 2); }
}  // namespace emu
inline float __logf(float x) { return emu::fuzz(std::log(x), 3); }
inline float __log2f(float x) { return emu::fuzz(std::log2(x), 2); }
inline float __fdividef(float a, float b) { return std::fabs(b) > 8.5e37f ? 0.f : emu::fuzz(a / b, 2); }
inline float emu_rsqrtf(float x) { return emu::fuzz(1.f / std::sqrt(x), 2); }
#define rsqrtf emu_rsqrtf  // newer C libraries have their own
inline float emu_expf(float x) { return emu::fuzz_of(x, std::exp(x), 2); }
#define expf emu_expf
inline float normcdff(float x) {
  return std::min(emu::fuzz(float(0.5 * std::erfc(-double(x) * M_SQRT1_2)), 5), 1.f);
}
inline float __frcp_rn(float x) { return 1.f / x; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
inline float __saturatef(float x) { return x > 0.f ? (x < 1.f ? x : 1.f) : 0.f; }
inline int __float2int_rn(float x) { return int(std::nearbyint(x)); }
inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
  return (unsigned long long)(((unsigned __int128)a * b) >> 64);
}
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __clz(int x) { return x ? __builtin_clz(unsigned(x)) : 32; }
inline int __ffs(int x) { return __builtin_ffs(x); }
using std::max;
using std::min;

// ---- half types: storage plus conversions, round to nearest even --------------------------------------
struct __nv_bfloat16 {
  uint16_t b;
};
struct __half {
  uint16_t b;
};
struct __align__(4) __nv_bfloat162 {
  __nv_bfloat16 x, y;
};
struct __align__(4) __half2 {
  __half x, y;
};
inline float __bfloat162float(__nv_bfloat16 h) { return emu_bits<float>(uint32_t(h.b) << 16); }
inline __nv_bfloat16 __float2bfloat16_rn(float f) {
  uint32_t u = emu_bits<uint32_t>(f);
  if ((u & 0x7fffffffu) > 0x7f800000u) return {0x7fff};
  return {uint16_t((u + 0x7fffu + (u >> 16 & 1)) >> 16)};
}
inline float __half2float(__half h) { return float(emu_bits<_Float16>(h.b)); }
inline __half __float2half_rn(float f) { return f == f ? __half{emu_bits<uint16_t>(_Float16(f))} : __half{0x7fff}; }
inline __nv_bfloat162 __floats2bfloat162_rn(float a, float b) {
  return {__float2bfloat16_rn(a), __float2bfloat16_rn(b)};
}
inline __half2 __floats2half2_rn(float a, float b) { return {__float2half_rn(a), __float2half_rn(b)}; }
inline float2 __bfloat1622float2(__nv_bfloat162 v) { return {__bfloat162float(v.x), __bfloat162float(v.y)}; }
inline float2 __half22float2(__half2 v) { return {__half2float(v.x), __half2float(v.y)}; }

// ---- tensor cores: warp-wide, fragment layouts as in the PTX ISA (bodies in emulation.cpp) ---------------------
namespace emu {
void ldmatrix(unsigned *r, const void *row, int n, bool trans, const char *f, int l);
void mma_16816(float *c, const unsigned *a, const unsigned *b, bool bf16, const char *f, int l);
}  // namespace emu
