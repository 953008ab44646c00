//! What a Matroska file says of its first sound track: which it is, its codec, and how much its decoder gives too early.
//!
//! RFC 9559, and RFC 8794 for how it is written.

use std::{
    io::{self, Read, Seek, SeekFrom},
    ops::Range,
};

use super::{Section, codec, packets::Told};

const SEGMENT: u64 = 0x1853_8067;
const CLUSTER: u64 = 0x1f43_b675;
const TRACKS: u64 = 0x1654_ae6b;
const TRACK_ENTRY: u64 = 0xae;
const TRACK_NUMBER: u64 = 0xd7;
const TRACK_TYPE: u64 = 0x83;
const CODEC_ID: u64 = 0x86;
const CODEC_DELAY: u64 = 0x56aa;

const SOUND: u64 = 2;
/// Elements of one level that are looked at.
const MOST_ELEMENTS: usize = 10_000;

/// The first sound track, where there is one that can be told.
pub(super) fn first_sound(section: &mut Section) -> io::Result<Option<Told>> {
    let all = 0..section.len();
    let mut file = Elements { section };
    let Some(segment) = file.child(&all, SEGMENT)? else { return Ok(None) };
    let Some(tracks) = file.child(&segment, TRACKS)? else { return Ok(None) };
    for entry in file.children(&tracks, TRACK_ENTRY)? {
        if let Some(told) = file.track(&entry)? {
            return Ok(Some(told));
        }
    }
    Ok(None)
}

struct Elements<'a> {
    section: &'a mut Section,
}

impl Elements<'_> {
    fn bytes(&mut self, body: &Range<u64>, most: u64) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        self.section.seek(SeekFrom::Start(body.start))?;
        (&mut *self.section).take(most.min(body.end - body.start)).read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    /// The element that starts here: its id and its body. One of unknown size goes on to the end.
    fn element(&mut self, part: &Range<u64>) -> io::Result<Option<(u64, Range<u64>)>> {
        let header = self.bytes(part, 16)?;
        let Some((id, id_length)) = marked(&header) else { return Ok(None) };
        let Some((size, size_length)) = marked(&header[id_length..]) else { return Ok(None) };
        let bits = (1 << (7 * size_length)) - 1;
        let size = size & bits;
        let unknown = size == bits;
        let start = (part.start + (id_length + size_length) as u64).min(part.end);
        let end = if unknown { part.end } else { start.saturating_add(size).min(part.end) };
        Ok(Some((id, start..end)))
    }

    /// All children of a kind.
    fn children(&mut self, body: &Range<u64>, kind: u64) -> io::Result<Vec<Range<u64>>> {
        let mut found = Vec::new();
        let mut rest = body.clone();
        for _ in 0..MOST_ELEMENTS {
            let Some((id, body)) = self.element(&rest)? else { break };
            // Tracks come before the sound.
            if id == CLUSTER {
                break;
            }
            rest.start = body.end;
            if id == kind {
                found.push(body);
            }
        }
        Ok(found)
    }

    /// The first child of a kind.
    fn child(&mut self, body: &Range<u64>, kind: u64) -> io::Result<Option<Range<u64>>> {
        Ok(self.children(body, kind)?.into_iter().next())
    }

    fn unsigned(&mut self, entry: &Range<u64>, kind: u64) -> io::Result<Option<u64>> {
        let Some(body) = self.child(entry, kind)? else { return Ok(None) };
        Ok(Some(self.bytes(&body, 8)?.iter().fold(0, |value, byte| value << 8 | u64::from(*byte))))
    }

    /// What a track says, if it is one of sound.
    fn track(&mut self, entry: &Range<u64>) -> io::Result<Option<Told>> {
        if self.unsigned(entry, TRACK_TYPE)? != Some(SOUND) {
            return Ok(None);
        }
        let number = self.unsigned(entry, TRACK_NUMBER)?.and_then(|number| u32::try_from(number).ok());
        let Some(track) = number else { return Ok(None) };
        let id = match self.child(entry, CODEC_ID)? {
            Some(body) => String::from_utf8_lossy(&self.bytes(&body, 64)?).trim_end_matches('\0').to_owned(),
            None => String::new(),
        };
        let skip = self.unsigned(entry, CODEC_DELAY)?.map(|nanoseconds| nanoseconds as f64 / 1e9);
        Ok(Some(Told { track, codec: codec::of_mkv(&id), skip, ..Told::default() }))
    }
}

/// A number of variable length with the bits that say how long it is, as ids are written, and that length.
fn marked(bytes: &[u8]) -> Option<(u64, usize)> {
    let length = bytes.first()?.leading_zeros() as usize + 1;
    let value = bytes.get(..length)?.iter().fold(0, |value, byte| value << 8 | u64::from(*byte));
    (length <= 8).then_some((value, length))
}
