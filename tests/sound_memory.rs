//! Hours of sound in bounded memory. A process of its own, so that nothing else is measured.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "tests")]

use std::{
    fs,
    io::{self, Read, Seek, SeekFrom},
    ops::ControlFlow,
    time::Instant,
};

use percept::media::sound::{Channels, SoundLimits, Source, decode};

const HOURS: u64 = 3;
const SAMPLES: u64 = HOURS * 3600 * 8000;

/// A telephone recording that is made up while it is read: a header that says how long, and hours of a tone.
struct Call {
    header: Vec<u8>,
    at: u64,
}

impl Call {
    fn new() -> Self {
        let mut header = b"RIFF\xff\xff\xff\xffWAVEfmt \x10\0\0\0\x07\0\x01\0".to_vec();
        header.extend([8000u32, 8000].iter().flat_map(|rate| rate.to_le_bytes()));
        header.extend(b"\x01\0\x08\0data");
        header.extend(u32::try_from(SAMPLES).unwrap().to_le_bytes());
        Self { header, at: 0 }
    }

    fn len(&self) -> u64 {
        self.header.len() as u64 + SAMPLES
    }
}

impl Read for Call {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = (self.len() - self.at).min(buffer.len() as u64) as usize;
        for byte in &mut buffer[..count] {
            *byte = self.header.get(self.at as usize).copied().unwrap_or((self.at % 23) as u8 | 0x80);
            self.at += 1;
        }
        Ok(count)
    }
}

impl Seek for Call {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.at = match to {
            SeekFrom::Start(at) => at,
            SeekFrom::End(offset) => self.len().checked_add_signed(offset).unwrap(),
            SeekFrom::Current(offset) => self.at.checked_add_signed(offset).unwrap(),
        };
        Ok(self.at)
    }
}

impl Source for Call {}

/// The most memory that this process has had, in KiB.
fn peak() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[test]
fn three_hours_take_a_few_megabytes() {
    let limits = SoundLimits { seconds: 4.0 * 3600.0, memory_samples: 1 << 20, channels: 2 };
    let (before, started) = (peak(), Instant::now());
    let mut calls = 0;
    let watch = |_| {
        calls += 1;
        ControlFlow::Continue(())
    };
    let recording = decode(Call::new(), &limits, Channels::Mixed, None, watch).unwrap();
    let (grown, elapsed) = (peak() - before, started.elapsed().as_secs_f64());
    assert_eq!(recording.seconds(), HOURS as f64 * 3600.0);
    let end = recording.samples();
    assert!(recording.read(0, end - 1000..end).unwrap().iter().any(|sample| sample.abs() > 0.01));
    assert!(calls > 1000, "{calls}");
    assert!(grown < 16 << 10, "it grew by {grown} KiB");
    eprintln!("{HOURS} h in {elapsed:.1} s, {grown} KiB more");
}
