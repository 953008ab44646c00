//! Which frame each token of a text looks at: what a dynamic-time-warping path is drawn through.
//!
//! Reference: openai/whisper, `whisper/timing.py`.

#[cfg(feature = "cuda")]
use candle_core::CudaStorage;
use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

#[cfg(feature = "cuda")]
use crate::{cuda, launch};
use crate::{
    scalar::{Real, dtype, for_real},
    view::{Rows, contiguous, with_u32},
};

/// For each head of `head_set`: `softmax(scale * q kᵀ)` over the first `frames` positions, each frame standardised over
/// the rows (mean 0, population deviation 1), a running median of 7 frames that mirrors the row at its ends.
/// Returns the sum over the heads, f32 `[rows, frames]`.
///
/// - `q`: `[rows, heads, head_dim]` of one sequence, f32, f16 or bf16; heads adjacent, rows may lie apart
/// - `k`: `[pages, page_size, heads, head_dim]`, the same type, contiguous
/// - `pages`: u32 `[count]`: the sequence's pages; position `p` is at place `p % page_size` of page
///   `pages[p / page_size]`
///
/// A frame at which all rows look alike says nothing about their order and is 0. The result does not depend on the
/// number of threads, to the bit.
///
/// # Errors
/// When shapes, types, heads or pages do not fit each other.
pub fn alignment(
    q: &Tensor,
    k: &Tensor,
    pages: &Tensor,
    head_set: &[usize],
    frames: usize,
    scale: f32,
) -> Result<Tensor> {
    let (_, heads, width) = q.dims3()?;
    let (_, page_size, k_heads, k_width) = k.dims4()?;
    if (k_heads, k_width) != (heads, width) || k.dtype() != q.dtype() {
        bail!(
            "alignment: keys {:?} {:?} do not fit queries {:?} {:?}",
            k.shape(),
            k.dtype(),
            q.shape(),
            q.dtype()
        )
    }
    if let Some(head) = head_set.iter().find(|&&head| head >= heads) {
        bail!("alignment: there is no head {head} among {heads}")
    }
    if frames > pages.dims1()? * page_size {
        bail!("alignment: {:?} pages of {page_size} do not hold {frames} frames", pages.shape())
    }
    let operation = Alignment { pages: pages.clone(), head_set: head_set.to_vec(), frames, scale };
    q.apply_op2_no_bwd(k, &operation)
}

struct Alignment {
    pages: Tensor,
    head_set: Vec<usize>,
    frames: usize,
    scale: f32,
}

impl CustomOp2 for Alignment {
    fn name(&self) -> &'static str {
        "alignment"
    }

    fn cpu_fwd(
        &self,
        q: &CpuStorage,
        q_layout: &Layout,
        k: &CpuStorage,
        k_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let slots = self.slots(k_layout)?;
        let (rows, frames) = (q_layout.dims()[0], self.frames);
        let mut sum = vec![0f32; rows * frames];
        if !sum.is_empty() {
            for_real!(dtype(q), self.name(), T => {
                let q = Rows::<T>::new(q, q_layout, "q")?;
                let k = contiguous::<T>(k, k_layout, "k cache")?;
                self.add_heads(Heads { q, k, slots: &slots, scale: self.scale }, &mut sum);
            });
        }
        Ok((CpuStorage::F32(sum), (rows, frames).into()))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        q: &CudaStorage,
        q_layout: &Layout,
        k: &CudaStorage,
        k_layout: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        let device = &q.device;
        let stream = &device.cuda_stream();
        let element = cuda::element(q, self.name())?;
        let (rows, heads, width) = q_layout.shape().dims3()?;
        let (pages, page_size, ..) = k_layout.shape().dims4()?;
        let (chosen, frames) = (self.head_set.len(), self.frames);
        let wanted = launch::Alignment { rows, heads, width, chosen, frames, page_size, pages };
        // Where nothing is looked at, all is zero.
        let mut out = device.alloc_zeros::<f32>(rows * frames)?;
        if wanted.workspace() > 0 {
            let (q, q_used) = cuda::rows(q, q_layout, element, "q", stream)?;
            let k = cuda::contiguous(k, k_layout, element, "k cache", stream)?;
            let (table, table_layout) = self.pages.storage_and_layout();
            let count = table_layout.shape().dims1()?;
            let table = cuda::indices(&table, table_layout, count, device, "pages", stream)?;
            // Heads of a network are few.
            let head_set: Vec<u32> = self.head_set.iter().map(|&head| head as u32).collect();
            let head_set = device.clone_htod(&head_set)?;
            // SAFETY: the first kernel writes every element.
            let mut maps = unsafe { device.alloc::<f32>(wanted.workspace())? };
            let addresses = [
                cuda::address_mut(&mut out, stream),
                cuda::address_mut(&mut maps, stream),
                k.address,
                table.address,
                cuda::address(&head_set, stream),
            ];
            for launch in wanted.launches(element, q, self.scale, addresses)? {
                // SAFETY: `alignment` has found heads, widths and types equal, all heads that are looked at among them, and
                // pages for all frames. Queries, keys and pages are inside their storage, as the functions above have
                // checked; a page outside the cache is noticed by the kernel, which traps. The rest was made for the
                // launches.
                unsafe { cuda::run(device, &cuda::ALIGNMENT, &launch)? }
            }
            drop((q_used, k, table));
        }
        Ok((CudaStorage::wrap_cuda_slice(out, device.clone()), (rows, frames).into()))
    }
}

impl Alignment {
    /// Where the key of each frame is, counted in keys from the first of the cache.
    fn slots(&self, k: &Layout) -> Result<Vec<usize>> {
        let (page_count, page_size, ..) = k.shape().dims4()?;
        with_u32(&self.pages, "pages", |pages| {
            if let Some(page) = pages.iter().find(|&&page| page as usize >= page_count) {
                bail!("alignment: there is no page {page} among {page_count}")
            }
            let slot = |frame: usize| pages[frame / page_size] as usize * page_size + frame % page_size;
            Ok((0..self.frames).map(slot).collect())
        })
    }

    /// As many heads at once as there are threads, so that no more of them are in memory; added in the order given.
    fn add_heads<T: Real>(&self, heads: Heads<'_, T>, sum: &mut [f32]) {
        for group in self.head_set.chunks(rayon::current_num_threads().max(1)) {
            let maps: Vec<Vec<f32>> = group.par_iter().map(|&head| heads.map(head)).collect();
            sum.par_chunks_mut(self.frames).enumerate().with_min_len(16).for_each(|(row, sum)| {
                for map in &maps {
                    let map = &map[row * self.frames..][..self.frames];
                    sum.iter_mut().zip(map).for_each(|(sum, value)| *sum += value);
                }
            });
        }
    }
}

/// Frames that the running median looks at.
const MEDIAN: usize = 7;
/// Frames of a tile: neighbours in vector registers.
const LANES: usize = 16;
/// Rows of a tile.
const ROWS: usize = 4;

#[derive(Clone, Copy)]
struct Heads<'a, T> {
    q: Rows<'a, T>,
    k: &'a [T],
    /// Of each frame.
    slots: &'a [usize],
    scale: f32,
}

impl<T: Real> Heads<'_, T> {
    /// What one head adds, `[rows, frames]`.
    fn map(self, head: usize) -> Vec<f32> {
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("avx2") {
            // SAFETY: the processor has AVX2.
            return unsafe { self.map_avx2(head) };
        }
        self.map_plain(head)
    }

    /// The same loops, compiled for wider registers.
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2")]
    fn map_avx2(self, head: usize) -> Vec<f32> {
        self.map_plain(head)
    }

    #[inline(always)]
    fn map_plain(self, head: usize) -> Vec<f32> {
        let frames = self.slots.len();
        let mut map = self.scores(head);
        map.chunks_exact_mut(frames).for_each(softmax);
        standardise(&mut map, frames);
        let mut mirrored = vec![0f32; frames + MEDIAN - 1];
        map.chunks_exact_mut(frames).for_each(|row| smooth(row, &mut mirrored));
        map
    }

    #[inline(always)]
    fn scores(self, head: usize) -> Vec<f32> {
        let Self { q, k, slots, scale } = self;
        // Rows of a tile side by side, the last tile filled up with zeros.
        let mut queries = vec![[0f32; ROWS]; q.rows.div_ceil(ROWS) * q.width];
        for row in 0..q.rows {
            let tile = &mut queries[row / ROWS * q.width..][..q.width];
            for (wide, stored) in tile.iter_mut().zip(q.head(row, head)) {
                wide[row % ROWS] = stored.widen() * scale;
            }
        }
        let mut scores = vec![0f32; q.rows * slots.len()];
        let mut keys = vec![[0f32; LANES]; q.width];
        for (tile, tile_slots) in slots.chunks(LANES).enumerate() {
            for (lane, slot) in tile_slots.iter().enumerate() {
                let key = &k[(slot * q.heads + head) * q.width..][..q.width];
                keys.iter_mut().zip(key).for_each(|(wide, stored)| wide[lane] = stored.widen());
            }
            for first in (0..q.rows).step_by(ROWS) {
                let sums = products(&queries[first / ROWS * q.width..][..q.width], &keys);
                for (sums, row) in sums.iter().zip(first..q.rows) {
                    let at = row * slots.len() + tile * LANES;
                    scores[at..][..tile_slots.len()].copy_from_slice(&sums[..tile_slots.len()]);
                }
            }
        }
        scores
    }
}

#[inline(always)]
fn products(queries: &[[f32; ROWS]], keys: &[[f32; LANES]]) -> [[f32; LANES]; ROWS] {
    let mut sums = [[0f32; LANES]; ROWS];
    for (query, key) in queries.iter().zip(keys) {
        for row in 0..ROWS {
            for lane in 0..LANES {
                sums[row][lane] += query[row] * key[lane];
            }
        }
    }
    sums
}

#[inline(always)]
fn softmax(row: &mut [f32]) {
    let largest = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    row.iter_mut().for_each(|value| *value = (*value - largest).exp());
    let share = 1.0 / row.iter().sum::<f32>();
    row.iter_mut().for_each(|value| *value *= share);
}

/// Brings every column to mean 0 and deviation 1. In f64, because probabilities go down to where their squares are 0
/// in f32. Counted from the first row's value, so that the deviation of a constant column is 0 and not a rounding
/// error.
#[inline(always)]
fn standardise(map: &mut [f32], frames: usize) {
    let rows = (map.len() / frames) as f64;
    let first = map[..frames].to_vec();
    let from_first = |value: f32, first: f32| f64::from(value) - f64::from(first);
    let mut mean = vec![0f64; frames];
    for row in map.chunks_exact(frames) {
        for frame in 0..frames {
            mean[frame] += from_first(row[frame], first[frame]);
        }
    }
    mean.iter_mut().for_each(|mean| *mean /= rows);
    let mut factor = vec![0f64; frames];
    for row in map.chunks_exact(frames) {
        for frame in 0..frames {
            let deviation = from_first(row[frame], first[frame]) - mean[frame];
            factor[frame] += deviation * deviation;
        }
    }
    for factor in &mut factor {
        let deviation = (*factor / rows).sqrt();
        // The reference divides by zero here, and its path is lost from this frame on.
        *factor = if deviation == 0.0 { 0.0 } else { 1.0 / deviation };
    }
    for row in map.chunks_exact_mut(frames) {
        for frame in 0..frames {
            row[frame] = ((from_first(row[frame], first[frame]) - mean[frame]) * factor[frame]) as f32;
        }
    }
}

/// The running median. A row too short to be mirrored stays as it is. `mirrored`: room for the row and half a median
/// at both ends.
#[inline(always)]
fn smooth(row: &mut [f32], mirrored: &mut [f32]) {
    const HALF: usize = MEDIAN / 2;
    let frames = row.len();
    if frames <= HALF {
        return;
    }
    mirrored[HALF..][..frames].copy_from_slice(row);
    for distance in 1..=HALF {
        mirrored[HALF - distance] = row[distance];
        mirrored[HALF + frames - 1 + distance] = row[frames - 1 - distance];
    }
    let (tiles, rest) = row.as_chunks_mut::<LANES>();
    for (tile, medians) in tiles.iter_mut().enumerate() {
        *medians = median(&mirrored[tile * LANES..]);
    }
    let done = tiles.len() * LANES;
    for (frame, value) in rest.iter_mut().enumerate() {
        [*value] = median(&mirrored[done + frame..]);
    }
}

/// Medians of the first seven numbers, of seven from the second on, and so forth; by exchanges that do not depend on
/// the numbers (N. Devillard, "Fast median search", 1998).
#[inline(always)]
fn median<const COUNT: usize>(row: &[f32]) -> [f32; COUNT] {
    let from = |place: usize| -> [f32; COUNT] {
        let mut numbers = [0f32; COUNT];
        numbers.copy_from_slice(&row[place..][..COUNT]);
        numbers
    };
    let [mut a, mut b, mut c, mut d] = [from(0), from(1), from(2), from(3)];
    let [mut e, mut f, mut g] = [from(4), from(5), from(6)];
    exchange(&mut a, &mut f);
    exchange(&mut a, &mut d);
    exchange(&mut b, &mut g);
    exchange(&mut c, &mut e);
    exchange(&mut a, &mut b);
    exchange(&mut d, &mut f);
    exchange(&mut c, &mut g);
    exchange(&mut c, &mut d);
    exchange(&mut d, &mut g);
    exchange(&mut e, &mut f);
    exchange(&mut b, &mut e);
    exchange(&mut b, &mut d);
    exchange(&mut d, &mut e);
    d
}

/// In each place, the smaller number to the first.
#[inline(always)]
fn exchange<const COUNT: usize>(first: &mut [f32; COUNT], second: &mut [f32; COUNT]) {
    for place in 0..COUNT {
        let (a, b) = (first[place], second[place]);
        first[place] = if a < b { a } else { b };
        second[place] = if a < b { b } else { a };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is right for all zeros and ones is right for all numbers (Knuth, volume 3, 5.3.4, theorem Z).
    #[test]
    fn the_median_is_right_for_all_zeros_and_ones() {
        for bits in 0..1u32 << MEDIAN {
            let values: [f32; MEDIAN] = std::array::from_fn(|place| (bits >> place & 1) as f32);
            let expected = f32::from(u8::from(bits.count_ones() as usize > MEDIAN / 2));
            assert_eq!(median::<1>(&values), [expected], "{bits:07b}");
        }
    }
}
