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

/// Does `work`, and says how many bytes more than before it had in use at once; [`None`] for the host, of whose memory nobody
/// keeps account. All that is allocated on the GPU meanwhile counts, whoever does it. What is being [recorded](crate::record)
/// has memory of its own, which does not.
///
/// # Errors
/// Those of `work`, and when the driver does not say.
pub fn peak_memory(device: &Device, work: impl FnOnce() -> Result<()>) -> Result<Option<u64>> {
    match device {
        #[cfg(feature = "cuda")]
        Device::Cuda(cuda) => {
            let pool = cuda::Pool::of(cuda)?;
            let before = pool.begin()?;
            work()?;
            Ok(Some(pool.peak()?.saturating_sub(before)))
        }
        _ => work().map(|()| None),
    }
}

#[cfg(feature = "cuda")]
fn on_one_stream(device: &candle_core::CudaDevice) -> Result<()> {
    // SAFETY: every tensor of this device is made, used and freed on its one stream, which keeps them in order. What
    // reaches the host does so by copies that wait.
    unsafe { device.disable_event_tracking() };
    cuda::Pool::of(device)?.keep_all()
}

#[cfg(feature = "cuda")]
mod cuda {
    use candle_core::{
        CudaDevice, Result,
        cuda_backend::{
            WrapErr as _,
            cudarc::driver::{
                result::{device::get_default_mem_pool, mem_pool},
                sys::{CUmemPool_attribute, CUmemPool_attribute_enum as Attribute, CUmemoryPool},
            },
        },
    };

    /// What a GPU's memory is taken from: of all its engines.
    pub(super) struct Pool(CUmemoryPool);

    impl Pool {
        pub(super) fn of(device: &CudaDevice) -> Result<Self> {
            let stream = device.cuda_stream();
            let device = stream.context().cu_device();
            // SAFETY: the device is the context's.
            unsafe { get_default_mem_pool(device) }.w().map(Self)
        }

        /// What is freed stays in the pool.
        pub(super) fn keep_all(&self) -> Result<()> {
            self.set(Attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD, u64::MAX)
        }

        /// Counts the peak from here on, which is what is in use now.
        pub(super) fn begin(&self) -> Result<u64> {
            self.set(Attribute::CU_MEMPOOL_ATTR_USED_MEM_HIGH, 0)?;
            self.get(Attribute::CU_MEMPOOL_ATTR_USED_MEM_CURRENT)
        }

        /// Most bytes that were in use at once since then.
        pub(super) fn peak(&self) -> Result<u64> {
            self.get(Attribute::CU_MEMPOOL_ATTR_USED_MEM_HIGH)
        }

        fn get(&self, attribute: CUmemPool_attribute) -> Result<u64> {
            let mut value = 0_u64;
            // SAFETY: the pool is a device's own, which is never destroyed; these attributes are numbers of 64 bits.
            unsafe { mem_pool::get_attribute(self.0, attribute, std::ptr::from_mut(&mut value).cast()) }
                .w()?;
            Ok(value)
        }

        fn set(&self, attribute: CUmemPool_attribute, mut value: u64) -> Result<()> {
            // SAFETY: as above; the number is copied.
            unsafe { mem_pool::set_attribute(self.0, attribute, std::ptr::from_mut(&mut value).cast()) }.w()
        }
    }
}
