//! Read-only file mappings for weights.

use std::{fs::File, io, path::Path};

pub use memmap2::Mmap;

/// Maps a whole file for reading.
///
/// The file must not be truncated or rewritten while the mapping lives: its pages would change or fault. This
/// holds for checkpoints, which programs replace by renaming and never edit in place.
///
/// # Errors
/// When the file cannot be opened or mapped.
pub fn map_file(path: &Path) -> io::Result<Mmap> {
    let file = File::open(path)?;
    // SAFETY: the mapping is read-only and private to this process, and the contract above (stated to operators
    // in the documentation of `serve`) keeps the bytes unchanged for its lifetime.
    unsafe { Mmap::map(&file) }
}
