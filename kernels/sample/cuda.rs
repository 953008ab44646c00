//! Drawing on a CUDA device: the logits stay there.

use candle_core::{DType, Result, Storage, Tensor};

use super::{Draw, Drawn, NotFinite};
use crate::{
    cuda,
    launch::{self, Sampling},
};

/// None where the host has to do it: the logits are there, or of a type or width that the kernels do not take.
pub(super) fn sample(
    logits: &Tensor,
    draws: &[Draw<'_>],
) -> Result<Option<Vec<std::result::Result<Drawn, NotFinite>>>> {
    let (_, width) = logits.dims2()?;
    if !takes(logits, width) {
        return Ok(None);
    }
    if draws.is_empty() {
        return Ok(Some(Vec::new()));
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
        // SAFETY: `sample` has found a draw for each row. The logits are contiguous and inside their storage, as
        // `contiguous` has checked; words, output and workspace were made for the launches, as large as the draws say, and
        // ids in the lists that are outside a row are passed over.
        unsafe { cuda::run(device, &cuda::SAMPLE, &launch)? }
    }
    drop(logits);
    Ok(Some(sampling.drawn(&device.clone_dtoh(&out)?)?))
}

/// As [`sample`].
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
