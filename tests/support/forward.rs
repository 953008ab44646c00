//! A network run by hand, without an engine.

use candle_core::{Device, Tensor};
use percept_models::{Batch, Insert, KvCache, Loaded, Pages, Paging, Ragged};

const PAGE: usize = 16;

/// Logits of every row of one sequence, computed in one step.
pub fn logits(loaded: &Loaded, tokens: &[u32], inserts: Vec<Insert>) -> Tensor {
    let device = &Device::Cpu;
    let rows = tokens.len();
    let positions = Tensor::arange(0u32, rows as u32, device).unwrap();
    let planes = loaded.task.positions().planes;
    let batch = Batch {
        tokens: Tensor::from_slice(tokens, rows, device).unwrap(),
        positions: if planes { positions.broadcast_as((3, rows)).unwrap() } else { positions.clone() },
        long: None,
        rows: Ragged::new(&[rows], device).unwrap(),
        memory: None,
        inserts,
        text: pages(rows),
        last: positions,
    };
    let shape = loaded.model.cache_shape();
    let cache = KvCache::new(shape, rows.div_ceil(PAGE) + 1, PAGE, loaded.dtype, device).unwrap();
    loaded.model.forward(&batch, &cache).unwrap()
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
