//! Where speech is in a recording.

/// How speech is told from silence.
#[derive(Debug, Clone, PartialEq)]
pub struct VadOptions {
    /// Probability from which a frame is speech.
    pub threshold: f32,
    /// Shorter speech is none, in milliseconds.
    pub min_speech_ms: u32,
    /// Shorter silence does not end speech, in milliseconds.
    pub min_silence_ms: u32,
    /// What is kept around speech, in milliseconds.
    pub pad_ms: u32,
}

impl Default for VadOptions {
    fn default() -> Self {
        Self { threshold: 0.5, min_speech_ms: 250, min_silence_ms: 160, pad_ms: 400 }
    }
}
