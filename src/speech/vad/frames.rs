//! How probable speech is in each frame of a recording. Knows no spans.
//!
//! The network is earshot's: log-mel features, convolutions and two recurrent layers, 40 KB of weights in the program.
//! How it compares with others: `benches/results/vad.md`.

/// Samples of a frame: 16 ms.
pub const FRAME: usize = 256;
/// How many frames later the network tells of a frame: it looks at 80 ms, of which this is the middle.
const LATE: usize = 2;

/// What is known of a frame.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Frame {
    /// Of speech.
    pub probability: f32,
    /// Mean of its squared samples.
    pub energy: f32,
}

/// Turns samples into frames.
pub struct Frames {
    network: Box<earshot::Detector>,
    /// Samples of a frame that is not complete.
    rest: Vec<f32>,
    /// Energies of frames whose probability is still to come, oldest first.
    energies: [f32; LATE],
    heard: usize,
    frames: usize,
}

impl Default for Frames {
    /// At the beginning of a recording.
    fn default() -> Self {
        Self {
            network: earshot::Detector::default_boxed(),
            rest: Vec::with_capacity(FRAME),
            energies: [0.0; LATE],
            heard: 0,
            frames: 0,
        }
    }
}

impl Frames {
    /// Hears samples, and tells of the frames that are known by then.
    pub fn push(&mut self, mut samples: &[f32], mut tell: impl FnMut(Frame)) {
        self.heard += samples.len();
        while !samples.is_empty() {
            let (now, later) = samples.split_at(samples.len().min(FRAME - self.rest.len()));
            self.rest.extend(now.iter().map(|&sample| sound(sample)));
            samples = later;
            if self.rest.len() == FRAME {
                self.frame(&mut tell);
            }
        }
    }

    /// Tells of the frames that are left, the last of them filled up with silence; gives the samples that were heard.
    pub fn finish(mut self, mut tell: impl FnMut(Frame)) -> usize {
        let wanted = self.heard.div_ceil(FRAME) + LATE;
        while self.frames < wanted && self.heard > 0 {
            self.rest.resize(FRAME, 0.0);
            self.frame(&mut tell);
        }
        self.heard
    }

    fn frame(&mut self, tell: &mut impl FnMut(Frame)) {
        let probability = self.network.predict_f32(&self.rest);
        let energy = self.rest.iter().map(|sample| sample * sample).sum::<f32>() / FRAME as f32;
        self.rest.clear();
        if self.frames >= LATE {
            tell(Frame { probability, energy: self.energies[0] });
        }
        self.energies.rotate_left(1);
        self.energies[LATE - 1] = energy;
        self.frames += 1;
    }
}

/// A sample that the network can hear.
fn sound(sample: f32) -> f32 {
    if sample.is_nan() { 0.0 } else { sample.clamp(-1.0, 1.0) }
}
