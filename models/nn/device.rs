//! Devices that networks run on; see [`percept_kernels`].

pub use percept_kernels::{DeviceMemory, device_memory, device_name, open_cuda};
