//! Draws one token per row of logits: penalties, bias, what is forbidden, temperature, top-k, top-p, min-p.

use std::ops::Range;

use candle_core::{DType, Tensor};
use rayon::prelude::*;

use crate::rewrite;

#[cfg(feature = "cuda")]
mod cuda;

/// A token of the text so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seen {
    /// Its id.
    pub id: u32,
    /// How often it was generated; 0 when it stands in the prompt only.
    pub generated: u32,
}

/// How to draw from one row. Neutral values switch a part off.
#[derive(Debug, Clone, Copy)]
pub struct Draw<'a> {
    /// 0 takes the largest logit, the lowest id among equals.
    pub temperature: f32,
    /// Keep the `top_k` largest; 0 keeps all.
    pub top_k: usize,
    /// Keep the fewest tokens whose probabilities reach `top_p`, in `(0, 1]`.
    pub top_p: f32,
    /// Drop tokens less probable than `min_p` times the most probable.
    pub min_p: f32,
    /// Divides positive and multiplies negative logits of every token seen (<https://arxiv.org/abs/1909.05858>).
    pub repetition: f32,
    /// Taken off once per time a token was generated.
    pub frequency: f32,
    /// Taken off once if a token was generated at all.
    pub presence: f32,
    /// Tokens of the prompt and of the answer so far, each once; needed by the three penalties.
    pub seen: &'a [Seen],
    /// Added to the logits after the penalties.
    pub bias: &'a [(u32, f32)],
    /// What may not be drawn at all.
    pub forbidden: &'a Forbidden<'a>,
    /// Ids from here on are padding of the output matrix and are never drawn.
    pub vocabulary: usize,
    /// Uniform in `[0, 1)`; see [`uniform`].
    pub random: f64,
    /// Tokens whose probabilities are wanted besides that of the drawn one; `None` computes none at all.
    pub logprobs: Option<usize>,
}

impl Draw<'_> {
    /// From the probabilities as they are, with a random number of one half.
    pub const NEUTRAL: Draw<'static> = Draw {
        temperature: 1.0,
        top_k: 0,
        top_p: 1.0,
        min_p: 0.0,
        repetition: 1.0,
        frequency: 0.0,
        presence: 0.0,
        seen: &[],
        bias: &[],
        forbidden: &Forbidden::NONE,
        vocabulary: usize::MAX,
        random: 0.5,
        logprobs: None,
    };
}

/// Ids that may not be drawn, whatever their logits. Those that are left share the whole probability.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Forbidden<'a> {
    /// Single ids.
    pub ids: Vec<&'a [u32]>,
    /// Neighbouring ids.
    pub ranges: Vec<Range<u32>>,
    /// Nothing but these, where there are some.
    pub only: Option<&'a [u32]>,
    /// Nothing but these, where there are some: bit `id % 32` of word `id / 32`.
    pub mask: Option<&'a [u32]>,
    /// When these ids, of which some are left, are together more probable than each id in front of them, those in
    /// front may not be drawn either.
    pub rivals: Option<Range<u32>>,
}

impl Forbidden<'_> {
    /// Nothing is.
    pub const NONE: Forbidden<'static> =
        Forbidden { ids: Vec::new(), ranges: Vec::new(), only: None, mask: None, rivals: None };
}

/// What was drawn.
#[derive(Debug, Clone, PartialEq)]
pub struct Drawn {
    /// Its id.
    pub id: u32,
    /// The natural logarithm of its probability, before temperature and what follows it; 0 where it was not wanted.
    pub logprob: f32,
    /// The most probable tokens and theirs, the best first.
    pub top: Vec<(u32, f32)>,
}

/// A row whose logits are NaN or infinite: the network overflowed or its weights are broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NotFinite;

/// Draws from every row. A broken row fails alone.
///
/// - `logits`: `[rows, width]`, one [`Draw`] per row
///
/// Order, as in vLLM: penalties, bias, what is forbidden, temperature, top-k, top-p over what is left, min-p.
///
/// On a CUDA device (`sample.cu`) the logits stay there, up to 2¹⁹ columns. What penalties and bias make of them is the same
/// to the bit, and so are the largest and the most probable tokens. The weights of a draw may differ in their last bits, and
/// are added as integers with 39 bits behind the point: where a share or the random number meets the edge between two tokens
/// to about a millionth, the other one may be drawn, and what is 2³⁹ times less probable than the best is not drawn at all.
/// Neither depends on the other rows.
///
/// # Errors
/// When the logits cannot be read or the counts differ.
pub fn sample(logits: &Tensor, draws: &[Draw<'_>]) -> candle_core::Result<Vec<Result<Drawn, NotFinite>>> {
    let mut downloads = Downloads::default();
    Drawing::start(logits, draws, &mut downloads)?.wait(&mut downloads)
}

/// Draws that a device was asked for; it goes on with them while the host does something else.
#[derive(Debug)]
pub struct Drawing(Place);

#[derive(Debug)]
enum Place {
    /// Done already.
    Host(Vec<Result<Drawn, NotFinite>>),
    #[cfg(feature = "cuda")]
    Cuda(Box<cuda::Drawing>),
}

/// Memory of the host that a device writes to by itself, to be used again: to get it takes long.
#[derive(Debug, Default)]
pub struct Downloads {
    #[cfg(feature = "cuda")]
    pinned: Vec<cuda::Pinned>,
}

impl Drawing {
    /// Begins what [`sample`] does. On a CUDA device it returns before anything is drawn; elsewhere all is.
    ///
    /// # Errors
    /// As [`sample`].
    pub fn start(
        logits: &Tensor,
        draws: &[Draw<'_>],
        downloads: &mut Downloads,
    ) -> candle_core::Result<Self> {
        let (rows, width) = logits.dims2()?;
        if rows != draws.len() {
            candle_core::bail!("sample: {} draws for {rows} rows of logits", draws.len())
        }
        #[cfg(feature = "cuda")]
        if let Some(drawing) = cuda::Drawing::start(logits, draws, downloads)? {
            return Ok(Self(Place::Cuda(Box::new(drawing))));
        }
        #[cfg(not(feature = "cuda"))]
        let _ = downloads;
        let logits = logits.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
        let drawn = logits.par_chunks(width.max(1)).zip(draws).map(|(row, draw)| draw.one(row)).collect();
        Ok(Self(Place::Host(drawn)))
    }

    /// Writes ids where a step behind reads its tokens, without waiting for them: `words[i]` becomes what was drawn from row
    /// `from[i]`, or some id of the vocabulary where nothing could be.
    ///
    /// - `words`: u32, on the device of the logits
    ///
    /// # Errors
    /// When a row is none of the draws', or the words are fewer, not contiguous, or elsewhere.
    pub fn feed(&self, words: &Tensor, from: &[u32]) -> candle_core::Result<()> {
        match &self.0 {
            Place::Host(drawn) => {
                let id = |&row: &u32| match drawn.get(row as usize) {
                    Some(drawn) => Ok(drawn.as_ref().map_or(0, |drawn| drawn.id)),
                    None => candle_core::bail!("sample: row {row} of {} draws", drawn.len()),
                };
                rewrite(words, &from.iter().map(id).collect::<candle_core::Result<Vec<_>>>()?)
            }
            #[cfg(feature = "cuda")]
            Place::Cuda(drawing) => drawing.feed(words, from),
        }
    }

    /// What was drawn from each row, when it is.
    ///
    /// # Errors
    /// When the device fails.
    pub fn wait(self, downloads: &mut Downloads) -> candle_core::Result<Vec<Result<Drawn, NotFinite>>> {
        match self.0 {
            Place::Host(drawn) => {
                #[cfg(not(feature = "cuda"))]
                let _ = downloads;
                Ok(drawn)
            }
            #[cfg(feature = "cuda")]
            Place::Cuda(drawing) => drawing.wait(downloads),
        }
    }
}

/// The probability of id `ids[i]` in row `i`, over the first `widths[i]` ids.
///
/// - `logits`: `[rows, width]`, one id per row
///
/// # Errors
/// When the logits cannot be read or the counts differ.
pub fn probabilities(logits: &Tensor, ids: &[u32], widths: &[usize]) -> candle_core::Result<Vec<f32>> {
    let (rows, width) = logits.dims2()?;
    if rows != ids.len() || rows != widths.len() {
        candle_core::bail!("probabilities: {} ids for {rows} rows of logits", ids.len())
    }
    #[cfg(feature = "cuda")]
    if let Some(found) = cuda::probabilities(logits, ids, widths)? {
        return Ok(found);
    }
    let logits = logits.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
    let one = |((row, &id), &width): ((&[f32], &u32), &usize)| {
        let row = &row[..width.min(row.len())];
        row.get(id as usize).map_or(0.0, |logit| (logit - logarithm_of_sum(row)).exp())
    };
    Ok(logits.par_chunks(width.max(1)).zip(ids).zip(widths).map(one).collect())
}

/// The `index`-th uniform number of a seed, in `[0, 1)` with 53 bits: Philox4x32-10
/// (<https://doi.org/10.1145/2063384.2063405>), so that a draw depends on nothing but seed and index.
pub fn uniform(seed: u64, index: u64) -> f64 {
    let [low, high, ..] =
        philox([index as u32, (index >> 32) as u32, 0, 0], [seed as u32, (seed >> 32) as u32]);
    let bits = (u64::from(high) << 32 | u64::from(low)) >> 11;
    bits as f64 / (1u64 << 53) as f64
}

fn philox(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    for _ in 0..10 {
        let first = u64::from(counter[0]) * 0xD251_1F53;
        let second = u64::from(counter[2]) * 0xCD9E_8D57;
        counter = [
            (second >> 32) as u32 ^ counter[1] ^ key[0],
            second as u32,
            (first >> 32) as u32 ^ counter[3] ^ key[1],
            first as u32,
        ];
        key = [key[0].wrapping_add(0x9E37_79B9), key[1].wrapping_add(0xBB67_AE85)];
    }
    counter
}

impl Draw<'_> {
    fn one(&self, row: &[f32]) -> Result<Drawn, NotFinite> {
        let mut logits = row[..self.vocabulary.min(row.len())].to_vec();
        if logits.is_empty() || !logits.iter().all(|logit| logit.is_finite()) {
            return Err(NotFinite);
        }
        self.penalise(&mut logits);
        self.forbidden.apply(&mut logits);
        let best = largest(&logits);
        if logits[best as usize] == f32::NEG_INFINITY {
            return Err(NotFinite);
        }
        let mut drawn = Drawn { id: best, logprob: 0.0, top: Vec::new() };
        let Some(top) = self.logprobs else {
            drawn.id = self.draw(logits, best);
            return Ok(drawn);
        };
        let total = logarithm_of_sum(&logits);
        drawn.top =
            largest_few(&logits, top).into_iter().map(|id| (id, logits[id as usize] - total)).collect();
        drawn.id = self.draw(logits.clone(), best);
        drawn.logprob = logits[drawn.id as usize] - total;
        Ok(drawn)
    }

    /// Draws from logits, of which `best` is the largest.
    fn draw(&self, logits: Vec<f32>, best: u32) -> u32 {
        if self.temperature == 0.0 {
            return best;
        }
        // exp(logit - top): the common factor of the probabilities never matters.
        let top = logits[best as usize];
        let mut weights = logits;
        for weight in &mut weights {
            *weight = ((*weight - top) / self.temperature).exp();
        }
        let kept = self.keep(&weights);
        let weight = |id: u32| f64::from(weights[id as usize]);
        let mut left = self.random * kept.iter().map(|&id| weight(id)).sum::<f64>();
        for &id in &kept {
            left -= weight(id);
            if left < 0.0 {
                return id;
            }
        }
        // Rounding can leave a last crumb; it belongs to the last token that has any weight.
        kept.iter().rev().copied().find(|&id| weight(id) > 0.0).unwrap_or(best)
    }

    fn penalise(&self, logits: &mut [f32]) {
        for seen in self.seen {
            let Some(logit) = logits.get_mut(seen.id as usize) else { continue };
            *logit = if *logit > 0.0 { *logit / self.repetition } else { *logit * self.repetition };
            if seen.generated > 0 {
                *logit -= self.frequency * seen.generated as f32 + self.presence;
            }
        }
        for &(id, bias) in self.bias {
            if let Some(logit) = logits.get_mut(id as usize) {
                *logit += bias;
            }
        }
    }

    /// The ids that may be drawn, in rising order. `weights` are probabilities but for a common factor, the
    /// largest being 1.
    fn keep(&self, weights: &[f32]) -> Vec<u32> {
        let mut ids: Vec<u32> = (0..weights.len() as u32).collect();
        let better =
            |a: &u32, b: &u32| weights[*b as usize].total_cmp(&weights[*a as usize]).then_with(|| a.cmp(b));
        if (1..ids.len()).contains(&self.top_k) {
            ids.select_nth_unstable_by(self.top_k - 1, better);
            ids.truncate(self.top_k);
        }
        if self.top_p < 1.0 {
            let weight = |id: u32| f64::from(weights[id as usize]);
            let wanted = f64::from(self.top_p) * ids.iter().map(|&id| weight(id)).sum::<f64>();
            // A few tokens are usually enough, so the sorted part grows only as far as needed.
            let (mut sorted, mut sum) = (0, 0.0);
            // At least one is kept, also for a share of 0.
            while sorted == 0 || (sorted < ids.len() && sum < wanted) {
                let end = (sorted * 8).clamp(64, ids.len().max(64)).min(ids.len());
                if end < ids.len() {
                    ids[sorted..].select_nth_unstable_by(end - sorted - 1, better);
                }
                ids[sorted..end].sort_unstable_by(better);
                while sorted == 0 || (sorted < end && sum < wanted) {
                    sum += weight(ids[sorted]);
                    sorted += 1;
                }
            }
            ids.truncate(sorted);
        }
        if self.min_p > 0.0 {
            ids.retain(|&id| weights[id as usize] >= self.min_p);
        }
        ids.sort_unstable();
        ids
    }
}

impl Forbidden<'_> {
    fn apply(&self, logits: &mut [f32]) {
        const OUT: f32 = f32::NEG_INFINITY;
        if let Some(only) = self.only {
            let kept: Vec<(usize, f32)> =
                only.iter().filter_map(|&id| Some((id as usize, *logits.get(id as usize)?))).collect();
            logits.fill(OUT);
            for (id, logit) in kept {
                logits[id] = logit;
            }
        }
        if let Some(mask) = self.mask {
            let (known, unknown) = logits.split_at_mut(logits.len().min(mask.len() * 32));
            for (logits, word) in known.chunks_mut(32).zip(mask) {
                for (_, logit) in logits.iter_mut().enumerate().filter(|(bit, _)| word >> bit & 1 == 0) {
                    *logit = OUT;
                }
            }
            unknown.fill(OUT);
        }
        for &id in self.ids.iter().copied().flatten() {
            if let Some(logit) = logits.get_mut(id as usize) {
                *logit = OUT;
            }
        }
        for range in &self.ranges {
            let range = within(range, logits.len());
            logits[range].fill(OUT);
        }
        let Some(rivals) = &self.rivals else { return };
        let rivals = within(rivals, logits.len());
        let best = logits[..rivals.start].iter().copied().fold(OUT, f32::max);
        if logarithm_of_sum(&logits[rivals.clone()]) > best {
            logits[..rivals.start].fill(OUT);
        }
    }
}

pub(crate) fn within(range: &Range<u32>, length: usize) -> Range<usize> {
    let end = (range.end as usize).min(length);
    (range.start as usize).min(end)..end
}

/// `ln Σ exp(logits)`, in f64.
fn logarithm_of_sum(logits: &[f32]) -> f32 {
    let most = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    if most == f32::NEG_INFINITY {
        return most;
    }
    let sum: f64 = logits.iter().map(|logit| f64::from(logit - most).exp()).sum();
    (f64::from(most) + sum.ln()) as f32
}

/// Ids of the `count` largest logits that may be drawn, the largest first.
fn largest_few(logits: &[f32], count: usize) -> Vec<u32> {
    let mut ids: Vec<u32> = (0..logits.len() as u32).collect();
    ids.retain(|&id| logits[id as usize] > f32::NEG_INFINITY);
    let better =
        |a: &u32, b: &u32| logits[*b as usize].total_cmp(&logits[*a as usize]).then_with(|| a.cmp(b));
    if count < ids.len() {
        if count > 0 {
            ids.select_nth_unstable_by(count - 1, better);
        }
        ids.truncate(count);
    }
    ids.sort_unstable_by(better);
    ids
}

/// The lowest of the ids with the largest logit.
fn largest(logits: &[f32]) -> u32 {
    let mut best = 0;
    for (id, logit) in logits.iter().enumerate() {
        if *logit > logits[best] {
            best = id;
        }
    }
    best as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn philox_matches_the_published_vectors() {
        // Random123, kat_vectors: philox4x32 with 10 rounds.
        assert_eq!(philox([0; 4], [0; 2]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        assert_eq!(philox([!0; 4], [!0; 2]), [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]);
        assert_eq!(
            philox([0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344], [0xa409_3822, 0x299f_31d0]),
            [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]
        );
    }
}
