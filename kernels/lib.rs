//! The operations that candle lacks: one file each, with the CPU version as the plain reference.
//!
//! A kernel knows shapes and numbers. It knows no model, no request and no server. `unsafe` lives in this
//! crate only, behind functions that check every shape, stride and type first.

mod activation;
mod alignment;
mod attention;
#[cfg(feature = "cuda")]
mod cuda;
mod device;
mod graph;
mod kv_write;
#[cfg(feature = "cuda")]
mod late;
pub mod launch;
mod linear;
mod log_mel;
mod mapped;
mod norm;
mod resize;
mod sample;
mod scalar;
mod view;

pub use activation::{Activation, activate, gated};
pub use alignment::alignment;
pub use attention::{Kv, Mask, Pages, Ragged, attention};
pub use device::{DeviceMemory, device_memory, device_name, open_cuda, peak_memory};
pub use graph::{RecordedResult, Recording, record, records, rewrite};
pub use kv_write::kv_write;
pub use linear::linear;
pub use log_mel::{MelBank, log_mel};
pub use mapped::{Mmap, map_file};
pub use norm::{add_rms_norm, layer_norm, rms_norm};
pub use resize::{Canvas, Filter, Region, Resize, normalise, resize};
pub use sample::{
    Downloads, Draw, Drawing, Drawn, Forbidden, NotFinite, Seen, probabilities, sample, uniform,
};
