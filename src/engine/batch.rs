//! From a plan to tensors: the one upload of a step.

use std::ops::Range;

use candle_core::{Device, Result, Tensor};
use percept_models::{Batch, Insert, Pages, Paging, Positions, Ragged, Remembered, nn::sample::Drawing};

use super::{
    pages::Page,
    scheduler::Scheduler,
    sequence::{Memory, SeqId, Sequence},
};

/// Builds batches.
#[derive(Debug)]
pub(super) struct Batcher {
    pub(super) device: Device,
    pub(super) page_size: usize,
    /// The ids whose rows come from the encoder, for networks that take them into the text.
    pub(super) placeholders: Vec<u32>,
    /// How rows are numbered.
    pub(super) positions: Positions,
}

impl Batcher {
    /// The tensors of `parts`, as [`Self::gather`] says.
    ///
    /// # Errors
    /// When the device refuses the upload.
    pub(super) fn build(
        &self,
        parts: &[(SeqId, usize)],
        scheduler: &Scheduler,
        encoded: impl Fn(SeqId, usize) -> Option<Tensor>,
        extra: impl Fn(SeqId) -> Range<usize>,
    ) -> Result<Batch> {
        self.gather(parts, scheduler, encoded, extra)?.upload(&self.device)
    }

    /// The lists of `parts`. `encoded` gives the rows of a sequence's medium. Logits are wanted of the last row of each
    /// sequence that comes to its end, in order, and then of those new rows whose positions `extra` gives.
    ///
    /// # Errors
    /// When rows of a medium are computed before it is encoded.
    pub(super) fn gather<'a>(
        &self,
        parts: &[(SeqId, usize)],
        scheduler: &'a Scheduler,
        encoded: impl Fn(SeqId, usize) -> Option<Tensor>,
        extra: impl Fn(SeqId) -> Range<usize>,
    ) -> Result<Lists<'a>> {
        let mut lists = Lists {
            long: self.positions.long.map(|_| Vec::new()),
            planes: if self.positions.planes { 3 } else { 1 },
            ..Lists::default()
        };
        let mut sights = Vec::new();
        let mut others = Vec::new();
        for &(id, rows) in parts {
            let Some(sequence) = scheduler.sequence(id) else { continue };
            let new = sequence.computed..sequence.computed + rows;
            let first = lists.tokens.len();
            self.insert(sequence, first, rows, &encoded, &mut lists.inserts)?;
            lists.tokens.extend_from_slice(&sequence.tokens[new.clone()]);
            let position = |row| sequence.position(row).map(|position| position as u32);
            lists.positions.extend(new.clone().map(position));
            if let Some(long) = &mut lists.long {
                long.resize(long.len() + rows, u32::from(sequence.long));
            }
            lists.slots.extend(new.clone().map(|row| self.slot(&sequence.pages, row)));
            lists.text.add(rows, &sequence.pages[..new.end.div_ceil(self.page_size)], new.end);
            sights.extend(sequence.sights(new.clone()));
            if new.end == sequence.tokens.len() {
                lists.wanted.push(lists.tokens.len() as u32 - 1);
            }
            let extra = extra(id).filter(|row| new.contains(row));
            others.extend(extra.map(|row| (first + row - new.start) as u32));
        }
        lists.wanted.append(&mut others);
        if sights.iter().any(|(_, sight)| sight.is_some()) {
            let mut memory = Runs::default();
            let mut seen = Vec::new();
            for (count, sight) in sights {
                let (pages, length) = sight.map_or((&[][..], 0), |(memory, seen)| (&memory.pages[..], seen));
                memory.add(count, &pages[..length.div_ceil(self.page_size)], length);
                seen.extend(vec![u32::from(sight.is_some()); count]);
            }
            lists.memory = Some(memory);
            lists.seen = Some(seen).filter(|seen| seen.contains(&0));
        }
        Ok(lists)
    }

    /// The slots of rows of memories, u32 `[rows]`.
    ///
    /// # Errors
    /// When the device refuses the upload.
    pub(super) fn memory_slots<'a>(
        &self,
        places: impl Iterator<Item = (&'a Memory, Range<usize>)>,
    ) -> Result<Tensor> {
        let slots = places.flat_map(|(memory, rows)| rows.map(|row| self.slot(&memory.pages, row)));
        self.upload(slots.collect())
    }

    fn upload(&self, list: Vec<u32>) -> Result<Tensor> {
        let length = list.len();
        Tensor::from_vec(list, length, &self.device)
    }

    fn slot(&self, pages: &[Page], row: usize) -> u32 {
        pages[row / self.page_size] * self.page_size as u32 + (row % self.page_size) as u32
    }

    /// Runs of encoder rows among `rows` new rows of a sequence, whose first is row `at` of the batch.
    fn insert(
        &self,
        sequence: &Sequence,
        at: usize,
        rows: usize,
        encoded: &impl Fn(SeqId, usize) -> Option<Tensor>,
        inserts: &mut Vec<Insert>,
    ) -> Result<()> {
        let new = sequence.computed..sequence.computed + rows;
        for (medium, span) in sequence.media.iter().enumerate() {
            let covered = span.rows.start.max(new.start)..span.rows.end.min(new.end);
            if covered.is_empty() || span.memory > 0 {
                continue;
            }
            let Some(source) = encoded(sequence.id, medium) else {
                candle_core::bail!("rows of a medium are computed before it is encoded")
            };
            let takes = |row: &usize| self.placeholders.contains(&sequence.tokens[*row]);
            let mut from = (span.rows.start..covered.start).filter(takes).count();
            let mut row = covered.start;
            while row < covered.end {
                let run = (row..covered.end).take_while(takes).count();
                if run > 0 {
                    let rows = source.narrow(0, from, run)?;
                    inserts.push(Insert { at: at + row - new.start, rows });
                    from += run;
                }
                // Behind a run comes a row that keeps its own embedding, such as a line break of a picture.
                row += run.max(1);
            }
        }
        Ok(())
    }
}

/// The lists of a step, on the host.
#[derive(Default)]
pub(super) struct Lists<'a> {
    tokens: Vec<u32>,
    /// Of each row, in time, height and width; all the same where the network does not tell them apart.
    positions: Vec<[u32; 3]>,
    /// How many of them it is told.
    planes: usize,
    long: Option<Vec<u32>>,
    slots: Vec<u32>,
    text: Runs<'a>,
    wanted: Vec<u32>,
    /// What rows see besides the text.
    memory: Option<Runs<'a>>,
    /// 1 for rows that see a memory and 0 for the others; `None` where all do, or none.
    seen: Option<Vec<u32>>,
    inserts: Vec<Insert>,
    fed: Option<Fed<'a>>,
}

/// Sequences that differ in nothing but how many rows they have.
pub(super) struct Alike<'a> {
    /// Of each.
    pub(super) rows: Vec<usize>,
    /// Rows write the first so many slots of the cache, in turns.
    pub(super) slots: usize,
    /// The pages that each reads, and how many rows of them are visible.
    pub(super) text: (&'a [Page], usize),
    /// Those of what it sees besides.
    pub(super) memory: Option<(&'a [Page], usize)>,
    /// Whether it is told which of them see that: they all do.
    pub(super) some_see: bool,
    /// How rows are numbered.
    pub(super) positions: Positions,
}

/// Tokens that are still being drawn: each row's, and from which of the draws.
struct Fed<'a> {
    drawing: &'a Drawing,
    from: Vec<u32>,
}

/// Runs of rows, and the pages that those of a run read.
#[derive(Default)]
struct Runs<'a> {
    /// Of each run.
    rows: Vec<usize>,
    tables: Vec<&'a [Page]>,
    /// Rows that are visible.
    visible: Vec<u32>,
}

impl<'a> Runs<'a> {
    fn add(&mut self, rows: usize, table: &'a [Page], visible: usize) {
        self.rows.push(rows);
        self.tables.push(table);
        self.visible.push(visible as u32);
    }

    fn repeat_last(&mut self, count: usize) {
        repeat_last(&mut self.rows, count);
        repeat_last(&mut self.tables, count);
        repeat_last(&mut self.visible, count);
    }

    fn form(&self) -> RunsForm {
        let pages = self.tables.iter().map(|table| table.len()).max().unwrap_or(0);
        RunsForm { runs: self.rows.len(), pages }
    }

    /// Offsets, rows that are visible, and tables as wide as `form` has them.
    fn write(&self, form: RunsForm, words: &mut Vec<u32>) {
        words.push(0);
        let mut end = 0;
        words.extend(self.rows.iter().map(|&rows| {
            end += rows as u32;
            end
        }));
        words.extend(&self.visible);
        for table in &self.tables {
            words.extend(*table);
            words.resize(words.len() + form.pages - table.len(), 0);
        }
    }
}

fn repeat_last<T: Clone>(list: &mut Vec<T>, count: usize) {
    if let Some(last) = list.last().cloned() {
        list.resize(list.len() + count, last);
    }
}

impl<'a> Lists<'a> {
    /// The token of row `i` will be what is drawn from row `from[i]` of the step before.
    pub(super) fn feed(&mut self, drawing: &'a Drawing, from: Vec<u32>) {
        debug_assert_eq!(from.len(), self.tokens.len());
        self.fed = Some(Fed { drawing, from });
    }

    /// Puts those tokens where the step reads them: they are the first of its words.
    ///
    /// # Errors
    /// When the device refuses.
    pub(super) fn write_fed(&self, words: &Tensor) -> Result<()> {
        self.fed.as_ref().map_or(Ok(()), |fed| fed.drawing.feed(words, &fed.from))
    }

    /// Sequences without a token of their own, at their beginning.
    pub(super) fn alike(alike: Alike<'a>) -> Self {
        let Alike { rows, slots, text, memory, some_see, positions } = alike;
        let count = rows.iter().sum();
        let runs = |(table, visible): (&'a [Page], usize)| Runs {
            tables: vec![table; rows.len()],
            visible: vec![visible as u32; rows.len()],
            rows: rows.clone(),
        };
        let mut end = 0;
        let mut last = |rows: &usize| {
            end += *rows as u32;
            end - 1
        };
        Self {
            tokens: vec![0; count],
            positions: vec![[0; 3]; count],
            planes: if positions.planes { 3 } else { 1 },
            long: positions.long.map(|_| vec![0; count]),
            slots: (0..count as u32).map(|row| row % slots as u32).collect(),
            text: runs(text),
            wanted: rows.iter().map(&mut last).collect(),
            memory: memory.map(runs),
            seen: some_see.then(|| vec![1; count]),
            inserts: Vec::new(),
            fed: None,
        }
    }

    /// Wants the logits of all rows.
    pub(super) fn want_all(&mut self) {
        self.wanted = (0..self.tokens.len() as u32).collect();
    }

    /// Says of each row whether it sees a memory, where all do.
    pub(super) fn tell_who_sees(&mut self) {
        self.seen.get_or_insert_with(|| vec![1; self.tokens.len()]);
    }

    /// How long they are.
    pub(super) fn form(&self) -> Form {
        Form {
            rows: self.tokens.len(),
            planes: self.planes,
            long: self.long.is_some(),
            text: self.text.form(),
            wanted: self.wanted.len(),
            memory: self.memory.as_ref().map(Runs::form),
            seen: self.seen.is_some(),
        }
    }

    /// Whether each sequence has one row, of which logits are wanted.
    pub(super) fn are_of_one_row_each(&self) -> bool {
        let count = self.tokens.len();
        let one_each = |runs: &Runs<'_>| runs.rows.len() == count && runs.rows.iter().all(|&rows| rows == 1);
        count > 0
            && one_each(&self.text)
            && self.memory.as_ref().is_none_or(one_each)
            && self.inserts.is_empty()
            && self.wanted.iter().copied().eq(0..count as u32)
    }

    /// Repeats the last of sequences of one row until there are `count`: the copies do what it does, to the same places.
    pub(super) fn fill_up(&mut self, count: usize) {
        let more = count - self.tokens.len();
        repeat_last(&mut self.tokens, more);
        repeat_last(&mut self.positions, more);
        if let Some(long) = &mut self.long {
            repeat_last(long, more);
        }
        repeat_last(&mut self.slots, more);
        if let Some(seen) = &mut self.seen {
            repeat_last(seen, more);
        }
        self.text.repeat_last(more);
        self.wanted = (0..count as u32).collect();
        if let Some(memory) = &mut self.memory {
            memory.repeat_last(more);
        }
        if let Some(fed) = &mut self.fed {
            repeat_last(&mut fed.from, more);
        }
    }

    /// End to end, as [`Form::batch`] cuts them apart; tables are as wide as `form` has them.
    pub(super) fn words(&self, form: Form) -> Vec<u32> {
        let mut words = Vec::with_capacity(form.words());
        words.extend(&self.tokens);
        words.extend((0..self.planes).flat_map(|plane| self.positions.iter().map(move |row| row[plane])));
        words.extend(self.long.iter().flatten());
        words.extend(&self.slots);
        self.text.write(form.text, &mut words);
        words.extend(&self.wanted);
        if let (Some(memory), Some(form)) = (&self.memory, form.memory) {
            memory.write(form, &mut words);
        }
        words.extend(self.seen.iter().flatten());
        words
    }

    /// The tensors.
    ///
    /// # Errors
    /// When the device refuses the upload.
    pub(super) fn upload(self, device: &Device) -> Result<Batch> {
        let form = self.form();
        let words = Tensor::from_vec(self.words(form), form.words(), device)?;
        self.write_fed(&words)?;
        let mut batch =
            form.batch(&words, &self.text.rows, self.memory.as_ref().map(|runs| &runs.rows[..]))?;
        batch.inserts = self.inserts;
        Ok(batch)
    }
}

/// How long the lists of a step are. Steps of one form have each list in the same place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Form {
    /// Rows of all sequences.
    pub(super) rows: usize,
    /// Of positions.
    pub(super) planes: usize,
    /// Whether it is told which rows are of long sequences.
    pub(super) long: bool,
    /// Sequences.
    pub(super) text: RunsForm,
    /// Rows whose logits are wanted.
    pub(super) wanted: usize,
    /// Memories.
    pub(super) memory: Option<RunsForm>,
    /// Whether it is told which rows see one.
    pub(super) seen: bool,
}

/// How many runs there are, and how wide their tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct RunsForm {
    pub(super) runs: usize,
    pub(super) pages: usize,
}

impl RunsForm {
    fn words(self) -> usize {
        1 + self.runs * (2 + self.pages)
    }
}

impl Form {
    /// Numbers of all lists.
    pub(super) fn words(&self) -> usize {
        let per_row = 2 + self.planes + usize::from(self.long) + usize::from(self.seen);
        self.rows * per_row + self.text.words() + self.wanted + self.memory.map_or(0, RunsForm::words)
    }

    /// Views of `words`, without inserts; `rows` and `memory` have the rows of each run.
    ///
    /// # Errors
    /// When there are fewer words.
    pub(super) fn batch(&self, words: &Tensor, rows: &[usize], memory: Option<&[usize]>) -> Result<Batch> {
        let mut views = Views { words, at: 0 };
        let tokens = views.take(self.rows)?;
        let positions = views.take(self.planes * self.rows)?;
        let positions =
            if self.planes == 1 { positions } else { positions.reshape((self.planes, self.rows))? };
        let long = if self.long { Some(views.take(self.rows)?) } else { None };
        let slots = views.take(self.rows)?;
        let (rows, pages) = views.runs(self.text, rows)?;
        let last = views.take(self.wanted)?;
        let memory = match (self.memory, memory) {
            (Some(form), Some(rows)) => {
                let (rows, pages) = views.runs(form, rows)?;
                let seen =
                    if self.seen { Some(views.take(self.rows)?.reshape((self.rows, 1))?) } else { None };
                Some(Remembered { rows, pages, seen })
            }
            _ => None,
        };
        let text = Paging { slots, pages };
        Ok(Batch { tokens, positions, long, rows, text, memory, inserts: Vec::new(), last })
    }
}

/// Cuts lists apart.
struct Views<'a> {
    words: &'a Tensor,
    at: usize,
}

impl Views<'_> {
    fn take(&mut self, count: usize) -> Result<Tensor> {
        let view = self.words.narrow(0, self.at, count);
        self.at += count;
        view
    }

    fn runs(&mut self, RunsForm { runs, pages }: RunsForm, rows: &[usize]) -> Result<(Ragged, Pages)> {
        let offsets = self.take(runs + 1)?;
        let lengths = self.take(runs)?;
        let table = self.take(runs * pages)?.reshape((runs, pages))?;
        let longest = rows.iter().copied().max().unwrap_or(0);
        Ok((Ragged { offsets, longest, lengths: rows.into() }, Pages { table, lengths }))
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path, sync::Arc};

    use candle_core::{DType, Device, safetensors};
    use percept_models::{Grid, VideoInfo};
    use serde_json::Value;

    use super::super::{
        pages::Key,
        sequence::{SeqId, Sequence, Span},
    };

    /// Prompts with one picture, with two, and with text behind.
    #[test]
    fn rows_are_where_the_reference_has_them_in_time_height_and_width() {
        for model in ["qwen2_5_vl", "qwen2_vl"] {
            let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/goldens").join(model);
            let text = fs::read_to_string(folder.join("manifest.json")).unwrap();
            let manifest: Value = serde_json::from_str(&text).unwrap();
            let tensors = safetensors::load(folder.join("tensors.safetensors"), &Device::Cpu).unwrap();
            let numbers = |value: &Value| -> Vec<usize> { serde_json::from_value(value.clone()).unwrap() };
            let mut compared = 0;
            for case in manifest["cases"].as_array().unwrap() {
                let name = case["name"].as_str().unwrap();
                let Some(expected) = tensors.get(&format!("{name}/position_ids")) else { continue };
                let expected = expected.to_dtype(DType::U32).unwrap().to_vec2::<u32>().unwrap();
                let spans = case["image_spans"].as_array().unwrap().iter();
                let spans = spans.zip(case["image_grid_thw"].as_array().unwrap()).map(|(span, grid)| {
                    let (span, grid) = (numbers(span), numbers(grid));
                    let rows = span[0]..span[0] + span[1];
                    let grid = Some(Grid::first(grid[1] / 2, grid[2] / 2));
                    Span { rows, grid, memory: 0, key: Key::of(b"picture") }
                });
                let length = case["input_ids"].as_array().unwrap().len();
                let sequence =
                    Sequence::new(SeqId(0), vec![0; length], spans.collect(), length + 3, Arc::new([]));
                for row in 0..length {
                    let expected = [0, 1, 2].map(|plane| expected[plane][row] as usize);
                    assert_eq!(sequence.position(row), expected, "{model} {name} {row}");
                }
                let delta = case["rope_delta"].as_i64().unwrap();
                for row in length..length + 3 {
                    let expected = usize::try_from(row as i64 + delta).unwrap();
                    assert_eq!(sequence.position(row), [expected; 3], "{model} {name} {row}");
                }
                compared += sequence.media.len();
            }
            assert_eq!(compared, 9, "{model}");
        }
    }

    /// Moments of videos follow each other in time; what is behind them goes on from the largest position.
    #[test]
    fn moments_are_where_the_reference_has_them() {
        for (model, pace) in [("qwen2_5_vl", Some(2.0)), ("qwen2_vl", None)] {
            let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/goldens");
            let folder = folder.join(format!("{model}_video"));
            let text = fs::read_to_string(folder.join("manifest.json")).unwrap();
            let manifest: Value = serde_json::from_str(&text).unwrap();
            let tensors = safetensors::load(folder.join("tensors.safetensors"), &Device::Cpu).unwrap();
            let number = |value: &Value| value.as_u64().unwrap() as usize;
            for case in manifest["cases"].as_array().unwrap() {
                let name = case["name"].as_str().unwrap();
                let video = VideoInfo { placeholder: 487, frames: 2, pace };
                let ids: Vec<u32> = serde_json::from_value(case["input_ids"].clone()).unwrap();
                let mut videos = case["videos"].as_array().unwrap().iter();
                let mut spans = Vec::new();
                let mut row = 0;
                while row < ids.len() {
                    if ids[row] == 486 {
                        // The one picture of these cases.
                        let grid = Some(Grid::first(2, 3));
                        spans.push(Span { rows: row..row + 6, grid, memory: 0, key: Key::of(b"picture") });
                        row += 6;
                    } else if ids[row] == 487 {
                        let clip = videos.next().unwrap();
                        let [rows, columns] =
                            ["height", "width"].map(|edge| number(&clip[edge]).div_ceil(14) / 2);
                        let first = Grid::first(rows, columns);
                        for moment in 0..number(&clip["frames"]).div_ceil(2) {
                            let time = video.time(moment, clip["fps"].as_f64().unwrap());
                            let grid = if moment > 0 { first.later(time) } else { first };
                            let rows = row..row + rows * columns;
                            row = rows.end;
                            spans.push(Span { rows, grid: Some(grid), memory: 0, key: Key::of(b"moment") });
                        }
                    } else {
                        row += 1;
                    }
                }
                let expected = tensors[&format!("{name}/position_ids")].to_dtype(DType::U32).unwrap();
                let expected = expected.to_vec2::<u32>().unwrap();
                let sequence = Sequence::new(SeqId(0), ids.clone(), spans, ids.len() + 3, Arc::new([]));
                for row in 0..ids.len() {
                    let expected = [0, 1, 2].map(|plane| expected[plane][row] as usize);
                    assert_eq!(sequence.position(row), expected, "{model} {name} {row}");
                }
                let next = number(&case["next_position"]);
                assert_eq!(sequence.position(ids.len() + 2), [next + 2; 3], "{model} {name}");
            }
        }
    }
}
