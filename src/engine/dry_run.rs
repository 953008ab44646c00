//! The largest steps that an engine may have to do, done once while nobody waits, to see what memory they take.

use candle_core::{DType, Result, Tensor};
use percept_models::{
    Batch, CacheShape, Features, Insert, KvCache, Loaded, MediaSize, Medium, Task,
    nn::{
        device::{peak_memory, records},
        mel::HOP,
        sample::{Downloads, Draw, Drawing},
    },
};

use super::{
    batch::{Alike, Lists},
    pages::Page,
    recorded::filled_up,
};

/// How large the steps of an engine may become.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Largest {
    /// Sequences of a step.
    pub sequences: usize,
    /// Rows of a step, and those that are encoded for it, where that is more than one medium.
    pub rows: usize,
    /// Tokens of prompt and answer together.
    pub context: usize,
    /// Rows of a page.
    pub page_size: usize,
    /// Pixels of a picture.
    pub pixels: usize,
}

/// Bytes that the largest steps take of a GPU's memory besides weights and caches; [`None`] on the host, where nothing is
/// done. Nothing else may be done on that GPU meanwhile.
///
/// # Errors
/// When a step fails, most often since there is not enough memory.
pub fn workspace(loaded: &Loaded, largest: &Largest) -> Result<Option<u64>> {
    if !records(&loaded.device) {
        return Ok(None);
    }
    let run = DryRun::new(loaded, largest)?;
    let most = |steps: Vec<Step>| {
        let measured = steps.into_iter().map(|step| run.measure(step)).collect::<Result<Vec<_>>>()?;
        Ok::<u64, candle_core::Error>(measured.into_iter().max().unwrap_or(0))
    };
    // What is recorded has memory of its own, which all recordings of a stream share, as one ends before the next begins:
    // <https://docs.nvidia.com/cuda/cuda-c-programming-guide/#physical-memory-footprint>.
    let bytes = most(run.steps())? + most(run.recorded())?;
    // What goes wrong on the device is told when it is waited for.
    loaded.device.synchronize()?;
    Ok(Some(bytes))
}

/// What is done at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    /// As many media of a size are encoded as fit in a step, or one that does not.
    Encode(MediaSize),
    /// Prompts are read, as many rows as fit in a step, while all other sequences write.
    Read,
    /// A text is computed whole, to see where it looks.
    Align,
    /// Vectors are made of texts.
    EmbedTexts,
    /// Vectors are made of media.
    EmbedMedia,
    /// All sequences write, beside the logits of the step before.
    Write,
    /// A medium is encoded, beside the rows of the one before.
    EncodeOne(MediaSize),
}

struct DryRun<'a> {
    loaded: &'a Loaded,
    largest: &'a Largest,
    /// Sizes of media, one of which takes most memory. None where a network has no eyes and no ears.
    sizes: Vec<MediaSize>,
    /// One layer's pages for all of them: what is in it means nothing.
    cache: KvCache,
    /// As many pages as the longest sequence reads, each of them one of the cache's.
    text: Vec<Page>,
    memory: Vec<Page>,
    /// Rows that what attends to something besides its text sees of it.
    sees: usize,
}

/// Edges of pictures: a small one, of which most fit in a step, and an ordinary one.
const EDGES: [usize; 2] = [32, 1024];

impl<'a> DryRun<'a> {
    fn new(loaded: &'a Loaded, largest: &'a Largest) -> Result<Self> {
        let Largest { sequences, rows, context, page_size, .. } = *largest;
        let memory = |size: &MediaSize| loaded.preprocess.footprint(*size).map_or(0, |needs| needs.memory);
        let sizes = sizes(&loaded.task, largest.pixels);
        let sees = sizes.iter().map(memory).max().unwrap_or(0);
        // A slot for each row, so that no two are written at once.
        let pages = rows.max(filled_up(sequences)).div_ceil(page_size);
        let table = |rows: usize| (0..rows.div_ceil(page_size)).map(|page| (page % pages) as Page).collect();
        let shape = loaded.model.cache_shape();
        let one = CacheShape { layers: shape.layers.min(1), ..shape };
        let one = KvCache::new(one, pages, page_size, loaded.dtype, &loaded.device)?;
        Ok(Self {
            loaded,
            largest,
            sizes,
            cache: one.shared_by(shape.layers),
            text: table(context),
            memory: table(sees),
            sees,
        })
    }

    /// Bytes that a step takes.
    fn measure(&self, step: Step) -> Result<u64> {
        let prepared = self.prepare(step)?;
        Ok(peak_memory(&self.loaded.device, || self.take(prepared))?.unwrap_or(0))
    }

    /// Those of which one may be the largest.
    fn steps(&self) -> Vec<Step> {
        let mut steps: Vec<_> = self.sizes.iter().copied().map(Step::Encode).collect();
        match &self.loaded.task {
            // Of what is not recorded.
            Task::Chat(_) => steps.extend([Step::Read, Step::Write]),
            Task::Transcribe(_) => steps.extend([Step::Read, Step::Write, Step::Align]),
            Task::Embed(info) => {
                steps.push(Step::EmbedTexts);
                steps.extend(info.pictures.map(|_| Step::EmbedMedia));
            }
        }
        steps
    }

    /// Those that are recorded.
    fn recorded(&self) -> Vec<Step> {
        let one = self.sizes.iter().copied().take(1).map(Step::EncodeOne);
        let mut steps: Vec<_> = one.filter(|_| self.loaded.preprocess.has_one_shape()).collect();
        if !matches!(self.loaded.task, Task::Embed(_)) {
            steps.push(Step::Write);
        }
        steps
    }

    /// What is there before a step, and not a part of its workspace.
    fn prepare(&self, step: Step) -> Result<Prepared> {
        let Largest { sequences, rows, context, .. } = *self.largest;
        Ok(match step {
            Step::Encode(size) => {
                let count = (rows / self.footprint(size)?.max(1)).max(1);
                Prepared::Media(vec![size; count])
            }
            Step::Read => {
                let rows = shared(rows, sequences, context);
                let inserts = self.insert(rows.iter().sum())?;
                Prepared::Batch(Batch { inserts, ..self.upload(self.lists(rows))? })
            }
            Step::Align => {
                let mut lists = self.lists(vec![context]);
                lists.want_all();
                Prepared::Whole(self.upload(lists)?)
            }
            Step::EmbedTexts => {
                // Texts are computed whole.
                let count = (rows / context.max(1)).clamp(1, sequences);
                Prepared::Vectors(self.upload(self.lists(vec![context; count]))?)
            }
            Step::EmbedMedia => {
                let each = self.footprint(self.sizes[0])?.max(1);
                let count = (rows / each).clamp(1, sequences);
                let mut batch = self.upload(self.lists(vec![each; count]))?;
                for at in (0..count).map(|index| index * each) {
                    batch
                        .inserts
                        .extend(self.insert(each)?.into_iter().map(|insert| Insert { at, ..insert }));
                }
                Prepared::Vectors(batch)
            }
            Step::Write => Prepared::Again(self.upload(self.lists(vec![1; filled_up(sequences)]))?),
            Step::EncodeOne(size) => Prepared::MediumAgain(self.features(size)?),
        })
    }

    fn take(&self, prepared: Prepared) -> Result<()> {
        let model = &self.loaded.model;
        match prepared {
            Prepared::Media(sizes) => {
                let media = sizes.into_iter().map(|size| self.features(size)).collect::<Result<Vec<_>>>()?;
                model.encode(&media).map(drop)
            }
            Prepared::Batch(batch) => self.draw(&model.forward(&batch, &self.cache)?),
            Prepared::Whole(batch) => model.align(&batch, self.sees, &self.cache).map(drop),
            Prepared::Vectors(batch) => model.embed(&batch).map(drop),
            Prepared::Again(batch) => {
                let before = model.forward(&batch, &self.cache)?;
                model.forward(&batch, &self.cache).map(|logits| drop((before, logits)))
            }
            Prepared::MediumAgain(features) => {
                let before = model.encode(std::slice::from_ref(&features))?;
                model.encode(&[features]).map(|rows| drop((before, rows)))
            }
        }
    }

    /// Draws from logits, by all that there is.
    fn draw(&self, logits: &Tensor) -> Result<()> {
        let draws = vec![Draw { top_p: 0.9, logprobs: Some(20), ..Draw::NEUTRAL }; logits.dim(0)?];
        let mut downloads = Downloads::default();
        Drawing::start(logits, &draws, &mut downloads)?.wait(&mut downloads).map(drop)
    }

    /// A step of sequences with so many rows each, all with the page table of one as long as they may be: memory goes by
    /// that, and not by how much of it is visible, which takes time.
    fn lists(&self, rows: Vec<usize>) -> Lists<'_> {
        let sees = self.sees > 0;
        let visible = rows.iter().copied().max().unwrap_or(0);
        Lists::alike(Alike {
            slots: rows.iter().sum::<usize>().max(1),
            rows,
            text: (&self.text, visible),
            memory: sees.then_some((&self.memory, self.sees)),
            some_see: sees && matches!(self.loaded.task, Task::Chat(_)),
            positions: self.loaded.task.positions(),
        })
    }

    fn upload(&self, lists: Lists<'_>) -> Result<Batch> {
        lists.upload(&self.loaded.device)
    }

    /// Encoded rows in place of so many of a batch, for networks that have them inside of the text.
    fn insert(&self, rows: usize) -> Result<Vec<Insert>> {
        let inside = !self.loaded.task.placeholders().is_empty() && self.sees == 0;
        let encoded = || Tensor::zeros((rows, self.loaded.width), self.loaded.dtype, &self.loaded.device);
        Ok(if inside { vec![Insert { at: 0, rows: encoded()? }] } else { Vec::new() })
    }

    /// Encoded rows of a medium.
    fn footprint(&self, size: MediaSize) -> Result<usize> {
        let needs = self.loaded.preprocess.footprint(size).map_err(candle_core::Error::wrap)?;
        Ok(if needs.memory > 0 { needs.memory } else { needs.tokens.len() })
    }

    /// A medium in black, or in silence.
    fn features(&self, size: MediaSize) -> Result<Features> {
        let Loaded { preprocess, device, task, .. } = self.loaded;
        let black = |shape: &[usize]| Tensor::zeros(shape, DType::U8, device);
        let tensor = match size {
            MediaSize::Image { width, height } => {
                preprocess.run(Medium::Picture(&black(&[height, width, 3])?))?
            }
            MediaSize::Moment { width, height } => {
                preprocess.run(Medium::Moment(&black(&[frames(task), height, width, 3])?))?
            }
            MediaSize::Sound => {
                let Task::Transcribe(info) = task else { candle_core::bail!("this network does not hear") };
                let samples = Tensor::zeros(info.frames * HOP, DType::F32, device)?;
                preprocess.run(Medium::Sound { samples: &samples, frames: 0..info.frames, peak: 0.0 })?
            }
        };
        Ok(Features { tensor, size })
    }
}

/// What a step works on.
enum Prepared {
    Media(Vec<MediaSize>),
    Batch(Batch),
    Whole(Batch),
    Vectors(Batch),
    Again(Batch),
    MediumAgain(Features),
}

/// Those of which one takes most memory, with pictures of so many pixels.
fn sizes(task: &Task, pixels: usize) -> Vec<MediaSize> {
    let sees = match task {
        Task::Transcribe(_) => return vec![MediaSize::Sound],
        Task::Chat(_) => true,
        Task::Embed(info) => info.pictures.is_some(),
    };
    if !sees {
        return Vec::new();
    }
    let most = pixels.isqrt().max(1);
    let edges = EDGES.into_iter().filter(|edge| *edge < most).chain([most]);
    edges
        .flat_map(|edge| {
            let moment = MediaSize::Moment { width: edge, height: edge };
            let moment = (frames(task) > 0).then_some(moment);
            [MediaSize::Image { width: edge, height: edge }].into_iter().chain(moment)
        })
        .collect()
}

/// Frames of a video's moment; none where a network takes no videos.
fn frames(task: &Task) -> usize {
    match task {
        Task::Chat(info) => info.video.map_or(0, |video| video.frames),
        Task::Transcribe(_) | Task::Embed(_) => 0,
    }
}

/// `rows` shared among sequences: one each, and the rest to the first of them, as far as they may have so many.
fn shared(rows: usize, sequences: usize, context: usize) -> Vec<usize> {
    let mut left = rows.saturating_sub(sequences);
    let mut take = |_| {
        let more = left.min(context.saturating_sub(1));
        left -= more;
        1 + more
    };
    (0..sequences).map(&mut take).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::fixtures::loaded;

    /// A checkpoint of each family.
    const FIXTURES: [&str; 14] = [
        "bert",
        "clip",
        "internvl2",
        "llava",
        "llava_next",
        "mllama",
        "phi3_v",
        "pixtral",
        "qwen2_5_vl",
        "qwen2_vl",
        "siglip",
        "smolvlm",
        "whisper",
        "xlm_roberta",
    ];

    #[test]
    fn the_largest_steps_can_be_done() {
        for fixture in FIXTURES {
            let loaded = loaded(fixture);
            let context = loaded.task.context().min(200);
            let context = if matches!(loaded.task, Task::Chat(_)) { context } else { loaded.task.context() };
            for (sequences, rows) in [(1, context), (1, 2 * context), (5, 300 + context)] {
                let largest = Largest { sequences, rows, context, page_size: 16, pixels: 90_000 };
                let run = DryRun::new(&loaded, &largest).unwrap();
                for step in run.steps().into_iter().chain(run.recorded()) {
                    let taken = run.prepare(step).and_then(|prepared| run.take(prepared));
                    taken.unwrap_or_else(|error| panic!("{fixture} {step:?} of {largest:?}: {error}"));
                }
            }
            let largest = Largest { sequences: 1, rows: context, context, page_size: 16, pixels: 90_000 };
            assert_eq!(workspace(&loaded, &largest).unwrap(), None, "nobody counts the host's memory");
        }
    }

    #[test]
    fn rows_are_shared_so_that_all_are_there() {
        assert_eq!(shared(2048, 3, 4096), [2046, 1, 1]);
        assert_eq!(shared(2048, 3, 1000), [1000, 1000, 48]);
        assert_eq!(shared(2048, 3, 500), [500, 500, 500]);
        assert_eq!(shared(3, 3, 500), [1, 1, 1]);
    }

    /// The largest step of text has as many rows as there may be.
    #[test]
    fn the_lists_are_as_large_as_they_may_be() {
        let loaded = loaded("mllama");
        let largest = Largest { sequences: 4, rows: 100, context: 70, page_size: 16, pixels: 90_000 };
        let run = DryRun::new(&loaded, &largest).unwrap();
        let Prepared::Batch(batch) = run.prepare(Step::Read).unwrap() else { panic!("it is a batch") };
        assert_eq!((batch.tokens.dims(), batch.last.dims()), (&[100][..], &[4][..]));
        assert_eq!(&*batch.rows.lengths, [70, 28, 1, 1]);
        assert_eq!(batch.text.pages.lengths.to_vec1::<u32>().unwrap(), [70; 4]);
        assert_eq!(batch.text.pages.table.dims(), [4, 5], "as wide as the longest sequence");
        let mut slots = batch.text.slots.to_vec1::<u32>().unwrap();
        slots.sort_unstable();
        slots.dedup();
        assert_eq!(slots.len(), 100, "no slot is written twice");
        let memory = batch.memory.unwrap();
        let all = loaded.preprocess.footprint(MediaSize::Image { width: 300, height: 300 }).unwrap().memory;
        assert_eq!(memory.pages.lengths.to_vec1::<u32>().unwrap(), [all as u32; 4]);
    }
}
