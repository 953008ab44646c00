//! The device that computes: the host's CPU, or a CUDA GPU with a stream of its own.

use candle_core::{Device, Result};

/// Memory of a device, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceMemory {
    /// That nobody uses.
    pub free: u64,
    /// All of it.
    pub total: u64,
}

/// Opens CUDA GPU `ordinal`, counted from 0, for one engine: what is made on the returned device is used on one stream, in
/// order, and freed memory is kept for the next step instead of being given back to the driver.
///
/// # Errors
/// When there is no such GPU, no driver, one of CUDA's libraries is not there, the driver is too old for the build, or the
/// build has no CUDA.
pub fn open_cuda(ordinal: usize) -> Result<Device> {
    #[cfg(feature = "cuda")]
    crate::late::load()?;
    let device = Device::new_cuda_with_stream(ordinal)?;
    #[cfg(feature = "cuda")]
    if let Device::Cuda(cuda) = &device {
        on_one_stream(cuda)?;
    }
    Ok(device)
}

/// The memory of a GPU; [`None`] for the host's.
///
/// # Errors
/// When the driver does not say.
pub fn device_memory(device: &Device) -> Result<Option<DeviceMemory>> {
    match device {
        #[cfg(feature = "cuda")]
        Device::Cuda(cuda) => {
            use candle_core::cuda_backend::WrapErr as _;
            let (free, total) = cuda.cuda_stream().context().mem_get_info().w()?;
            Ok(Some(DeviceMemory { free: free as u64, total: total as u64 }))
        }
        _ => Ok(None),
    }
}

/// What a device calls itself, such as `NVIDIA A10G`; [`None`] for the host.
///
/// # Errors
/// When the driver does not say.
pub fn device_name(device: &Device) -> Result<Option<String>> {
    match device {
        #[cfg(feature = "cuda")]
        Device::Cuda(cuda) => {
            use candle_core::cuda_backend::WrapErr as _;
            Ok(Some(cuda.cuda_stream().context().name().w()?))
        }
        _ => Ok(None),
    }
}

#[cfg(feature = "cuda")]
fn on_one_stream(device: &candle_core::CudaDevice) -> Result<()> {
    use candle_core::cuda_backend::{WrapErr as _, cudarc::driver::result, cudarc::driver::sys};

    // SAFETY: every tensor of this device is made, used and freed on its one stream, which keeps them in order. What
    // reaches the host does so by copies that wait.
    unsafe { device.disable_event_tracking() };
    let stream = device.cuda_stream();
    let context = stream.context();
    let mut keep = u64::MAX;
    // SAFETY: the device is the context's, and this attribute is a number of 64 bits that is copied.
    unsafe {
        let pool = result::device::get_default_mem_pool(context.cu_device()).w()?;
        let attribute = sys::CUmemPool_attribute_enum::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
        result::mem_pool::set_attribute(pool, attribute, std::ptr::from_mut(&mut keep).cast()).w()
    }
}
