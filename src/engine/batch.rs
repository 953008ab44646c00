//! From a plan to tensors: the one upload of a step.

use std::ops::Range;

use candle_core::{Device, Result, Tensor};
use percept_models::{Batch, Insert, Pages, Paging, Positions, Ragged, Remembered};

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
    /// The tensors of `parts`. `encoded` gives the rows of a sequence's medium. Logits are wanted of the last row of each
    /// sequence that comes to its end, in order, and then of those new rows whose positions `extra` gives.
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
        let mut tokens = Vec::new();
        let mut positions = Vec::new();
        let mut long = Vec::new();
        let mut slots = Vec::new();
        let mut lengths = Vec::with_capacity(parts.len());
        let mut visible = Vec::with_capacity(parts.len());
        let mut tables = Vec::with_capacity(parts.len());
        let mut sights = Vec::new();
        let mut last = Vec::with_capacity(parts.len());
        let mut others = Vec::new();
        let mut inserts = Vec::new();
        for &(id, rows) in parts {
            let Some(sequence) = scheduler.sequence(id) else { continue };
            let new = sequence.computed..sequence.computed + rows;
            let first = tokens.len();
            self.insert(sequence, first, rows, &encoded, &mut inserts)?;
            tokens.extend_from_slice(&sequence.tokens[new.clone()]);
            positions.extend(new.clone().map(|row| sequence.position(row).map(|position| position as u32)));
            long.resize(long.len() + rows, u32::from(sequence.long));
            slots.extend(new.clone().map(|row| self.slot(&sequence.pages, row)));
            lengths.push(rows);
            visible.push(new.end as u32);
            tables.push(&sequence.pages[..new.end.div_ceil(self.page_size)]);
            sights.extend(sequence.sights(new.clone()));
            if new.end == sequence.tokens.len() {
                last.push(tokens.len() as u32 - 1);
            }
            let extra = extra(id).filter(|row| new.contains(row));
            others.extend(extra.map(|row| (first + row - new.start) as u32));
        }
        last.append(&mut others);
        Ok(Batch {
            rows: Ragged::new(&lengths, &self.device)?,
            text: Paging { slots: self.upload(slots)?, pages: self.pages(&tables, visible)? },
            memory: self.remembered(&sights)?,
            tokens: self.upload(tokens)?,
            positions: self.positions(&positions)?,
            long: self.positions.long.map(|_| self.upload(long)).transpose()?,
            inserts,
            last: self.upload(last)?,
        })
    }

    /// What runs of rows see besides the text: how many rows each has, the memory, and the rows of it.
    fn remembered(&self, sights: &[(usize, Option<(&Memory, usize)>)]) -> Result<Option<Remembered>> {
        if sights.iter().all(|(_, sight)| sight.is_none()) {
            return Ok(None);
        }
        let (mut rows, mut tables, mut lengths) = (Vec::new(), Vec::new(), Vec::new());
        let mut seen = Vec::new();
        for &(count, sight) in sights {
            let (pages, length) = sight.map_or((&[][..], 0), |(memory, seen)| (&memory.pages[..], seen));
            rows.push(count);
            tables.push(&pages[..length.div_ceil(self.page_size)]);
            lengths.push(length as u32);
            seen.extend(vec![f32::from(u8::from(sight.is_some())); count]);
        }
        let some_see_nothing = sights.iter().any(|(_, sight)| sight.is_none());
        let upload = |seen: Vec<f32>| {
            let rows = seen.len();
            Tensor::from_vec(seen, (rows, 1), &self.device)
        };
        Ok(Some(Remembered {
            rows: Ragged::new(&rows, &self.device)?,
            pages: self.pages(&tables, lengths)?,
            seen: some_see_nothing.then(|| upload(seen)).transpose()?,
        }))
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

    fn pages(&self, tables: &[&[Page]], lengths: Vec<u32>) -> Result<Pages> {
        let widest = tables.iter().map(|pages| pages.len()).max().unwrap_or(0);
        let mut table = vec![0u32; tables.len() * widest];
        for (row, pages) in table.chunks_exact_mut(widest.max(1)).zip(tables) {
            row[..pages.len()].copy_from_slice(pages);
        }
        let table = Tensor::from_vec(table, (tables.len(), widest), &self.device)?;
        Ok(Pages { table, lengths: self.upload(lengths)? })
    }

    /// Of each row, in time, height and width; all the same where the network does not tell them apart.
    fn positions(&self, rows: &[[u32; 3]]) -> Result<Tensor> {
        let plane = |plane: usize| rows.iter().map(move |row| row[plane]);
        if self.positions.planes {
            let planes = (0..3).flat_map(plane).collect();
            return Tensor::from_vec(planes, (3, rows.len()), &self.device);
        }
        self.upload(plane(0).collect())
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
