//! Pillow's 8-bit resampling, bit for bit, over a canvas that may be larger than the picture.

#[cfg(feature = "cuda")]
use candle_core::CudaStorage;
use candle_core::{CpuStorage, CustomOp1, DType, Layout, Result, Shape, Tensor, bail};

use crate::view::contiguous;
#[cfg(feature = "cuda")]
use crate::{cuda, launch};

/// Resampling filter, with Pillow's definitions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Filter {
    /// Triangle, radius 1.
    Bilinear,
    /// Cubic with a = -0.5, radius 2.
    Bicubic,
    /// Lanczos, radius 3.
    Lanczos,
}

impl Filter {
    fn radius(self) -> f64 {
        match self {
            Self::Bilinear => 1.0,
            Self::Bicubic => 2.0,
            Self::Lanczos => 3.0,
        }
    }

    fn at(self, x: f64) -> f64 {
        let x_abs = x.abs();
        match self {
            Self::Bilinear => (1.0 - x_abs).max(0.0),
            Self::Bicubic => {
                const A: f64 = -0.5;
                if x_abs < 1.0 {
                    ((A + 2.0) * x_abs - (A + 3.0)) * x_abs * x_abs + 1.0
                } else if x_abs < 2.0 {
                    (((x_abs - 5.0) * x_abs + 8.0) * x_abs - 4.0) * A
                } else {
                    0.0
                }
            }
            Self::Lanczos => {
                let sinc = |x: f64| {
                    if x == 0.0 { 1.0 } else { (std::f64::consts::PI * x).sin() / (std::f64::consts::PI * x) }
                };
                if (-3.0..3.0).contains(&x) { sinc(x) * sinc(x / 3.0) } else { 0.0 }
            }
        }
    }
}

/// What is resampled: the picture itself, or the picture on a larger area of one colour.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Canvas {
    /// Pixels.
    pub width: usize,
    /// Pixels.
    pub height: usize,
    /// Where the picture's left edge is.
    pub left: usize,
    /// Where the picture's top edge is.
    pub top: usize,
    /// Colour of the area around it.
    pub fill: [u8; 3],
}

/// A part of the resized picture.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Region {
    /// First column.
    pub left: usize,
    /// First row.
    pub top: usize,
    /// Columns.
    pub width: usize,
    /// Rows.
    pub height: usize,
}

/// One resize: the canvas is scaled to `width` × `height`, and of that only `region` is computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Resize {
    /// What is scaled.
    pub canvas: Canvas,
    /// Columns of the whole result.
    pub width: usize,
    /// Rows of the whole result.
    pub height: usize,
    /// The part that is wanted.
    pub region: Region,
    /// How.
    pub filter: Filter,
}

/// Resizes as Pillow up to 12.3 does for 8-bit RGB: fixed-point weights with 22 bits, the horizontal pass first,
/// 8-bit values in between, an axis that keeps its size untouched.
///
/// - `image`: u8 `[height, width, 3]`, contiguous
/// - returns u8 `[region.height, region.width, 3]`
///
/// # Errors
/// When the picture does not lie on the canvas, the region not in the result, or a size is 0.
pub fn resize(image: &Tensor, resize: Resize) -> Result<Tensor> {
    let (height, width, channels) = image.dims3()?;
    let Resize { canvas, region, .. } = resize;
    let fits = channels == 3
        && image.dtype() == DType::U8
        && width.min(height).min(resize.width).min(resize.height).min(region.width).min(region.height) > 0
        && canvas.left + width <= canvas.width
        && canvas.top + height <= canvas.height
        && region.left + region.width <= resize.width
        && region.top + region.height <= resize.height;
    if !fits {
        bail!("resize: {resize:?} does not fit a picture {:?} {:?}", image.shape(), image.dtype())
    }
    image.apply_op1_no_bwd(&ResizeOp { resize })
}

/// `(f32(u8 · scale) − mean) / std` per channel, and channels first.
///
/// - `image`: u8 `[height, width, 3]`, contiguous
/// - returns f32 `[3, height, width]`
///
/// `u8 · scale` is computed in f64 and rounded once, as transformers does with NumPy.
///
/// # Errors
/// When the picture is not u8 with three channels.
pub fn normalise(image: &Tensor, scale: f64, mean: [f32; 3], std: [f32; 3]) -> Result<Tensor> {
    let (_, _, channels) = image.dims3()?;
    if channels != 3 || image.dtype() != DType::U8 {
        bail!("normalise: {:?} {:?} is not a u8 picture", image.shape(), image.dtype())
    }
    image.apply_op1_no_bwd(&Normalise { scale, mean, std })
}

struct Normalise {
    scale: f64,
    mean: [f32; 3],
    std: [f32; 3],
}

impl CustomOp1 for Normalise {
    fn name(&self) -> &'static str {
        "normalise"
    }

    fn cpu_fwd(&self, image: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (height, width, _) = layout.shape().dims3()?;
        let image = contiguous::<u8>(image, layout, "image")?;
        let mut out = Vec::with_capacity(image.len());
        for (channel, table) in self.tables().iter().enumerate() {
            out.extend(image.as_chunks::<3>().0.iter().map(|pixel| table[pixel[channel] as usize]));
        }
        Ok((CpuStorage::F32(out), (3, height, width).into()))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, image: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        let (height, width, _) = layout.shape().dims3()?;
        let device = &image.device;
        let stream = &device.cuda_stream();
        let image = cuda::contiguous_u8(image, layout, "image", stream)?;
        let table = device.clone_htod(self.tables().as_flattened())?;
        // SAFETY: the kernel writes every element: it has a thread for each pixel.
        let mut out = unsafe { device.alloc::<f32>(3 * height * width)? };
        let addresses = [cuda::address_mut(&mut out, stream), image.address, cuda::address(&table, stream)];
        if let Some(launch) = launch::normalise(addresses, height * width)? {
            // SAFETY: `normalise` has checked that the picture is u8 with three channels, all of it inside its storage;
            // the table has a number for every level, and out was made for the launch.
            unsafe { cuda::run(device, &cuda::RESIZE, &launch)? }
        }
        drop(image);
        Ok((CudaStorage::wrap_cuda_slice(out, device.clone()), (3, height, width).into()))
    }
}

impl Normalise {
    /// The number of every level of every channel.
    fn tables(&self) -> [[f32; 256]; 3] {
        std::array::from_fn(|channel| {
            std::array::from_fn(|level| {
                ((level as f64 * self.scale) as f32 - self.mean[channel]) / self.std[channel]
            })
        })
    }
}

struct ResizeOp {
    resize: Resize,
}

impl CustomOp1 for ResizeOp {
    fn name(&self) -> &'static str {
        "resize"
    }

    fn cpu_fwd(&self, image: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (height, width, _) = layout.shape().dims3()?;
        let image = contiguous::<u8>(image, layout, "image")?;
        let Resize { canvas, region, .. } = self.resize;
        let [columns, rows] = self.resize.axes([height, width]);
        // Only the rows that the second pass reads.
        let (first, end) = rows.reads();
        let narrow = columns.across(&image[first * width * 3..end * width * 3], width, canvas.fill);
        let out = rows.down(&narrow, first, region.width, canvas.fill);
        Ok((CpuStorage::U8(out), (region.height, region.width, 3).into()))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, image: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        let (height, width, _) = layout.shape().dims3()?;
        let Region { width: columns, height: rows, .. } = self.resize.region;
        let device = &image.device;
        let stream = &device.cuda_stream();
        let passes = launch::Resampling::new(&self.resize, [height, width])?;
        let image = cuda::contiguous_u8(image, layout, "image", stream)?;
        let upload = |table: &[i32]| device.clone_htod(if table.is_empty() { &[0][..] } else { table });
        let [across, down] = [&passes.across, &passes.down];
        let tables = [&across.taps, &across.weights, &down.taps, &down.weights].map(|table| upload(table));
        let [taps, weights, down_taps, down_weights] = tables;
        let [taps, weights, down_taps, down_weights] = [taps?, weights?, down_taps?, down_weights?];
        let at = |table| cuda::address(table, stream);
        // SAFETY: each pass writes all of its pixels: the first those of the rows that the second reads.
        let mut narrow = unsafe { device.alloc::<u8>((passes.rows.len() * columns * 3).max(1))? };
        // SAFETY: as above.
        let mut out = unsafe { device.alloc::<u8>(rows * columns * 3)? };
        let (narrow_at, out_at) =
            (cuda::address_mut(&mut narrow, stream), cuda::address_mut(&mut out, stream));
        let from = image.address + (passes.rows.start * width * 3) as u64;
        let first = passes.first([narrow_at, from], [at(&taps), at(&weights)], width)?;
        let second = passes.second([out_at, narrow_at], [at(&down_taps), at(&down_weights)])?;
        for launch in [first, second].into_iter().flatten() {
            // SAFETY: `resize` has checked that picture, canvas and region fit each other, and the tables are made of the
            // same sizes: what they say lies inside the picture, and inside what the first pass makes.
            unsafe { cuda::run(device, &cuda::RESIZE, &launch)? }
        }
        drop(image);
        Ok((CudaStorage::wrap_cuda_slice(out, device.clone()), (rows, columns, 3).into()))
    }
}

impl Resize {
    /// The weights from left to right and from top to bottom, of a picture of `height` rows and `width` columns.
    pub(crate) fn axes(&self, [height, width]: [usize; 2]) -> [Axis; 2] {
        let Self { canvas, region, filter, .. } = *self;
        let columns = Axis::new(canvas.width, self.width, region.left, region.width, filter);
        let rows = Axis::new(canvas.height, self.height, region.top, region.height, filter);
        [columns.over(canvas.left, width), rows.over(canvas.top, height)]
    }
}

/// Fractional bits of the weights: 32 bits less 8 of the pixel and 2 for overshoot.
const BITS: u32 = 22;
const HALF: i32 = 1 << (BITS - 1);

/// The weights of one direction.
pub(crate) struct Axis {
    outputs: Vec<Taps>,
    weights: Vec<i32>,
}

/// What one output pixel reads.
struct Taps {
    /// First input pixel.
    start: usize,
    /// Where its weight is.
    first: usize,
    count: usize,
    /// Weight of the canvas around the picture.
    outside: i32,
}

impl Axis {
    /// Weights for outputs `from..from + count` of `size` pixels scaled to `scaled`.
    fn new(size: usize, scaled: usize, from: usize, count: usize, filter: Filter) -> Self {
        let mut weights = Vec::new();
        let mut outputs = Vec::with_capacity(count);
        if size == scaled {
            weights.push(1 << BITS);
            outputs.extend((from..from + count).map(|start| Taps { start, first: 0, count: 1, outside: 0 }));
            return Self { outputs, weights };
        }
        let scale = size as f64 / scaled as f64;
        let stretch = scale.max(1.0);
        let support = filter.radius() * stretch;
        for output in from..from + count {
            let center = (output as f64 + 0.5) * scale;
            // `as` truncates toward zero and stops at 0, as the C code does.
            let low = (center - support + 0.5) as usize;
            let high = ((center + support + 0.5) as usize).min(size);
            let exact: Vec<f64> =
                (low..high).map(|input| filter.at((input as f64 - center + 0.5) * (1.0 / stretch))).collect();
            let sum: f64 = exact.iter().sum();
            let first = weights.len();
            weights.extend(exact.iter().map(|weight| {
                let weight = if sum == 0.0 { *weight } else { weight / sum };
                (weight * f64::from(1 << BITS) + if weight < 0.0 { -0.5 } else { 0.5 }) as i32
            }));
            outputs.push(Taps { start: low, first, count: high - low, outside: 0 });
        }
        Self { outputs, weights }
    }

    /// Counts inputs from `offset` on, and gathers the weights of those outside `offset..offset + size`.
    fn over(mut self, offset: usize, size: usize) -> Self {
        for taps in &mut self.outputs {
            let low = taps.start.clamp(offset, offset + size);
            let high = (taps.start + taps.count).clamp(offset, offset + size);
            let all: i32 = self.weights[taps.first..][..taps.count].iter().sum();
            taps.first += low.saturating_sub(taps.start).min(taps.count);
            taps.count = high - low;
            taps.start = low - offset;
            taps.outside = all - self.weights[taps.first..][..taps.count].iter().sum::<i32>();
            if taps.count == 0 {
                taps.start = 0;
            }
        }
        self
    }

    /// Of each output: the first input, where its weight is, and how many there are; and the weight of what is around
    /// the picture.
    pub(crate) fn taps(&self) -> impl Iterator<Item = ([usize; 3], i32)> + '_ {
        self.outputs.iter().map(|taps| ([taps.start, taps.first, taps.count], taps.outside))
    }

    /// Those of all outputs.
    pub(crate) fn all_weights(&self) -> &[i32] {
        &self.weights
    }

    /// The range of inputs that any output reads.
    pub(crate) fn reads(&self) -> (usize, usize) {
        let reading = || self.outputs.iter().filter(|taps| taps.count > 0);
        let first = reading().map(|taps| taps.start).min().unwrap_or(0);
        let end = reading().map(|taps| taps.start + taps.count).max().unwrap_or(0);
        (first, end)
    }

    fn weights(&self, taps: &Taps) -> &[i32] {
        &self.weights[taps.first..][..taps.count]
    }

    /// Resamples every row of an image of `width` columns.
    fn across(&self, image: &[u8], width: usize, fill: [u8; 3]) -> Vec<u8> {
        let mut out = vec![0; image.len() / width * self.outputs.len()];
        if out.is_empty() {
            return out;
        }
        #[cfg(target_arch = "x86_64")]
        if avx512::is_here() {
            let digits = avx512::Digits::new(self);
            // SAFETY: the processor has what `is_here` asked for.
            unsafe { avx512::across(self, &digits, image, width, fill, &mut out) };
            return out;
        }
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("avx2") {
            let lanes = avx2::Lanes::new(self);
            // SAFETY: the processor has AVX2.
            unsafe { avx2::across(self, &lanes, image, width, fill, &mut out) };
            return out;
        }
        let rows = image.chunks_exact(width * 3).zip(out.chunks_exact_mut(self.outputs.len() * 3));
        for (row, out) in rows {
            for (taps, out) in self.outputs.iter().zip(out.as_chunks_mut::<3>().0) {
                *out = self.pixel(taps, row, fill);
            }
        }
        out
    }

    /// One pixel of one row.
    #[inline(always)]
    fn pixel(&self, taps: &Taps, row: &[u8], fill: [u8; 3]) -> [u8; 3] {
        let mut sums = fill.map(|level| HALF + i32::from(level) * taps.outside);
        let pixels = row[taps.start * 3..][..taps.count * 3].as_chunks::<3>().0;
        for (pixel, weight) in pixels.iter().zip(self.weights(taps)) {
            for channel in 0..3 {
                sums[channel] += i32::from(pixel[channel]) * weight;
            }
        }
        sums.map(level)
    }

    /// Resamples every column of an image of `width` columns whose first row is row `first`.
    fn down(&self, image: &[u8], first: usize, width: usize, fill: [u8; 3]) -> Vec<u8> {
        let mut out = vec![0; self.outputs.len() * width * 3];
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("avx512bw") {
            // SAFETY: the processor has AVX-512BW.
            unsafe { self.down_avx512(image, first, width, fill, &mut out) };
            return out;
        }
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("avx2") {
            // SAFETY: the processor has AVX2.
            unsafe { self.down_avx2(image, first, width, fill, &mut out) };
            return out;
        }
        self.down_plain(image, first, width, fill, &mut out);
        out
    }

    /// The same loops, compiled for wider registers.
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx512bw")]
    fn down_avx512(&self, image: &[u8], first: usize, width: usize, fill: [u8; 3], out: &mut [u8]) {
        self.down_plain(image, first, width, fill, out);
    }

    /// The same loops, compiled for wider registers.
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2")]
    fn down_avx2(&self, image: &[u8], first: usize, width: usize, fill: [u8; 3], out: &mut [u8]) {
        self.down_plain(image, first, width, fill, out);
    }

    #[inline(always)]
    fn down_plain(&self, image: &[u8], first: usize, width: usize, fill: [u8; 3], out: &mut [u8]) {
        let mut sums = vec![0i32; width * 3];
        for (taps, out) in self.outputs.iter().zip(out.chunks_exact_mut(width * 3)) {
            for sums in sums.as_chunks_mut::<3>().0 {
                *sums = fill.map(|level| HALF + i32::from(level) * taps.outside);
            }
            for (offset, &weight) in self.weights(taps).iter().enumerate() {
                let row = &image[(taps.start + offset - first) * width * 3..][..width * 3];
                for (sum, &level) in sums.iter_mut().zip(row) {
                    *sum += i32::from(level) * weight;
                }
            }
            for (out, &sum) in out.iter_mut().zip(&sums) {
                *out = level(sum);
            }
        }
    }
}

#[inline(always)]
fn level(sum: i32) -> u8 {
    (sum >> BITS).clamp(0, 255) as u8
}

/// The horizontal pass, four taps of four rows at a time. A 22-bit weight is split into two 16-bit ones, because
/// `pmaddwd` multiplies and adds pairs of those exactly.
#[cfg(target_arch = "x86_64")]
mod avx2 {
    #[allow(clippy::wildcard_imports, reason = "the instructions of this file")]
    use std::arch::x86_64::*;

    use super::{Axis, BITS, HALF};

    const SPLIT: u32 = 12;
    const ROWS: usize = 4;
    /// Bytes that a load touches from the first of its four pixels on.
    const LOAD: usize = 16;

    /// The weights in the order that the loop wants.
    pub(super) struct Lanes {
        /// Of each output: where its groups begin, and how many there are.
        groups: Vec<(usize, usize)>,
        /// Of each group: upper parts of four weights, then lower parts, 16 bits each.
        weights: Vec<[i64; 2]>,
    }

    impl Lanes {
        pub(super) fn new(axis: &Axis) -> Self {
            let mut weights = Vec::new();
            let mut groups = Vec::with_capacity(axis.outputs.len());
            for taps in &axis.outputs {
                groups.push((weights.len(), taps.count.div_ceil(4)));
                for four in axis.weights(taps).chunks(4) {
                    let pack = |part: fn(i32) -> i32| {
                        let parts = four
                            .iter()
                            .rev()
                            .fold(0u64, |packed, &weight| packed << 16 | u64::from(part(weight) as u16));
                        parts.cast_signed()
                    };
                    weights
                        .push([pack(|weight| weight >> SPLIT), pack(|weight| weight & ((1 << SPLIT) - 1))]);
                }
            }
            Self { groups, weights }
        }
    }

    #[target_feature(enable = "avx2")]
    pub(super) fn across(
        axis: &Axis,
        lanes: &Lanes,
        image: &[u8],
        width: usize,
        fill: [u8; 3],
        out: &mut [u8],
    ) {
        let stride = axis.outputs.len() * 3;
        for (block, out) in out.chunks_mut(ROWS * stride).enumerate() {
            let count = out.len() / stride;
            // A short last block computes its first row again and does not store it.
            let rows: [&[u8]; ROWS] = std::array::from_fn(|row| {
                let row = block * ROWS + if row < count { row } else { 0 };
                &image[row * width * 3..]
            });
            four_rows(axis, lanes, rows, fill, out);
        }
    }

    #[target_feature(enable = "avx2")]
    fn four_rows(axis: &Axis, lanes: &Lanes, rows: [&[u8]; ROWS], fill: [u8; 3], out: &mut [u8]) {
        // Bytes 0..12 are four RGB pixels. The lower half takes pixels 0 and 1, the upper 2 and 3, as 16-bit
        // pairs of one channel: r0 r1 g0 g1 b0 b1.
        let spread = _mm256_setr_epi8(
            0, -1, 3, -1, 1, -1, 4, -1, 2, -1, 5, -1, -1, -1, -1, -1, //
            6, -1, 9, -1, 7, -1, 10, -1, 8, -1, 11, -1, -1, -1, -1, -1,
        );
        // The two weights of each half, repeated for the channels.
        let upper = _mm256_setr_epi8(
            0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3, //
            4, 5, 6, 7, 4, 5, 6, 7, 4, 5, 6, 7, 4, 5, 6, 7,
        );
        let lower = _mm256_add_epi8(upper, _mm256_set1_epi8(8));
        let stride = axis.outputs.len() * 3;
        let shortest = rows.iter().map(|row| row.len()).min().unwrap_or(0);
        for (index, (taps, &(first, groups))) in axis.outputs.iter().zip(&lanes.groups).enumerate() {
            // The last pixels of the last rows have no bytes behind them to load.
            if shortest < taps.start * 3 + groups.saturating_sub(1) * 12 + LOAD {
                for (row, out) in rows.iter().zip(out.chunks_exact_mut(stride)) {
                    out[index * 3..][..3].copy_from_slice(&axis.pixel(taps, row, fill));
                }
                continue;
            }
            let zero = _mm256_setzero_si256();
            let mut high = [zero; ROWS];
            let mut low = [zero; ROWS];
            for (group, weights) in lanes.weights[first..][..groups].iter().enumerate() {
                let [a, b] = *weights;
                let weights = _mm256_broadcastsi128_si256(_mm_set_epi64x(b, a));
                let upper = _mm256_shuffle_epi8(weights, upper);
                let lower = _mm256_shuffle_epi8(weights, lower);
                let at = taps.start * 3 + group * 12;
                for row in 0..ROWS {
                    // SAFETY: `at + LOAD` is at most `shortest` for the last group, checked above, and less for
                    // those before it; every row is at least that long.
                    let bytes = unsafe { _mm_loadu_si128(rows[row].as_ptr().add(at).cast()) };
                    let pixels = _mm256_broadcastsi128_si256(bytes);
                    let pixels = _mm256_shuffle_epi8(pixels, spread);
                    high[row] = _mm256_add_epi32(high[row], _mm256_madd_epi16(pixels, upper));
                    low[row] = _mm256_add_epi32(low[row], _mm256_madd_epi16(pixels, lower));
                }
            }
            let [red, green, blue] = fill.map(|level| HALF + i32::from(level) * taps.outside);
            let around = _mm_setr_epi32(red, green, blue, 0);
            // Sums of both halves, shifted down and clamped to bytes: one pixel of four rows.
            let mut levels = [_mm_setzero_si128(); ROWS];
            for row in 0..ROWS {
                let sums = _mm256_add_epi32(_mm256_slli_epi32::<{ SPLIT as i32 }>(high[row]), low[row]);
                let (a, b) = (_mm256_castsi256_si128(sums), _mm256_extracti128_si256::<1>(sums));
                levels[row] = _mm_srai_epi32::<{ BITS as i32 }>(_mm_add_epi32(around, _mm_add_epi32(a, b)));
            }
            let words = (_mm_packs_epi32(levels[0], levels[1]), _mm_packs_epi32(levels[2], levels[3]));
            let bytes = _mm_packus_epi16(words.0, words.1);
            let pixels = [
                _mm_extract_epi32::<0>(bytes),
                _mm_extract_epi32::<1>(bytes),
                _mm_extract_epi32::<2>(bytes),
                _mm_extract_epi32::<3>(bytes),
            ];
            for (out, pixel) in out.chunks_exact_mut(stride).zip(pixels) {
                out[index * 3..][..3].copy_from_slice(&pixel.to_le_bytes()[..3]);
            }
        }
    }
}

/// The horizontal pass, sixteen taps of eight rows at a time. A weight is split into three signed bytes, because
/// `vpdpbusd` multiplies bytes and adds four products exactly.
#[cfg(target_arch = "x86_64")]
mod avx512 {
    #[allow(clippy::wildcard_imports, reason = "the instructions of this file")]
    use std::arch::x86_64::*;

    use super::{Axis, BITS, HALF};

    const ROWS: usize = 8;
    const TAPS: usize = 16;

    pub(super) fn is_here() -> bool {
        is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512vbmi")
            && is_x86_feature_detected!("avx512vnni")
    }

    /// The weights in the order that the loop wants.
    pub(super) struct Digits {
        /// Of each output, where its blocks of sixteen taps begin.
        first: Vec<usize>,
        /// Of each block: the lowest bytes of its weights, the middle ones, the highest, and how many taps there are.
        blocks: Vec<([__m128i; 3], usize)>,
    }

    impl Digits {
        pub(super) fn new(axis: &Axis) -> Self {
            let mut first = Vec::with_capacity(axis.outputs.len() + 1);
            let mut blocks = Vec::new();
            for taps in &axis.outputs {
                first.push(blocks.len());
                for block in axis.weights(taps).chunks(TAPS) {
                    let mut digits = [[0u8; TAPS]; 3];
                    for (tap, &weight) in block.iter().enumerate() {
                        let mut rest = weight;
                        for digit in &mut digits {
                            let low = rest as i8;
                            digit[tap] = low.cast_unsigned();
                            rest = (rest - i32::from(low)) >> 8;
                        }
                        debug_assert_eq!(rest, 0, "a weight has at most 23 bits and a sign");
                    }
                    // SAFETY: both types are sixteen plain bytes.
                    let digits =
                        digits.map(|digit| unsafe { std::mem::transmute::<[u8; 16], __m128i>(digit) });
                    blocks.push((digits, block.len()));
                }
            }
            first.push(blocks.len());
            Self { first, blocks }
        }
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512vbmi,avx512vnni")]
    pub(super) fn across(
        axis: &Axis,
        digits: &Digits,
        image: &[u8],
        width: usize,
        fill: [u8; 3],
        out: &mut [u8],
    ) {
        // Four taps of red, of green, of blue, and a word that is not used, four times.
        let mut gather = [0u8; 64];
        for (byte, from) in gather.iter_mut().enumerate() {
            let (lane, channel, tap) = (byte / 16, byte % 16 / 4, byte % 4);
            *from = (12 * lane + 3 * tap + channel.min(2)) as u8;
        }
        // SAFETY: `gather` has 64 bytes.
        let gather = unsafe { _mm512_loadu_si512(gather.as_ptr().cast()) };
        let repeat = _mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3);
        let stride = axis.outputs.len() * 3;
        let mut wide: [Vec<i32>; ROWS] = std::array::from_fn(|_| vec![0; axis.outputs.len()]);
        for (block, out) in out.chunks_mut(ROWS * stride).enumerate() {
            let count = out.len() / stride;
            // A short last block computes its first row again and does not store it.
            let rows: [&[u8]; ROWS] = std::array::from_fn(|row| {
                let row = block * ROWS + if row < count { row } else { 0 };
                &image[row * width * 3..][..width * 3]
            });
            for (index, taps) in axis.outputs.iter().enumerate() {
                let mut sums = [[_mm512_setzero_si512(); 3]; ROWS];
                let blocks = &digits.blocks[digits.first[index]..digits.first[index + 1]];
                for (number, (digits, count)) in blocks.iter().enumerate() {
                    let weights =
                        digits.map(|digit| _mm512_permutexvar_epi32(repeat, _mm512_castsi128_si512(digit)));
                    let at = (taps.start + number * TAPS) * 3;
                    let mask = u64::MAX >> (64 - 3 * count);
                    for (sums, row) in sums.iter_mut().zip(rows) {
                        let bytes = &row[at..at + 3 * count];
                        // SAFETY: the mask covers as many bytes as `bytes` has; others are not touched.
                        let bytes = unsafe { _mm512_maskz_loadu_epi8(mask, bytes.as_ptr().cast()) };
                        let pixels = _mm512_permutexvar_epi8(gather, bytes);
                        for (sum, weights) in sums.iter_mut().zip(weights) {
                            *sum = _mm512_dpbusd_epi32(*sum, pixels, weights);
                        }
                    }
                }
                let [red, green, blue] = fill.map(|level| HALF + i32::from(level) * taps.outside);
                let around = _mm512_broadcast_i32x4(_mm_setr_epi32(red, green, blue, 0));
                let sums = sums.map(|[low, middle, high]| {
                    let upper = _mm512_add_epi32(_mm512_slli_epi32::<8>(high), middle);
                    _mm512_add_epi32(_mm512_slli_epi32::<8>(upper), low)
                });
                for (four, wide) in sums.as_chunks::<4>().0.iter().zip(wide.as_chunks_mut::<4>().0) {
                    // Adds the four lanes of each row: the pixels of four rows, side by side.
                    let halves = |a, b| {
                        let (even, odd) =
                            (_mm512_shuffle_i32x4::<0x88>(a, b), _mm512_shuffle_i32x4::<0xdd>(a, b));
                        _mm512_add_epi32(even, odd)
                    };
                    let sums = halves(halves(four[0], four[1]), halves(four[2], four[3]));
                    let levels = _mm512_srai_epi32::<BITS>(_mm512_add_epi32(sums, around));
                    let bytes = _mm512_cvtusepi32_epi8(_mm512_max_epi32(levels, _mm512_setzero_si512()));
                    wide[0][index] = _mm_extract_epi32::<0>(bytes);
                    wide[1][index] = _mm_extract_epi32::<1>(bytes);
                    wide[2][index] = _mm_extract_epi32::<2>(bytes);
                    wide[3][index] = _mm_extract_epi32::<3>(bytes);
                }
            }
            for (wide, out) in wide.iter().zip(out.chunks_exact_mut(stride)) {
                for (pixel, out) in wide.iter().zip(out.as_chunks_mut::<3>().0) {
                    let [red, green, blue, _] = pixel.to_le_bytes();
                    *out = [red, green, blue];
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The vector paths must equal the plain loop at every size, also where rows end in the middle of a load.
    #[test]
    fn vector_rows_equal_plain_rows() {
        let mut state = 1u32;
        for (width, height, scaled, filter) in [
            (1, 1, 5, Filter::Bicubic),
            (2, 3, 1, Filter::Lanczos),
            (7, 5, 3, Filter::Bicubic),
            (31, 9, 56, Filter::Bicubic),
            (200, 6, 56, Filter::Lanczos),
            (333, 13, 100, Filter::Bilinear),
            (1000, 17, 30, Filter::Lanczos),
        ] {
            let image: Vec<u8> = std::iter::repeat_with(|| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (state >> 24) as u8
            })
            .take(width * height * 3)
            .collect();
            let axis = Axis::new(width + 4, scaled, 0, scaled, filter).over(1, width);
            let fill = [122, 116, 104];
            let plain: Vec<u8> = image
                .chunks_exact(width * 3)
                .flat_map(|row| axis.outputs.iter().flat_map(|taps| axis.pixel(taps, row, fill)))
                .collect();
            let case = format!("{width}x{height} to {scaled} {filter:?}");
            assert_eq!(axis.across(&image, width, fill), plain, "{case}");
            #[cfg(target_arch = "x86_64")]
            {
                let mut out = vec![0; plain.len()];
                if is_x86_feature_detected!("avx2") {
                    // SAFETY: the processor has AVX2.
                    unsafe { avx2::across(&axis, &avx2::Lanes::new(&axis), &image, width, fill, &mut out) };
                    assert_eq!(out, plain, "{case}, AVX2");
                }
                if avx512::is_here() {
                    out.fill(0);
                    // SAFETY: the processor has what `is_here` asked for.
                    unsafe {
                        avx512::across(&axis, &avx512::Digits::new(&axis), &image, width, fill, &mut out);
                    };
                    assert_eq!(out, plain, "{case}, AVX-512");
                }
            }
            let down = |vector: &dyn Fn(&mut [u8])| {
                let mut out = vec![0; axis.outputs.len() * 3 * height];
                vector(&mut out);
                out
            };
            // Columns of the same picture on its side: `width` rows of `height` pixels.
            let plain = down(&|out| axis.down_plain(&image, 0, height, fill, out));
            assert_eq!(axis.down(&image, 0, height, fill), plain, "{case}, down");
            #[cfg(target_arch = "x86_64")]
            if is_x86_feature_detected!("avx2") {
                // SAFETY: the processor has AVX2.
                let avx2 = down(&|out| unsafe { axis.down_avx2(&image, 0, height, fill, out) });
                assert_eq!(avx2, plain, "{case}, down, AVX2");
            }
        }
    }
}
