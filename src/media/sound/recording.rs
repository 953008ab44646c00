//! A decoded recording: in memory while it is short, else in a file that has no name.

use std::{
    fs::File,
    io::{self, Write},
    ops::Range,
    os::unix::fs::FileExt as _,
};

/// Samples per second.
pub const RATE: usize = 16_000;
/// Bytes of a sample.
const BYTES: usize = 2;

/// A decoded recording: one channel or more of 16-bit samples at 16 kHz.
#[derive(Debug)]
pub struct Recording {
    channels: Vec<Track>,
    samples: usize,
}

/// One channel.
#[derive(Debug)]
enum Track {
    Memory(Vec<i16>),
    /// Little-endian; deleted already, so that it goes with the process however that ends.
    File(File),
}

impl Recording {
    /// A recording of one channel.
    pub fn mono(samples: Vec<i16>) -> Self {
        Self { samples: samples.len(), channels: vec![Track::Memory(samples)] }
    }

    /// Samples of each channel.
    pub fn samples(&self) -> usize {
        self.samples
    }

    /// Its length.
    pub fn seconds(&self) -> f64 {
        self.samples as f64 / RATE as f64
    }

    /// Channels that are kept apart; 1 where they were mixed.
    pub fn channels(&self) -> usize {
        self.channels.len()
    }

    /// Samples of a channel, in `[-1, 1)`; those of `range` that lie behind the end are left out. Blocks for a file.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn read(&self, channel: usize, range: Range<usize>) -> io::Result<Vec<f32>> {
        let range = range.start.min(self.samples)..range.end.min(self.samples);
        let float = |sample: i16| f32::from(sample) / 32768.0;
        match &self.channels[channel] {
            Track::Memory(samples) => Ok(samples[range].iter().map(|&sample| float(sample)).collect()),
            Track::File(file) => {
                let mut bytes = vec![0; range.len() * BYTES];
                file.read_exact_at(&mut bytes, (range.start * BYTES) as u64)?;
                Ok(bytes
                    .chunks_exact(BYTES)
                    .map(|pair| float(i16::from_le_bytes([pair[0], pair[1]])))
                    .collect())
            }
        }
    }
}

/// Writes a recording, sample by sample of all channels.
#[derive(Debug)]
pub struct Recorder {
    channels: Vec<Track>,
    samples: usize,
    /// Samples of all channels that stay in memory.
    most: usize,
}

impl Recorder {
    /// A recorder of `channels` channels that keeps `most` samples of them together in memory, and goes on in files.
    pub fn new(channels: usize, most: usize) -> Self {
        Self { channels: (0..channels).map(|_| Track::Memory(Vec::new())).collect(), samples: 0, most }
    }

    /// Adds samples, as many to each channel.
    ///
    /// # Errors
    /// When the disk is full.
    pub fn push(&mut self, block: &[Vec<i16>]) -> io::Result<()> {
        let count = block.first().map_or(0, Vec::len);
        debug_assert!(
            block.len() == self.channels.len() && block.iter().all(|samples| samples.len() == count)
        );
        self.samples += count;
        if self.samples * self.channels.len() > self.most {
            for track in &mut self.channels {
                track.spill()?;
            }
        }
        for (track, samples) in self.channels.iter_mut().zip(block) {
            match track {
                Track::Memory(all) => all.extend_from_slice(samples),
                Track::File(file) => file.write_all(&bytes(samples))?,
            }
        }
        Ok(())
    }

    /// What was recorded.
    pub fn finish(self) -> Recording {
        Recording { channels: self.channels, samples: self.samples }
    }
}

impl Track {
    fn spill(&mut self) -> io::Result<()> {
        if let Self::Memory(samples) = self {
            let mut file = tempfile::tempfile()?;
            file.write_all(&bytes(samples))?;
            *self = Self::File(file);
        }
        Ok(())
    }
}

fn bytes(samples: &[i16]) -> Vec<u8> {
    samples.iter().flat_map(|sample| sample.to_le_bytes()).collect()
}
