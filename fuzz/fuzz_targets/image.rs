//! Headers of pictures, and what is behind them where it is small.
#![no_main]

use percept::media::{Header, decode};

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let Ok(header) = Header::read(data, 4096, 1 << 16) else { return };
    let (width, height) = header.size();
    assert!(width * height == header.pixels() && header.pixels() <= 1 << 16);
    if let Ok(picture) = decode(data, header) {
        assert_eq!((picture.width, picture.height), (width, height));
        assert_eq!(picture.rgb.len(), 3 * width * height);
    }
});
