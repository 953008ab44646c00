// log10(max(mel power, 1e-10)) of frames of a recording: log_mel.rs has the definition.
//
// The transform is the sum itself, folded: the window has 400 samples, of which sample n and sample 400 - n meet the same
// cosine and opposite sines. A fast transform of 400 would save little beside reading the samples.
#include "device.cuh"

constexpr int WINDOW = 400, HOP = 160, BINS = WINDOW / 2 + 1, FOLDED = WINDOW / 2;
constexpr int FRAMES = 4;  // that a block computes side by side

// A filter of the bank: its first bin, where its weight is, and how many there are.
struct Filter {
  int start, first, count;
};

// samples [count]; window and cosine [400]: cosine has cos(2 pi j / 400). Frame `first_frame + t` is centred on sample
// 160 (first_frame + t): mirrored in front of the first sample, zero behind the last. out [frames, mels].
// grid (frames / 4), block 224.
GLOBAL void __launch_bounds__(224)
    log_mel(float *out, const float *samples, const float *window, const float *cosine, const Filter *filters,
            const float *weights, int count, int first_frame, int frames, int mels) {
  __shared__ float table[WINDOW];
  __shared__ float even[FOLDED + 1][FRAMES], odd[FOLDED + 1][FRAMES];
  __shared__ float power[BINS][FRAMES];
  const int frame = blockIdx.x * FRAMES;
  auto sample = [&](int of, int n) {
    const long long at = (long long)(first_frame + of) * HOP - WINDOW / 2 + n;
    const long long mirrored = at < 0 ? -at : at;
    return of < frames && mirrored < count ? window[n] * samples[mirrored] : 0.f;
  };
  for (int n = threadIdx.x; n < WINDOW; n += blockDim.x) table[n] = cosine[n];
  for (int i = threadIdx.x; i < (FOLDED + 1) * FRAMES; i += blockDim.x) {
    const int n = i / FRAMES, f = i % FRAMES;
    const float low = sample(frame + f, n);
    // The first and the middle one have no partner.
    const float high = n % FOLDED ? sample(frame + f, WINDOW - n) : 0.f;
    even[n][f] = low + high;
    odd[n][f] = low - high;
  }
  __syncthreads();  // the folded frames and the table are there
  const int bin = threadIdx.x;
  if (bin < BINS) {
    float real[FRAMES], imaginary[FRAMES];
#pragma unroll
    for (int f = 0; f < FRAMES; f++) {
      real[f] = even[0][f] + (bin % 2 ? -even[FOLDED][f] : even[FOLDED][f]);
      imaginary[f] = 0.f;
    }
    int turn = 0;  // n bin modulo 400
    for (int n = 1; n < FOLDED; n++) {
      turn += bin;
      if (turn >= WINDOW) turn -= WINDOW;
      const float cos = table[turn], sin = table[turn >= 100 ? turn - 100 : turn + 300];
#pragma unroll
      for (int f = 0; f < FRAMES; f++) {
        real[f] = fmaf(even[n][f], cos, real[f]);
        imaginary[f] = fmaf(odd[n][f], sin, imaginary[f]);
      }
    }
#pragma unroll
    for (int f = 0; f < FRAMES; f++) power[bin][f] = real[f] * real[f] + imaginary[f] * imaginary[f];
  }
  __syncthreads();  // the spectra are there
  for (int i = threadIdx.x; i < mels * FRAMES; i += blockDim.x) {
    const int mel = i % mels, f = i / mels;
    if (frame + f >= frames) continue;
    const Filter own = filters[mel];
    float sum = 0.f;
    for (int k = 0; k < own.count; k++) sum = fmaf(weights[own.first + k], power[own.start + k][f], sum);
    out[size_t(frame + f) * mels + mel] = log10f(fmaxf(sum, 1e-10f));
  }
}
KERNEL(log_mel)
