//! Steps that write a token for each of so many sequences, recorded when an engine starts and replayed from then on,
//! where its device can do that.

use std::collections::HashMap;

use candle_core::{DType, Device, Result, Tensor};
use percept_models::{
    Batch, Features, KvCache, Model, Positions,
    nn::device::{RecordedResult, Recording, record, rewrite},
};

use super::{
    batch::{Alike, Form, Lists, RunsForm},
    pages::Page,
};

/// What steps an engine records.
#[derive(Debug, Clone, Copy)]
pub(super) struct Scope {
    /// Most sequences of a step.
    pub(super) sequences: usize,
    /// Pages of the longest sequence.
    pub(super) pages: usize,
    /// What sequences attend to besides their text.
    pub(super) memory: Option<MemoryScope>,
    /// How rows are numbered.
    pub(super) positions: Positions,
}

/// What sequences attend to besides their text.
#[derive(Debug, Clone, Copy)]
pub(super) struct MemoryScope {
    /// Pages of it.
    pub(super) pages: usize,
    /// Whether every sequence does.
    pub(super) all: bool,
}

impl Scope {
    /// The form in which a step of so many sequences and pages is done: sizes are rounded up, by less than a quarter for
    /// sequences, whose rows are computed, and by more for tables, whose ends are skipped. `sees`: whether any of them
    /// attends to more than its text.
    fn form(&self, sequences: usize, pages: usize, sees: bool) -> Form {
        let runs = filled_up(sequences);
        let mut wide = NARROWEST;
        while wide < pages {
            wide *= 4;
        }
        // No wider than the longest sequence has it: attention keeps sums for each stretch that there may be.
        let wide = wide.min(self.pages.max(NARROWEST));
        let memory = self.memory.filter(|_| sees);
        Form {
            rows: runs,
            planes: if self.positions.planes { 3 } else { 1 },
            long: self.positions.long.is_some(),
            text: RunsForm { runs, pages: wide },
            wanted: runs,
            memory: memory.map(|MemoryScope { pages, .. }| RunsForm { runs, pages }),
            seen: memory.is_some_and(|memory| !memory.all),
        }
    }

    /// All of them, those with most sequences first: logits of theirs are enough for the others.
    fn forms(&self) -> Vec<Form> {
        let mut forms = Vec::new();
        let sees: &[bool] = match self.memory {
            None => &[false],
            Some(MemoryScope { all: true, .. }) => &[true],
            Some(MemoryScope { all: false, .. }) => &[false, true],
        };
        for sequences in (1..=self.sequences).rev() {
            for &sees in sees {
                let mut pages = 1;
                loop {
                    let form = self.form(sequences, pages, sees);
                    if !forms.contains(&form) {
                        forms.push(form);
                    }
                    if form.text.pages >= self.pages {
                        break;
                    }
                    pages = form.text.pages + 1;
                }
            }
        }
        forms
    }
}

/// Sequences of the recorded step that does what one of so many asks for.
pub(super) fn filled_up(sequences: usize) -> usize {
    let step = (sequences.next_power_of_two() / 8).clamp(1, 32);
    sequences.next_multiple_of(if sequences > 4 { step.max(4) } else { 1 })
}

/// Columns of the narrowest page table.
const NARROWEST: usize = 16;
/// The first slot's page, and how much of it is visible.
const FIRST: (&[Page], usize) = (&[0], 1);

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
            let lists = Lists::alike(Alike {
                rows: ones.clone(),
                slots: 1,
                text: FIRST,
                memory: form.memory.map(|_| FIRST),
                some_see: form.seen,
                positions: scope.positions,
            });
            rewrite(&words, &lists.words(form))?;
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
        let form = self.scope.form(found.rows, found.text.pages, found.memory.is_some());
        let step = self.steps.get(&form).filter(|_| found.text.pages <= form.text.pages)?;
        match (found.memory, form.memory) {
            (None, None) => {}
            (Some(found), Some(form)) if found.pages <= form.pages => {}
            _ => return None,
        }
        match (found.seen, form.seen) {
            (false, true) => lists.tell_who_sees(),
            (true, false) => return None,
            _ => {}
        }
        lists.fill_up(form.rows);
        let placed = rewrite(&self.words, &lists.words(form)).and_then(|()| lists.write_fed(&self.words));
        Some(placed.map(|()| step))
    }
}

/// The encoding of one medium, recorded, for networks whose media all have one shape. That of several at once keeps a GPU
/// busy for longer than the host takes to ask for it.
#[derive(Debug)]
pub(super) struct RecordedEncoding {
    rows: RecordedResult,
    /// Of whatever medium is encoded.
    features: Tensor,
}

impl RecordedEncoding {
    /// Records the encoding of media with the shape of `features`.
    ///
    /// # Errors
    /// When it fails or cannot be recorded.
    pub(super) fn new(model: &dyn Model, features: &Features, device: &Device) -> Result<Self> {
        // Its own: it will be written.
        let features = Features { tensor: features.tensor.copy()?.contiguous()?, ..*features };
        let rows = RecordedResult::new(device, || model.encode(std::slice::from_ref(&features)))?;
        Ok(Self { rows, features: features.tensor })
    }

    /// The rows of a medium, which the next one overwrites; none of several media, or of another shape.
    pub(super) fn replay(&self, media: &[Features]) -> Option<Result<Tensor>> {
        let [Features { tensor, .. }] = media else { return None };
        if tensor.shape() != self.features.shape() || tensor.dtype() != self.features.dtype() {
            return None;
        }
        let placed = tensor.contiguous().and_then(|tensor| self.features.slice_set(&tensor, 0, 0));
        Some(placed.and_then(|()| self.rows.replay()))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use percept_models::{Loaded, MediaSize, Task};

    use super::*;
    use crate::engine::{Key, Limits, Scheduler, SeqId, Sequence, Span, batch::Batcher, fixtures::loaded};

    const PAGE: usize = 4;
    const PAGES: usize = 4096;
    const MOST: usize = 11;

    fn rows(logits: &Tensor) -> Vec<Vec<u32>> {
        let rows = logits.to_vec2::<f32>().unwrap();
        rows.into_iter().map(|row| row.into_iter().map(f32::to_bits).collect()).collect()
    }

    /// A model answers sequences that come and go, every `sees`th of which sees something besides its text. Each step that
    /// could have been recorded is computed in its recorded form, too: filled up, from lists that were rewritten. Returns
    /// the forms that those steps would have had otherwise, and how many other steps there were.
    fn run(fixture: &str, lengths: &[usize], sees: Option<usize>) -> (Vec<Form>, usize) {
        let Loaded { model, preprocess, task, .. } = loaded(fixture);
        let device = &Device::Cpu;
        let cache = KvCache::new(model.cache_shape(), PAGES, PAGE, DType::F32, device).unwrap();
        for layer in 0..model.cache_shape().layers {
            for (seed, pages) in [&cache.layer(layer).k, &cache.layer(layer).v].into_iter().enumerate() {
                let number = |index: usize| ((index * 37 + layer * 11 + seed * 5) % 97) as f32 / 97.0 - 0.5;
                let numbers = (0..pages.elem_count()).map(number).collect();
                pages.slice_set(&Tensor::from_vec(numbers, pages.shape(), device).unwrap(), 0, 0).unwrap();
            }
        }
        let hears = matches!(task, Task::Transcribe(_));
        let size = if hears { MediaSize::Sound } else { MediaSize::Image { width: 200, height: 200 } };
        let memory = sees.map(|_| preprocess.footprint(size).unwrap().memory);
        let batcher = Batcher {
            device: device.clone(),
            page_size: PAGE,
            placeholders: task.placeholders(),
            positions: task.positions(),
        };
        let scope = Scope {
            sequences: MOST,
            pages: 64,
            memory: memory.map(|rows| MemoryScope { pages: rows.div_ceil(PAGE), all: hears }),
            positions: task.positions(),
        };
        let recorded = Recorded::by(scope, &*model, &cache, device, |batch, _| Ok(batch)).unwrap();
        let limits = Limits { sequences: MOST, rows: 64, chunk: 24, encoded: 64, spare: 64, encode: 1 << 20 };
        let mut scheduler = Scheduler::new(limits, PAGES, PAGE);
        for (index, &length) in lengths.iter().enumerate() {
            let tokens = (0..length).map(|row| (5 + 7 * row + 3 * index) as u32 % 90).collect();
            let key = Key::of(&[index as u8]);
            let sees = sees.is_some_and(|every| index % every == 0);
            let rows = 0..usize::from(!hears);
            let spans = memory.filter(|_| sees).map(|memory| Span { rows, grid: None, memory, key });
            let most = length + 3 + 2 * index;
            let mut sequence =
                Sequence::new(SeqId(index as u64), tokens, spans.into_iter().collect(), most, Arc::new([]));
            sequence.long_behind = task.positions().long;
            scheduler.submit(sequence);
        }
        let (mut forms, mut others) = (Vec::new(), 0);
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
                forms.push(form);
            } else {
                others += 1;
            }
            let best = logits.argmax(1).unwrap().to_vec1::<u32>().unwrap();
            let drawn: Vec<_> = best.into_iter().map(|id| Some(id % 90)).collect();
            scheduler.complete(&parts, drawn);
        }
        (forms, others)
    }

    /// Positions in planes, two lists of frequencies, and memories among them; tables of several widths, some of them wider
    /// than what is read.
    #[test]
    fn steps_in_their_recorded_form_give_the_same_logits() {
        for fixture in ["llava", "qwen2_5_vl", "phi3_v", "mllama"] {
            let (mut forms, others) = run(fixture, &[3, 5, 17, 8, 9, 30, 4, 6, 7, 12, 10], None);
            assert!(others > 0, "{fixture}: prompts have more rows");
            for sequences in [1, 2, 5, 7] {
                assert!(forms.iter().any(|form| form.rows == sequences), "{fixture} {sequences} {forms:?}");
            }
            assert!(forms.iter().any(|form| form.text.pages < 16), "{fixture} {forms:?}");
            forms = run(fixture, &[3, 70, 5, 17, 90, 150], None).0;
            assert!(forms.iter().any(|form| form.text.pages > 16), "{fixture} {forms:?}");
        }
        let (forms, _) = run("whisper", &[4, 3, 4, 4, 9, 4], Some(1));
        assert!(forms.iter().any(|form| form.rows == 6) && forms.iter().any(|form| form.rows == 1));
        assert!(forms.iter().all(|form| form.memory.is_some() && !form.seen), "{forms:?}");
    }

    /// All see a picture, some do, and none does.
    #[test]
    fn steps_of_which_some_see_pictures_give_the_same_logits() {
        for every in [1, 3] {
            let (forms, _) = run("mllama", &[3, 5, 17, 8, 9, 30, 4, 6], Some(every));
            let has = |sees, told| {
                let is = |form: &Form| form.memory.is_some() == sees && form.seen == told;
                forms.iter().filter(|form| is(form)).count()
            };
            assert_eq!((has(true, false) > 0, has(true, true) > 0), (every == 1, every > 1), "{forms:?}");
            assert!(every == 1 || has(false, false) > 0, "{every} {forms:?}");
        }
    }

    /// Every step of one row each that the engine could make has a form, which is no smaller than it.
    #[test]
    fn every_size_has_a_form() {
        for (all, kinds) in [(true, &[true][..]), (false, &[false, true])] {
            let memory = Some(MemoryScope { pages: 94, all });
            let scope = Scope { sequences: 256, pages: 300, memory, positions: Positions::default() };
            let forms = scope.forms();
            for (sequences, &sees) in (1..=256).flat_map(|count| kinds.iter().map(move |sees| (count, sees)))
            {
                for pages in [1, 15, 16, 17, 64, 65, 256, 257, 300] {
                    let form = scope.form(sequences, pages, sees);
                    assert!(forms.contains(&form), "{sequences} {pages}");
                    assert!(form.rows >= sequences && (pages..=300).contains(&form.text.pages));
                    assert!(form.rows <= sequences + 3.max(sequences / 4), "{sequences}: {form:?}");
                    assert!(form.rows <= forms[0].rows && forms[0].rows == 256);
                }
            }
            assert!(forms.len() <= 120 * kinds.len(), "{}", forms.len());
        }
    }
}
