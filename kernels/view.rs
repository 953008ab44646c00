//! Checked views of CPU storage, so that a kernel indexes slices and never raw offsets.

use candle_core::{CpuStorage, Layout, Result, Storage, Tensor, WithDType, bail};

/// The elements of a contiguous tensor, in order.
pub(crate) fn contiguous<'a, T: WithDType>(
    storage: &'a CpuStorage,
    layout: &Layout,
    name: &str,
) -> Result<&'a [T]> {
    let Some((start, end)) = layout.contiguous_offsets() else {
        bail!("{name} must be contiguous, has strides {:?}", layout.stride())
    };
    Ok(&storage.as_slice::<T>()?[start..end])
}

/// A `[rows, heads, width]` tensor whose rows may lie apart, as the parts of a fused projection do.
#[derive(Clone, Copy)]
pub(crate) struct Rows<'a, T> {
    data: &'a [T],
    stride: usize,
    pub(crate) rows: usize,
    pub(crate) heads: usize,
    pub(crate) width: usize,
}

impl<'a, T: WithDType> Rows<'a, T> {
    pub(crate) fn new(storage: &'a CpuStorage, layout: &Layout, name: &str) -> Result<Self> {
        let (rows, heads, width) = layout.shape().dims3()?;
        let &[stride, head_stride, 1] = layout.stride() else {
            bail!("{name} must have adjacent elements, has strides {:?}", layout.stride())
        };
        if heads > 1 && head_stride != width {
            bail!("{name} must have adjacent heads, has strides {:?}", layout.stride())
        }
        let data = &storage.as_slice::<T>()?[layout.start_offset()..];
        if rows > 0 && data.len() < (rows - 1) * stride + heads * width {
            bail!("{name} is shorter than its shape {:?}", layout.shape())
        }
        Ok(Self { data, stride, rows, heads, width })
    }

    /// All heads of one row, `[heads * width]`.
    #[inline(always)]
    pub(crate) fn row(&self, row: usize) -> &'a [T] {
        &self.data[row * self.stride..][..self.heads * self.width]
    }

    /// One head of one row, `[width]`.
    #[inline(always)]
    pub(crate) fn head(&self, row: usize, head: usize) -> &'a [T] {
        &self.row(row)[head * self.width..][..self.width]
    }
}

/// Reads a contiguous u32 tensor that lives on the CPU.
pub(crate) fn with_u32<R>(tensor: &Tensor, name: &str, read: impl FnOnce(&[u32]) -> Result<R>) -> Result<R> {
    let (storage, layout) = tensor.storage_and_layout();
    let Storage::Cpu(storage) = &*storage else { bail!("{name} must be on the CPU, as its operands are") };
    read(contiguous::<u32>(storage, layout, name)?)
}
