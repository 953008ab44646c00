//! Drawing tokens from logits; see [`percept_kernels::sample`].

pub use percept_kernels::{Draw, NotFinite, Seen, sample, uniform};
