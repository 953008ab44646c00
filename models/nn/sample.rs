//! Drawing tokens from logits; see [`percept_kernels::sample`].

pub use percept_kernels::{Draw, Drawn, Forbidden, NotFinite, Seen, probabilities, sample, uniform};
