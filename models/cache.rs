//! The paged key-value cache: one pair of tensors per layer.

use candle_core::{DType, Device, Tensor};

use crate::Result;

/// What a network keeps per row of text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CacheShape {
    /// Attention layers.
    pub layers: usize,
    /// Key-value heads of a layer.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
}

impl CacheShape {
    /// Of a network that keeps nothing.
    pub const NONE: Self = Self { layers: 0, kv_heads: 0, head_dim: 0 };

    /// Bytes of one row: keys and values of all layers.
    pub fn row_bytes(&self, dtype: DType) -> usize {
        2 * self.layers * self.kv_heads * self.head_dim * dtype.size_in_bytes()
    }
}

/// Keys and values of all sequences.
#[derive(Debug)]
pub struct KvCache {
    layers: Vec<LayerCache>,
}

/// Keys and values of one layer, each `[pages, page_size, kv_heads, head_dim]`.
#[derive(Debug, Clone)]
pub struct LayerCache {
    /// Rotated keys.
    pub k: Tensor,
    /// Values.
    pub v: Tensor,
}

impl KvCache {
    /// Allocates all pages.
    ///
    /// # Errors
    /// When the device has not enough memory.
    pub fn new(
        shape: CacheShape,
        pages: usize,
        page_size: usize,
        dtype: DType,
        device: &Device,
    ) -> Result<Self> {
        let zeros = || Tensor::zeros((pages, page_size, shape.kv_heads, shape.head_dim), dtype, device);
        let layers =
            (0..shape.layers).map(|_| Ok(LayerCache { k: zeros()?, v: zeros()? })).collect::<Result<_>>()?;
        Ok(Self { layers })
    }

    /// The same pages for so many layers, in turns: for work whose numbers mean nothing.
    #[must_use]
    pub fn shared_by(self, layers: usize) -> Self {
        Self { layers: self.layers.into_iter().cycle().take(layers).collect() }
    }

    /// Keys and values of layer `index`.
    pub fn layer(&self, index: usize) -> &LayerCache {
        &self.layers[index]
    }
}
