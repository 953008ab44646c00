//! Where speech is in a recording: probabilities of a small network, spans of speech from them, windows from those.

mod frames;
mod spans;
mod windows;

pub use self::{
    frames::{FRAME, Frame, Frames},
    spans::Spans,
    windows::{Window, windows},
};

use crate::media::sound::RATE;

/// How speech is told from silence, and how much of it is heard at once.
#[derive(Debug, Clone, PartialEq)]
pub struct VadOptions {
    /// Probability from which a frame is speech.
    pub threshold: f32,
    /// Shorter speech is none, in milliseconds.
    pub min_speech_ms: u32,
    /// Shorter silence does not end speech, in milliseconds.
    pub min_silence_ms: u32,
    /// What is kept around speech where there is room, in milliseconds.
    pub pad_ms: u32,
    /// Longer speech is cut, and no window is longer, in milliseconds.
    pub longest_ms: u32,
}

impl Default for VadOptions {
    fn default() -> Self {
        Self { threshold: 0.5, min_speech_ms: 250, min_silence_ms: 160, pad_ms: 400, longest_ms: 30_000 }
    }
}

impl VadOptions {
    /// The longest window, in samples: long enough for a span and a place to cut it.
    fn longest(&self) -> usize {
        samples(self.longest_ms).max(RATE)
    }

    /// In samples; speech has at least half of a window.
    fn pad(&self) -> usize {
        samples(self.pad_ms).min(self.longest() / 4)
    }
}

/// Speech without a pause worth mentioning, in samples.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    /// Where it begins.
    pub start: usize,
    /// Behind its last sample.
    pub end: usize,
}

/// Finds speech in a recording that comes in pieces. Keeps the spans, and half a minute of probabilities.
pub struct Detector {
    frames: Frames,
    spans: Spans,
}

impl Detector {
    /// A detector for one recording.
    pub fn new(options: &VadOptions) -> Self {
        Self { frames: Frames::default(), spans: Spans::new(options) }
    }

    /// Hears what follows, at 16 kHz in `[-1, 1]`.
    pub fn push(&mut self, samples: &[f32]) {
        self.frames.push(samples, |frame| self.spans.push(frame));
    }

    /// Where speech began that has not ended, once it is sure to be speech.
    pub fn speaking(&self) -> Option<usize> {
        self.spans.speaking()
    }

    /// Whether what was heard last may be part of speech.
    pub fn is_open(&self) -> bool {
        self.spans.is_open()
    }

    /// Speech that has ended since this was asked last, in order of time.
    pub fn ended(&mut self) -> Vec<Span> {
        self.spans.take()
    }

    /// All speech that was heard, in order of time.
    pub fn finish(mut self) -> Vec<Span> {
        let samples = self.frames.finish(|frame| self.spans.push(frame));
        self.spans.finish(samples)
    }
}

fn samples(milliseconds: u32) -> usize {
    (u64::from(milliseconds) * RATE as u64 / 1000) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spans(samples: &[f32], options: &VadOptions) -> Vec<Span> {
        let mut detector = Detector::new(options);
        // Pieces that fit no frame.
        for piece in samples.chunks(1000) {
            detector.push(piece);
        }
        detector.finish()
    }

    fn seconds(spans: &[Span]) -> Vec<(f64, f64)> {
        let seconds = |samples: usize| samples as f64 / RATE as f64;
        spans.iter().map(|span| (seconds(span.start), seconds(span.end))).collect()
    }

    /// Two sentences of espeak-ng, by `scripts/vad/make_audio.py --fixture`, which says where they are.
    fn recording() -> Vec<f32> {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/sound/two_sentences.wav");
        let bytes = std::fs::read(path).unwrap();
        let sample = |pair: &[u8]| f32::from(i16::from_le_bytes([pair[0], pair[1]])) / 32768.0;
        bytes[44..].chunks_exact(2).map(sample).collect()
    }

    const SENTENCES: [(f64, f64); 2] = [(0.50, 1.14), (1.64, 2.40)];

    fn noise(samples: usize) -> Vec<f32> {
        let mut state = 12345_u32;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            f64::from(state >> 8) as f32 / 16_777_216.0 - 0.5
        };
        (0..samples).map(|_| 0.2 * next()).collect()
    }

    fn tone(hertz: f32, samples: usize) -> Vec<f32> {
        let step = hertz * std::f32::consts::TAU / RATE as f32;
        (0..samples).map(|index| 0.3 * (index as f32 * step).sin()).collect()
    }

    #[test]
    fn finds_two_sentences() {
        let found = seconds(&spans(&recording(), &VadOptions::default()));
        assert_eq!(found.len(), 2, "{found:?}");
        for (found, said) in found.iter().zip(SENTENCES) {
            assert!((found.0 - said.0).abs() < 0.2 && (found.1 - said.1).abs() < 0.2, "{found:?} {said:?}");
        }
    }

    #[test]
    fn pieces_do_not_matter() {
        let (samples, options) = (recording(), VadOptions::default());
        let mut whole = Detector::new(&options);
        whole.push(&samples);
        let mut single = Detector::new(&options);
        samples.iter().for_each(|sample| single.push(&[*sample]));
        let whole = whole.finish();
        assert_eq!(whole, spans(&samples, &options));
        assert_eq!(whole, single.finish());
    }

    #[test]
    fn speech_is_told_while_it_goes_on() {
        let (samples, options) = (recording(), VadOptions::default());
        let mut detector = Detector::new(&options);
        let (mut begun, mut ended) = (Vec::new(), Vec::new());
        for piece in samples.chunks(160) {
            detector.push(piece);
            if let Some(start) = detector.speaking() {
                assert!(begun.last().is_none_or(|&last| last <= start));
                begun.push(start);
            }
            ended.extend(detector.ended());
        }
        begun.dedup();
        ended.extend(detector.finish());
        assert_eq!(ended, spans(&samples, &options));
        // All that was told to begin is speech, and all speech was told of before its end.
        assert_eq!(begun, ended.iter().map(|span| span.start).collect::<Vec<_>>());
    }

    #[test]
    fn what_is_no_speech_is_none() {
        let options = VadOptions::default();
        let length = 10 * RATE;
        assert_eq!(spans(&vec![0.0; length], &options), []);
        assert_eq!(spans(&noise(length), &options), []);
        for hertz in [50.0, 100.0, 440.0, 1000.0, 3000.0] {
            assert_eq!(spans(&tone(hertz, length), &options), [], "{hertz} Hz");
        }
    }

    #[test]
    fn speech_to_the_last_sample_ends_there() {
        let samples = &recording()[..(SENTENCES[0].1 * RATE as f64) as usize - 1000];
        let found = spans(samples, &VadOptions::default());
        assert_eq!(found.last().map(|span| span.end), Some(samples.len()));
    }

    #[test]
    fn options_do_what_they_say() {
        let count = |options: VadOptions| spans(&recording(), &options).len();
        assert_eq!(
            count(VadOptions { min_silence_ms: 1000, ..VadOptions::default() }),
            1,
            "the pause is 0.5 s"
        );
        assert_eq!(count(VadOptions { min_speech_ms: 800, ..VadOptions::default() }), 1, "one has 0.75 s");
        assert_eq!(count(VadOptions { min_speech_ms: 5000, ..VadOptions::default() }), 0);
        assert_eq!(count(VadOptions { threshold: 1.0, ..VadOptions::default() }), 0);
        assert_eq!(count(VadOptions { threshold: 0.0, ..VadOptions::default() }), 1);
        let strange =
            VadOptions { pad_ms: u32::MAX, longest_ms: 0, min_silence_ms: 0, ..VadOptions::default() };
        let found = spans(&recording(), &strange);
        assert!(found.iter().all(|span| span.end - span.start <= RATE), "{found:?}");
        assert_eq!(spans(&recording(), &VadOptions { threshold: f32::NAN, ..VadOptions::default() }), []);
    }

    #[test]
    fn short_and_broken_input_is_heard() {
        let options = VadOptions::default();
        for length in [0, 1, FRAME - 1, FRAME, FRAME + 1] {
            assert_eq!(spans(&recording()[8000..8000 + length], &options), [], "{length} samples");
        }
        assert_eq!(spans(&vec![f32::NAN; RATE], &options), []);
        let mut samples = vec![f32::INFINITY; 10];
        samples.extend([f32::NAN, f32::NEG_INFINITY, 1e30, -1e30]);
        samples.extend(vec![0.0; 2 * RATE]);
        samples.extend(recording());
        let found = seconds(&spans(&samples, &options));
        assert_eq!(found.len(), 2, "what was broken before is forgotten: {found:?}");
    }

    #[test]
    fn every_frame_is_told_once_and_is_a_number() {
        for length in [0, 1, 255, 256, 257, 48_000] {
            let mut samples = noise(length);
            samples.iter_mut().step_by(7).for_each(|sample| *sample = f32::NAN);
            let (mut frames, mut told) = (Frames::default(), Vec::new());
            frames.push(&samples, |frame| told.push(frame));
            assert_eq!(frames.finish(|frame| told.push(frame)), length);
            assert_eq!(told.len(), length.div_ceil(FRAME));
            assert!(
                told.iter().all(|frame| (0.0..=1.0).contains(&frame.probability) && frame.energy.is_finite())
            );
        }
    }

    #[test]
    fn an_hour_is_heard_in_pieces() {
        let sentence = recording();
        let mut detector = Detector::new(&VadOptions::default());
        for _ in 0..20 * 60 {
            detector.push(&sentence);
        }
        let found = detector.finish();
        assert_eq!(found.len(), 2 * 20 * 60);
        assert!(found.windows(2).all(|pair| pair[0].end <= pair[1].start));
    }
}
