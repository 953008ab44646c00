//! Work of a GPU that is recorded once and done again: CUDA graphs. A step that writes a token is hundreds of launches
//! of a few microseconds each, and the host takes longer to ask for them than the GPU to do them; a graph is asked for
//! at once (<https://docs.nvidia.com/cuda/cuda-c-programming-guide/#cuda-graphs>).

use candle_core::{CpuStorage, Device, InplaceOp1, Layout, Result, Tensor, bail};

/// What was recorded. It reads and writes the memory that it was recorded with, which must live as long.
pub struct Recording {
    #[cfg(feature = "cuda")]
    graph: candle_core::cuda_backend::cudarc::driver::CudaGraph,
    #[cfg(not(feature = "cuda"))]
    never: std::convert::Infallible,
}

/// Whether a device can record at all.
pub fn records(device: &Device) -> bool {
    cfg!(feature = "cuda") && device.is_cuda()
}

/// Does `work` once as ever, so that kernels are loaded and constants are on the device, and then records it. It must
/// ask for the same launches every time, read nothing back, upload nothing that changes, and leave its result in memory
/// that it did not allocate.
///
/// # Errors
/// When the work fails or cannot be recorded, or the device is the host.
pub fn record(device: &Device, work: impl FnMut() -> Result<()>) -> Result<Recording> {
    match device {
        #[cfg(feature = "cuda")]
        Device::Cuda(cuda) => on_cuda(cuda, work),
        _ => {
            drop(work);
            bail!("only GPUs record")
        }
    }
}

#[cfg(feature = "cuda")]
fn on_cuda(device: &candle_core::CudaDevice, mut work: impl FnMut() -> Result<()>) -> Result<Recording> {
    use candle_core::cuda_backend::{
        WrapErr as _,
        cudarc::driver::sys::{CUgraphInstantiate_flags, CUstreamCaptureMode},
    };

    let stream = device.cuda_stream();
    // Uploads of shapes and strides, which some of candle's operations do for each launch, are remembered.
    let _remembered = device.enable_cuda_graph_htod_cache();
    work()?;
    stream.synchronize().w()?;
    // Other engines have streams of their own, and go on meanwhile.
    stream.begin_capture(CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL).w()?;
    let done = work();
    // In any case: a stream that still records does nothing else.
    let graph = stream.end_capture(CUgraphInstantiate_flags(0)).w();
    done?;
    let Some(graph) = graph? else { bail!("nothing was recorded") };
    graph.upload().w()?;
    Ok(Recording { graph })
}

impl Recording {
    /// Puts the work into the device's stream again.
    ///
    /// # Errors
    /// When the device refuses.
    pub fn replay(&self) -> Result<()> {
        #[cfg(feature = "cuda")]
        {
            use candle_core::cuda_backend::WrapErr as _;
            self.graph.launch().w()
        }
        #[cfg(not(feature = "cuda"))]
        match self.never {}
    }
}

/// Work that gives a tensor, recorded together with the memory for it.
#[derive(Debug)]
pub struct RecordedResult {
    // Dropped first: it writes the result.
    recording: Recording,
    result: Tensor,
}

impl RecordedResult {
    /// Does `work` twice, and records it as [`record`] does.
    ///
    /// # Errors
    /// As there.
    pub fn new(device: &Device, work: impl Fn() -> Result<Tensor>) -> Result<Self> {
        let result = work()?.zeros_like()?;
        let recording = record(device, || result.slice_set(&work()?, 0, 0))?;
        Ok(Self { recording, result })
    }

    /// Does the work again; the next time overwrites what it gives.
    ///
    /// # Errors
    /// When the device refuses.
    pub fn replay(&self) -> Result<Tensor> {
        self.recording.replay().map(|()| self.result.clone())
    }
}

impl std::fmt::Debug for Recording {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Recording")
    }
}

/// Writes `words` over the first numbers of a u32 tensor, in place: all that share its memory see it, recordings too.
///
/// # Errors
/// When the tensor is shorter, not contiguous, or of another type.
pub fn rewrite(tensor: &Tensor, words: &[u32]) -> Result<()> {
    tensor.inplace_op1(&Rewrite { words })
}

struct Rewrite<'a> {
    words: &'a [u32],
}

impl Rewrite<'_> {
    fn range(&self, layout: &Layout) -> Result<std::ops::Range<usize>> {
        let Some((start, end)) = layout.contiguous_offsets() else { bail!("rewrite: it must be contiguous") };
        if end - start < self.words.len() {
            bail!("rewrite: {} numbers for {}", self.words.len(), end - start)
        }
        Ok(start..start + self.words.len())
    }
}

impl InplaceOp1 for Rewrite<'_> {
    fn name(&self) -> &'static str {
        "rewrite"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> Result<()> {
        let range = self.range(layout)?;
        let CpuStorage::U32(numbers) = storage else { bail!("rewrite: it must be u32") };
        let Some(numbers) = numbers.get_mut(range) else { bail!("rewrite: it is shorter than its shape") };
        numbers.copy_from_slice(self.words);
        Ok(())
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, storage: &mut candle_core::CudaStorage, layout: &Layout) -> Result<()> {
        use candle_core::cuda_backend::{CudaDType as _, WrapErr as _};

        let range = self.range(layout)?;
        let stream = storage.device.cuda_stream();
        let numbers = u32::as_cuda_slice_mut(storage)?;
        let Some(mut numbers) = numbers.try_slice_mut(range) else {
            bail!("rewrite: it is shorter than its shape")
        };
        // The driver has its own copy of what is not pinned when this returns.
        stream.memcpy_htod(self.words, &mut numbers).w()
    }
}
