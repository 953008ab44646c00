//! The border between the engine and a network: everything that one step needs.

use candle_core::Tensor;
pub use percept_kernels::{Pages, Ragged};

/// New rows of every scheduled sequence, end to end. Built whole, never patched.
#[derive(Debug)]
pub struct Batch {
    /// u32 `[rows]`: token ids.
    pub tokens: Tensor,
    /// u32 `[rows]`: position of each row in its sequence; `[3, rows]` where [positions](crate::Positions) have planes.
    pub positions: Tensor,
    /// u32 `[rows]`: 1 for rows of long sequences, 0 for others, where positions tell them apart.
    pub long: Option<Tensor>,
    /// Which rows belong to which sequence.
    pub rows: Ragged,
    /// Where keys and values of the text are.
    pub text: Paging,
    /// What rows attend to besides their text; `None` where no row does.
    pub memory: Option<Remembered>,
    /// Encoder rows that replace embedded placeholders.
    pub inserts: Vec<Insert>,
    /// u32 `[wanted]`: rows whose logits are wanted.
    pub last: Tensor,
}

/// Slots to write and pages to read.
#[derive(Debug)]
pub struct Paging {
    /// u32 `[rows]`: the cache slot of each new row.
    pub slots: Tensor,
    /// The pages of each sequence, the new rows included.
    pub pages: Pages,
}

/// Memories of the batch's rows: what was encoded before the text, whose keys and values lie in pages of the cache.
#[derive(Debug)]
pub struct Remembered {
    /// Runs of rows that see the same.
    pub rows: Ragged,
    /// The pages of each run and how many rows of them it sees, which may be none.
    pub pages: Pages,
    /// u32 `[rows, 1]`: 1 for rows that see something and 0 for the others; `None` where all do.
    pub seen: Option<Tensor>,
}

/// A run of encoder rows and the place it takes.
#[derive(Debug)]
pub struct Insert {
    /// First row of the batch.
    pub at: usize,
    /// `[n, width]`.
    pub rows: Tensor,
}
