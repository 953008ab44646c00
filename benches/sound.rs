//! Decoding of each container; criterion's elements per second are samples at 16 kHz, so divide by 16,000 for times real
//! time.
//!
//! `cargo bench --bench sound`
#![allow(missing_docs, clippy::unwrap_used, reason = "a benchmark")]

use std::{fs, hint::black_box, io::Cursor, ops::ControlFlow, path::Path};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use percept::media::sound::{Channels, Recording, SoundLimits, decode};

const FILES: [&str; 14] = [
    "s16.wav",
    "stereo_48k.wav",
    "mulaw_8k.wav",
    "cover.mp3",
    "vbr_44k_stereo.mp3",
    "16k.flac",
    "vorbis.ogg",
    "wide.opus",
    "music_stereo.opus",
    "browser.webm",
    "voice.m4a",
    "fragmented.mp4",
    "24k.aac",
    "alac.m4a",
];

fn hear(file: Vec<u8>) -> Recording {
    let limits = SoundLimits { seconds: 60.0, memory_samples: 1 << 20, channels: 2 };
    decode(Cursor::new(file), &limits, Channels::Mixed, None, |_| ControlFlow::Continue(())).unwrap()
}

fn sound(criterion: &mut Criterion) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/sound");
    let mut group = criterion.benchmark_group("decoded samples at 16 kHz, one core");
    for name in FILES {
        let file = fs::read(folder.join(name)).unwrap();
        group.throughput(Throughput::Elements(hear(file.clone()).samples() as u64));
        group.bench_function(name, |bencher| bencher.iter(|| hear(black_box(file.clone()))));
    }
    group.finish();
}

criterion_group!(benches, sound);
criterion_main!(benches);
