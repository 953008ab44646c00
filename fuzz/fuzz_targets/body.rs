//! Bodies in JSON; the first byte says of which API.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| percept::api::fuzz::body(data));
