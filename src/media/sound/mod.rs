//! Sound files to what a network hears: 16 kHz, 16 bits.
//!
//! Blocks: meant for a pool of threads that may. What a file is is told by its bytes; names are not asked for.

mod caf;
mod codec;
mod container;
mod ffmpeg;
mod live;
mod mkv;
mod mp4;
mod opus;
mod packets;
mod recording;
mod resample;
mod source;
mod wav;

use std::{
    io,
    ops::ControlFlow,
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
};

use self::{
    container::{Container, Found},
    ffmpeg::Ffmpeg,
    packets::Packets,
    recording::Recorder,
    resample::Resampler,
    source::{Section, Shared},
};
pub use self::{
    live::{Live, LiveFormat},
    recording::{RATE, Recording},
    source::Source,
};

/// Formats that are read, by the names that people know.
pub const FORMATS: [&str; 11] =
    ["wav", "mp3", "flac", "ogg", "opus", "webm", "mkv", "m4a", "mp4", "aiff", "caf"];

/// Channels that a file may have. More is no recording of speech, and memory per sample.
const MOST_CHANNELS: usize = 64;
/// Samples per second that a file may have.
const RATES: std::ops::RangeInclusive<u32> = 1000..=384_000;

/// What a sound may cost.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SoundLimits {
    /// Most seconds of a recording.
    pub seconds: f64,
    /// Most samples of a recording, of all its channels, that stay in memory; longer ones go to a file without a name.
    pub memory_samples: usize,
    /// Most channels that are kept apart.
    pub channels: usize,
}

/// What happens to a file's channels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Channels {
    /// Their mean is recorded.
    Mixed,
    /// Each is recorded, as for the two sides of a telephone call.
    Apart,
}

/// How far decoding is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Progress {
    /// Seconds decoded.
    pub seconds: f64,
    /// Seconds that the file says it has. It may be wrong.
    pub total: Option<f64>,
}

/// Why a sound is not decoded.
#[derive(Debug, thiserror::Error)]
pub enum SoundError {
    /// There is not a byte.
    #[error("the file is empty")]
    Empty,
    /// It is in an unknown format, or no sound.
    #[error("the file is no sound in one of these formats: {}", FORMATS.join(", "))]
    NotSound,
    /// It shows pictures only.
    #[error("the file has no sound track")]
    NoAudio,
    /// It is in a known format that is not decoded.
    #[error("the sound is {codec}, which is not decoded here; send it as one of: {}", FORMATS.join(", "))]
    Codec {
        /// What the format is called.
        codec: String,
    },
    /// It has more channels than are read.
    #[error("the sound has {found} channels; the limit is {limit}")]
    Channels {
        /// Its channels.
        found: usize,
        /// Most channels.
        limit: usize,
    },
    /// It is too long.
    #[error("the sound is longer than {limit} seconds; send it in parts")]
    TooLong {
        /// Most seconds.
        limit: f64,
    },
    /// It is broken before its first sample.
    #[error("the sound cannot be decoded: {reason}")]
    Broken {
        /// Why.
        reason: String,
    },
    /// Whoever watched its progress said so.
    #[error("decoding was stopped")]
    Stopped,
    /// Not the file's fault.
    #[error("a file cannot be read or written: {0}")]
    Io(#[from] io::Error),
}

impl SoundError {
    fn broken(reason: impl Into<String>) -> Self {
        Self::Broken { reason: reason.into() }
    }

    fn codec(codec: impl Into<String>) -> Self {
        Self::Codec { codec: codec.into() }
    }
}

/// Decodes a sound: the mean of its channels, or each of them, at 16 kHz, rounded to 16 bits. A file that breaks off
/// gives what is before the break, as browsers' recordings do.
///
/// What is not decoded here goes through the program `ffmpeg`, where its path is given. `watch` is called many times a
/// second and may stop the decoding.
///
/// # Errors
/// When nothing can be decoded, a limit is passed or `watch` breaks off.
pub fn decode(
    source: impl Source,
    limits: &SoundLimits,
    channels: Channels,
    ffmpeg: Option<&Path>,
    mut watch: impl FnMut(Progress) -> ControlFlow<()>,
) -> Result<Recording, SoundError> {
    let shared = Shared::new(source);
    let here = guarded(|| open(&shared))
        .and_then(|mut decoder| record(decoder.as_mut(), limits, channels, &mut watch));
    let (Err(reason @ (SoundError::Codec { .. } | SoundError::NotSound)), Some(program)) = (&here, ffmpeg)
    else {
        return here;
    };
    tracing::debug!(%reason, "decoding by ffmpeg");
    let mut decoder = Ffmpeg::start(program, shared.into_file()?, limits.seconds)?;
    match record(&mut decoder, limits, channels, &mut watch) {
        // It does not know it either.
        Err(SoundError::NotSound) => here,
        there => there,
    }
}

/// Decoded samples of all channels, as many of each.
#[derive(Debug, Default)]
struct Block {
    rate: u32,
    channels: Vec<Vec<f32>>,
}

impl Block {
    fn frames(&self) -> usize {
        self.channels.first().map_or(0, Vec::len)
    }
}

/// What gives blocks.
trait Decoder {
    /// Replaces a block by the next one, which may have no frames; false at the end.
    fn next(&mut self, block: &mut Block) -> Result<bool, SoundError>;

    /// Seconds that the file says it has.
    fn total(&self) -> Option<f64>;
}

/// The decoder that a file needs.
fn open(shared: &Shared) -> Result<Box<dyn Decoder>, SoundError> {
    let Found { container, start } = container::find(&mut shared.section(0..u64::MAX)?)?;
    let section = |range| shared.section(range);
    let packets = |container| Packets::open(container, shared, start..u64::MAX).map(boxed);
    match container {
        Container::Wav => match wav::open(section(start..u64::MAX)?)? {
            wav::Opened::Pcm(wav) => Ok(Box::new(wav)),
            wav::Opened::Mpeg(data) => {
                Packets::open(Container::Mpeg, shared, start + data.start..start.saturating_add(data.end))
                    .map(boxed)
            }
            wav::Opened::Adpcm => packets(Container::Wav),
        },
        container => packets(container),
    }
}

fn boxed(packets: Packets) -> Box<dyn Decoder> {
    Box::new(packets)
}

/// Runs a decoder's code. Panics are its way of saying that it cannot read a file.
fn guarded<T>(decode: impl FnOnce() -> Result<T, SoundError>) -> Result<T, SoundError> {
    // What a panic leaves half done is not used again: callers give up the decoder.
    catch_unwind(AssertUnwindSafe(decode)).unwrap_or_else(|_| Err(SoundError::broken("its decoder gave up")))
}

/// Decodes all of a sound.
fn record(
    decoder: &mut dyn Decoder,
    limits: &SoundLimits,
    channels: Channels,
    watch: &mut dyn FnMut(Progress) -> ControlFlow<()>,
) -> Result<Recording, SoundError> {
    let mut tape: Option<Tape> = None;
    let mut block = Block::default();
    let total = decoder.total();
    loop {
        match guarded(|| decoder.next(&mut block)) {
            Ok(true) if block.frames() == 0 => continue,
            Ok(true) => {}
            Ok(false) => break,
            // What came before the break is worth having.
            Err(SoundError::Broken { .. } | SoundError::Codec { .. }) if tape.is_some() => break,
            Err(error) => return Err(error),
        }
        if tape.is_none() {
            tape = Some(Tape::new(&block, limits, channels)?);
        }
        let tape = tape.as_mut().expect("it was put there");
        let seconds = tape.push(&mut block)?;
        if seconds > limits.seconds {
            return Err(SoundError::TooLong { limit: limits.seconds });
        }
        if watch(Progress { seconds, total }).is_break() {
            return Err(SoundError::Stopped);
        }
    }
    let recording = tape.ok_or_else(|| SoundError::broken("it ends before its first sample"))?.finish()?;
    if recording.seconds() > limits.seconds {
        return Err(SoundError::TooLong { limit: limits.seconds });
    }
    Ok(recording)
}

/// From decoded blocks to a recording: mixes, resamples, rounds.
struct Tape {
    channels: Channels,
    /// Channels of the file, where they are kept apart.
    apart: usize,
    resampler: Resampler,
    recorder: Recorder,
    resampled: Vec<Vec<f32>>,
    rounded: Vec<Vec<i16>>,
    samples: usize,
}

impl Tape {
    fn new(first: &Block, limits: &SoundLimits, channels: Channels) -> Result<Self, SoundError> {
        let found = first.channels.len();
        let limit = match channels {
            Channels::Mixed => MOST_CHANNELS,
            Channels::Apart => limits.channels,
        };
        if found > limit {
            return Err(SoundError::Channels { found, limit });
        }
        let apart = if channels == Channels::Mixed { 1 } else { found };
        Ok(Self {
            channels,
            apart,
            resampler: Resampler::new(first.rate, apart)?,
            recorder: Recorder::new(apart, limits.memory_samples),
            resampled: vec![Vec::new(); apart],
            rounded: vec![Vec::new(); apart],
            samples: 0,
        })
    }

    /// Adds a block; returns the seconds recorded.
    fn push(&mut self, block: &mut Block) -> Result<f64, SoundError> {
        match self.channels {
            Channels::Mixed => mix(&mut block.channels),
            Channels::Apart => self.keep_apart(&mut block.channels),
        }
        // Chained and joined files change in the middle.
        if block.rate != self.resampler.rate() {
            let next = Resampler::new(block.rate, self.apart)?;
            std::mem::replace(&mut self.resampler, next).finish(&mut self.resampled);
        }
        self.resampler.push(&block.channels, &mut self.resampled);
        self.write()?;
        Ok(self.samples as f64 / RATE as f64)
    }

    /// As many channels as at the start, where a file changes in the middle.
    fn keep_apart(&self, channels: &mut Vec<Vec<f32>>) {
        if channels.len() != self.apart {
            mix(channels);
            channels.resize(self.apart, channels[0].clone());
        }
    }

    fn write(&mut self) -> io::Result<()> {
        for (rounded, samples) in self.rounded.iter_mut().zip(&mut self.resampled) {
            rounded.clear();
            rounded.extend(samples.drain(..).map(round));
        }
        self.samples += self.rounded[0].len();
        self.recorder.push(&self.rounded)
    }

    fn finish(mut self) -> Result<Recording, SoundError> {
        let rest = Resampler::new(self.resampler.rate(), self.apart)?;
        std::mem::replace(&mut self.resampler, rest).finish(&mut self.resampled);
        self.write()?;
        Ok(self.recorder.finish())
    }
}

/// Replaces channels by their mean.
fn mix(channels: &mut Vec<Vec<f32>>) {
    if let [first, others @ ..] = channels.as_mut_slice()
        && !others.is_empty()
    {
        let share = 1.0 / (1 + others.len()) as f32;
        for (frame, sample) in first.iter_mut().enumerate() {
            *sample = others.iter().fold(*sample, |sum, other| sum + other[frame]) * share;
        }
    }
    channels.truncate(1);
}

/// Halves go up, as in ffmpeg's mixing of 16-bit channels.
fn round(sample: f32) -> i16 {
    (sample * 32768.0 + 0.5).floor() as i16
}
