//! Recordings of a length that differ from each other.

use rand::{RngExt as _, SeedableRng as _};
use rand_pcg::Pcg64;

use crate::media::sound::RATE;

/// Bytes in front of the samples.
const HEADER: usize = 44;
/// Samples of each second that a recording's number changes.
const CHANGED: usize = 32;

/// Noise that rises and falls as often as syllables do. Every second of every recording is its own, so that no window
/// of it was heard before. It is not speech: what a model makes of it is not what it makes of people.
#[derive(Debug)]
pub(super) struct Noise {
    file: Vec<u8>,
    samples: usize,
}

impl Noise {
    pub(super) fn new(seconds: f64, seed: u64) -> Self {
        let samples = ((seconds * RATE as f64) as usize).max(1);
        let mut draws = Pcg64::seed_from_u64(seed);
        let mut file = header(samples);
        let mut smooth = 0.0_f32;
        for sample in 0..samples {
            let time = sample as f32 / RATE as f32;
            let loud = (0.5 - 0.5 * (time * 4.0 * std::f32::consts::TAU).cos()) * 6000.0;
            // As most of the energy of voices, that of this noise is below some kHz.
            smooth += 0.3 * (draws.random_range(-1.0..1.0_f32) - smooth);
            file.extend_from_slice(&((loud * smooth * 2.0) as i16).to_le_bytes());
        }
        Self { file, samples }
    }

    pub(super) fn seconds(&self) -> f64 {
        self.samples as f64 / RATE as f64
    }

    /// The file of a variant.
    pub(super) fn file(&self, number: u64) -> Vec<u8> {
        let mut file = self.file.clone();
        let mut draws = Pcg64::seed_from_u64(number);
        for second in file[HEADER..].chunks_mut(2 * RATE) {
            for sample in second.chunks_exact_mut(2).take(CHANGED) {
                sample.copy_from_slice(&draws.random_range(-3000..3000_i16).to_le_bytes());
            }
        }
        file
    }
}

/// The header of a WAV file of one channel, 16 kHz and 16 bits.
fn header(samples: usize) -> Vec<u8> {
    let (rate, bytes) = (RATE as u32, u32::try_from(2 * samples).unwrap_or(u32::MAX - HEADER as u32));
    let mut header = Vec::with_capacity(HEADER + 2 * samples);
    header.extend_from_slice(b"RIFF");
    header.extend_from_slice(&(bytes + HEADER as u32 - 8).to_le_bytes());
    header.extend_from_slice(b"WAVEfmt ");
    header.extend_from_slice(&16u32.to_le_bytes());
    // PCM, one channel.
    header.extend_from_slice(&[1, 0, 1, 0]);
    header.extend_from_slice(&rate.to_le_bytes());
    header.extend_from_slice(&(2 * rate).to_le_bytes());
    // Bytes of a frame, bits of a sample.
    header.extend_from_slice(&[2, 0, 16, 0]);
    header.extend_from_slice(b"data");
    header.extend_from_slice(&bytes.to_le_bytes());
    header
}

#[cfg(test)]
mod tests {
    use std::{io::Cursor, ops::ControlFlow};

    use super::*;
    use crate::media::sound::{Channels, SoundLimits, decode};

    #[test]
    fn recordings_have_their_length_and_every_second_is_their_own() {
        let noise = Noise::new(2.5, 1);
        let limits = SoundLimits { seconds: 10.0, memory_samples: 1 << 20, channels: 1 };
        let samples = |number: u64| {
            let file = Cursor::new(noise.file(number));
            let recording =
                decode(file, &limits, Channels::Mixed, None, |_| ControlFlow::Continue(())).unwrap();
            assert_eq!(recording.seconds(), 2.5);
            recording.read(0, 0..usize::MAX).unwrap()
        };
        let (one, other) = (samples(1), samples(2));
        assert_eq!(one, samples(1));
        for (second, (one, other)) in one.chunks(RATE).zip(other.chunks(RATE)).enumerate() {
            assert_ne!(one, other, "second {second}");
            let loud = one.iter().fold(0.0_f32, |most, sample| most.max(sample.abs()));
            assert!((0.05..0.9).contains(&loud), "{loud}");
        }
    }
}
