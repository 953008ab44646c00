//! Attention on a CUDA device.

use candle_core::{CudaStorage, Layout, Result, Shape, bail, cuda_backend::cudarc::driver::CudaStream};

use super::{Attention, Mask, Pages};
use crate::{
    cuda::{self, Operand},
    launch::{self, Element, Paged},
};

impl Attention {
    pub(super) fn on_cuda(
        &self,
        (q, q_layout): (&CudaStorage, &Layout),
        (k, k_layout): (&CudaStorage, &Layout),
        (v, v_layout): (&CudaStorage, &Layout),
    ) -> Result<(CudaStorage, Shape)> {
        let device = &q.device;
        let stream = &device.cuda_stream();
        let element = cuda::element(q, "attention")?;
        let shape = q_layout.shape().clone();
        let (rows, heads, width) = shape.dims3()?;
        let Some(sequences) = self.rows.offsets.dims1()?.checked_sub(1) else {
            bail!("attention: offsets have no end")
        };
        let offsets = self.rows.offsets.storage_and_layout();
        let offsets_on = cuda::indices(&offsets.0, offsets.1, sequences + 1, device, "offsets", stream)?;
        let locked = self
            .pages
            .as_ref()
            .map(|pages| (pages.table.storage_and_layout(), pages.lengths.storage_and_layout()));
        let paged = match (&self.pages, &locked) {
            (Some(pages), Some((table, lengths))) => {
                let most_pages = most_pages(pages, sequences)?;
                let table =
                    cuda::indices(&table.0, table.1, sequences * most_pages, device, "page table", stream)?;
                let lengths = cuda::indices(&lengths.0, lengths.1, sequences, device, "lengths", stream)?;
                Some((most_pages, table, lengths))
            }
            _ => None,
        };
        let (q_rows, q_on) = cuda::rows(q, q_layout, element, "q", stream)?;
        let keys = Keys::new((k, k_layout), element, paged.is_some(), "k", stream)?;
        let values = Keys::new((v, v_layout), element, paged.is_some(), "v", stream)?;
        // Zero, so that rows that no sequence has are not left as they were found.
        let mut out = cuda::zeros(device, element, shape.elem_count())?;
        let out_layout = Layout::contiguous(shape.clone());
        let out_on = cuda::contiguous_mut(&mut out, &out_layout, "out", stream)?;
        let launches = launch::Attention {
            element,
            out: out_on.address,
            q: q_rows,
            keys: keys.rows,
            values: values.rows,
            offsets: offsets_on.address,
            sequences,
            rows,
            longest: self.rows.longest,
            heads,
            kv_heads: keys.kv_heads,
            width,
            pages: paged.as_ref().map(|(most_pages, table, lengths)| Paged {
                table: table.address,
                lengths: lengths.address,
                most_pages: *most_pages,
                page_size: keys.page_size,
                pages: keys.pages,
            }),
            causal: self.mask.is_causal(),
            window: if let Mask::Window(window) = self.mask { Some(window) } else { None },
            scale: self.scale,
        };
        let [parts, stats] = launches.workspace();
        let workspace = |count: usize| {
            // SAFETY: `attention_merge` reads only what `attention_decode` has written: the splits that have positions.
            unsafe { cuda::unwritten(device, Element::F32, count.max(1)) }
        };
        let (mut parts_at, mut stats_at) = (workspace(parts)?, workspace(stats)?);
        let (parts, stats) = (Layout::contiguous(parts), Layout::contiguous(stats));
        let parts_on = cuda::contiguous_mut(&mut parts_at, &parts, "parts", stream)?;
        let stats_on = cuda::contiguous_mut(&mut stats_at, &stats, "stats", stream)?;
        for launch in launches.launches([parts_on.address, stats_on.address])? {
            // SAFETY: `attention` has compared the shapes and types of q, k and v, with heads a multiple of kv_heads.
            // Each operand lies inside its storage, as `cuda::rows` and `cuda::contiguous` have checked; the tables have
            // one entry for each sequence, and are u32 on this device; out and the workspace were made for the launch.
            // What the tables say is checked by the kernels, which trap.
            unsafe { cuda::run(device, &cuda::ATTENTION, &launch)? }
        }
        drop((offsets_on, paged, q_on, keys, values, out_on, parts_on, stats_on));
        Ok((out, shape))
    }
}

/// Columns of the page table, whose rows must be the sequences.
fn most_pages(pages: &Pages, sequences: usize) -> Result<usize> {
    let (rows, most_pages) = pages.table.dims2()?;
    if rows != sequences || pages.lengths.dims1()? != sequences || most_pages == 0 {
        bail!(
            "attention: a page table {:?} and lengths {:?} do not fit {sequences} sequences",
            pages.table.shape(),
            pages.lengths.shape()
        )
    }
    Ok(most_pages)
}

/// Keys or values.
struct Keys<'a> {
    rows: launch::Rows,
    kv_heads: usize,
    page_size: usize,
    pages: usize,
    _on: Operand<'a>,
}

impl<'a> Keys<'a> {
    fn new(
        (storage, layout): (&'a CudaStorage, &Layout),
        element: Element,
        paged: bool,
        name: &str,
        stream: &'a CudaStream,
    ) -> Result<Self> {
        if !paged {
            let (_, kv_heads, _) = layout.shape().dims3()?;
            let (rows, on) = cuda::rows(storage, layout, element, name, stream)?;
            return Ok(Self { rows, kv_heads, page_size: 1, pages: 0, _on: on });
        }
        let (pages, page_size, kv_heads, width) = layout.shape().dims4()?;
        if page_size == 0 {
            bail!("attention: {name} has pages without slots")
        }
        let on = cuda::contiguous(storage, layout, element, name, stream)?;
        let rows = launch::Rows { address: on.address, stride: kv_heads * width };
        Ok(Self { rows, kv_heads, page_size, pages, _on: on })
    }
}
