//! What sample.cu gets, and what it says: the draws of a step in one upload, and what was drawn in one download.

use candle_core::{Result, bail};

use super::{Argument, Element, Launch, aligned, grid, int};
use crate::sample::{Draw, Drawn, NotFinite};
use Argument::{Address, I32};

/// Of sample.cu.
const THREADS: u32 = 1024;
/// Words of its `Draw`.
const DRAW: usize = 28;
/// Words of its `Found`.
const FOUND: usize = 5;
const NOWHERE: u32 = u32::MAX;
const WANTS_LOGPROBS: u32 = 1;
const WANTS_TOP_P: u32 = 2;
const WANTS_MASK: u32 = 4;
const WANTS_RIVALS: u32 = 8;

/// More columns than this the kernels do not take: their sums are integers of 64 bits.
pub const MOST_IDS: usize = 1 << 19;

/// The draws from rows of logits, as the kernels read them.
#[derive(Debug, Clone)]
pub struct Sampling {
    words: Vec<u32>,
    width: usize,
    /// Rows of the workspace.
    places: usize,
    /// Of each row, where the most probable tokens are in the output, and whether probabilities are wanted.
    top: Vec<Option<usize>>,
    output: usize,
}

impl Sampling {
    /// One draw for each row of `width` logits.
    ///
    /// # Errors
    /// When there are more than [`MOST_IDS`] columns, or the lists are longer than a kernel takes.
    pub fn new(draws: &[Draw<'_>], width: usize) -> Result<Self> {
        if width > MOST_IDS {
            bail!("sample: {width} ids are more than the {MOST_IDS} that the CUDA kernels take")
        }
        let mut sampling = Self {
            words: vec![0; draws.len() * DRAW],
            width,
            places: 0,
            top: Vec::with_capacity(draws.len()),
            output: draws.len() * FOUND,
        };
        for (row, draw) in draws.iter().enumerate() {
            let header = sampling.pack(draw)?;
            sampling.words[row * DRAW..][..DRAW].copy_from_slice(&header);
        }
        Ok(sampling)
    }

    /// What is uploaded.
    #[must_use]
    pub fn words(&self) -> &[u32] {
        &self.words
    }

    /// f32 elements that the launches work in.
    #[must_use]
    pub fn workspace(&self) -> usize {
        self.places * self.stride()
    }

    /// u32 elements that the launches write, zero before.
    #[must_use]
    pub fn output(&self) -> usize {
        self.output
    }

    /// The launches, in order. Addresses are those of [`Self::output`], [`Self::workspace`], the logits
    /// `[rows, width]`, and [`Self::words`].
    ///
    /// # Errors
    /// When something is larger than a kernel takes.
    pub fn launches(
        &self,
        element: Element,
        [out, workspace, logits, words]: [u64; 4],
    ) -> Result<Vec<Launch>> {
        let rows = self.top.len();
        if rows == 0 {
            return Ok(Vec::new());
        }
        let grid = grid([rows, 1, 1])?;
        let wide = self.width.is_multiple_of(16 / element.size()) && aligned(16, &[logits]);
        let stride = int(self.stride(), "stride")?;
        let mut launches = vec![Launch {
            kernel: format!("sample_read_{}", element.name()),
            grid,
            block: [THREADS, 1, 1],
            shared: 0,
            arguments: vec![
                Address(out),
                Address(workspace),
                Address(logits),
                Address(words),
                int(self.width, "width")?,
                stride,
                I32(i32::from(wide)),
            ],
        }];
        if self.places > 0 {
            launches.push(Launch {
                kernel: "sample_draw".into(),
                grid,
                block: [THREADS, 1, 1],
                shared: 0,
                arguments: vec![Address(out), Address(workspace), Address(words), stride],
            });
        }
        Ok(launches)
    }

    /// Writes of each of `from`, a row, the id that was drawn from it to the next of the first `words`, one of a step behind.
    /// Addresses are those of the words, [`Self::output`] as the launches have left it, and `from`; none for no rows.
    ///
    /// # Errors
    /// When a row is none of the draws'.
    pub fn feed(&self, [words, out, from_at]: [u64; 3], from: &[u32]) -> Result<Option<Launch>> {
        if let Some(row) = from.iter().find(|&&row| row as usize >= self.top.len()) {
            bail!("sample: row {row} of {} draws", self.top.len())
        }
        if from.is_empty() {
            return Ok(None);
        }
        let threads = from.len().next_multiple_of(32).min(THREADS as usize) as u32;
        Ok(Some(Launch {
            kernel: "sample_feed".into(),
            grid: [1, 1, 1],
            block: [threads, 1, 1],
            shared: 0,
            arguments: vec![Address(words), Address(out), Address(from_at), int(from.len(), "rows")?],
        }))
    }

    /// What the kernels have written, for each row.
    ///
    /// # Errors
    /// When it is shorter than [`Self::output`].
    pub fn drawn(&self, output: &[u32]) -> Result<Vec<std::result::Result<Drawn, NotFinite>>> {
        if output.len() < self.output {
            bail!("sample: {} words of output, not {}", output.len(), self.output)
        }
        let found = output.as_chunks::<FOUND>().0.iter();
        Ok(found.zip(&self.top).map(|(found, top)| drawn(found, *top, output)).collect())
    }

    /// From one row of the workspace to the next: whole loads of 16 bytes, of the widest element.
    fn stride(&self) -> usize {
        self.width.next_multiple_of(8)
    }

    /// The words of one row, in the order of sample.cu's `Draw`; its lists go behind all of them.
    fn pack(&mut self, draw: &Draw<'_>) -> Result<[u32; DRAW]> {
        let vocabulary = draw.vocabulary.min(self.width);
        let forbidden = draw.forbidden;
        let mut bias = draw.bias.to_vec();
        // The entries of an id stay in their order, and one thread adds them all.
        bias.sort_by_key(|&(id, _)| id);
        let only = draw.forbidden.only.map(|only| mask_of(only, forbidden.mask, vocabulary));
        let mask = only.as_deref().or(forbidden.mask);
        let rivals = forbidden.rivals.as_ref().map(|rivals| crate::sample::within(rivals, vocabulary));
        let lists = [
            self.list(draw.seen.iter().flat_map(|seen| [seen.id, seen.generated]), 2)?,
            self.list(bias.iter().flat_map(|&(id, bias)| [id, bias.to_bits()]), 2)?,
            self.list(forbidden.ids.iter().copied().flatten().copied(), 1)?,
            self.list(forbidden.ranges.iter().flat_map(|range| [range.start, range.end]), 2)?,
            self.list(mask.unwrap_or_default().iter().copied(), 1)?,
        ];
        let plain =
            draw.temperature == 0.0 && draw.logprobs.is_none() && lists.iter().all(|&[_, count]| count == 0);
        let [mut place, mut weights_at] = [NOWHERE; 2];
        if !plain || mask.is_some() || rivals.is_some() {
            place = self.place()?;
            // Logits are needed behind the draw where their probabilities are wanted.
            let both = draw.temperature != 0.0 && draw.logprobs.is_some();
            weights_at = if both { self.place()? } else { place };
        }
        let top = draw.logprobs.unwrap_or(0).min(vocabulary);
        let top_at = self.output;
        self.output += 2 * top;
        self.top.push(draw.logprobs.map(|_| top_at));
        let mut wants = 0;
        for (wanted, bit) in [
            (draw.logprobs.is_some(), WANTS_LOGPROBS),
            (draw.top_p < 1.0, WANTS_TOP_P),
            (mask.is_some(), WANTS_MASK),
            (rivals.is_some(), WANTS_RIVALS),
        ] {
            wants |= if wanted { bit } else { 0 };
        }
        let [top_p_low, top_p_high] = halves(fraction(f64::from(draw.top_p)));
        let [random_low, random_high] = halves(fraction(draw.random));
        // Neutral and impossible values are 0 and 1: the bits of weights in between rise with them.
        let min_p = if draw.min_p > 0.0 { draw.min_p.min(1.0) } else { 0.0 };
        let rivals = rivals.unwrap_or(0..0);
        let [seen, bias, ids, ranges, mask] = lists;
        Ok([
            word(vocabulary)?,
            place,
            weights_at,
            wants,
            word(top)?,
            word(top_at)?,
            word(draw.top_k.min(vocabulary))?,
            top_p_low,
            top_p_high,
            random_low,
            random_high,
            min_p.to_bits(),
            draw.temperature.to_bits(),
            draw.repetition.to_bits(),
            draw.frequency.to_bits(),
            draw.presence.to_bits(),
            seen[0],
            seen[1],
            bias[0],
            bias[1],
            ids[0],
            ids[1],
            ranges[0],
            ranges[1],
            mask[0],
            mask[1],
            word(rivals.start)?,
            word(rivals.end)?,
        ])
    }

    /// Appends a list; says where it begins and how many entries of `size` words it has.
    fn list(&mut self, words: impl Iterator<Item = u32>, size: usize) -> Result<[u32; 2]> {
        let at = self.words.len();
        self.words.extend(words);
        Ok([word(at)?, word((self.words.len() - at) / size)?])
    }

    fn place(&mut self) -> Result<u32> {
        self.places += 1;
        word(self.places - 1)
    }
}

/// The probabilities of ids, as sample.cu reads what is wanted: of each row an id, and over how many ids.
#[must_use]
pub fn wanted_probabilities(ids: &[u32], widths: &[usize], width: usize) -> Vec<u32> {
    // A width of logits fits 32 bits, as `probability` checks.
    ids.iter().zip(widths).flat_map(|(&id, &count)| [id, count.min(width) as u32]).collect()
}

/// f32 `[rows]`, the probabilities of what [`wanted_probabilities`] says about logits `[rows, width]`; none for no rows.
///
/// # Errors
/// When something is larger than a kernel takes.
pub fn probabilities(
    element: Element,
    [out, logits, wanted]: [u64; 3],
    [rows, width]: [usize; 2],
) -> Result<Option<Launch>> {
    if width > MOST_IDS {
        bail!("probabilities: {width} ids are more than the {MOST_IDS} that the CUDA kernel takes")
    }
    if rows == 0 {
        return Ok(None);
    }
    Ok(Some(Launch {
        kernel: format!("sample_probability_{}", element.name()),
        grid: grid([rows, 1, 1])?,
        block: [THREADS, 1, 1],
        shared: 0,
        arguments: vec![Address(out), Address(logits), Address(wanted), int(width, "width")?],
    }))
}

fn drawn(
    &[finite, id, logit, total, count]: &[u32; FOUND],
    top_at: Option<usize>,
    output: &[u32],
) -> std::result::Result<Drawn, NotFinite> {
    if finite == 0 {
        return Err(NotFinite);
    }
    let Some(top_at) = top_at else { return Ok(Drawn { id, logprob: 0.0, top: Vec::new() }) };
    let total = f32::from_bits(total);
    let pairs = output.get(top_at..).unwrap_or_default().as_chunks::<2>().0;
    let mut top: Vec<(u32, f32)> =
        pairs.iter().take(count as usize).map(|&[id, logit]| (id, f32::from_bits(logit))).collect();
    // The kernel has found them in no order.
    top.sort_unstable_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    for (_, logit) in &mut top {
        *logit -= total;
    }
    Ok(Drawn { id, logprob: f32::from_bits(logit) - total, top })
}

/// The mask of a list of ids, of which those that `mask` leaves out are left out.
fn mask_of(only: &[u32], mask: Option<&[u32]>, vocabulary: usize) -> Vec<u32> {
    let mut words = vec![0u32; vocabulary.div_ceil(32)];
    for &id in only {
        if let Some(word) = words.get_mut(id as usize / 32) {
            *word |= 1 << (id % 32);
        }
    }
    if let Some(mask) = mask {
        for (index, word) in words.iter_mut().enumerate() {
            *word &= mask.get(index).copied().unwrap_or(0);
        }
    }
    words
}

/// A share of 1 with 64 bits behind the point; what lies outside goes to the nearest end.
fn fraction(share: f64) -> u64 {
    (share * 2f64.powi(64)) as u64
}

fn halves(bits: u64) -> [u32; 2] {
    [bits as u32, (bits >> 32) as u32]
}

fn word(value: usize) -> Result<u32> {
    match u32::try_from(value) {
        Ok(value) => Ok(value),
        Err(_) => bail!("sample: lists of {value} words are more than a CUDA kernel takes"),
    }
}
