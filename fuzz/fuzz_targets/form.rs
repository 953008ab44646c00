//! Forms with files.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| percept::api::fuzz::form(data));
