//! Sound that comes in pieces while it is made, as telephones and browsers send it: bytes to 16 kHz.

use super::{
    RATE,
    resample::Resampler,
    wav::{a_law, mu_law},
};

/// How live sound is written. One channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LiveFormat {
    /// 24 kHz, 16 bits, little-endian.
    Pcm16,
    /// 8 kHz, ITU-T G.711, μ-law.
    MuLaw,
    /// 8 kHz, ITU-T G.711, A-law.
    ALaw,
}

impl LiveFormat {
    /// Samples per second.
    pub fn rate(self) -> u32 {
        match self {
            Self::Pcm16 => 24_000,
            Self::MuLaw | Self::ALaw => 8_000,
        }
    }

    /// Bytes of a sample.
    pub fn bytes(self) -> usize {
        match self {
            Self::Pcm16 => 2,
            Self::MuLaw | Self::ALaw => 1,
        }
    }

    fn samples(self, bytes: &[u8]) -> Vec<f32> {
        let float = |sample: i16| f32::from(sample) / 32768.0;
        match self {
            Self::Pcm16 => {
                bytes.chunks_exact(2).map(|pair| float(i16::from_le_bytes([pair[0], pair[1]]))).collect()
            }
            Self::MuLaw => bytes.iter().map(|&byte| float(mu_law(byte))).collect(),
            Self::ALaw => bytes.iter().map(|&byte| float(a_law(byte))).collect(),
        }
    }
}

/// Turns bytes of one format into samples at 16 kHz, in `[-1, 1]`.
pub struct Live {
    format: LiveFormat,
    resampler: Resampler,
    /// A byte of a sample whose other one is still to come.
    half: Option<u8>,
}

impl Live {
    /// At the beginning of a stream.
    pub fn new(format: LiveFormat) -> Self {
        Self { format, resampler: resampler(format), half: None }
    }

    /// What it takes.
    pub fn format(&self) -> LiveFormat {
        self.format
    }

    /// The samples that are known with these bytes. The last few milliseconds come later: the filter looks ahead.
    pub fn push(&mut self, bytes: &[u8]) -> Vec<f32> {
        let mut all = Vec::with_capacity(bytes.len() + 1);
        all.extend(self.half.take());
        all.extend_from_slice(bytes);
        if all.len() % self.format.bytes() != 0 {
            self.half = all.pop();
        }
        let mut out = [Vec::with_capacity(all.len() * RATE / self.format.rate() as usize)];
        self.resampler.push(&[self.format.samples(&all)], &mut out);
        let [out] = out;
        out
    }

    /// The samples that are left of what came so far. What follows is another sound.
    pub fn flush(&mut self) -> Vec<f32> {
        self.half = None;
        let mut out = [Vec::new()];
        std::mem::replace(&mut self.resampler, resampler(self.format)).finish(&mut out);
        let [out] = out;
        out
    }
}

fn resampler(format: LiveFormat) -> Resampler {
    Resampler::new(format.rate(), 1)
        .expect("rates of telephones and of 24 kHz are among those that are resampled")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tone(rate: u32, seconds: f64) -> Vec<f64> {
        let count = (f64::from(rate) * seconds) as usize;
        (0..count)
            .map(|at| 0.5 * (at as f64 * 440.0 * std::f64::consts::TAU / f64::from(rate)).sin())
            .collect()
    }

    fn pcm(samples: &[f64]) -> Vec<u8> {
        samples.iter().flat_map(|sample| ((sample * 32767.0) as i16).to_le_bytes()).collect()
    }

    #[test]
    fn pieces_of_any_size_make_the_same_sound() {
        let bytes = pcm(&tone(24_000, 1.0));
        let hear = |size: usize| {
            let mut live = Live::new(LiveFormat::Pcm16);
            let mut all: Vec<f32> = bytes.chunks(size).flat_map(|piece| live.push(piece)).collect();
            all.extend(live.flush());
            all
        };
        let whole = hear(bytes.len());
        assert_eq!(whole.len(), RATE);
        for size in [1, 7, 480, 4801] {
            assert_eq!(hear(size), whole, "{size} bytes at once");
        }
        let expected = tone(RATE as u32, 1.0);
        let inside = 400..RATE - 400;
        let worst = inside.map(|at| (f64::from(whole[at]) - expected[at]).abs()).fold(0.0, f64::max);
        assert!(worst < 0.01, "{worst}");
    }

    #[test]
    fn a_flush_gives_all_and_begins_again() {
        let mut live = Live::new(LiveFormat::Pcm16);
        let bytes = pcm(&tone(24_000, 0.1));
        for _ in 0..3 {
            let mut all = live.push(&bytes);
            all.extend(live.flush());
            assert_eq!(all.len(), 1600);
        }
        assert!(live.flush().is_empty());
    }

    #[test]
    fn telephones_are_heard() {
        // Silence, and the loudest of both signs.
        for (format, bytes, expected) in [
            (LiveFormat::MuLaw, [0xff, 0x80, 0x00], [0.0, 32124.0, -32124.0]),
            (LiveFormat::ALaw, [0xd5, 0xaa, 0x2a], [8.0, 32256.0, -32256.0]),
        ] {
            let found = format.samples(&bytes);
            assert_eq!(found, expected.map(|sample: f32| sample / 32768.0), "{format:?}");
            let mut live = Live::new(format);
            let mut all = live.push(&vec![bytes[0]; 8000]);
            all.extend(live.flush());
            assert_eq!(all.len(), RATE);
        }
    }
}
