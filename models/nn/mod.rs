//! What architectures are made of. The only code that calls kernels.

pub mod attention;
pub mod clip;
pub mod decoder;
pub mod device;
pub mod image;
pub mod intern_vit;
pub mod linear;
pub mod mel;
pub mod mlp;
pub mod norm;
pub mod patches;
pub mod projected;
pub mod rope;
pub mod sample;
pub mod vit;
pub mod windows;
