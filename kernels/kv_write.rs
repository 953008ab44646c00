//! Writes new key or value rows into their slots of the paged cache.

use candle_core::{CpuStorage, InplaceOp3, Layout, Result, Tensor, bail};

use crate::{
    scalar::{Real, dtype, for_real},
    view::{Rows, contiguous},
};

/// Copies row `i` of `rows` into slot `slots[i]` of `cache`, in place.
///
/// - `cache`: `[pages, page_size, kv_heads, head_dim]`; slot `s` is place `s % page_size` of page `s / page_size`
/// - `rows`: `[rows, kv_heads, head_dim]`, same dtype
/// - `slots`: u32 `[rows]`
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
}
