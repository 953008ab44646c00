//! Streams of events, as `percept bench` reads any server's: however they are cut, they say the same.
#![no_main]

use percept::bench::sse::{Reader, Said};

fn read(pieces: &[&[u8]]) -> Vec<Said> {
    let (mut reader, mut all) = (Reader::default(), Vec::new());
    for piece in pieces {
        reader.push(piece, |said| all.push(said));
    }
    all
}

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let whole = read(&[data]);
    let bytes: Vec<&[u8]> = data.chunks(1).collect();
    assert_eq!(read(&bytes), whole);
    let (front, back) = data.split_at(data.len() / 2);
    assert_eq!(read(&[front, back]), whole);
});
