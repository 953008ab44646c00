//! WAV: RIFF, and RF64 for more than 4 GiB.
//!
//! Read here and not by the library that reads other containers, because recorders and pipes leave sizes unknown, some
//! write headers of odd lengths, and telephone systems write more of both than anyone else. What is not PCM or G.711 is
//! left to that library.

use std::{
    io::{self, BufReader, Read},
    ops::Range,
};

use super::{Block, Decoder, MOST_CHANNELS, RATES, SoundError, codec};

/// Frames of a block.
const FRAMES: usize = 4096;
/// Bytes of a format that matter; some writers add more.
const FORMAT: u64 = 40;
/// A size that was not known when the header was written.
const UNKNOWN: u64 = u32::MAX as u64;

const PCM: u16 = 0x0001;
const MS_ADPCM: u16 = 0x0002;
const FLOAT: u16 = 0x0003;
const A_LAW: u16 = 0x0006;
const MU_LAW: u16 = 0x0007;
const IMA_ADPCM: u16 = 0x0011;
const MPEG: u16 = 0x0050;
const MP3: u16 = 0x0055;
const EXTENSIBLE: u16 = 0xfffe;

/// A file whose header was read.
pub(super) enum Opened<R> {
    Pcm(Wav<R>),
    /// MPEG audio frames, and where they are.
    Mpeg(Range<u64>),
    Adpcm,
}

/// Samples that follow each other as they are.
pub(super) struct Wav<R> {
    data: io::Take<BufReader<R>>,
    form: Form,
    rate: u32,
    channels: usize,
    total: Option<f64>,
    bytes: Vec<u8>,
}

/// How a sample is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    U8,
    I16,
    I24,
    I32,
    F32,
    F64,
    MuLaw,
    ALaw,
}

impl Form {
    fn new(tag: u16, bits: u16) -> Option<Self> {
        Some(match (tag, bits.div_ceil(8)) {
            (PCM, 1) => Self::U8,
            (PCM, 2) => Self::I16,
            (PCM, 3) => Self::I24,
            (PCM, 4) => Self::I32,
            (FLOAT, 4) => Self::F32,
            (FLOAT, 8) => Self::F64,
            (MU_LAW, _) => Self::MuLaw,
            (A_LAW, _) => Self::ALaw,
            _ => return None,
        })
    }

    fn bytes(self) -> usize {
        match self {
            Self::U8 | Self::MuLaw | Self::ALaw => 1,
            Self::I16 => 2,
            Self::I24 => 3,
            Self::I32 | Self::F32 => 4,
            Self::F64 => 8,
        }
    }

    /// The sample at the start of these bytes, in `[-1, 1)` where it is no float.
    fn sample(self, bytes: &[u8]) -> f32 {
        match *bytes {
            [a] if self == Self::MuLaw => f32::from(mu_law(a)) / 32768.0,
            [a] if self == Self::ALaw => f32::from(a_law(a)) / 32768.0,
            [a] => (f32::from(a) - 128.0) / 128.0,
            [a, b] => f32::from(i16::from_le_bytes([a, b])) / 32768.0,
            [a, b, c] => i32::from_le_bytes([0, a, b, c]) as f32 / 2_147_483_648.0,
            [a, b, c, d] if self == Self::F32 => f32::from_le_bytes([a, b, c, d]),
            [a, b, c, d] => i32::from_le_bytes([a, b, c, d]) as f32 / 2_147_483_648.0,
            [a, b, c, d, e, f, g, h] => f64::from_le_bytes([a, b, c, d, e, f, g, h]) as f32,
            _ => 0.0,
        }
    }
}

/// The format that a file states.
struct Format {
    tag: u16,
    channels: u16,
    rate: u32,
    bits: u16,
}

/// Reads the header of a file.
pub(super) fn open<R: Read>(reader: R) -> Result<Opened<R>, SoundError> {
    let mut reader = Counted { reader: BufReader::new(reader), at: 0 };
    reader.array::<12>()?;
    let mut format = None;
    let mut size_64 = None;
    loop {
        let header = reader.array::<8>()?;
        let size = u64::from(u32::from_le_bytes([header[4], header[5], header[6], header[7]]));
        match &header[..4] {
            b"fmt " => format = Some(read_format(&mut reader, size)?),
            b"ds64" => size_64 = Some(read_sizes(&mut reader, size)?),
            b"data" => {
                let format = format.ok_or_else(|| SoundError::broken("it does not say how it is encoded"))?;
                let size = size_64.filter(|_| size == UNKNOWN).unwrap_or(size);
                // Nobody writes a header and no sound: it was to be filled in at the end.
                let size = if size == 0 || size == UNKNOWN { u64::MAX } else { size };
                return format.open(reader, size);
            }
            _ => reader.skip(size.next_multiple_of(2))?,
        }
    }
}

fn read_format<R: Read>(reader: &mut Counted<R>, size: u64) -> Result<Format, SoundError> {
    let mut bytes = vec![0; size.min(FORMAT) as usize];
    reader.exact(&mut bytes)?;
    reader.skip(size.next_multiple_of(2) - bytes.len() as u64)?;
    let number = |at: usize| bytes.get(at..at + 2).map(|pair| u16::from_le_bytes([pair[0], pair[1]]));
    let (Some(tag), Some(channels), Some(low), Some(high)) = (number(0), number(2), number(4), number(6))
    else {
        return Err(SoundError::broken("its format is too short"));
    };
    // The first two bytes of the identifier of a format are the tag that it replaces.
    let tag = if tag == EXTENSIBLE { number(24).unwrap_or(tag) } else { tag };
    let rate = u32::from(high) << 16 | u32::from(low);
    Ok(Format { tag, channels, rate, bits: number(14).unwrap_or_default() })
}

/// The size of the data of more than 4 GiB.
fn read_sizes<R: Read>(reader: &mut Counted<R>, size: u64) -> Result<u64, SoundError> {
    let sizes = reader.array::<16>()?;
    reader.skip(size.next_multiple_of(2).saturating_sub(16))?;
    Ok(sizes[8..].iter().rev().fold(0, |size, byte| size << 8 | u64::from(*byte)))
}

impl Format {
    fn open<R: Read>(&self, reader: Counted<R>, size: u64) -> Result<Opened<R>, SoundError> {
        match self.tag {
            MPEG | MP3 => return Ok(Opened::Mpeg(reader.at..reader.at.saturating_add(size))),
            MS_ADPCM | IMA_ADPCM => return Ok(Opened::Adpcm),
            _ => {}
        }
        let channels = usize::from(self.channels);
        if channels == 0 {
            return Err(SoundError::broken("it has no channels"));
        }
        if channels > MOST_CHANNELS {
            return Err(SoundError::Channels { found: channels, limit: MOST_CHANNELS });
        }
        if !RATES.contains(&self.rate) {
            return Err(SoundError::broken(format!("it has {} samples per second", self.rate)));
        }
        let form = Form::new(self.tag, self.bits)
            .ok_or_else(|| SoundError::codec(codec::of_wav(self.tag, self.bits)))?;
        let frame = form.bytes() * channels;
        let total = (size != u64::MAX).then(|| size as f64 / frame as f64 / f64::from(self.rate));
        let data = reader.reader.take(size);
        Ok(Opened::Pcm(Wav { data, form, rate: self.rate, channels, total, bytes: vec![0; FRAMES * frame] }))
    }
}

impl<R: Read> Decoder for Wav<R> {
    fn next(&mut self, block: &mut Block) -> Result<bool, SoundError> {
        let filled = fill(&mut self.data, &mut self.bytes)?;
        let size = self.form.bytes();
        // A last frame that is cut is left out.
        let frames = filled / (size * self.channels);
        block.rate = self.rate;
        block.channels.resize_with(self.channels, Vec::new);
        for (channel, samples) in block.channels.iter_mut().enumerate() {
            let starts = (0..frames).map(|frame| (frame * self.channels + channel) * size);
            samples.clear();
            samples.extend(starts.map(|start| self.form.sample(&self.bytes[start..start + size])));
        }
        Ok(frames > 0)
    }

    fn total(&self) -> Option<f64> {
        self.total
    }
}

/// Reads until a buffer is full or there is no more.
fn fill(reader: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match reader.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

/// A reader of headers that knows where it is.
struct Counted<R> {
    reader: BufReader<R>,
    at: u64,
}

impl<R: Read> Counted<R> {
    fn exact(&mut self, buffer: &mut [u8]) -> Result<(), SoundError> {
        let read = fill(&mut self.reader, buffer)?;
        self.at += read as u64;
        if read < buffer.len() { Err(cut()) } else { Ok(()) }
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], SoundError> {
        let mut bytes = [0; N];
        self.exact(&mut bytes)?;
        Ok(bytes)
    }

    fn skip(&mut self, count: u64) -> Result<(), SoundError> {
        let skipped = io::copy(&mut self.reader.by_ref().take(count), &mut io::sink())?;
        self.at += skipped;
        if skipped < count { Err(cut()) } else { Ok(()) }
    }
}

fn cut() -> SoundError {
    SoundError::broken("it ends before its first sample")
}

/// ITU-T G.711, µ-law.
pub(super) fn mu_law(byte: u8) -> i16 {
    let byte = !byte;
    let level = ((i16::from(byte & 0xf) << 3) + 0x84) << (byte >> 4 & 7);
    if byte & 0x80 == 0 { level - 0x84 } else { 0x84 - level }
}

/// ITU-T G.711, A-law.
pub(super) fn a_law(byte: u8) -> i16 {
    let byte = byte ^ 0x55;
    let level = i16::from(byte & 0xf) << 4;
    let level = match byte >> 4 & 7 {
        0 => level + 8,
        segment => (level + 0x108) << (segment - 1),
    };
    if byte & 0x80 == 0 { -level } else { level }
}
