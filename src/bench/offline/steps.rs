//! Steps of a network as an engine would have them: a prompt, or a token of each of many sequences.

use candle_core::{Device, Result, Tensor};
use percept_models::{Batch, KvCache, Loaded, MediaSize, Pages, Paging, Ragged, Remembered, Task};

/// As a server has them.
const PAGE: usize = 16;
/// Some token, which is no picture's.
const TOKEN: u32 = 1;

/// Sequences that have so many tokens, each with pages of its own.
pub(super) struct Steps<'a> {
    loaded: &'a Loaded,
    context: usize,
    /// Rows that each sequence attends to besides: those of a window of sound.
    pub(super) memory: usize,
}

impl<'a> Steps<'a> {
    pub(super) fn new(loaded: &'a Loaded, context: usize) -> Self {
        let memory = match loaded.task {
            Task::Transcribe(_) => {
                loaded.preprocess.footprint(MediaSize::Sound).map_or(0, |needs| needs.memory)
            }
            Task::Chat(_) | Task::Embed(_) => 0,
        };
        Self { loaded, context, memory }
    }

    /// Pages of a sequence: of its text, and of its memory.
    fn pages(&self) -> (usize, usize) {
        (self.context.div_ceil(PAGE), self.memory.div_ceil(PAGE))
    }

    /// Bytes of a cache of so many sequences.
    pub(super) fn cache_bytes(&self, sequences: usize) -> u64 {
        let (text, memory) = self.pages();
        let row = self.loaded.model.cache_shape().row_bytes(self.loaded.dtype);
        (sequences * (text + memory) * PAGE) as u64 * row as u64
    }

    /// A cache of so many sequences that is filled, as if all had been computed.
    pub(super) fn cache(&self, sequences: usize) -> Result<KvCache> {
        let (text, memory) = self.pages();
        let (shape, device) = (self.loaded.model.cache_shape(), &self.loaded.device);
        let cache = KvCache::new(shape, sequences * (text + memory), PAGE, self.loaded.dtype, device)?;
        for index in 0..shape.layers {
            let layer = cache.layer(index);
            for tensor in [&layer.k, &layer.v] {
                // Zeros that were never written share one page of memory, and would be read from a cache.
                let filled = Tensor::ones(tensor.shape(), self.loaded.dtype, device)?;
                tensor.slice_set(&filled, 0, 0)?;
            }
        }
        Ok(cache)
    }

    /// All tokens of one sequence.
    pub(super) fn prefill(&self) -> Result<Batch> {
        self.batch(1, 0..self.context)
    }

    /// The last token of each of so many sequences.
    pub(super) fn decode(&self, sequences: usize) -> Result<Batch> {
        self.batch(sequences, self.context - 1..self.context)
    }

    /// The same rows of each sequence.
    fn batch(&self, sequences: usize, rows: std::ops::Range<usize>) -> Result<Batch> {
        let device = &self.loaded.device;
        let (each, all) = (rows.len(), rows.len() * sequences);
        let upload = |list: Vec<u32>| upload(list, device);
        let positions = self.loaded.task.positions();
        let at: Vec<u32> = (0..sequences).flat_map(|_| rows.clone().map(|row| row as u32)).collect();
        let slots = (0..sequences).flat_map(|sequence| {
            let first = (sequence * self.pages().0 * PAGE) as u32;
            rows.clone().map(move |row| first + row as u32)
        });
        let long = positions.long.map(|long| u32::from(self.context > long));
        let lined = upload(at)?;
        Ok(Batch {
            tokens: upload(vec![TOKEN; all])?,
            positions: if positions.planes { Tensor::stack(&[&lined; 3], 0)? } else { lined },
            long: long.map(|long| upload(vec![long; all])).transpose()?,
            rows: Ragged::new(&vec![each; sequences], device)?,
            text: Paging {
                slots: upload(slots.collect())?,
                pages: self.table(sequences, 0, self.pages().0, rows.end)?,
            },
            memory: self.remembered(sequences, each)?,
            inserts: Vec::new(),
            last: upload((1..=sequences).map(|sequence| (sequence * each - 1) as u32).collect())?,
        })
    }

    fn remembered(&self, sequences: usize, each: usize) -> Result<Option<Remembered>> {
        if self.memory == 0 {
            return Ok(None);
        }
        let (text, memory) = self.pages();
        Ok(Some(Remembered {
            rows: Ragged::new(&vec![each; sequences], &self.loaded.device)?,
            // A cache may be larger than these sequences; memories lie behind their text.
            pages: self.table(sequences, sequences * text, memory, self.memory)?,
            seen: None,
        }))
    }

    /// Pages from `first` on, `each` of every sequence, of which each sees `rows` rows.
    fn table(&self, sequences: usize, first: usize, each: usize, rows: usize) -> Result<Pages> {
        let device = &self.loaded.device;
        let pages: Vec<u32> = (first..first + sequences * each).map(|page| page as u32).collect();
        Ok(Pages {
            table: Tensor::from_vec(pages, (sequences, each), device)?,
            lengths: upload(vec![rows as u32; sequences], device)?,
        })
    }
}

fn upload(list: Vec<u32>, device: &Device) -> Result<Tensor> {
    let length = list.len();
    Tensor::from_vec(list, length, device)
}
