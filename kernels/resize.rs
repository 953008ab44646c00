//! Pillow's 8-bit resampling, bit for bit, over a canvas that may be larger than the picture.

use candle_core::{CpuStorage, CustomOp1, DType, Layout, Result, Shape, Tensor, bail};

use crate::view::contiguous;

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
        for channel in 0..3 {
            let table: [f32; 256] = std::array::from_fn(|level| {
                ((level as f64 * self.scale) as f32 - self.mean[channel]) / self.std[channel]
            });
            out.extend(image.as_chunks::<3>().0.iter().map(|pixel| table[pixel[channel] as usize]));
        }
        Ok((CpuStorage::F32(out), (3, height, width).into()))
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
        let Resize { canvas, region, filter, .. } = self.resize;
        let columns = Axis::new(canvas.width, self.resize.width, region.left, region.width, filter)
            .over(canvas.left, width);
        let rows = Axis::new(canvas.height, self.resize.height, region.top, region.height, filter)
            .over(canvas.top, height);
        // Only the rows that the second pass reads.
        let (first, end) = rows.reads();
        let narrow = columns.across(&image[first * width * 3..end * width * 3], width, canvas.fill);
        let out = rows.down(&narrow, first, region.width, canvas.fill);
        Ok((CpuStorage::U8(out), (region.height, region.width, 3).into()))
    }
}

/// Fractional bits of the weights: 32 bits less 8 of the pixel and 2 for overshoot.
const BITS: u32 = 22;
const HALF: i32 = 1 << (BITS - 1);

/// The weights of one direction.
struct Axis {
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

    /// The range of inputs that any output reads.
    fn reads(&self) -> (usize, usize) {
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
        if let Some(simd) = pulp::x86::V3::try_new() {
            let lanes = avx2::Lanes::new(self);
            avx2::across(simd, self, &lanes, image, width, fill, &mut out);
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
        pulp::Arch::new().dispatch(|| {
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
        });
        out
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
    use std::arch::x86_64::__m256i;

    use pulp::x86::V3;

    use super::{Axis, HALF, level};

    const SPLIT: u32 = 12;
    const ROWS: usize = 4;
    /// Bytes that a load touches from the first of its four pixels on.
    const LOAD: usize = 16;

    /// The weights in the order that the loop wants.
    pub(super) struct Lanes {
        /// Of each output: where its groups begin, and how many there are.
        groups: Vec<(usize, usize)>,
        /// Of each group: upper parts of four weights, then lower parts.
        weights: Vec<[i16; 8]>,
    }

    impl Lanes {
        pub(super) fn new(axis: &Axis) -> Self {
            let mut weights = Vec::new();
            let mut groups = Vec::with_capacity(axis.outputs.len());
            for taps in &axis.outputs {
                groups.push((weights.len(), taps.count.div_ceil(4)));
                for four in axis.weights(taps).chunks(4) {
                    let part = |index: usize, part: fn(i32) -> i32| {
                        four.get(index % 4).map_or(0, |&weight| part(weight) as i16)
                    };
                    weights.push(std::array::from_fn(|index| {
                        if index < 4 {
                            part(index, |weight| weight >> SPLIT)
                        } else {
                            part(index, |weight| weight & ((1 << SPLIT) - 1))
                        }
                    }));
                }
            }
            Self { groups, weights }
        }
    }

    pub(super) fn across(
        simd: V3,
        axis: &Axis,
        lanes: &Lanes,
        image: &[u8],
        width: usize,
        fill: [u8; 3],
        out: &mut [u8],
    ) {
        let stride = axis.outputs.len() * 3;
        simd.vectorize(
            #[inline(always)]
            || {
                for (block, out) in out.chunks_mut(ROWS * stride).enumerate() {
                    let count = out.len() / stride;
                    // A short last block computes its first row again and does not store it.
                    let rows: [&[u8]; ROWS] = std::array::from_fn(|row| {
                        let row = block * ROWS + if row < count { row } else { 0 };
                        &image[row * width * 3..]
                    });
                    four_rows(simd, axis, lanes, rows, fill, out);
                }
            },
        );
    }

    #[inline(always)]
    fn four_rows(simd: V3, axis: &Axis, lanes: &Lanes, rows: [&[u8]; ROWS], fill: [u8; 3], out: &mut [u8]) {
        // Bytes 0..12 are four RGB pixels. The lower half takes pixels 0 and 1, the upper 2 and 3, as 16-bit
        // pairs of one channel: r0 r1 g0 g1 b0 b1.
        const NONE: i8 = -1;
        let spread: __m256i = pulp::cast::<[i8; 32], _>([
            0, NONE, 3, NONE, 1, NONE, 4, NONE, 2, NONE, 5, NONE, NONE, NONE, NONE, NONE, //
            6, NONE, 9, NONE, 7, NONE, 10, NONE, 8, NONE, 11, NONE, NONE, NONE, NONE, NONE,
        ]);
        // The two weights of each half, repeated for the channels.
        let pick = |part: i8| -> __m256i {
            let half = |first: i8| [first, first + 1, first + 2, first + 3];
            let [a, b] = [half(part * 8), half(part * 8 + 4)];
            pulp::cast::<[[i8; 4]; 8], _>([a, a, a, a, b, b, b, b])
        };
        let (upper, lower) = (pick(0), pick(1));
        let stride = axis.outputs.len() * 3;
        for (index, (taps, &(first, groups))) in axis.outputs.iter().zip(&lanes.groups).enumerate() {
            // The last pixels of the last rows have no bytes behind them to load.
            if rows.iter().any(|row| row.len() < taps.start * 3 + groups.saturating_sub(1) * 12 + LOAD) {
                for (row, out) in rows.iter().zip(out.chunks_exact_mut(stride)) {
                    out[index * 3..][..3].copy_from_slice(&axis.pixel(taps, row, fill));
                }
                continue;
            }
            let zero = simd.avx._mm256_setzero_si256();
            let mut high = [zero; ROWS];
            let mut low = [zero; ROWS];
            for (group, weights) in lanes.weights[first..][..groups].iter().enumerate() {
                let weights = simd.avx2._mm256_broadcastsi128_si256(pulp::cast(*weights));
                let upper = simd.avx2._mm256_shuffle_epi8(weights, upper);
                let lower = simd.avx2._mm256_shuffle_epi8(weights, lower);
                let at = taps.start * 3 + group * 12;
                for row in 0..ROWS {
                    let Some(bytes) = rows[row][at..].first_chunk::<LOAD>() else { continue };
                    let pixels = simd.avx2._mm256_broadcastsi128_si256(pulp::cast(*bytes));
                    let pixels = simd.avx2._mm256_shuffle_epi8(pixels, spread);
                    high[row] =
                        simd.avx2._mm256_add_epi32(high[row], simd.avx2._mm256_madd_epi16(pixels, upper));
                    low[row] =
                        simd.avx2._mm256_add_epi32(low[row], simd.avx2._mm256_madd_epi16(pixels, lower));
                }
            }
            for (row, out) in out.chunks_exact_mut(stride).enumerate() {
                let high = simd.avx2._mm256_slli_epi32::<{ SPLIT as i32 }>(high[row]);
                let sums: [i32; 8] = pulp::cast(simd.avx2._mm256_add_epi32(high, low[row]));
                for channel in 0..3 {
                    let around = HALF + i32::from(fill[channel]) * taps.outside;
                    out[index * 3 + channel] = level(around + sums[channel] + sums[channel + 4]);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The vector path must equal the plain loop at every size, also where rows end in the middle of a load.
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
            assert_eq!(axis.across(&image, width, fill), plain, "{width}x{height} to {scaled} {filter:?}");
        }
    }
}
