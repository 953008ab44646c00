// Tests of the emulation itself. The st_ kernels also run on a GPU: there they check the PTX branch of device.cuh
// against the same expected numbers. The bad_ kernels are wrong on purpose; the emulation must say so.
#include "device.cuh"

// c[16][8] = a[16][16] x b[16][8], twice: fragments through ldmatrix, and filled by hand from the PTX ISA layout.
template <class T>
__device__ __forceinline__ void st_mma(float *out, const T *a, const T *b, const T *bt) {
  T *sa = reinterpret_cast<T *>(smem), *sb = sa + 256, *sbt = sb + 256;  // b padded to [16][16]
  const int lane = threadIdx.x, g = lane / 4, t = lane % 4;
  for (int i = lane; i < 256; i += 32) {
    sa[i] = a[i];
    sb[i] = i % 16 < 8 ? b[i / 16 * 8 + i % 16] : from_f<T>(0.f);
    sbt[i] = i < 128 ? bt[i] : from_f<T>(0.f);
  }
  __syncwarp();
  unsigned fa[4], fb[4], fbt[4];
  ldmatrix_x4(fa, sa + lane % 16 * 16 + lane / 16 * 8);
  ldmatrix_x4_trans(fb, sb + lane % 16 * 16 + lane / 16 * 8);
  ldmatrix_x4(fbt, sbt + (lane / 16 * 8 + lane % 8) * 16 + lane / 8 % 2 * 8);
  float c0[4] = {}, c1[4] = {}, c2[4] = {};
  mma16816<T>(c0, fa, fb[0], fb[1]);
  mma16816<T>(c1, fa, fbt[0], fbt[1]);
  unsigned ha[4], hb[2];
  for (int r = 0; r < 4; r++) {
    const T *p = a + (g + 8 * (r & 1)) * 16 + 2 * t + 8 * (r >> 1);
    ha[r] = pack2<T>(to_f(p[0]), to_f(p[1]));
  }
  for (int r = 0; r < 2; r++) hb[r] = pack2<T>(to_f(b[(2 * t + 8 * r) * 8 + g]), to_f(b[(2 * t + 1 + 8 * r) * 8 + g]));
  mma16816<T>(c2, ha, hb[0], hb[1]);
  for (int r = 0; r < 4; r++) {
    const int at = (g + 8 * (r >> 1)) * 8 + 2 * t + (r & 1);
    out[at] = c0[r], out[128 + at] = c1[r], out[256 + at] = c2[r];
  }
}
GLOBAL void st_mma_bf16(float *out, const bf16 *a, const bf16 *b, const bf16 *bt) { st_mma(out, a, b, bt); }
KERNEL(st_mma_bf16)
GLOBAL void st_mma_f16(float *out, const f16 *a, const f16 *b, const f16 *bt) { st_mma(out, a, b, bt); }
KERNEL(st_mma_f16)

// out[16][32]: one row per intrinsic
GLOBAL void st_warp(int *out) {
  const int l = threadIdx.x, v = l * l + 3;
  int r[16] = {
      __shfl_sync(FULL, v, 5),        __shfl_sync(FULL, v, 3, 8),       __shfl_xor_sync(FULL, v, 9),
      __shfl_xor_sync(FULL, v, 5, 8), __shfl_up_sync(FULL, v, 3),       __shfl_up_sync(FULL, v, 2, 8),
      __shfl_down_sync(FULL, v, 7),   __shfl_down_sync(FULL, v, 3, 16), int(__ballot_sync(FULL, v % 3 == 0)),
      __any_sync(FULL, l == 31),      __all_sync(FULL, l < 31),         __reduce_add_sync(FULL, v),
      __reduce_max_sync(FULL, v),     __reduce_min_sync(FULL, v),       int(__reduce_or_sync(FULL, unsigned(v))),
      __popc(v) + __clz(v) + __ffs(v)};
  for (int i = 0; i < 16; i++) out[i * 32 + l] = r[i];
  if (l < 10) {  // half a warp: a partial mask
    out[512 + l] = __shfl_xor_sync(0x3ffu, v, 1);
  }
}
KERNEL(st_warp)

// 32 threads copy 32 * 16 bytes, the last `cut` bytes of which become zero
GLOBAL void st_async(int *out, const int *in, int cut) {
  int *s = reinterpret_cast<int *>(smem);
  const int at = threadIdx.x * 4, have = max(0, min(16, 512 - cut - at * 4));
  cp_async16(s + at, in + (have ? at : 0), have);
  cp_async_commit();
  cp_async_wait<0>();
  __syncthreads();
  for (int i = 0; i < 4; i++) out[threadIdx.x + 32 * i] = s[threadIdx.x + 32 * i];
}
KERNEL(st_async)

// every block writes a partial sum, the last one to finish adds them up
GLOBAL void st_last_block(int *out, int *part, int *counter) {
  __shared__ int last;
  if (threadIdx.x == 0) {
    part[blockIdx.x] = blockIdx.x + 1;
    __threadfence();
    last = atomicAdd(counter, 1) == int(gridDim.x) - 1;
  }
  __syncthreads();
  if (!last) return;
  int s = 0;
  for (int i = threadIdx.x; i < int(gridDim.x); i += 32) s += part[i];
  s = __reduce_add_sync(FULL, s);
  if (threadIdx.x == 0) *out = s;
}
KERNEL(st_last_block)

GLOBAL void st_lock(int *out, int *lock) {  // one thread per warp takes a spin lock
  if (threadIdx.x % 32 == 0) {
    while (atomicCAS(lock, 0, 1) != 0) {
    }
    atomicAdd(out, 1);
    atomicExch(lock, 0);
  }
}
KERNEL(st_lock)

GLOBAL void st_tree(int *out) {  // reduction in shared memory inside one warp
  __shared__ int s[32];
  const int l = threadIdx.x;
  s[l] = l;
  for (int d = 16; d; d >>= 1) {
    __syncwarp();
    const int v = l < d ? s[l + d] : 0;
    __syncwarp();
    if (l < d) s[l] += v;
  }
  if (l == 0) *out = s[0];
}
KERNEL(st_tree)

#ifndef __CUDACC__
GLOBAL void bad_tree(int *out) {  // the same, trusting lockstep
  __shared__ int s[32];
  const int l = threadIdx.x;
  s[l] = l;
  __syncwarp();
  for (int d = 16; d; d >>= 1)
    if (l < d) s[l] += s[l + d];
  if (l == 0) *out = s[0];
}
KERNEL(bad_tree)
GLOBAL void bad_exit(int *out) {
  if (threadIdx.x > 40) return;
  __syncthreads();
  out[threadIdx.x] = 1;
}
KERNEL(bad_exit)
GLOBAL void bad_diverge(int *out) {
  if (threadIdx.x < 32)
    __syncthreads();
  else
    __syncthreads();
  out[threadIdx.x] = 1;
}
KERNEL(bad_diverge)
GLOBAL void bad_lane(int *out) {
  if (threadIdx.x < 16) out[threadIdx.x] = __shfl_sync(0xffffu, int(threadIdx.x), 20);
}
KERNEL(bad_lane)
GLOBAL void bad_mask(int *out) {
  if (threadIdx.x < 16) out[threadIdx.x] = __shfl_xor_sync(FULL, int(threadIdx.x), 1);
}
KERNEL(bad_mask)
GLOBAL void bad_align(int *out) { *reinterpret_cast<uint4 *>(out + 4 * threadIdx.x + 1) = make_uint4(1, 2, 3, 4); }
KERNEL(bad_align)
GLOBAL void bad_blocks(int *out) {
  if (threadIdx.x == 0) out[blockIdx.x / 2] = 1;
}
KERNEL(bad_blocks)
GLOBAL void bad_spin(int *out) {
  while (atomicAdd(out, 0) == 0) {
  }
}
KERNEL(bad_spin)
GLOBAL void bad_local(int **out) {  // another thread's local variable through shared memory
  __shared__ int *p;
  int mine = threadIdx.x;
  if (threadIdx.x == 0) p = &mine;
  __syncthreads();
  if (threadIdx.x == 1) *p = 5;
  (void)out;
}
KERNEL(bad_local)
GLOBAL void bad_read(int *out) { out[threadIdx.x] = threadIdx.x == 63 ? out[64] : 0; }
KERNEL(bad_read)
GLOBAL void bad_ldg(int *out) {  // the read-only cache need not see what this launch writes
  out[threadIdx.x] = threadIdx.x;
  __syncthreads();
  out[threadIdx.x] = __ldg(out + (threadIdx.x ^ 1)) + 1;
}
KERNEL(bad_ldg)
GLOBAL void bad_shift(int *out) { out[threadIdx.x] = 1 << (threadIdx.x + 8); }
KERNEL(bad_shift)
GLOBAL void bad_uninitialised(int *out) { out[threadIdx.x] = out[threadIdx.x + 32] + 1; }
KERNEL(bad_uninitialised)
#endif
