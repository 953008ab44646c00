//! The one attention operation: causal or full, over fresh rows or over pages of the cache.

use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp3, Device, Layout, Result, Shape, Tensor, WithDType, bail};
use rayon::prelude::*;

use crate::{
    scalar::{Real, dtype, for_real},
    view::{Rows, contiguous, with_u32},
};

#[cfg(feature = "cuda")]
mod cuda;

/// Rows of several sequences, end to end.
#[derive(Debug, Clone)]
pub struct Ragged {
    /// u32 `[sequences + 1]`: sequence `i` has rows `offsets[i]..offsets[i + 1]`.
    pub offsets: Tensor,
    /// Rows of the longest sequence.
    pub longest: usize,
    /// Rows of each sequence, for who cuts them apart on the host.
    pub lengths: Arc<[usize]>,
}

impl Ragged {
    /// Lays sequences of the given lengths end to end.
    ///
    /// # Errors
    /// When the device refuses the upload.
    pub fn new(lengths: &[usize], device: &Device) -> Result<Self> {
        let mut offsets = Vec::with_capacity(lengths.len() + 1);
        let mut end = 0u32;
        offsets.push(end);
        for &length in lengths {
            end += u32::try_from(length).map_err(candle_core::Error::wrap)?;
            offsets.push(end);
        }
        let offsets = Tensor::from_vec(offsets, lengths.len() + 1, device)?;
        Ok(Self { offsets, longest: lengths.iter().copied().max().unwrap_or(0), lengths: lengths.into() })
    }
}

/// Which pages of the cache each sequence reads.
#[derive(Debug, Clone)]
pub struct Pages {
    /// u32 `[sequences, most_pages]`: page numbers in order of position; places past the end are not read.
    pub table: Tensor,
    /// u32 `[sequences]`: rows that are visible, those written in this step included.
    pub lengths: Tensor,
}

/// What a row may see.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mask {
    /// Every row of its sequence.
    Full,
    /// Itself and what came before. The new rows are the last of the visible ones.
    Causal,
    /// Like [`Self::Causal`], but no more than so many rows, itself included.
    Window(usize),
}

impl Mask {
    fn is_causal(self) -> bool {
        self != Self::Full
    }

    /// The first row that is seen by one that sees none behind `end`.
    fn first(self, end: usize) -> usize {
        if let Self::Window(window) = self { end.saturating_sub(window) } else { 0 }
    }
}

/// Where keys and values are.
#[derive(Debug, Clone, Copy)]
pub enum Kv<'a> {
    /// `[rows, kv_heads, head_dim]`, laid out as the queries are.
    Fresh {
        /// Keys.
        k: &'a Tensor,
        /// Values.
        v: &'a Tensor,
    },
    /// `[pages, page_size, kv_heads, head_dim]`.
    Paged {
        /// Keys.
        k: &'a Tensor,
        /// Values.
        v: &'a Tensor,
        /// Which of the pages.
        pages: &'a Pages,
    },
}

/// Softmax attention with f32 scores: `softmax(scale * q kᵀ) v`, query head `h` reading key head
/// `h / (heads / kv_heads)` (grouped queries: <https://arxiv.org/abs/2305.13245>).
///
/// - `q`: `[rows, heads, head_dim]`, f32, f16 or bf16; heads adjacent, rows may lie apart
/// - returns `[rows, heads, head_dim]`, contiguous, in q's type; a row that sees nothing is zero
///
/// A row's result does not depend on the other rows of the step, to the bit.
///
/// # Errors
/// When shapes, types or the page table do not fit each other.
pub fn attention(q: &Tensor, kv: Kv<'_>, rows: &Ragged, mask: Mask, scale: f32) -> Result<Tensor> {
    let (_, heads, width) = q.dims3()?;
    let (k, v) = match kv {
        Kv::Fresh { k, v } | Kv::Paged { k, v, .. } => (k, v),
    };
    let (kv_heads, kv_width) = match (kv, k.dims()) {
        (Kv::Fresh { .. }, &[count, kv_heads, width]) if count == q.dim(0)? => (kv_heads, width),
        (Kv::Paged { .. }, &[_, _, kv_heads, width]) => (kv_heads, width),
        _ => bail!("attention: keys {:?} do not fit queries {:?}", k.shape(), q.shape()),
    };
    if k.shape() != v.shape() || kv_width != width || kv_heads == 0 || !heads.is_multiple_of(kv_heads) {
        bail!("attention: keys {:?} and values {:?} do not fit queries {:?}", k.shape(), v.shape(), q.shape())
    }
    if k.dtype() != q.dtype() || v.dtype() != q.dtype() {
        bail!("attention: types differ: q {:?}, k {:?}, v {:?}", q.dtype(), k.dtype(), v.dtype())
    }
    let pages = match kv {
        Kv::Fresh { .. } => None,
        Kv::Paged { pages, .. } => Some(pages.clone()),
    };
    q.apply_op3_no_bwd(k, v, &Attention { pages, rows: rows.clone(), mask, scale })
}

struct Attention {
    pages: Option<Pages>,
    rows: Ragged,
    mask: Mask,
    scale: f32,
}

impl CustomOp3 for Attention {
    fn name(&self) -> &'static str {
        "attention"
    }

    fn cpu_fwd(
        &self,
        q: &CpuStorage,
        q_layout: &Layout,
        k: &CpuStorage,
        k_layout: &Layout,
        v: &CpuStorage,
        v_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let shape = q_layout.shape().clone();
        let storage = for_real!(dtype(q), self.name(), T => {
            let q = Rows::<T>::new(q, q_layout, "q")?;
            let out = match &self.pages {
                None => {
                    let k = Rows::<T>::new(k, k_layout, "k")?;
                    let v = Rows::<T>::new(v, v_layout, "v")?;
                    self.fresh(q, k, v)?
                }
                Some(pages) => {
                    let (_, page_size, kv_heads, width) = k_layout.shape().dims4()?;
                    let k = Slots { data: contiguous::<T>(k, k_layout, "k cache")?, kv_heads, width };
                    let v = Slots { data: contiguous::<T>(v, v_layout, "v cache")?, kv_heads, width };
                    self.paged(q, k, v, page_size, pages)?
                }
            };
            T::to_cpu_storage_owned(out)
        });
        Ok((storage, shape))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        q: &candle_core::CudaStorage,
        q_layout: &Layout,
        k: &candle_core::CudaStorage,
        k_layout: &Layout,
        v: &candle_core::CudaStorage,
        v_layout: &Layout,
    ) -> Result<(candle_core::CudaStorage, Shape)> {
        self.on_cuda((q, q_layout), (k, k_layout), (v, v_layout))
    }
}

impl Attention {
    fn fresh<T: Real>(&self, q: Rows<'_, T>, k: Rows<'_, T>, v: Rows<'_, T>) -> Result<Vec<T>> {
        with_u32(&self.rows.offsets, "offsets", |offsets| {
            let mut out = vec![T::zero(); q.rows * q.heads * q.width];
            let blocks = self.blocks(&mut out, offsets, q, |sequence| {
                (offsets[sequence + 1] - offsets[sequence]) as usize
            })?;
            blocks.into_par_iter().for_each(|block| {
                let first = offsets[block.sequence] as usize;
                let kv_heads = k.heads;
                block.run(
                    q,
                    kv_heads,
                    |position, head| (k.head(first + position, head), v.head(first + position, head)),
                    self.mask,
                    self.scale,
                );
            });
            Ok(out)
        })
    }

    fn paged<T: Real>(
        &self,
        q: Rows<'_, T>,
        k: Slots<'_, T>,
        v: Slots<'_, T>,
        page_size: usize,
        pages: &Pages,
    ) -> Result<Vec<T>> {
        let (sequences, most_pages) = pages.table.dims2()?;
        with_u32(&self.rows.offsets, "offsets", |offsets| {
            with_u32(&pages.lengths, "lengths", |lengths| {
                with_u32(&pages.table, "page table", |table| {
                    if lengths.len() != sequences || offsets.len() != sequences + 1 {
                        bail!(
                            "attention: {} lengths and {} offsets for {sequences} page tables",
                            lengths.len(),
                            offsets.len()
                        )
                    }
                    let slots = k.data.len() / (k.kv_heads * k.width);
                    for (sequence, &length) in lengths.iter().enumerate() {
                        let used = (length as usize).div_ceil(page_size);
                        let row = table[sequence * most_pages..][..most_pages].get(..used);
                        let fits = |page: &u32| (*page as usize + 1) * page_size <= slots;
                        if !row.is_some_and(|row| row.iter().all(fits)) {
                            bail!(
                                "attention: the page table of sequence {sequence} does not hold {length} rows"
                            )
                        }
                    }
                    let mut out = vec![T::zero(); q.rows * q.heads * q.width];
                    let blocks = self.blocks(&mut out, offsets, q, |sequence| lengths[sequence] as usize)?;
                    blocks.into_par_iter().for_each(|block| {
                        let table = &table[block.sequence * most_pages..][..most_pages];
                        let slot = |position: usize| {
                            table[position / page_size] as usize * page_size + position % page_size
                        };
                        block.run(
                            q,
                            k.kv_heads,
                            |position, head| (k.head(slot(position), head), v.head(slot(position), head)),
                            self.mask,
                            self.scale,
                        );
                    });
                    Ok(out)
                })
            })
        })
    }

    /// Cuts the output into pieces of a few rows of one sequence each.
    fn blocks<'a, T: Real>(
        &self,
        mut out: &'a mut [T],
        offsets: &[u32],
        q: Rows<'_, T>,
        visible: impl Fn(usize) -> usize,
    ) -> Result<Vec<Block<'a, T>>> {
        let width = q.heads * q.width;
        if offsets.last().map(|&end| end as usize) != Some(q.rows) || !offsets.is_sorted() {
            bail!("attention: offsets {offsets:?} do not cover {} rows", q.rows)
        }
        let mut blocks = Vec::new();
        for (sequence, ends) in offsets.windows(2).enumerate() {
            let (start, end) = (ends[0] as usize, ends[1] as usize);
            let visible = visible(sequence);
            if self.mask.is_causal() && visible < end - start {
                bail!("attention: sequence {sequence} has {} rows but sees {visible}", end - start)
            }
            for first in (start..end).step_by(BLOCK_ROWS) {
                let rows = BLOCK_ROWS.min(end - first);
                let (piece, rest) = out.split_at_mut(rows * width);
                out = rest;
                let seen =
                    |row: usize| if self.mask.is_causal() { visible - (end - row) + 1 } else { visible };
                blocks.push(Block { out: piece, sequence, first, rows, sees: seen(first) });
            }
        }
        Ok(blocks)
    }
}

/// Keys or values of the whole cache, one after another.
#[derive(Clone, Copy)]
struct Slots<'a, T> {
    data: &'a [T],
    kv_heads: usize,
    width: usize,
}

impl<'a, T> Slots<'a, T> {
    #[inline(always)]
    fn head(&self, slot: usize, head: usize) -> &'a [T] {
        &self.data[(slot * self.kv_heads + head) * self.width..][..self.width]
    }
}

/// Query rows that share each key that is read.
const BLOCK_ROWS: usize = 16;
/// Keys that are widened and scored at once. Cut by position, so that a row's sums never depend on the batch.
const BLOCK_KEYS: usize = 32;

/// Up to [`BLOCK_ROWS`] rows of one sequence, with their place in the output.
struct Block<'a, T> {
    out: &'a mut [T],
    sequence: usize,
    /// The first row, counted over the whole batch.
    first: usize,
    rows: usize,
    /// Keys up to the last one that the first row sees; under a causal mask it is the next for each next row.
    sees: usize,
}

impl<T: Real> Block<'_, T> {
    fn run<'k>(
        self,
        q: Rows<'_, T>,
        kv_heads: usize,
        kv: impl Fn(usize, usize) -> (&'k [T], &'k [T]),
        mask: Mask,
        scale: f32,
    ) {
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("avx2") {
            // SAFETY: the processor has AVX2.
            return unsafe { self.run_avx2(q, kv_heads, kv, mask, scale) };
        }
        self.run_plain(q, kv_heads, kv, mask, scale);
    }

    /// The same loops, compiled for wider registers.
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2")]
    fn run_avx2<'k>(
        self,
        q: Rows<'_, T>,
        kv_heads: usize,
        kv: impl Fn(usize, usize) -> (&'k [T], &'k [T]),
        mask: Mask,
        scale: f32,
    ) {
        self.run_plain(q, kv_heads, kv, mask, scale);
    }

    /// One pass over the keys with a running maximum (<https://arxiv.org/abs/1805.02867>).
    #[inline(always)]
    fn run_plain<'k>(
        self,
        q: Rows<'_, T>,
        kv_heads: usize,
        kv: impl Fn(usize, usize) -> (&'k [T], &'k [T]),
        mask: Mask,
        scale: f32,
    ) {
        let width = q.width;
        let group = q.heads / kv_heads;
        let sees = |row: usize| self.sees + if mask.is_causal() { row } else { 0 };
        let first = mask.first(sees(0)) / BLOCK_KEYS * BLOCK_KEYS;
        let most = sees(self.rows - 1);
        let mut keys = vec![0f32; BLOCK_KEYS * width];
        let mut values = vec![0f32; BLOCK_KEYS * width];
        let mut queries = vec![0f32; self.rows * group * width];
        let mut sums = vec![Sum::default(); self.rows * group];
        let mut totals = vec![0f32; self.rows * group * width];
        for kv_head in 0..kv_heads {
            for (index, query) in queries.chunks_exact_mut(width).enumerate() {
                let head = q.head(self.first + index / group, kv_head * group + index % group);
                for (wide, &stored) in query.iter_mut().zip(head) {
                    *wide = stored.widen() * scale;
                }
            }
            sums.fill(Sum::default());
            totals.fill(0.0);
            for start in (first..most).step_by(BLOCK_KEYS) {
                let count = BLOCK_KEYS.min(most - start);
                for offset in 0..count {
                    let (key, value) = kv(start + offset, kv_head);
                    let at = offset * width..(offset + 1) * width;
                    for (wide, &stored) in keys[at.clone()].iter_mut().zip(key) {
                        *wide = stored.widen();
                    }
                    for (wide, &stored) in values[at].iter_mut().zip(value) {
                        *wide = stored.widen();
                    }
                }
                for index in 0..queries.len() / width {
                    let end = sees(index / group);
                    let seen =
                        mask.first(end).saturating_sub(start)..end.saturating_sub(start).min(BLOCK_KEYS);
                    if seen.is_empty() {
                        continue;
                    }
                    let seen = seen.start * width..seen.end * width;
                    let at = index * width..(index + 1) * width;
                    sums[index].add(
                        &queries[at.clone()],
                        &keys[seen.clone()],
                        &values[seen],
                        &mut totals[at],
                    );
                }
            }
            for (index, total) in totals.chunks_exact(width).enumerate() {
                let at = ((index / group) * q.heads + kv_head * group + index % group) * width;
                let share = if sums[index].weight > 0.0 { 1.0 / sums[index].weight } else { 0.0 };
                for (out, &value) in self.out[at..at + width].iter_mut().zip(total) {
                    *out = T::narrow(value * share);
                }
            }
        }
    }
}

/// A softmax in progress: the largest score so far and the sum of `exp(score - largest)`.
#[derive(Clone, Copy)]
struct Sum {
    largest: f32,
    weight: f32,
}

impl Default for Sum {
    fn default() -> Self {
        Self { largest: f32::NEG_INFINITY, weight: 0.0 }
    }
}

impl Sum {
    #[inline(always)]
    fn add(&mut self, query: &[f32], keys: &[f32], values: &[f32], total: &mut [f32]) {
        let width = query.len();
        let mut scores = [f32::NEG_INFINITY; BLOCK_KEYS];
        let mut largest = self.largest;
        for (score, key) in scores.iter_mut().zip(keys.chunks_exact(width)) {
            *score = dot(query, key);
            largest = largest.max(*score);
        }
        // A NaN or infinite score must reach the output, where it is found, and not vanish in `max`.
        if largest == f32::NEG_INFINITY {
            largest = 0.0;
        }
        let shrink = (self.largest - largest).exp();
        self.weight *= shrink;
        for value in total.iter_mut() {
            *value *= shrink;
        }
        for (&score, value) in scores.iter().zip(values.chunks_exact(width)) {
            let weight = (score - largest).exp();
            self.weight += weight;
            for (total, &value) in total.iter_mut().zip(value) {
                *total += weight * value;
            }
        }
        self.largest = largest;
    }
}

/// A dot product in eight lanes, so that it becomes vector instructions.
#[inline(always)]
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut lanes = [0f32; 8];
    let (a_eights, a_rest) = a.as_chunks::<8>();
    let (b_eights, b_rest) = b.as_chunks::<8>();
    for (a, b) in a_eights.iter().zip(b_eights) {
        for lane in 0..8 {
            lanes[lane] += a[lane] * b[lane];
        }
    }
    let rest: f32 = a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum();
    let halves = [lanes[0] + lanes[4], lanes[1] + lanes[5], lanes[2] + lanes[6], lanes[3] + lanes[7]];
    (halves[0] + halves[2]) + (halves[1] + halves[3]) + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dot_covers_lengths_that_are_no_multiple_of_eight() {
        for length in [0, 1, 7, 8, 9, 80, 96, 127] {
            let a: Vec<f32> = (0..length).map(|i| i as f32 - 3.0).collect();
            let b: Vec<f32> = (0..length).map(|i| 0.5 * i as f32).collect();
            let expected: f64 = a.iter().zip(&b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
            assert!((f64::from(dot(&a, &b)) - expected).abs() <= 1e-6 * expected.abs());
        }
    }
}
