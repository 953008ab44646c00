//! What a device can do at most: how fast it reads, how fast it multiplies.

use std::{hint::black_box, time::Duration};

use candle_core::{DType, Device, Result, Tensor};
use percept_models::nn::linear::Linear;
use rayon::prelude::*;

use super::repeated;
use crate::{bench::report::Limits, memory::free_memory};

/// Larger than any cache, where there is room.
const BUFFER: u64 = 512 << 20;

/// Measures a device, with products in `dtype`; each figure is tried for some time.
pub(super) fn measure(device: &Device, dtype: DType, each: Duration) -> Result<Limits> {
    let bytes_per_second = match device {
        Device::Cpu => read_rate(each)?,
        _ => copy_rate(device, each)?,
    };
    Ok(Limits {
        bytes_per_second,
        flops: product_rate(device, dtype, each)?,
        threads: rayon::current_num_threads(),
    })
}

/// Bytes that all processors together read per second.
fn read_rate(each: Duration) -> Result<f64> {
    let bytes = BUFFER.min(free_memory() / 4);
    // Zeros would share one page of memory.
    let buffer = vec![1u64; (bytes / 8) as usize];
    let read = |part: &[u64]| black_box(part).iter().fold(0u64, |sum, number| sum.wrapping_add(*number));
    let times = repeated(each, || {
        black_box(buffer.par_chunks(1 << 16).map(read).reduce(|| 0, u64::wrapping_add));
        Ok::<_, candle_core::Error>(())
    })?;
    Ok((8 * buffer.len()) as f64 / times[0])
}

/// Bytes that a device reads and writes per second.
fn copy_rate(device: &Device, each: Duration) -> Result<f64> {
    let source = Tensor::ones(BUFFER as usize, DType::U8, device)?;
    let times = repeated(each, || {
        black_box(source.copy()?);
        device.synchronize()
    })?;
    Ok(2.0 * BUFFER as f64 / times[0])
}

/// Multiplications and additions per second of the faster one of two products: candle's, and the one that networks
/// use. For few rows the latter is faster, for many the former.
fn product_rate(device: &Device, dtype: DType, each: Duration) -> Result<f64> {
    let (rows, width) = if device.is_cpu() { (512, 2048) } else { (8192, 8192) };
    let ones = |rows: usize| Tensor::ones((rows, width), dtype, device);
    let (x, weight) = (ones(rows)?, ones(width)?);
    let layer = Linear::of(weight.clone(), None);
    let turned = weight.t()?;
    let candles = repeated(each, || {
        black_box(x.matmul(&turned)?);
        device.synchronize()
    })?;
    let ours = repeated(each, || {
        black_box(layer.forward(&x)?);
        device.synchronize()
    })?;
    Ok(2.0 * (rows * width * width) as f64 / candles[0].min(ours[0]))
}
