//! What a file is, told by its first bytes.

use std::io::{Read, Seek, SeekFrom};

use super::{SoundError, source::Section};

/// Bytes at the start that are looked at. A stream cut anywhere has its first whole frame within them.
const HEAD: u64 = 1 << 16;

/// Tags in front of a sound: more than a few are no music library's work.
const MOST_TAGS: usize = 16;

/// What wraps a sound.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Container {
    Wav,
    /// MPEG audio frames, layers 1 to 3.
    Mpeg,
    /// AAC frames.
    Adts,
    Flac,
    Ogg,
    Mkv,
    Mp4,
    Aiff,
    Caf,
}

/// A container, and where it starts: behind ID3 tags and pieces of frames.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) container: Container,
    pub(super) start: u64,
}

/// Tells what a file is.
pub(super) fn find(section: &mut Section) -> Result<Found, SoundError> {
    if section.len() == 0 {
        return Err(SoundError::Empty);
    }
    let mut start = 0;
    for _ in 0..MOST_TAGS {
        let head = head(section, start)?;
        match id3_bytes(&head) {
            Some(bytes) if start + bytes < section.len() => start += bytes,
            Some(_) => return Err(SoundError::broken("it ends within its title and pictures")),
            None => {
                let (container, offset) = tell(&head)?;
                return Ok(Found { container, start: start + offset });
            }
        }
    }
    Err(SoundError::NotSound)
}

fn head(section: &mut Section, start: u64) -> Result<Vec<u8>, SoundError> {
    section.seek(SeekFrom::Start(start))?;
    let mut head = Vec::new();
    section.take(HEAD).read_to_end(&mut head)?;
    Ok(head)
}

/// Bytes of an ID3v2 tag: <https://id3.org/id3v2.4.0-structure>.
fn id3_bytes(head: &[u8]) -> Option<u64> {
    let [_, _, flags, size @ ..] = head.strip_prefix(b"ID3")?.first_chunk::<7>()?;
    if size.iter().any(|byte| *byte > 0x7f) {
        return None;
    }
    let size = size.iter().fold(0, |size, byte| size << 7 | u64::from(*byte));
    let footer = if flags & 0x10 == 0 { 0 } else { 10 };
    Some(10 + size + footer)
}

/// The container that these bytes start, and how many bytes before it are something else.
fn tell(head: &[u8]) -> Result<(Container, u64), SoundError> {
    let at = |offset: usize, bytes: &[u8]| head.get(offset..).is_some_and(|rest| rest.starts_with(bytes));
    let container = if (at(0, b"RIFF") || at(0, b"RF64") || at(0, b"BW64")) && at(8, b"WAVE") {
        Container::Wav
    } else if at(0, b"fLaC") {
        Container::Flac
    } else if at(0, b"OggS") && at(28, b"Speex   ") {
        return Err(SoundError::codec("Speex"));
    } else if at(0, b"OggS") {
        Container::Ogg
    } else if at(0, &[0x1a, 0x45, 0xdf, 0xa3]) {
        Container::Mkv
    } else if at(4, b"ftyp") {
        Container::Mp4
    } else if at(0, b"FORM") && (at(8, b"AIFF") || at(8, b"AIFC")) {
        Container::Aiff
    } else if at(0, b"caff") {
        Container::Caf
    } else if let Some(codec) = known(head) {
        return Err(SoundError::codec(codec));
    } else {
        return frames(head).ok_or(SoundError::NotSound);
    };
    Ok((container, 0))
}

/// What is told by its first bytes and not read.
fn known(head: &[u8]) -> Option<&'static str> {
    let at = |offset: usize, bytes: &[u8]| head.get(offset..).is_some_and(|rest| rest.starts_with(bytes));
    let starts: [(&[u8], &str); 16] = [
        (b"#!AMR-WB", "AMR-WB"),
        (b"#!AMR", "AMR"),
        (b"#!SILK", "SILK"),
        (b"\x02#!SILK", "SILK"),
        (&[0x30, 0x26, 0xb2, 0x75, 0x8e, 0x66, 0xcf, 0x11], "WMA (ASF)"),
        (b"wvpk", "WavPack"),
        (b"MAC ", "Monkey's Audio"),
        (b"TTA1", "True Audio"),
        (b".snd", "Sun audio (au)"),
        (b".RMF", "RealMedia"),
        (b"FLV", "Flash video (flv)"),
        (b"MThd", "MIDI"),
        (&[0x00, 0x00, 0x01, 0xba], "an MPEG program stream"),
        (&[0x7f, 0xfe, 0x80, 0x01], "DTS"),
        (&[0x0b, 0x77], "AC-3"),
        (b"DSD ", "DSD"),
    ];
    if at(0, b"RIFF") && at(8, b"AVI ") {
        return Some("AVI");
    }
    if [0, 188, 376].iter().all(|offset| at(*offset, &[0x47])) {
        return Some("an MPEG transport stream");
    }
    starts.iter().find(|(bytes, _)| head.starts_with(bytes)).map(|(_, name)| *name)
}

/// Frames without a container: several in a row that agree, or one that is all there is.
fn frames(head: &[u8]) -> Option<(Container, u64)> {
    memchr::memchr_iter(0xff, head).find_map(|start| {
        let (container, length) = frame(&head[start..])?;
        let alone = start == 0 && length == head.len();
        // What looks like a frame is met in any file; four in a row are not.
        let row = if start == 0 { 2 } else { 4 };
        (alone || in_a_row(&head[start..], container) >= row).then_some((container, start as u64))
    })
}

fn in_a_row(mut bytes: &[u8], container: Container) -> usize {
    let mut count = 0;
    while let Some((_, length)) = frame(bytes).filter(|(found, _)| *found == container && count < 4) {
        count += 1;
        bytes = bytes.get(length..).unwrap_or_default();
    }
    count
}

/// The kind and the length of the frame that starts here.
fn frame(bytes: &[u8]) -> Option<(Container, usize)> {
    let &[0xff, second, third, fourth, fifth, sixth] = bytes.first_chunk::<6>()? else { return None };
    if second & 0xf6 == 0xf0 {
        let length = usize::from(fourth & 3) << 11 | usize::from(fifth) << 3 | usize::from(sixth >> 5);
        let rate = third >> 2 & 0xf;
        return (rate < 13 && length > 7).then_some((Container::Adts, length));
    }
    (second & 0xe0 == 0xe0)
        .then(|| mpeg_length(second, third))
        .flatten()
        .map(|length| (Container::Mpeg, length))
}

/// Bytes of an MPEG audio frame: ISO 11172-3, 2.4.2.3, and ISO 13818-3 for the lower rates.
fn mpeg_length(second: u8, third: u8) -> Option<usize> {
    const KBITS: [[usize; 14]; 5] = [
        [32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448],
        [32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384],
        [32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320],
        [32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256],
        [8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160],
    ];
    let (version, layer) = (second >> 3 & 3, 4 - (second >> 1 & 3));
    let halvings = match version {
        3 => 0,
        2 => 1,
        0 => 2,
        _ => return None,
    };
    let table = match (halvings, layer) {
        (_, 4) => return None,
        (0, layer) => usize::from(layer) - 1,
        (_, 1) => 3,
        _ => 4,
    };
    let kbits = KBITS[table].get(usize::from(third >> 4).checked_sub(1)?)?;
    let rate = [44_100, 48_000, 32_000].get(usize::from(third >> 2 & 3))? >> halvings;
    let padding = usize::from(third >> 1 & 1);
    let bits = kbits * 1000;
    Some(match layer {
        1 => (12 * bits / rate + padding) * 4,
        3 if halvings > 0 => 72 * bits / rate + padding,
        _ => 144 * bits / rate + padding,
    })
}
