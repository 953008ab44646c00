//! Recordings in every container.
#![no_main]

use std::{io::Cursor, ops::ControlFlow, sync::Once};

use percept::media::sound::{Channels, RATE, SoundLimits, decode};

/// A panic inside of a decoder is caught where it is called, and is an error like others: it must not end the fuzzer
/// before. One that nobody catches still does.
static CAUGHT: Once = Once::new();

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    CAUGHT.call_once(|| std::panic::set_hook(Box::new(|_| ())));
    let limits = SoundLimits { seconds: 20.0, memory_samples: 1 << 22, channels: 2 };
    let source = Cursor::new(data.to_vec());
    // Some formats are a thousand times as short as what they hold.
    let mut steps = 0;
    let watch = |_| {
        steps += 1;
        if steps < 10_000 { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    };
    if let Ok(recording) = decode(source, &limits, Channels::Mixed, None, watch) {
        assert!(recording.samples() <= 20 * RATE + RATE / 10);
        let samples = recording.read(0, 0..recording.samples()).unwrap();
        assert!(samples.iter().all(|sample| (-1.0..=1.0).contains(sample)));
    }
});
