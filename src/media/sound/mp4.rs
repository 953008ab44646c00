//! What an MP4 file says of its first sound track: which it is, its codec and its edit list.
//!
//! Encoders begin with some hundred samples of their own making; the edit list says how many. ISO 14496-12.

use std::{
    io::{self, Read, Seek, SeekFrom},
    ops::Range,
};

use super::{Section, codec, packets::Told};

/// Boxes of one level that are looked at.
const MOST_BOXES: usize = 10_000;

/// The first sound track, where there is one that can be told.
pub(super) fn first_sound(section: &mut Section) -> io::Result<Option<Told>> {
    let all = 0..section.len();
    let mut file = Boxes { section, claimed: all.end };
    let Some(moov) = file.child(&all, b"moov")? else { return Ok(None) };
    let scale = match file.child(&moov, b"mvhd")? {
        Some(header) => file.time_scale(&header)?,
        None => None,
    };
    for track in file.children(&moov)? {
        if track.kind == *b"trak"
            && let Some(told) = file.track(&track.body, scale)?
        {
            return Ok(Some(Told { length: file.claimed, ..told }));
        }
    }
    Ok(None)
}

struct Box {
    kind: [u8; 4],
    body: Range<u64>,
}

struct Boxes<'a> {
    section: &'a mut Section,
    /// Where the file ends by what its boxes say.
    claimed: u64,
}

impl Boxes<'_> {
    /// Up to `most` bytes from the start of a box.
    fn bytes(&mut self, body: &Range<u64>, most: u64) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        self.section.seek(SeekFrom::Start(body.start))?;
        (&mut *self.section).take(most.min(body.end - body.start)).read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    fn children(&mut self, body: &Range<u64>) -> io::Result<Vec<Box>> {
        let mut children = Vec::new();
        let mut at = body.start;
        while children.len() < MOST_BOXES {
            let header = self.bytes(&(at..body.end.max(at)), 16)?;
            let (Some(size), Some(kind)) = (u32_at(&header, 0), header.get(4..8)) else { break };
            let (size, start) = match size {
                0 => (body.end - at, 8),
                1 => (u64_at(&header, 8).unwrap_or(0), 16),
                size => (u64::from(size), 8),
            };
            if size < start {
                break;
            }
            let end = at.saturating_add(size);
            self.claimed = self.claimed.max(end);
            let end = end.min(body.end);
            children
                .push(Box { kind: [kind[0], kind[1], kind[2], kind[3]], body: (at + start).min(end)..end });
            at = end;
        }
        Ok(children)
    }

    fn child(&mut self, body: &Range<u64>, kind: &[u8; 4]) -> io::Result<Option<Range<u64>>> {
        Ok(self.children(body)?.into_iter().find(|child| child.kind == *kind).map(|child| child.body))
    }

    fn descendant(&mut self, body: &Range<u64>, path: &[&[u8; 4]]) -> io::Result<Option<Range<u64>>> {
        let mut body = body.clone();
        for kind in path {
            match self.child(&body, kind)? {
                Some(child) => body = child,
                None => return Ok(None),
            }
        }
        Ok(Some(body))
    }

    /// Units per second, of `mvhd` or `mdhd`.
    fn time_scale(&mut self, header: &Range<u64>) -> io::Result<Option<f64>> {
        let bytes = self.bytes(header, 24)?;
        let at = if bytes.first() == Some(&1) { 20 } else { 12 };
        Ok(u32_at(&bytes, at).filter(|scale| *scale > 0).map(f64::from))
    }

    /// What a track says, if it is one of sound.
    fn track(&mut self, track: &Range<u64>, movie_scale: Option<f64>) -> io::Result<Option<Told>> {
        let Some(handler) = self.descendant(track, &[b"mdia", b"hdlr"])? else { return Ok(None) };
        if self.bytes(&handler, 12)?.get(8..12) != Some(b"soun") {
            return Ok(None);
        }
        let Some(id) = self.id(track)? else { return Ok(None) };
        let entry = match self.descendant(track, &[b"mdia", b"minf", b"stbl", b"stsd"])? {
            Some(descriptions) => self.bytes(&descriptions, 16)?,
            None => Vec::new(),
        };
        let entry = entry.get(12..16).and_then(|kind| kind.try_into().ok()).unwrap_or(*b"????");
        let mut told = Told { track: id, codec: codec::of_mp4(entry), ..Told::default() };
        let scale = match self.descendant(track, &[b"mdia", b"mdhd"])? {
            Some(header) => self.time_scale(&header)?,
            None => None,
        };
        if let Some(list) = self.descendant(track, &[b"edts", b"elst"])?
            && let Some((skip, keep)) = self.edit(&list)?
        {
            told.skip = scale.map(|scale| skip as f64 / scale);
            told.keep = keep.and_then(|keep| movie_scale.map(|scale| keep as f64 / scale));
        }
        Ok(Some(told))
    }

    fn id(&mut self, track: &Range<u64>) -> io::Result<Option<u32>> {
        let Some(header) = self.child(track, b"tkhd")? else { return Ok(None) };
        let bytes = self.bytes(&header, 24)?;
        Ok(u32_at(&bytes, if bytes.first() == Some(&1) { 20 } else { 12 }))
    }

    /// The first edit that shows something: where it starts, in the media's units, and how long it is, in the movie's,
    /// unless others follow.
    fn edit(&mut self, list: &Range<u64>) -> io::Result<Option<(u64, Option<u64>)>> {
        const MOST: u64 = 8 + 20 * 16;
        let bytes = self.bytes(list, MOST)?;
        let long = bytes.first() == Some(&1);
        let length = if long { 20 } else { 12 };
        let edits: Vec<(u64, u64)> = bytes
            .get(8..)
            .unwrap_or_default()
            .chunks_exact(length)
            .take(u32_at(&bytes, 4).unwrap_or(0) as usize)
            .filter_map(|edit| {
                let wide = |at| if long { u64_at(edit, 2 * at) } else { u32_at(edit, at).map(u64::from) };
                // All ones: nothing is shown for a while.
                let empty = if long { u64::MAX } else { u64::from(u32::MAX) };
                Some((wide(4)?, wide(0)?)).filter(|(start, _)| *start != empty)
            })
            .collect();
        let only = edits.len() == 1;
        Ok(edits.first().map(|&(start, length)| (start, Some(length).filter(|length| only && *length > 0))))
    }
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|bytes| u32::from_be_bytes(*bytes))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    bytes.get(at..)?.first_chunk().map(|bytes| u64::from_be_bytes(*bytes))
}
