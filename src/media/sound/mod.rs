//! Sound files to what a network hears: 16 kHz, 16 bits.

mod recording;

pub use self::recording::{RATE, Recording};

use std::{ops::Range, sync::Arc};

/// A stretch of a recording as a network hears it; see [`percept_models::Medium::Sound`].
#[derive(Debug, Clone)]
pub struct Sound {
    /// Mono, at 16 kHz.
    pub samples: Arc<[f32]>,
    /// The frames that are heard, frame `t` being centred on sample `160 t`.
    pub frames: Range<usize>,
    /// The largest log10 mel power of the recording.
    pub peak: f32,
}
