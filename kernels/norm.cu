// RMSNorm, RMSNorm of a sum, and LayerNorm over rows [rows, width]: one block per row, statistics in f32.
//
// A row is read again for its output instead of being kept: it is still in the L1 cache, and its width has no limit.
// grid (rows), block a whole number of warps. `wide`: width and addresses allow loads of 16 bytes.
#include "device.cuh"

// The sum of `value` over the block, for every thread.
__device__ __forceinline__ float block_sum(float value) {
  __shared__ float of_warp[32];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
  value = warp_sum(value);
  __syncthreads();  // the sums of the call before have been read
  if (lane == 0) of_warp[warp] = value;
  __syncthreads();
  return warp_sum(lane < warps ? of_warp[lane] : 0.f);
}

// Rounded to T before the weight, as transformers' LlamaRMSNorm does.
template <class T>
__device__ __forceinline__ float normed(float x, float scale, float weight) {
  return to_f(from_f<T>(x * scale)) * weight;
}

template <class T, int N>
__device__ __forceinline__ void rms_norm_row(T *out, const T *x, const T *weight, int width, float eps) {
  float squares = 0.f;
  for (int i = threadIdx.x * N; i < width; i += blockDim.x * N) {
    float value[N];
    load<T, N>(value, x + i);
#pragma unroll
    for (int j = 0; j < N; j++) squares += value[j] * value[j];
  }
  const float scale = 1.f / sqrtf(block_sum(squares) / width + eps);
  for (int i = threadIdx.x * N; i < width; i += blockDim.x * N) {
    float value[N], by[N];
    load<T, N>(value, x + i);
    load<T, N>(by, weight + i);
#pragma unroll
    for (int j = 0; j < N; j++) value[j] = normed<T>(value[j], scale, by[j]);
    store<T, N>(out + i, value);
  }
}

// sum = x + residual, rounded to T; out is the norm of that.
template <class T, int N>
__device__ __forceinline__ void add_rms_norm_row(T *out, T *sum, const T *x, const T *residual, const T *weight,
                                                 int width, float eps) {
  float squares = 0.f;
  for (int i = threadIdx.x * N; i < width; i += blockDim.x * N) {
    float value[N], more[N];
    load<T, N>(value, x + i);
    load<T, N>(more, residual + i);
#pragma unroll
    for (int j = 0; j < N; j++) {
      value[j] = to_f(from_f<T>(value[j] + more[j]));
      squares += value[j] * value[j];
    }
    store<T, N>(sum + i, value);
  }
  const float scale = 1.f / sqrtf(block_sum(squares) / width + eps);
  for (int i = threadIdx.x * N; i < width; i += blockDim.x * N) {
    float value[N], by[N];
    load<T, N>(value, sum + i);  // what this same thread has stored
    load<T, N>(by, weight + i);
#pragma unroll
    for (int j = 0; j < N; j++) value[j] = normed<T>(value[j], scale, by[j]);
    store<T, N>(out + i, value);
  }
}

template <class T, int N>
__device__ __forceinline__ void layer_norm_row(T *out, const T *x, const T *weight, const T *bias, int width,
                                               float eps) {
  float sum = 0.f;
  for (int i = threadIdx.x * N; i < width; i += blockDim.x * N) {
    float value[N];
    load<T, N>(value, x + i);
#pragma unroll
    for (int j = 0; j < N; j++) sum += value[j];
  }
  const float mean = block_sum(sum) / width;
  // Two passes: the one-pass formula cancels where the mean is large beside the spread.
  float spread = 0.f;
  for (int i = threadIdx.x * N; i < width; i += blockDim.x * N) {
    float value[N];
    load<T, N>(value, x + i);
#pragma unroll
    for (int j = 0; j < N; j++) spread += (value[j] - mean) * (value[j] - mean);
  }
  const float scale = 1.f / sqrtf(block_sum(spread) / width + eps);
  for (int i = threadIdx.x * N; i < width; i += blockDim.x * N) {
    float value[N], by[N], plus[N];
    load<T, N>(value, x + i);
    load<T, N>(by, weight + i);
    load<T, N>(plus, bias + i);
#pragma unroll
    for (int j = 0; j < N; j++) value[j] = (value[j] - mean) * scale * by[j] + plus[j];
    store<T, N>(out + i, value);
  }
}

#define EACH_TYPE(T)                                                                                                  \
  GLOBAL void __launch_bounds__(512)                                                                                  \
      rms_norm_##T(T *out, const T *x, const T *weight, int width, float eps, int wide) {                             \
    const size_t at = size_t(blockIdx.x) * width;                                                                     \
    if (wide)                                                                                                         \
      rms_norm_row<T, 16 / sizeof(T)>(out + at, x + at, weight, width, eps);                                          \
    else                                                                                                              \
      rms_norm_row<T, 1>(out + at, x + at, weight, width, eps);                                                       \
  }                                                                                                                   \
  KERNEL(rms_norm_##T)                                                                                                \
  GLOBAL void __launch_bounds__(512) add_rms_norm_##T(T *out, T *sum, const T *x, const T *residual, const T *weight, \
                                                      int width, float eps, int wide) {                               \
    const size_t at = size_t(blockIdx.x) * width;                                                                     \
    if (wide)                                                                                                         \
      add_rms_norm_row<T, 16 / sizeof(T)>(out + at, sum + at, x + at, residual + at, weight, width, eps);             \
    else                                                                                                              \
      add_rms_norm_row<T, 1>(out + at, sum + at, x + at, residual + at, weight, width, eps);                          \
  }                                                                                                                   \
  KERNEL(add_rms_norm_##T)                                                                                            \
  GLOBAL void __launch_bounds__(512)                                                                                  \
      layer_norm_##T(T *out, const T *x, const T *weight, const T *bias, int width, float eps, int wide) {            \
    const size_t at = size_t(blockIdx.x) * width;                                                                     \
    if (wide)                                                                                                         \
      layer_norm_row<T, 16 / sizeof(T)>(out + at, x + at, weight, bias, width, eps);                                  \
    else                                                                                                              \
      layer_norm_row<T, 1>(out + at, x + at, weight, bias, width, eps);                                               \
  }                                                                                                                   \
  KERNEL(layer_norm_##T)
EACH_TYPE(f32)
EACH_TYPE(bf16)
EACH_TYPE(f16)
