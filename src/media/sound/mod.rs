//! Sound files to what a network hears: 16 kHz, 16 bits.

mod recording;

pub use self::recording::{RATE, Recording};
