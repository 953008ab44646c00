// Resizing of u8 pictures [height, width, 3], one direction at a time, equal to Pillow's in every bit; and the step from
// u8 [height, width, 3] to f32 [3, height, width].
#include "device.cuh"

constexpr int BITS = 22;  // of the weights behind the point

// What one output pixel reads: resize.rs, `Taps`.
struct Taps {
  int start, first, count, outside;
};

// Sums of `count` pixels that lie `stride` bytes apart, and of the colour around the picture.
__device__ __forceinline__ void resample(unsigned char *out, const unsigned char *from, size_t stride, Taps taps,
                                         const int *weights, int fill) {
  int sum[3];
#pragma unroll
  for (int c = 0; c < 3; c++) sum[c] = (1 << (BITS - 1)) + (fill >> (8 * c) & 255) * taps.outside;
  for (int i = 0; i < taps.count; i++) {
    const int weight = weights[taps.first + i];
    const unsigned char *pixel = from + size_t(i) * stride;
#pragma unroll
    for (int c = 0; c < 3; c++) sum[c] += pixel[c] * weight;
  }
#pragma unroll
  for (int c = 0; c < 3; c++) out[c] = (unsigned char)(min(max(sum[c] >> BITS, 0), 255));
}

// Every row of `image` [rows, width, 3] to [rows, outputs, 3]. grid (outputs / 128, rows), block 128; `fill` has red in
// its lowest byte.
GLOBAL void __launch_bounds__(128)
    resize_across(unsigned char *out, const unsigned char *image, const Taps *taps, const int *weights, int width,
                  int outputs, int fill) {
  const int output = blockIdx.x * blockDim.x + threadIdx.x;
  if (output >= outputs) return;
  const Taps own = taps[output];
  const unsigned char *row = image + size_t(blockIdx.y) * width * 3;
  resample(out + (size_t(blockIdx.y) * outputs + output) * 3, row + size_t(own.start) * 3, 3, own, weights, fill);
}
KERNEL(resize_across)

// Every column of `image` [rows, width, 3], whose first row is row `first` of the picture, to [outputs, width, 3].
// grid (width / 128, outputs), block 128.
GLOBAL void __launch_bounds__(128)
    resize_down(unsigned char *out, const unsigned char *image, const Taps *taps, const int *weights, int width, int first,
                int fill) {
  const int column = blockIdx.x * blockDim.x + threadIdx.x;
  if (column >= width) return;
  const Taps own = taps[blockIdx.y];
  const unsigned char *top = image + (size_t(own.count ? own.start - first : 0) * width + column) * 3;
  resample(out + (size_t(blockIdx.y) * width + column) * 3, top, size_t(width) * 3, own, weights, fill);
}
KERNEL(resize_down)

// `table` [3, 256] has the number for each level of each channel, worked out as the reference does. grid (pixels / 256),
// block 256.
GLOBAL void __launch_bounds__(256)
    normalise(float *out, const unsigned char *image, const float *table, int pixels) {
  const int pixel = blockIdx.x * blockDim.x + threadIdx.x;
  if (pixel >= pixels) return;
#pragma unroll
  for (int c = 0; c < 3; c++) out[size_t(c) * pixels + pixel] = table[c * 256 + image[size_t(pixel) * 3 + c]];
}
KERNEL(normalise)
