// Activations in f32: of every number, or of the first half of rows [rows, 2 * width] and then times the second.
//
// One thread per element, or per 16 bytes of them where `wide`: width and addresses allow loads of that size.
#include "device.cuh"

// The quotient is x * sigmoid(y): exact where the exponential is 0 or infinite, but NaN of minus infinity.
__device__ __forceinline__ float times_sigmoid(float x, float y) { return x / (1.f + expf(-y)); }

struct Silu {
  static __device__ __forceinline__ float at(float x) { return times_sigmoid(x, x); }
};
struct Gelu {
  // Not 1 + erf(x / sqrt(2)), which loses its digits below zero.
  static __device__ __forceinline__ float at(float x) { return x * normcdff(x); }
};
struct GeluTanh {
  // (1 + tanh(u)) / 2 is sigmoid(2 u): 2 sqrt(2 / pi), and the same times 0.044715.
  static __device__ __forceinline__ float at(float x) {
    return times_sigmoid(x, x * (1.5957691216f + 0.0713548163f * x * x));
  }
};
struct QuickGelu {
  static __device__ __forceinline__ float at(float x) { return times_sigmoid(x, 1.702f * x); }
};

// The place of this thread's first element among those of blocks that lie along `block`.
template <int N>
__device__ __forceinline__ size_t place(unsigned block) {
  return (size_t(block) * blockDim.x + threadIdx.x) * N;
}

template <class T, class Act, int N>
__device__ __forceinline__ void activate(T *out, const T *x, size_t count) {
  const size_t at = place<N>(blockIdx.x);
  if (at >= count) return;
  float value[N];
  load<T, N>(value, x + at);
#pragma unroll
  for (int j = 0; j < N; j++) value[j] = Act::at(value[j]);
  store<T, N>(out + at, value);
}

// A row per blockIdx.x.
template <class T, class Act, int N>
__device__ __forceinline__ void gated(T *out, const T *both, size_t width) {
  const size_t at = place<N>(blockIdx.y);
  if (at >= width) return;
  const T *gate = both + blockIdx.x * 2 * width;
  float value[N], up[N];
  load<T, N>(value, gate + at);
  load<T, N>(up, gate + width + at);
#pragma unroll
  for (int j = 0; j < N; j++) value[j] = to_f(from_f<T>(Act::at(value[j]))) * up[j];
  store<T, N>(out + blockIdx.x * width + at, value);
}

#define ACTIVATION(T, name, Act)                                               \
  GLOBAL void __launch_bounds__(128)                                           \
      activate_##name##_##T(T *out, const T *x, unsigned count, int wide) {    \
    if (wide)                                                                  \
      activate<T, Act, 16 / sizeof(T)>(out, x, count);                         \
    else                                                                       \
      activate<T, Act, 1>(out, x, count);                                      \
  }                                                                            \
  KERNEL(activate_##name##_##T)                                                \
  GLOBAL void __launch_bounds__(128)                                           \
      gated_##name##_##T(T *out, const T *both, unsigned width, int wide) {    \
    if (wide)                                                                  \
      gated<T, Act, 16 / sizeof(T)>(out, both, width);                         \
    else                                                                       \
      gated<T, Act, 1>(out, both, width);                                      \
  }                                                                            \
  KERNEL(gated_##name##_##T)
#define EACH_TYPE(name, Act)   \
  ACTIVATION(f32, name, Act)   \
  ACTIVATION(bf16, name, Act)  \
  ACTIVATION(f16, name, Act)
EACH_TYPE(silu, Silu)
EACH_TYPE(gelu, Gelu)
EACH_TYPE(gelu_tanh, GeluTanh)
EACH_TYPE(quick_gelu, QuickGelu)
