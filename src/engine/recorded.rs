//! Steps that write a token for each of so many sequences, recorded when an engine starts and replayed from then on,
//! where its device can do that.

use std::collections::HashMap;

use candle_core::{DType, Device, Result, Tensor};
use percept_models::{
    Batch, KvCache, Model, Positions,
    nn::device::{Recording, record, rewrite},
};

use super::batch::{Form, Lists, RunsForm};

/// What steps an engine records.
#[derive(Debug, Clone, Copy)]
pub(super) struct Scope {
    /// Most sequences of a step.
    pub(super) sequences: usize,
    /// Pages of the longest sequence.
    pub(super) pages: usize,
    /// Pages of what every sequence attends to besides its text.
    pub(super) memory: Option<usize>,
    /// How rows are numbered.
    pub(super) positions: Positions,
}

impl Scope {
    /// The form in which a step of so many sequences and pages is done: sizes are rounded up, by less than a quarter for
    /// sequences, whose rows are computed, and by more for tables, whose ends are skipped.
    fn form(&self, sequences: usize, pages: usize) -> Form {
        let step = (sequences.next_power_of_two() / 8).clamp(1, 32);
        let runs = sequences.next_multiple_of(if sequences > 4 { step.max(4) } else { 1 });
        let mut wide = NARROWEST;
        while wide < pages {
            wide *= 4;
        }
        Form {
            rows: runs,
            planes: if self.positions.planes { 3 } else { 1 },
            long: self.positions.long.is_some(),
            text: RunsForm { runs, pages: wide },
            wanted: runs,
            memory: self.memory.map(|pages| RunsForm { runs, pages }),
        }
    }

    /// All of them, those with most sequences first: logits of theirs are enough for the others.
    fn forms(&self) -> Vec<Form> {
        let mut forms = Vec::new();
        for sequences in (1..=self.sequences).rev() {
            let mut pages = 1;
            loop {
                let form = self.form(sequences, pages);
                if !forms.contains(&form) {
                    forms.push(form);
                }
                if form.text.pages >= self.pages {
                    break;
                }
                pages = form.text.pages + 1;
            }
        }
        forms
    }
}

/// Columns of the narrowest page table.
const NARROWEST: usize = 16;

/// Steps that are ready to be done again.
#[derive(Debug)]
pub(super) struct Recorded<R = Recording> {
    scope: Scope,
    steps: HashMap<Form, R>,
    /// The lists of whatever step is done: u32 `[longest]`.
    words: Tensor,
    /// The logits of whatever step was done: `[most sequences, vocabulary]`.
    logits: Tensor,
}

impl Recorded {
    /// Records all steps of a scope. The cache's first slot is overwritten.
    ///
    /// # Errors
    /// When a step fails or cannot be recorded.
    pub(super) fn new(scope: Scope, model: &dyn Model, cache: &KvCache, device: &Device) -> Result<Self> {
        Self::by(scope, model, cache, device, |batch, logits| {
            record(device, || logits.slice_set(&model.forward(&batch, cache)?, 0, 0))
        })
    }

    /// Logits `[sequences, vocabulary]` of the step with these lists, which the next step overwrites; none where such a
    /// step was not recorded.
    pub(super) fn replay(&self, lists: &mut Lists<'_>) -> Option<Result<Tensor>> {
        let sequences = lists.form().rows;
        let replayed = self.placed(lists)?.and_then(Recording::replay);
        Some(replayed.and_then(|()| self.logits.narrow(0, 0, sequences)))
    }
}

impl<R> Recorded<R> {
    fn by(
        scope: Scope,
        model: &dyn Model,
        cache: &KvCache,
        device: &Device,
        mut recording: impl FnMut(Batch, &Tensor) -> Result<R>,
    ) -> Result<Self> {
        let forms = scope.forms();
        let longest = forms.iter().map(Form::words).max().unwrap_or(0);
        let words = Tensor::zeros(longest, DType::U32, device)?;
        let mut steps = HashMap::with_capacity(forms.len());
        let mut logits = None;
        for form in forms {
            let ones = vec![1; form.rows];
            let batch = form.batch(&words, &ones, form.memory.map(|_| &ones[..]))?;
            rewrite(&words, &Lists::of_first_slot(&form).words(form))?;
            let logits = match &logits {
                Some(logits) => logits,
                None => logits.insert(model.forward(&batch, cache)?.zeros_like()?),
            };
            steps.insert(form, recording(batch, logits)?);
        }
        let Some(logits) = logits else { candle_core::bail!("there is no step to record") };
        Ok(Self { scope, steps, words, logits })
    }

    /// How many steps there are.
    pub(super) fn len(&self) -> usize {
        self.steps.len()
    }

    /// The step for these lists, which are put where it reads them.
    fn placed(&self, lists: &mut Lists<'_>) -> Option<Result<&R>> {
        if !lists.are_of_one_row_each() {
            return None;
        }
        let found = lists.form();
        let form = self.scope.form(found.rows, found.text.pages);
        let step = self.steps.get(&form)?;
        match (found.memory, form.memory) {
            (None, None) => {}
            (Some(found), Some(form)) if found.pages <= form.pages => {}
            _ => return None,
        }
        lists.fill_up(form.rows);
        let placed = rewrite(&self.words, &lists.words(form)).and_then(|()| lists.write_fed(&self.words));
        Some(placed.map(|()| step))
    }
}

#[cfg(test)]
mod tests {
    use std::{path::Path, sync::Arc};

    use percept_models::{Checkpoint, LoadOptions, Loaded, MediaSize, Task};

    use super::*;
    use crate::engine::{Key, Limits, Scheduler, SeqId, Sequence, Span, batch::Batcher};

    const PAGE: usize = 4;
    const PAGES: usize = 4096;
    const MOST: usize = 11;

    fn loaded(fixture: &str) -> Loaded {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(fixture);
        let progress = Box::new(|_, _| {});
        let options =
            LoadOptions { device: Device::Cpu, dtype: DType::F32, fit: None, most_bytes: u64::MAX, progress };
        percept_models::load(&Checkpoint::new(folder), options).unwrap()
    }

    fn rows(logits: &Tensor) -> Vec<Vec<u32>> {
        let rows = logits.to_vec2::<f32>().unwrap();
        rows.into_iter().map(|row| row.into_iter().map(f32::to_bits).collect()).collect()
    }

    /// A model answers sequences that come and go. Each step that could have been recorded is computed in its recorded
    /// form, too: filled up, from lists that were rewritten. Returns sizes of those steps, and how many others there were.
    fn run(fixture: &str, lengths: &[usize]) -> (Vec<(usize, usize)>, usize) {
        let Loaded { model, preprocess, task, .. } = loaded(fixture);
        let device = &Device::Cpu;
        let cache = KvCache::new(model.cache_shape(), PAGES, PAGE, DType::F32, device).unwrap();
        let memory = matches!(task, Task::Transcribe(_))
            .then(|| preprocess.footprint(MediaSize::Sound).unwrap().memory);
        let batcher = Batcher {
            device: device.clone(),
            page_size: PAGE,
            placeholders: task.placeholders(),
            positions: task.positions(),
        };
        let scope = Scope {
            sequences: MOST,
            pages: 64,
            memory: memory.map(|rows| rows.div_ceil(PAGE)),
            positions: task.positions(),
        };
        let recorded = Recorded::by(scope, &*model, &cache, device, |batch, _| Ok(batch)).unwrap();
        let limits = Limits { sequences: MOST, rows: 64, chunk: 24, encoded: 64, spare: 64, encode: 1 << 20 };
        let mut scheduler = Scheduler::new(limits, PAGES, PAGE);
        for (index, &length) in lengths.iter().enumerate() {
            let tokens = (0..length).map(|row| (5 + 7 * row + 3 * index) as u32 % 90).collect();
            let key = Key::of(&[index as u8]);
            let spans = memory.map(|memory| Span { rows: 0..0, grid: None, memory, key });
            let most = length + 3 + 2 * index;
            let mut sequence =
                Sequence::new(SeqId(index as u64), tokens, spans.into_iter().collect(), most, Arc::new([]));
            sequence.long_behind = task.positions().long;
            scheduler.submit(sequence);
        }
        let (mut sizes, mut others) = (Vec::new(), 0);
        while !scheduler.is_idle() {
            let plan = scheduler.schedule();
            for &(id, medium) in plan.encode.iter().chain(&plan.remember) {
                scheduler.encoded(id, medium);
            }
            let parts = plan.parts;
            let gather = || batcher.gather(&parts, &scheduler, |_, _| None, |_| 0..0).unwrap();
            let logits = model.forward(&gather().upload(device).unwrap(), &cache).unwrap();
            let mut lists = gather();
            let form = lists.form();
            if let Some(step) = recorded.placed(&mut lists) {
                let filled = model.forward(step.unwrap(), &cache).unwrap();
                assert_eq!(
                    rows(&filled.narrow(0, 0, form.rows).unwrap()),
                    rows(&logits),
                    "{fixture} {form:?}"
                );
                assert!(filled.dim(0).unwrap() <= recorded.logits.dim(0).unwrap());
                sizes.push((form.rows, form.text.pages));
            } else {
                others += 1;
            }
            let best = logits.argmax(1).unwrap().to_vec1::<u32>().unwrap();
            let drawn: Vec<_> = best.into_iter().map(|id| Some(id % 90)).collect();
            scheduler.complete(&parts, drawn);
        }
        (sizes, others)
    }

    /// Positions in planes, two lists of frequencies, and memories among them; tables of several widths, some of them wider
    /// than what is read.
    #[test]
    fn steps_in_their_recorded_form_give_the_same_logits() {
        for fixture in ["llava", "qwen2_5_vl", "phi3_v", "mllama"] {
            let (mut sizes, others) = run(fixture, &[3, 5, 17, 8, 9, 30, 4, 6, 7, 12, 10]);
            assert!(others > 0, "{fixture}: prompts have more rows");
            for sequences in [1, 2, 5, 7] {
                assert!(sizes.iter().any(|size| size.0 == sequences), "{fixture} {sequences} {sizes:?}");
            }
            assert!(sizes.iter().any(|size| size.1 < 16), "{fixture} {sizes:?}");
            sizes = run(fixture, &[3, 70, 5, 17, 90, 150]).0;
            assert!(sizes.iter().any(|size| size.1 > 16), "{fixture} {sizes:?}");
        }
        let (sizes, _) = run("whisper", &[4, 3, 4, 4, 9, 4]);
        assert!(sizes.iter().any(|size| size.0 == 6) && sizes.iter().any(|size| size.0 == 1), "{sizes:?}");
    }

    /// Every step of one row each that the engine could make has a form, which is no smaller than it.
    #[test]
    fn every_size_has_a_form() {
        let scope = Scope { sequences: 256, pages: 300, memory: Some(94), positions: Positions::default() };
        let forms = scope.forms();
        for sequences in 1..=256 {
            for pages in [1, 15, 16, 17, 64, 65, 256, 257, 300] {
                let form = scope.form(sequences, pages);
                assert!(forms.contains(&form), "{sequences} {pages}");
                assert!(form.rows >= sequences && form.text.pages >= pages);
                assert!(form.rows <= sequences + 3.max(sequences / 4), "{sequences}: {form:?}");
                assert!(form.rows <= forms[0].rows && forms[0].rows == 256);
            }
        }
        assert!(forms.len() <= 120, "{}", forms.len());
    }
}
