// y = x wᵀ + b: x [rows, input], weight [output, input], bias [output] or null; summed in f32, rounded once.
//
// Every output is summed over the input from its first element to its last, sixteen products at a time on the tensor cores,
// in every form of the kernel: a row's result does not depend on how many others there are.
#include "device.cuh"

constexpr int DEPTH = 64;                // elements of the input that a stage holds: 128 bytes of a row
constexpr int CHUNKS = DEPTH / 8;        // of 16 bytes each
constexpr int TILE_BYTES = DEPTH * 2;    // of one row of a stage

// Where a chunk of a row lies in a stage: neighbouring rows have their chunks in another order, so that the eight rows
// that a matrix is read from are in different banks.
__device__ __forceinline__ int place(int row, int chunk) { return row * TILE_BYTES + ((chunk ^ (row & 7)) << 4); }

// One block computes BM rows of BN outputs, WM x WN warps of it each (BM / WM) x (BN / WN).
// grid (row tiles, output tiles); input a multiple of 8, x and weight aligned to 16 bytes. `paired`: y may be stored by
// pairs.
template <class T, int BM, int BN, int WM, int WN, int STAGES>
__device__ __forceinline__ void tiles(T *y, const T *x, const T *weight, const T *bias, int rows, int input, int output,
                                      int paired) {
  constexpr int THREADS = 32 * WM * WN, M = BM / WM, N = BN / WN, STAGE = (BM + BN) * TILE_BYTES;
  static_assert(M % 16 == 0 && N % 16 == 0, "a warp has whole tensor-core tiles");
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int first_row = blockIdx.x * BM, first_output = blockIdx.y * BN;
  const int steps = (input + DEPTH - 1) / DEPTH;

  // Rows and columns behind the end are zeros.
  auto fetch = [&](int step) {
    unsigned char *stage = smem + (step % STAGES) * STAGE;
    for (int i = threadIdx.x; i < (BM + BN) * CHUNKS; i += THREADS) {
      const int row = i / CHUNKS, chunk = i % CHUNKS, column = step * DEPTH + chunk * 8;
      const bool of_x = row < BM;
      const int at = of_x ? first_row + row : first_output + row - BM;
      const bool there = at < (of_x ? rows : output) && column < input;
      const T *from = of_x ? x : weight;
      cp_async16(stage + place(row, chunk), there ? from + size_t(at) * input + column : from, there ? 16 : 0);
    }
  };

  float sum[M / 16][N / 8][4];
#pragma unroll
  for (int m = 0; m < M / 16; m++)
#pragma unroll
    for (int n = 0; n < N / 8; n++)
#pragma unroll
      for (int i = 0; i < 4; i++) sum[m][n][i] = 0.f;

#pragma unroll
  for (int step = 0; step < STAGES - 1; step++) {
    if (step < steps) fetch(step);
    cp_async_commit();
  }
  const int warp_row = (warp / WN) * M, warp_output = (warp % WN) * N;
  for (int step = 0; step < steps; step++) {
    cp_async_wait<STAGES - 2>();
    __syncthreads();  // this stage has arrived for all, and all have read the one that is fetched into next
    if (step + STAGES - 1 < steps) fetch(step + STAGES - 1);
    cp_async_commit();
    const unsigned char *stage = smem + (step % STAGES) * STAGE;
#pragma unroll
    for (int k = 0; k < DEPTH / 16; k++) {
      unsigned a[M / 16][4];
#pragma unroll
      for (int m = 0; m < M / 16; m++)
        ldmatrix_x4(a[m], stage + place(warp_row + m * 16 + lane % 16, k * 2 + lane / 16));
#pragma unroll
      for (int n = 0; n < N / 16; n++) {
        unsigned b[4];
        const int row = BM + warp_output + n * 16 + lane / 16 * 8 + lane % 8;
        ldmatrix_x4(b, stage + place(row, k * 2 + lane / 8 % 2));
#pragma unroll
        for (int m = 0; m < M / 16; m++) {
          mma16816<T>(sum[m][2 * n], a[m], b[0], b[1]);
          mma16816<T>(sum[m][2 * n + 1], a[m], b[2], b[3]);
        }
      }
    }
  }

#pragma unroll
  for (int n = 0; n < N / 8; n++) {
    const int column = first_output + warp_output + n * 8 + lane % 4 * 2;
    if (column >= output) continue;
    const bool two = column + 1 < output;
    const float plus[2] = {bias ? to_f(bias[column]) : 0.f, bias && two ? to_f(bias[column + 1]) : 0.f};
#pragma unroll
    for (int m = 0; m < M / 16; m++)
#pragma unroll
      for (int half = 0; half < 2; half++) {
        const int row = first_row + warp_row + m * 16 + half * 8 + lane / 4;
        if (row >= rows) continue;
        T *to = y + size_t(row) * output + column;
        const float low = sum[m][n][2 * half] + plus[0], high = sum[m][n][2 * half + 1] + plus[1];
        if (two && paired) {
          *reinterpret_cast<unsigned *>(to) = pack2<T>(low, high);
        } else {
          to[0] = from_f<T>(low);
          if (two) to[1] = from_f<T>(high);
        }
      }
  }
}

// The form for f32, and for rows that are not aligned. One block computes 64 rows of 64 outputs, each thread 4 x 4.
// grid as above, block 256.
template <class T>
__device__ __forceinline__ void plain(T *y, const T *x, const T *weight, const T *bias, int rows, int input, int output) {
  constexpr int SIDE = 64, STEP = 16;
  __shared__ float xs[STEP][SIDE + 4], ws[STEP][SIDE + 4];
  const int first_row = blockIdx.x * SIDE, first_output = blockIdx.y * SIDE;
  const int across = threadIdx.x % 16, down = threadIdx.x / 16;
  float sum[4][4] = {};
  for (int from = 0; from < input; from += STEP) {
    for (int i = threadIdx.x; i < SIDE * STEP; i += 256) {
      const int row = i / STEP, k = i % STEP, column = from + k;
      const bool inside = column < input;
      xs[k][row] = inside && first_row + row < rows ? to_f(x[size_t(first_row + row) * input + column]) : 0.f;
      ws[k][row] =
          inside && first_output + row < output ? to_f(weight[size_t(first_output + row) * input + column]) : 0.f;
    }
    __syncthreads();  // the step is there
#pragma unroll
    for (int k = 0; k < STEP; k++)
#pragma unroll
      for (int r = 0; r < 4; r++)
#pragma unroll
        for (int c = 0; c < 4; c++) sum[r][c] = fmaf(xs[k][down * 4 + r], ws[k][across * 4 + c], sum[r][c]);
    __syncthreads();  // the step is read
  }
#pragma unroll
  for (int r = 0; r < 4; r++) {
    const int row = first_row + down * 4 + r;
    if (row >= rows) continue;
#pragma unroll
    for (int c = 0; c < 4; c++) {
      const int column = first_output + across * 4 + c;
      if (column < output)
        y[size_t(row) * output + column] = from_f<T>(sum[r][c] + (bias ? to_f(bias[column]) : 0.f));
    }
  }
}

// Rows and outputs of a block, warps, and stages: launch.rs has the same numbers.
#define TILES(name, T, ...)                                                                                          \
  GLOBAL void __launch_bounds__(256)                                                                                 \
      name(T *y, const T *x, const T *weight, const T *bias, int rows, int input, int output, int paired) {          \
    tiles<T, __VA_ARGS__>(y, x, weight, bias, rows, input, output, paired);                                          \
  }                                                                                                                  \
  KERNEL(name)
#define EACH_FEW(T) TILES(linear_few_##T, T, 16, 32, 1, 2, 8)
#define EACH_SOME(T) TILES(linear_some_##T, T, 64, 64, 2, 2, 4)
#define EACH_MANY(T) TILES(linear_many_##T, T, 128, 128, 2, 4, 3)
#define EACH_PLAIN(T)                                                                                                \
  GLOBAL void __launch_bounds__(256)                                                                                 \
      linear_plain_##T(T *y, const T *x, const T *weight, const T *bias, int rows, int input, int output) {          \
    plain<T>(y, x, weight, bias, rows, input, output);                                                               \
  }                                                                                                                  \
  KERNEL(linear_plain_##T)
EACH_FEW(bf16)
EACH_SOME(bf16)
EACH_MANY(bf16)
EACH_PLAIN(bf16)
EACH_FEW(f16)
EACH_SOME(f16)
EACH_MANY(f16)
EACH_PLAIN(f16)
EACH_PLAIN(f32)
