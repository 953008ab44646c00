//! What alignment.cu gets.

use candle_core::{Result, bail};

use super::{Argument, Element, Launch, Rows, grid, int};
use Argument::{Address, F32};

/// Of alignment.cu.
const THREADS: usize = 256;
const ROWS: usize = 8;
/// What a block has without asking, for [`ROWS`] queries in f32.
const MOST_WIDTH: usize = (48 << 10) / (4 * ROWS);

/// Where a text looks in the frames of a window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Alignment {
    /// Rows of the text.
    pub rows: usize,
    /// Heads of a row, and of a key.
    pub heads: usize,
    /// Numbers of a head.
    pub width: usize,
    /// Heads that are looked at.
    pub chosen: usize,
    /// Frames.
    pub frames: usize,
    /// Keys of a page.
    pub page_size: usize,
    /// Pages of the cache.
    pub pages: usize,
}

impl Alignment {
    /// f32 elements that the launches work in.
    #[must_use]
    pub fn workspace(&self) -> usize {
        self.chosen * self.rows * self.frames
    }

    /// The launches, in order, to f32 `[rows, frames]`; none where that is empty or no head is looked at. Addresses are those
    /// of the output, [`Self::workspace`], the keys, the sequence's pages, and the heads that are looked at.
    ///
    /// # Errors
    /// When something is larger than a kernel takes.
    pub fn launches(
        &self,
        element: Element,
        q: Rows,
        scale: f32,
        [out, maps, k, pages, head_set]: [u64; 5],
    ) -> Result<Vec<Launch>> {
        let Self { rows, heads, width, chosen, frames, page_size, pages: page_count } = *self;
        if self.workspace() == 0 {
            return Ok(Vec::new());
        }
        if width > MOST_WIDTH {
            bail!(
                "alignment: heads of {width} numbers are more than the {MOST_WIDTH} that the CUDA kernel takes"
            )
        }
        let block = [THREADS as u32, 1, 1];
        let columns = frames.div_ceil(THREADS);
        let [rows_at, frames_at] = [int(rows, "rows")?, int(frames, "frames")?];
        let mapped = Launch {
            kernel: format!("alignment_map_{}", element.name()),
            grid: grid([rows.div_ceil(ROWS), chosen, 1])?,
            block,
            shared: (width * ROWS * 4) as u32,
            arguments: vec![
                Address(maps),
                Address(q.address),
                Address(k),
                Address(pages),
                Address(head_set),
                F32(scale),
                rows_at,
                int(q.stride, "stride")?,
                int(heads, "heads")?,
                int(width, "width")?,
                frames_at,
                int(page_size, "page of")?,
                int(page_count, "pages")?,
            ],
        };
        let standardised = Launch {
            kernel: "alignment_standardise".into(),
            grid: grid([columns, chosen, 1])?,
            block,
            shared: 0,
            arguments: vec![Address(maps), rows_at, frames_at],
        };
        let smoothed = Launch {
            kernel: "alignment_smooth".into(),
            grid: grid([columns, rows, 1])?,
            block,
            shared: 0,
            arguments: vec![Address(out), Address(maps), int(chosen, "heads")?, rows_at, frames_at],
        };
        Ok(vec![mapped, standardised, smoothed])
    }
}
