//! Devices that networks run on; see [`percept_kernels`].

pub use percept_kernels::{
    DeviceMemory, RecordedResult, Recording, device_memory, device_name, open_cuda, peak_memory, record,
    records, rewrite,
};
