//! What architectures are made of. The only code that calls kernels.

pub mod attention;
pub mod clip;
pub mod decoder;
pub mod device;
pub mod dual;
pub mod image;
pub mod intern_vit;
pub mod linear;
pub mod mel;
pub mod mlp;
pub mod norm;
pub mod patches;
pub mod pooling;
pub mod projected;
pub mod rope;
pub mod sample;
pub mod siglip;
pub mod vit;
pub mod windows;
