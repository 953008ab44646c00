//! Data URLs, and base64 without one.
#![no_main]

use percept::media::{read_base64, read_url, video_frames};

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else { return };
    for file in [read_url(text, 1 << 12), read_base64(text, 1 << 12)].into_iter().flatten() {
        assert!(!file.is_empty() && file.len() <= 1 << 12);
    }
    if let Ok(frames) = video_frames(text) {
        for frame in frames.take(16) {
            drop(read_base64(frame, 1 << 12));
        }
    }
});
