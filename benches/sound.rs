//! Decoding of each container, as times real time.
fn main() {}
