// Which frame each row of a text looks at: alignment.rs has the definition. Maps [heads, rows, frames] of the heads that
// follow time become probabilities, then each column is standardised, then medians are added over the heads.
#include "device.cuh"

constexpr int THREADS = 256;
constexpr int ROWS = 8;  // of a block: each of its warps finishes one
constexpr int MEDIAN = 7, HALF = MEDIAN / 2;

struct Sizes {
  int rows, stride, heads, width, frames, page_size, page_count;
};

// Probabilities of ROWS rows of one head. grid (ceil(rows / ROWS), heads), block 256, shared memory for ROWS queries in f32.
// A page outside the cache is a fault of the caller and ends the launch.
template <class T>
__device__ __forceinline__ void map_rows(float *maps, const T *q, const T *k, const unsigned *pages,
                                         const unsigned *head_set, float scale, const Sizes &sizes) {
  float *queries = reinterpret_cast<float *>(smem);  // [width, ROWS]
  const int head = head_set[blockIdx.y], first = blockIdx.x * ROWS, mine = min(ROWS, sizes.rows - first);
  for (int i = threadIdx.x; i < sizes.width * ROWS; i += THREADS) {
    const int row = i % ROWS, at = head * sizes.width + i / ROWS;
    queries[i] = row < mine ? to_f(q[size_t(first + row) * sizes.stride + at]) * scale : 0.f;
  }
  __syncthreads();  // the queries are there
  float *map = maps + (size_t(blockIdx.y) * sizes.rows + first) * sizes.frames;
  for (int frame = threadIdx.x; frame < sizes.frames; frame += THREADS) {
    const unsigned page = pages[frame / sizes.page_size];
    if (page >= unsigned(sizes.page_count)) __trap();
    const size_t slot = size_t(page) * sizes.page_size + frame % sizes.page_size;
    const T *key = k + (slot * sizes.heads + head) * sizes.width;
    float sums[ROWS] = {};
    for (int i = 0; i < sizes.width; i++) {
      const float x = to_f(key[i]);
#pragma unroll
      for (int row = 0; row < ROWS; row++) sums[row] += queries[i * ROWS + row] * x;
    }
#pragma unroll
    for (int row = 0; row < ROWS; row++)
      if (row < mine) map[size_t(row) * sizes.frames + frame] = sums[row];
  }
  __syncthreads();  // all scores are there
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  if (warp >= mine) return;
  float *row = map + size_t(warp) * sizes.frames;
  float most = -INFINITY, sum = 0.f;
  for (int frame = lane; frame < sizes.frames; frame += 32) most = fmaxf(most, row[frame]);
  most = warp_max(most);
  for (int frame = lane; frame < sizes.frames; frame += 32) sum += row[frame] = expf(row[frame] - most);
  const float share = 1.f / warp_sum(sum);
  for (int frame = lane; frame < sizes.frames; frame += 32) row[frame] *= share;
}

// Brings every column of every map to mean 0 and deviation 1, a column of equal numbers to 0. In f64, counted from the first
// row's, for the host's reasons. grid (ceil(frames / 256), heads), block 256.
GLOBAL void __launch_bounds__(THREADS) alignment_standardise(float *maps, int rows, int frames) {
  const int frame = blockIdx.x * THREADS + threadIdx.x;
  if (frame >= frames) return;
  float *column = maps + size_t(blockIdx.y) * rows * frames + frame;
  const double first = column[0];
  double mean = 0., squares = 0.;
  for (int row = 0; row < rows; row++) mean += double(column[size_t(row) * frames]) - first;
  mean /= rows;
  for (int row = 0; row < rows; row++) {
    const double apart = double(column[size_t(row) * frames]) - first - mean;
    squares += apart * apart;
  }
  const double deviation = sqrt(squares / rows), factor = deviation == 0. ? 0. : 1. / deviation;
  for (int row = 0; row < rows; row++) {
    float &value = column[size_t(row) * frames];
    value = float((double(value) - first - mean) * factor);
  }
}
KERNEL(alignment_standardise)

__device__ __forceinline__ void exchange(float &first, float &second) {
  const float a = first, b = second;
  first = a < b ? a : b;
  second = a < b ? b : a;
}

// By the host's exchanges.
__device__ __forceinline__ float median(float (&v)[MEDIAN]) {
  constexpr int PAIRS[][2] = {{0, 5}, {0, 3}, {1, 6}, {2, 4}, {0, 1}, {3, 5}, {2, 6}, {2, 3}, {3, 6}, {4, 5}, {1, 4}, {1, 3}, {3, 4}};
#pragma unroll
  for (auto &pair : PAIRS) exchange(v[pair[0]], v[pair[1]]);
  return v[HALF];
}

// The sum over the heads of running medians of seven frames, the row mirrored at its ends; a row that is too short for that
// stays as it is. grid (ceil(frames / 256), rows), block 256.
GLOBAL void __launch_bounds__(THREADS)
    alignment_smooth(float *out, const float *maps, int heads, int rows, int frames) {
  const int frame = blockIdx.x * THREADS + threadIdx.x;
  if (frame >= frames) return;
  float sum = 0.f;
  for (int head = 0; head < heads; head++) {
    const float *map = maps + (size_t(head) * rows + blockIdx.y) * frames;
    if (frames <= HALF) {
      sum += map[frame];
      continue;
    }
    float seven[MEDIAN];
#pragma unroll
    for (int i = 0; i < MEDIAN; i++) {
      const int at = abs(frame + i - HALF);
      seven[i] = map[at < frames ? at : 2 * (frames - 1) - at];
    }
    sum += median(seven);
  }
  out[size_t(blockIdx.y) * frames + frame] = sum;
}
KERNEL(alignment_smooth)

#define EACH_MAP(T)                                                                                                   \
  GLOBAL void __launch_bounds__(THREADS)                                                                              \
      alignment_map_##T(float *maps, const T *q, const T *k, const unsigned *pages, const unsigned *head_set,         \
                        float scale, int rows, int stride, int heads, int width, int frames, int page_size,           \
                        int page_count) {                                                                             \
    map_rows(maps, q, k, pages, head_set, scale, Sizes{rows, stride, heads, width, frames, page_size, page_count});   \
  }                                                                                                                   \
  KERNEL(alignment_map_##T)
EACH_MAP(f32)
EACH_MAP(bf16)
EACH_MAP(f16)
