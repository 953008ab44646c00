//! From a plan to tensors: the one upload of a step.

use candle_core::{Device, Result, Tensor};
use percept_models::{Batch, Insert, Pages, Paging, Ragged};

use super::{
    scheduler::{Plan, Scheduler},
    sequence::{SeqId, Sequence},
};

/// Builds batches.
#[derive(Debug)]
pub(super) struct Batcher {
    pub(super) device: Device,
    pub(super) page_size: usize,
    /// The id whose rows come from the encoder.
    pub(super) placeholder: u32,
}

impl Batcher {
    /// The tensors of `plan`. `encoded` gives the rows of a sequence's medium.
    ///
    /// # Errors
    /// When the device refuses the upload.
    pub(super) fn build(
        &self,
        plan: &Plan,
        scheduler: &Scheduler,
        encoded: impl Fn(SeqId, usize) -> Option<Tensor>,
    ) -> Result<Batch> {
        let mut tokens = Vec::new();
        let mut positions = Vec::new();
        let mut slots = Vec::new();
        let mut lengths = Vec::with_capacity(plan.parts.len());
        let mut visible = Vec::with_capacity(plan.parts.len());
        let mut tables = Vec::with_capacity(plan.parts.len());
        let mut last = Vec::with_capacity(plan.parts.len());
        let mut inserts = Vec::new();
        for &(id, rows) in &plan.parts {
            let Some(sequence) = scheduler.sequence(id) else { continue };
            let new = sequence.computed..sequence.computed + rows;
            self.insert(sequence, tokens.len(), rows, &encoded, &mut inserts)?;
            tokens.extend_from_slice(&sequence.tokens[new.clone()]);
            positions.extend(new.clone().map(|row| row as u32));
            slots.extend(new.clone().map(|row| self.slot(sequence, row)));
            lengths.push(rows);
            visible.push(new.end as u32);
            tables.push(&sequence.pages[..new.end.div_ceil(self.page_size)]);
            if new.end == sequence.tokens.len() {
                last.push(tokens.len() as u32 - 1);
            }
        }
        let widest = tables.iter().map(|pages| pages.len()).max().unwrap_or(0);
        let mut table = vec![0u32; tables.len() * widest];
        for (row, pages) in table.chunks_exact_mut(widest.max(1)).zip(&tables) {
            row[..pages.len()].copy_from_slice(pages);
        }
        let upload = |list: Vec<u32>| {
            let length = list.len();
            Tensor::from_vec(list, length, &self.device)
        };
        Ok(Batch {
            rows: Ragged::new(&lengths, &self.device)?,
            text: Paging {
                slots: upload(slots)?,
                pages: Pages {
                    table: Tensor::from_vec(table, (tables.len(), widest), &self.device)?,
                    lengths: upload(visible)?,
                },
            },
            tokens: upload(tokens)?,
            positions: upload(positions)?,
            inserts,
            last: upload(last)?,
        })
    }

    fn slot(&self, sequence: &Sequence, row: usize) -> u32 {
        sequence.pages[row / self.page_size] * self.page_size as u32 + (row % self.page_size) as u32
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
            if covered.is_empty() {
                continue;
            }
            let Some(source) = encoded(sequence.id, medium) else {
                candle_core::bail!("rows of a medium are computed before it is encoded")
            };
            let takes = |row: &usize| sequence.tokens[*row] == self.placeholder;
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
