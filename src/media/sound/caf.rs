//! CAF files whose sound has no size, or one that the file has not got.
//!
//! A recorder writes -1 and fills in the size at the end. The library that reads the rest wants a true one.

use std::io::{self, Read, Seek, SeekFrom};

use super::Section;

/// Bytes of the file's own header, and of a chunk's: its kind and its size.
const HEADER: u64 = 8;
const CHUNK: u64 = 12;
/// Chunks that are looked at.
const MOST_CHUNKS: usize = 1000;

/// Where the size of the sound is written, and the right one, if that is another.
pub(super) fn true_size(section: &mut Section) -> io::Result<Option<(u64, [u8; 8])>> {
    let mut at = HEADER;
    for _ in 0..MOST_CHUNKS {
        let mut chunk = [0; CHUNK as usize];
        section.seek(SeekFrom::Start(at))?;
        match section.read_exact(&mut chunk) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => break,
            read => read?,
        }
        let [kind @ .., a, b, c, d, e, f, g, h] = chunk;
        let size = i64::from_be_bytes([a, b, c, d, e, f, g, h]);
        let left = section.len().saturating_sub(at + CHUNK);
        if kind == *b"data" {
            let right = u64::try_from(size).is_ok_and(|size| size <= left);
            return Ok((!right).then(|| (at + 4, left.to_be_bytes())));
        }
        let Ok(size) = u64::try_from(size) else { break };
        at = at.saturating_add(CHUNK).saturating_add(size);
    }
    Ok(None)
}
