//! A network run by hand, without an engine.

use candle_core::{Device, Tensor};
use percept_models::{Batch, Insert, KvCache, Loaded, Pages, Paging, Ragged};

pub const PAGE: usize = 16;

/// Logits of every row of one sequence, computed in one step.
pub fn logits(loaded: &Loaded, tokens: &[u32], inserts: Vec<Insert>) -> Tensor {
    let cache = cache(loaded, tokens.len().div_ceil(PAGE) + 1);
    loaded.model.forward(&batch(loaded, tokens, inserts), &cache).unwrap()
}

/// A cache of so many pages.
pub fn cache(loaded: &Loaded, pages: usize) -> KvCache {
    KvCache::new(loaded.model.cache_shape(), pages, PAGE, loaded.dtype, &Device::Cpu).unwrap()
}

/// All rows of one sequence, in a line, short and without a memory, all of whose logits are wanted.
pub fn batch(loaded: &Loaded, tokens: &[u32], inserts: Vec<Insert>) -> Batch {
    let device = &Device::Cpu;
    let rows = tokens.len();
    let positions = Tensor::arange(0u32, rows as u32, device).unwrap();
    let planes = loaded.task.positions().planes;
    Batch {
        tokens: Tensor::from_slice(tokens, rows, device).unwrap(),
        positions: if planes { Tensor::stack(&[&positions; 3], 0).unwrap() } else { positions.clone() },
        long: None,
        rows: Ragged::new(&[rows], device).unwrap(),
        memory: None,
        inserts,
        text: pages(rows),
        last: positions,
    }
}

/// Pages in falling order, so that a mistake in their use shows.
fn pages(rows: usize) -> Paging {
    let device = &Device::Cpu;
    let pages = rows.div_ceil(PAGE);
    let table: Vec<u32> = (0..pages as u32).rev().collect();
    let slots: Vec<u32> =
        (0..rows).map(|row| table[row / PAGE] * PAGE as u32 + (row % PAGE) as u32).collect();
    Paging {
        slots: Tensor::from_vec(slots, rows, device).unwrap(),
        pages: Pages {
            table: Tensor::from_vec(table, (1, pages), device).unwrap(),
            lengths: Tensor::new(&[rows as u32], device).unwrap(),
        },
    }
}
