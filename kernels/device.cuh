// Shared by every CUDA kernel: element types, reductions over a warp, and the few instructions that need inline PTX.
// A wrapper of PTX has two branches: assembly for nvcc, a call of the emulation (emulation/) for a C++ compiler.
#pragma once
#ifdef __CUDACC__
#include <cstdint>
#include <cuda_bf16.h>
#include <cuda_fp16.h>
// A kernel that is launched by name: GLOBAL before its definition, KERNEL(name) behind it.
#define GLOBAL extern "C" __global__
#define KERNEL(name)
extern __shared__ __align__(128) unsigned char smem[];  // dynamic shared memory, one name everywhere
#else
#include "emulation.h"
#define GLOBAL [[maybe_unused]] static
#endif

using bf16 = __nv_bfloat16;
using f16 = __half;
using f32 = float;
constexpr unsigned FULL = 0xffffffffu;

__device__ __forceinline__ float to_f(float x) { return x; }
__device__ __forceinline__ float to_f(bf16 x) { return __bfloat162float(x); }
__device__ __forceinline__ float to_f(f16 x) { return __half2float(x); }
template <class T>
__device__ __forceinline__ T from_f(float x);
template <>
__device__ __forceinline__ float from_f<float>(float x) {
  return x;
}
template <>
__device__ __forceinline__ bf16 from_f<bf16>(float x) {
  return __float2bfloat16_rn(x);
}
template <>
__device__ __forceinline__ f16 from_f<f16>(float x) {
  return __float2half_rn(x);
}

// Two values in one 32-bit register, `lo` in the low half, as the tensor-core fragments want them.
template <class T>
struct Pair;
template <>
struct Pair<bf16> {
  using V = __nv_bfloat162;
  static __device__ __forceinline__ V make(float lo, float hi) { return __floats2bfloat162_rn(lo, hi); }
  static __device__ __forceinline__ float2 split(V v) { return __bfloat1622float2(v); }
};
template <>
struct Pair<f16> {
  using V = __half2;
  static __device__ __forceinline__ V make(float lo, float hi) { return __floats2half2_rn(lo, hi); }
  static __device__ __forceinline__ float2 split(V v) { return __half22float2(v); }
};
template <class T>
__device__ __forceinline__ unsigned pack2(float lo, float hi) {
  union {
    typename Pair<T>::V v;
    unsigned u;
  } x{Pair<T>::make(lo, hi)};
  return x.u;
}
template <class T>
__device__ __forceinline__ float2 split2(unsigned u) {
  union {
    unsigned u;
    typename Pair<T>::V v;
  } x{u};
  return Pair<T>::split(x.v);
}

__device__ __forceinline__ float warp_sum(float v) {
#pragma unroll
  for (int d = 16; d; d >>= 1) v += __shfl_xor_sync(FULL, v, d);
  return v;
}
__device__ __forceinline__ float warp_max(float v) {
#pragma unroll
  for (int d = 16; d; d >>= 1) v = fmaxf(v, __shfl_xor_sync(FULL, v, d));
  return v;
}

__device__ __forceinline__ float ex2(float x) {
#ifdef __CUDACC__
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#else
  return emu::ex2(x);
#endif
}

#ifdef __CUDACC__
__device__ __forceinline__ unsigned smem_addr(const void *p) {
  return static_cast<unsigned>(__cvta_generic_to_shared(p));
}
// 16 bytes global -> shared; only the first `valid` are read, the rest become zero.
__device__ __forceinline__ void cp_async16(void *dst, const void *src, unsigned valid) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(smem_addr(dst)), "l"(src), "r"(valid) : "memory");
}
__device__ __forceinline__ void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int KEEP>
__device__ __forceinline__ void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(KEEP) : "memory");
}
__device__ __forceinline__ void ldmatrix_x4(unsigned (&r)[4], const void *row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(smem_addr(row))
               : "memory");
}
__device__ __forceinline__ void ldmatrix_x4_trans(unsigned (&r)[4], const void *row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(smem_addr(row))
               : "memory");
}
#define MMA_16816(type)                                                     \
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32." type "." type       \
               ".f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};" \
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])             \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1))
template <class T>
__device__ __forceinline__ void mma16816(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1);
template <>
__device__ __forceinline__ void mma16816<bf16>(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
  MMA_16816("bf16");
}
template <>
__device__ __forceinline__ void mma16816<f16>(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
  MMA_16816("f16");
}
#else
inline void cp_async16(void *dst, const void *src, unsigned valid, EMU_AT) {
  emu::cp_async(dst, src, 16, valid, at_f, at_l);
}
inline void cp_async_commit() { emu::cp_commit(); }
template <int KEEP>
void cp_async_wait() {
  emu::cp_wait(KEEP);
}
inline void ldmatrix_x4(unsigned (&r)[4], const void *row, EMU_AT) { emu::ldmatrix(r, row, 4, false, at_f, at_l); }
inline void ldmatrix_x4_trans(unsigned (&r)[4], const void *row, EMU_AT) { emu::ldmatrix(r, row, 4, true, at_f, at_l); }
template <class T>
void mma16816(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1, EMU_AT) {
  unsigned b[2] = {b0, b1};
  emu::mma_16816(c, a, b, std::is_same<T, bf16>::value, at_f, at_l);
}
#endif

// N neighbouring elements, widened; in one load of 16 bytes where N of them fill it, and then `from` must be aligned
// so.
template <class T, int N>
__device__ __forceinline__ void load(float (&to)[N], const T *from) {
  if constexpr (sizeof(T) * N == 16) {
    const uint4 words = *reinterpret_cast<const uint4 *>(from);
    const unsigned word[4] = {words.x, words.y, words.z, words.w};
#pragma unroll
    for (int i = 0; i < 4; i++) {
      if constexpr (sizeof(T) == 4) {
        to[i] = __uint_as_float(word[i]);
      } else {
        const float2 pair = split2<T>(word[i]);
        to[2 * i] = pair.x, to[2 * i + 1] = pair.y;
      }
    }
  } else {
#pragma unroll
    for (int i = 0; i < N; i++) to[i] = to_f(from[i]);
  }
}

template <class T, int N>
__device__ __forceinline__ void store(T *to, const float (&from)[N]) {
  if constexpr (sizeof(T) * N == 16) {
    unsigned word[4];
#pragma unroll
    for (int i = 0; i < 4; i++) {
      if constexpr (sizeof(T) == 4)
        word[i] = __float_as_uint(from[i]);
      else
        word[i] = pack2<T>(from[2 * i], from[2 * i + 1]);
    }
    *reinterpret_cast<uint4 *>(to) = make_uint4(word[0], word[1], word[2], word[3]);
  } else {
#pragma unroll
    for (int i = 0; i < N; i++) to[i] = from_f<T>(from[i]);
  }
}
