//! From any sampling rate to 16 kHz, without aliases.

use rubato::{
    Fft, FixedSync, Resampler as _, WindowFunction, audioadapter_buffers::direct::SequentialSliceOfVecs,
};

use super::{RATE, RATES, SoundError};

/// Frames of a block, at least: the longer it is, the steeper the filter.
const FRAMES: usize = 2048;

/// Resamples a stream, block by block. At 16 kHz it passes samples on as they are.
pub(super) struct Resampler {
    rate: u32,
    filter: Option<Filter>,
}

struct Filter {
    fft: Fft<f32>,
    /// Frames that do not make a block yet.
    pending: Vec<Vec<f32>>,
    /// One block of results.
    block: Vec<Vec<f32>>,
    /// Results that come before the first sample, by the filter's delay.
    early: usize,
    /// Frames that went in.
    taken: u64,
    /// Frames that came out.
    given: u64,
}

impl Resampler {
    /// A resampler of sounds of this rate and so many channels.
    pub(super) fn new(rate: u32, channels: usize) -> Result<Self, SoundError> {
        if !RATES.contains(&rate) {
            return Err(SoundError::broken(format!("it has {rate} samples per second")));
        }
        let filter = (rate as usize != RATE).then(|| Filter::new(rate, channels)).transpose()?;
        Ok(Self { rate, filter })
    }

    /// Of what goes in.
    pub(super) fn rate(&self) -> u32 {
        self.rate
    }

    /// Resamples a block, and adds to `out` what can be told so far.
    pub(super) fn push(&mut self, block: &[Vec<f32>], out: &mut [Vec<f32>]) {
        match &mut self.filter {
            Some(filter) => filter.push(block, out),
            None => out.iter_mut().zip(block).for_each(|(out, samples)| out.extend_from_slice(samples)),
        }
    }

    /// Adds the rest to `out`: as long, in all, as what went in.
    pub(super) fn finish(self, out: &mut [Vec<f32>]) {
        if let Some(filter) = self.filter {
            filter.finish(self.rate, out);
        }
    }
}

impl Filter {
    fn new(rate: u32, channels: usize) -> Result<Self, SoundError> {
        let rate = rate as usize;
        let window = WindowFunction::BlackmanHarris2;
        // The filter's delay is half a block. Blocks of an even length at both rates make that whole frames.
        let pair = 2 * rate / gcd(rate, RATE);
        let frames = FRAMES.next_multiple_of(pair);
        let fft = Fft::new_custom(rate, RATE, frames, 1, channels, window, FixedSync::Both)
            .map_err(|error| SoundError::broken(error.to_string()))?;
        Ok(Self {
            pending: vec![Vec::new(); channels],
            block: vec![vec![0.0; fft.output_frames_max()]; channels],
            early: fft.output_delay(),
            taken: 0,
            given: 0,
            fft,
        })
    }

    fn push(&mut self, block: &[Vec<f32>], out: &mut [Vec<f32>]) {
        self.taken += block[0].len() as u64;
        for (pending, samples) in self.pending.iter_mut().zip(block) {
            // One sample that is no number would make a block of them.
            pending.extend(samples.iter().map(|sample| if sample.is_finite() { *sample } else { 0.0 }));
        }
        let frames = self.fft.input_frames_next();
        let whole = self.pending[0].len() / frames * frames;
        for start in (0..whole).step_by(frames) {
            self.run(start, frames);
            self.give(u64::MAX, out);
        }
        self.pending.iter_mut().for_each(|pending| drop(pending.drain(..whole)));
    }

    fn finish(mut self, rate: u32, out: &mut [Vec<f32>]) {
        let whole = (self.taken * RATE as u64 + u64::from(rate) / 2) / u64::from(rate);
        let frames = self.fft.input_frames_next();
        while self.given < whole {
            self.pending.iter_mut().for_each(|pending| pending.resize(frames, 0.0));
            self.run(0, frames);
            self.give(whole, out);
            self.pending.iter_mut().for_each(Vec::clear);
        }
    }

    /// Filters the pending frames from `start` into a block.
    fn run(&mut self, start: usize, frames: usize) {
        const SIZES: &str = "the buffers are as long as the filter said";
        let channels = self.pending.len();
        let room = self.block[0].len();
        let input = self.pending.iter().map(|pending| pending[start..start + frames].to_vec());
        let input: Vec<_> = input.collect();
        let input = SequentialSliceOfVecs::new(&input, channels, frames).expect(SIZES);
        let mut output = SequentialSliceOfVecs::new_mut(&mut self.block, channels, room).expect(SIZES);
        self.fft.process_into_buffer(&input, &mut output, None).expect(SIZES);
    }

    /// Adds a block to `out`, but for what comes too early and behind `most` frames.
    fn give(&mut self, most: u64, out: &mut [Vec<f32>]) {
        let skip = self.early.min(self.block[0].len());
        self.early -= skip;
        let count = ((self.block[0].len() - skip) as u64).min(most - self.given) as usize;
        self.given += count as u64;
        for (out, block) in out.iter_mut().zip(&self.block) {
            out.extend_from_slice(&block[skip..skip + count]);
        }
    }
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}
