//! Writes new key or value rows into their slots of the paged cache.

use candle_core::{CpuStorage, InplaceOp3, Layout, Result, Tensor, bail};

#[cfg(feature = "cuda")]
use crate::{cuda, launch};
use crate::{
    scalar::{Real, dtype, for_real},
    view::{Rows, contiguous},
};

/// Copies row `i` of `rows` into slot `slots[i]` of `cache`, in place.
///
/// - `cache`: `[pages, page_size, kv_heads, head_dim]`; slot `s` is place `s % page_size` of page `s / page_size`
/// - `rows`: `[rows, kv_heads, head_dim]`, same dtype
/// - `slots`: u32 `[rows]`; a slot may repeat from one row to the next, where the rows are the same
///
/// # Errors
/// When a shape or dtype differs, or a slot lies outside the cache.
pub fn kv_write(cache: &Tensor, rows: &Tensor, slots: &Tensor) -> Result<()> {
    let (_, _, heads, width) = cache.dims4()?;
    let (count, row_heads, row_width) = rows.dims3()?;
    if (heads, width) != (row_heads, row_width) || slots.dims1()? != count || rows.dtype() != cache.dtype() {
        bail!(
            "kv_write: rows {:?} {:?} and slots {:?} do not fit the cache {:?} {:?}",
            rows.shape(),
            rows.dtype(),
            slots.shape(),
            cache.shape(),
            cache.dtype()
        )
    }
    cache.inplace_op3(rows, slots, &KvWrite)
}

struct KvWrite;

impl InplaceOp3 for KvWrite {
    fn name(&self) -> &'static str {
        "kv-write"
    }

    fn cpu_fwd(
        &self,
        cache: &mut CpuStorage,
        cache_layout: &Layout,
        rows: &CpuStorage,
        rows_layout: &Layout,
        slots: &CpuStorage,
        slots_layout: &Layout,
    ) -> Result<()> {
        let slots = contiguous::<u32>(slots, slots_layout, "slots")?;
        for_real!(dtype(cache), self.name(), T => {
            let rows = Rows::<T>::new(rows, rows_layout, "rows")?;
            let Some((start, end)) = cache_layout.contiguous_offsets() else {
                bail!("the cache must be contiguous")
            };
            let Some(cache) = T::elements_mut(cache) else { bail!("the cache changed its type") };
            let cache = &mut cache[start..end];
            let width = rows.heads * rows.width;
            for (row, &slot) in slots.iter().enumerate() {
                let at = slot as usize * width;
                let Some(place) = cache.get_mut(at..at + width) else {
                    bail!("slot {slot} lies outside a cache of {} slots", cache.len() / width)
                };
                place.copy_from_slice(rows.row(row));
            }
            Ok(())
        })
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        cache: &mut candle_core::CudaStorage,
        cache_layout: &Layout,
        rows: &candle_core::CudaStorage,
        rows_layout: &Layout,
        slots: &candle_core::CudaStorage,
        slots_layout: &Layout,
    ) -> Result<()> {
        let device = &cache.device.clone();
        let stream = &device.cuda_stream();
        let element = cuda::element(cache, self.name())?;
        let (pages, page_size, heads, width) = cache_layout.shape().dims4()?;
        let count = rows_layout.shape().dims3()?.0;
        let cache = cuda::contiguous_mut(cache, cache_layout, "cache", stream)?;
        let (from, rows) = cuda::rows(rows, rows_layout, element, "rows", stream)?;
        let slots = cuda::contiguous_u32(slots, slots_layout, count, device, "slots", stream)?;
        let sizes = [count, heads * width, pages * page_size];
        if let Some(launch) = launch::kv_write(element, cache.address, from, slots.address, sizes)? {
            // SAFETY: `kv_write` has found heads, widths and types of the rows equal to the cache's, and a slot for each
            // row. The cache is contiguous, and rows and slots are inside their storage, as the functions above have
            // checked. A slot outside the cache is noticed by the kernel, which traps.
            unsafe { cuda::run(device, &cuda::KV_WRITE, &launch)? }
        }
        drop((cache, rows, slots));
        Ok(())
    }
}
