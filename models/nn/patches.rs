//! Pictures cut into patches, each of which becomes a row.

use candle_core::Tensor;
use candle_nn::VarBuilder;

use super::linear::{Bias, Linear};
use crate::{LoadError, Result};

/// A convolution whose stride is its size: a matrix product over patches.
#[derive(Debug)]
pub struct PatchEmbedding {
    linear: Linear,
    size: usize,
}

impl PatchEmbedding {
    /// Loads `weight` `[hidden, 3, size, size]` and, where there is one, `bias` `[hidden]`.
    ///
    /// # Errors
    /// When a tensor is missing or has another shape.
    pub fn load(size: usize, hidden: usize, bias: Bias, vb: &VarBuilder<'_>) -> Result<Self> {
        let weight = vb.get((hidden, 3, size, size), "weight")?.reshape((hidden, 3 * size * size))?;
        let bias = match bias {
            Bias::Yes => Some(vb.get(hidden, "bias")?),
            Bias::No => None,
        };
        Ok(Self { linear: Linear::of(weight, bias), size })
    }

    /// The patches of `pixels` `[pictures, 3, height, width]`, row by row: `[pictures, patches, hidden]`. A size that is
    /// no multiple of the patch loses the rest, as in the convolution.
    ///
    /// # Errors
    /// When `pixels` have another shape.
    pub fn forward(&self, pixels: &Tensor) -> Result<Tensor> {
        let (pictures, _, height, width) = pixels.dims4()?;
        let size = self.size;
        let (rows, columns) = (height / size, width / size);
        let patches = pixels
            .to_dtype(self.linear.dtype())?
            .narrow(2, 0, rows * size)?
            .narrow(3, 0, columns * size)?
            .reshape((pictures, 3, rows, size, columns, size))?
            .permute((0, 2, 4, 1, 3, 5))?
            .reshape((pictures * rows * columns, 3 * size * size))?;
        self.linear.forward(&patches)?.reshape((pictures, rows * columns, ()))
    }
}

/// Whether a tower's pictures are of three colours and can be cut into patches.
///
/// # Errors
/// When they are not; the message names the key of `vision_config`.
pub fn check_patches(channels: usize, image: usize, patch: usize) -> Result<(), LoadError> {
    if channels != 3 {
        return Err(LoadError::unsupported("vision_config num_channels", &channels.to_string(), "3"));
    }
    if patch == 0 || image < patch {
        let supported = "1 to image_size";
        return Err(LoadError::unsupported("vision_config patch_size", &patch.to_string(), supported));
    }
    Ok(())
}

/// Squares of `block` × `block` patches as one row each, in whose channels the patches lie row by row: `rows`
/// `[pictures, side · side, hidden]` to `[pictures · (side / block)², block² · hidden]`.
///
/// # Errors
/// When the block does not divide the side.
pub fn merge(rows: &Tensor, side: usize, block: usize) -> Result<Tensor> {
    let (pictures, _, hidden) = rows.dims3()?;
    let along = side / block;
    rows.reshape((pictures, along, block, along, block * hidden))?
        .permute((0, 1, 3, 2, 4))?
        .reshape((pictures * along * along, block * block * hidden))
}
