//! Drawing on a CUDA device: the logits stay there, and what is drawn comes to the host while the device goes on.

use candle_core::{
    CpuStorage, CudaDevice, CudaStorage, DType, InplaceOp1, Layout, Result, Storage, Tensor, bail,
    cuda_backend::{
        CudaDType as _, WrapErr as _,
        cudarc::driver::{CudaEvent, CudaSlice, PinnedHostSlice, result, sys::CUevent_flags_enum},
    },
};

use super::{Downloads, Draw, Drawn, NotFinite};
use crate::{
    cuda,
    launch::{self, Sampling},
};

/// Draws that were launched, and the download behind them.
#[derive(Debug)]
pub(super) struct Drawing {
    sampling: Sampling,
    device: CudaDevice,
    out: CudaSlice<u32>,
    pinned: Pinned,
}

/// Memory that the device writes to by itself, and when it has done so.
#[derive(Debug)]
pub(super) struct Pinned {
    memory: PinnedHostSlice<u32>,
    done: CudaEvent,
}

impl Pinned {
    /// Of so many words, or more. It can be read: all of it was written once.
    fn new(device: &CudaDevice, words: usize) -> Result<Self> {
        let stream = device.cuda_stream();
        let context = stream.context();
        // A thread that waits for it sleeps.
        let done = context.new_event(Some(CUevent_flags_enum::CU_EVENT_BLOCKING_SYNC)).w()?;
        // SAFETY: it is written below. Memory that the host reads is not to be combined writes.
        let mut memory =
            unsafe { context.alloc_pinned_with_flags::<u32>(words.next_power_of_two(), 0) }.w()?;
        memory.as_mut_slice().w()?.fill(0);
        Ok(Self { memory, done })
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // What is still on its way would arrive where nothing is any more. A device that fails sends nothing.
        let _ = self.done.synchronize();
    }
}

impl Drawing {
    /// None where the host has to do it: the logits are there, or of a type or width that the kernels do not take.
    pub(super) fn start(
        logits: &Tensor,
        draws: &[Draw<'_>],
        downloads: &mut Downloads,
    ) -> Result<Option<Self>> {
        let (_, width) = logits.dims2()?;
        if !takes(logits, width) || draws.is_empty() {
            return Ok(None);
        }
        let sampling = Sampling::new(draws, width)?;
        let logits = logits.contiguous()?;
        let (storage, layout) = logits.storage_and_layout();
        let Storage::Cuda(storage) = &*storage else { return Ok(None) };
        let device = &storage.device;
        let stream = &device.cuda_stream();
        let element = cuda::element(storage, "sample")?;
        let logits = cuda::contiguous(storage, layout, element, "logits", stream)?;
        let words = device.clone_htod(sampling.words())?;
        let mut out = device.alloc_zeros::<u32>(sampling.output())?;
        // SAFETY: the first kernel writes of every place all that the second reads.
        let mut workspace = unsafe { device.alloc::<f32>(sampling.workspace().max(1))? };
        let addresses = [
            cuda::address_mut(&mut out, stream),
            cuda::address_mut(&mut workspace, stream),
            logits.address,
            cuda::address(&words, stream),
        ];
        for launch in sampling.launches(element, addresses)? {
            // SAFETY: `Drawing::start` has found a draw for each row. The logits are contiguous and inside their storage,
            // as `contiguous` has checked; words, output and workspace were made for the launches, as large as the draws
            // say, and ids in the lists that are outside a row are passed over.
            unsafe { cuda::run(device, &cuda::SAMPLE, &launch)? }
        }
        drop(logits);
        let fits = |pinned: &Pinned| pinned.memory.len() >= out.len();
        let mut pinned = match downloads.pinned.iter().position(fits) {
            Some(index) => downloads.pinned.swap_remove(index),
            None => Pinned::new(device, out.len())?,
        };
        // As much as there is: cudarc would copy as much as has room.
        let to = &mut pinned.memory.as_mut_slice().w()?[..out.len()];
        // SAFETY: the output is as long as that part of the memory, and both live until the copy is done: the output is
        // freed behind it in the stream, and the memory waits for it.
        unsafe { result::memcpy_dtoh_async(to, cuda::address(&out, stream), stream.cu_stream()) }.w()?;
        pinned.done.record(stream).w()?;
        Ok(Some(Self { sampling, device: device.clone(), out, pinned }))
    }

    /// As [`super::Drawing::feed`].
    pub(super) fn feed(&self, words: &Tensor, from: &[u32]) -> Result<()> {
        words.inplace_op1(&Feed { drawing: self, from })
    }

    /// As [`super::Drawing::wait`].
    pub(super) fn wait(
        self,
        downloads: &mut Downloads,
    ) -> Result<Vec<std::result::Result<Drawn, NotFinite>>> {
        self.pinned.done.synchronize().w()?;
        let drawn = self.sampling.drawn(self.pinned.memory.as_slice().w()?)?;
        downloads.pinned.push(self.pinned);
        Ok(drawn)
    }
}

struct Feed<'a> {
    drawing: &'a Drawing,
    from: &'a [u32],
}

impl InplaceOp1 for Feed<'_> {
    fn name(&self) -> &'static str {
        "feed"
    }

    fn cpu_fwd(&self, _: &mut CpuStorage, _: &Layout) -> Result<()> {
        bail!("feed: the words must be on the GPU, as the draws are")
    }

    fn cuda_fwd(&self, storage: &mut CudaStorage, layout: &Layout) -> Result<()> {
        let Drawing { sampling, device, out, .. } = self.drawing;
        let stream = &device.cuda_stream();
        let words = u32::as_cuda_slice_mut(storage)?;
        let inside = |&(start, end): &(usize, usize)| end - start >= self.from.len() && end <= words.len();
        let Some((start, _)) = layout.contiguous_offsets().filter(inside) else {
            bail!("feed: {} tokens for other words", self.from.len())
        };
        let first = cuda::address_mut(words, stream) + (start * size_of::<u32>()) as u64;
        let from = device.clone_htod(self.from)?;
        let addresses = [first, cuda::address(out, stream), cuda::address(&from, stream)];
        if let Some(launch) = sampling.feed(addresses, self.from)? {
            // SAFETY: `feed` has checked that each row is one of the draws', whose output is as long as they say; the words
            // are contiguous and as many as the rows, as was checked above.
            unsafe { cuda::run(device, &cuda::SAMPLE, &launch)? }
        }
        Ok(())
    }
}

/// None where the host has to do it, as [`Drawing::start`].
pub(super) fn probabilities(logits: &Tensor, ids: &[u32], widths: &[usize]) -> Result<Option<Vec<f32>>> {
    let (rows, width) = logits.dims2()?;
    if !takes(logits, width) {
        return Ok(None);
    }
    if rows == 0 {
        return Ok(Some(Vec::new()));
    }
    let logits = logits.contiguous()?;
    let (storage, layout) = logits.storage_and_layout();
    let Storage::Cuda(storage) = &*storage else { return Ok(None) };
    let device = &storage.device;
    let stream = &device.cuda_stream();
    let element = cuda::element(storage, "probabilities")?;
    let logits = cuda::contiguous(storage, layout, element, "logits", stream)?;
    let wanted = device.clone_htod(launch::wanted_probabilities(ids, widths, width).as_slice())?;
    // SAFETY: the kernel writes every element: it has a block for each row.
    let mut out = unsafe { device.alloc::<f32>(rows)? };
    let addresses = [cuda::address_mut(&mut out, stream), logits.address, cuda::address(&wanted, stream)];
    if let Some(launch) = launch::probabilities(element, addresses, [rows, width])? {
        // SAFETY: `probabilities` has found an id and a width for each row, and no width is above that of the logits, which
        // are contiguous and inside their storage; out and wanted were made for the launch.
        unsafe { cuda::run(device, &cuda::SAMPLE, &launch)? }
    }
    drop(logits);
    Ok(Some(device.clone_dtoh(&out)?))
}

fn takes(logits: &Tensor, width: usize) -> bool {
    logits.device().is_cuda()
        && width <= launch::MOST_IDS
        && matches!(logits.dtype(), DType::F32 | DType::BF16 | DType::F16)
}
