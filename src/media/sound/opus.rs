//! Opus packets: RFC 6716, and RFC 7845 for what comes with them.

use ropus::{DecodeMode, Decoder};

use super::{Block, SoundError};

/// Opus decodes to this rate, whatever went in.
pub(super) const OPUS_RATE: u32 = 48_000;
/// Frames of the longest packet: 120 ms.
const MOST_FRAMES: usize = 5760;

/// A decoder of one stream, of one channel or two.
pub(super) struct Opus {
    decoder: Decoder,
    channels: usize,
    gain: f32,
    samples: Vec<f32>,
}

/// What a stream's head says.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Head {
    pub(super) channels: usize,
    /// Frames at the start that are no sound yet.
    pub(super) pre_skip: u16,
    gain: f32,
}

impl Head {
    /// `OpusHead`, as containers keep it. MP4 has the same fields the other way round: `big`.
    pub(super) fn read(bytes: &[u8], big: bool) -> Option<Self> {
        let bytes = bytes.strip_prefix(b"OpusHead")?;
        let pair = |at: usize| {
            let pair = [*bytes.get(at)?, *bytes.get(at + 1)?];
            Some(if big { u16::from_be_bytes(pair) } else { u16::from_le_bytes(pair) })
        };
        let decibels = f32::from(pair(8)?.cast_signed()) / 256.0;
        let gain = 10f32.powf(decibels / 20.0);
        Some(Self { channels: usize::from(*bytes.get(1)?), pre_skip: pair(2)?, gain })
    }
}

impl Opus {
    pub(super) fn new(head: Head) -> Result<Self, SoundError> {
        let channels = match head.channels {
            1 => ropus::Channels::Mono,
            2 => ropus::Channels::Stereo,
            more => return Err(SoundError::codec(format!("Opus of {more} channels"))),
        };
        let decoder =
            Decoder::new(OPUS_RATE, channels).map_err(|error| SoundError::broken(format!("{error:?}")))?;
        Ok(Self {
            decoder,
            channels: head.channels,
            gain: head.gain,
            samples: vec![0.0; MOST_FRAMES * head.channels],
        })
    }

    /// Decodes a packet; one that cannot be decoded gives nothing.
    pub(super) fn decode(&mut self, packet: &[u8], block: &mut Block) {
        let decoded = if packet.is_empty() {
            0
        } else {
            self.decoder.decode_float(packet, &mut self.samples, DecodeMode::Normal).unwrap_or(0)
        };
        block.rate = OPUS_RATE;
        block.channels.resize_with(self.channels, Vec::new);
        for (channel, samples) in block.channels.iter_mut().enumerate() {
            let all = self.samples[..decoded * self.channels].iter().skip(channel).step_by(self.channels);
            samples.clear();
            samples.extend(all.map(|sample| sample * self.gain));
        }
    }
}
