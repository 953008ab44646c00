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
        Self { frames: Frames::new(), spans: Spans::new(options) }
    }

    /// Hears what follows, at 16 kHz in `[-1, 1]`.
    pub fn push(&mut self, samples: &[f32]) {
        self.frames.push(samples, |frame| self.spans.push(frame));
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
