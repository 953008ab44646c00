//! Drawing tokens from logits; see [`percept_kernels::sample`].

pub use percept_kernels::{
    Downloads, Draw, Drawing, Drawn, Forbidden, NotFinite, Seen, probabilities, sample, uniform,
};
