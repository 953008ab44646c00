//! From decoded pixels to encoder input, as the checkpoint's image processor describes it.

use candle_core::Tensor;
use percept_kernels::{Canvas, Filter, Region, Resize, normalise, resize};
use serde::{Deserialize, Deserializer};

use crate::{LoadError, Result};

/// How a picture that is not square becomes square.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fit {
    /// The shorter edge is scaled to the side and the rest of the longer one cut off.
    Crop,
    /// The picture is centred on a square of the mean colour, which is scaled to the side.
    Pad,
    /// The picture is scaled to the square, whatever its shape.
    Stretch,
}

/// `preprocessor_config.json`, with the defaults of transformers' `CLIPImageProcessor`. Newer tools write `null` for what
/// does not apply.
#[derive(Debug, Clone, Deserialize)]
pub struct ImageProcessorConfig {
    #[serde(default = "yes", deserialize_with = "null_is_false")]
    do_resize: bool,
    size: Option<Size>,
    #[serde(default = "yes", deserialize_with = "null_is_false")]
    do_center_crop: bool,
    crop_size: Option<Size>,
    #[serde(default = "yes", deserialize_with = "null_is_false")]
    do_rescale: bool,
    rescale_factor: Option<f64>,
    #[serde(default = "yes", deserialize_with = "null_is_false")]
    do_normalize: bool,
    image_mean: Option<[f64; 3]>,
    image_std: Option<[f64; 3]>,
    resample: Option<u32>,
    #[serde(default, deserialize_with = "null_is_false")]
    do_pad: bool,
}

fn yes() -> bool {
    true
}

fn null_is_false<'de, D: Deserializer<'de>>(deserializer: D) -> Result<bool, D::Error> {
    Option::deserialize(deserializer).map(Option::unwrap_or_default)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
enum Size {
    ShortestEdge { shortest_edge: usize },
    Exact { height: usize, width: usize },
    Side(usize),
}

/// `OPENAI_CLIP_MEAN` and `OPENAI_CLIP_STD` of transformers.
const CLIP_MEAN: [f64; 3] = [0.481_454_66, 0.457_827_5, 0.408_210_73];
const CLIP_STD: [f64; 3] = [0.268_629_54, 0.261_302_58, 0.275_777_11];

/// The processor of a tower that sees one square picture.
#[derive(Debug, Clone)]
pub struct SquareProcessor {
    side: usize,
    fit: Fit,
    filter: Filter,
    scale: f64,
    mean: [f32; 3],
    std: [f32; 3],
    fill: [u8; 3],
}

impl SquareProcessor {
    /// Checks that `config` ends in pictures of `side` × `side`. `fit` overrides what it says.
    ///
    /// # Errors
    /// When it describes anything else.
    pub fn new(config: &ImageProcessorConfig, side: usize, fit: Option<Fit>) -> Result<Self, LoadError> {
        let unsupported = |what: &str, supported: &str| {
            Err(LoadError::Unsupported {
                what: format!("image processor with {what}"),
                supported: supported.into(),
            })
        };
        if !config.do_resize {
            return unsupported("do_resize false", "true");
        }
        let is_side = |size: Size| match size {
            Size::ShortestEdge { shortest_edge } => shortest_edge == side,
            Size::Exact { height, width } => (height, width) == (side, side),
            Size::Side(length) => length == side,
        };
        let size = config.size.unwrap_or(Size::ShortestEdge { shortest_edge: 224 });
        let crop_size = config.crop_size.unwrap_or(Size::Side(224));
        let square = matches!(size, Size::Exact { .. });
        if !is_side(size) {
            return unsupported(&format!("size {size:?}"), &format!("the vision tower's {side}"));
        }
        if config.do_center_crop && !is_side(crop_size) {
            return unsupported(&format!("crop_size {crop_size:?}"), &format!("the vision tower's {side}"));
        }
        if !config.do_center_crop && !square {
            return unsupported(
                "do_center_crop false and a shortest edge",
                "a centre crop, or height and width",
            );
        }
        let filter = match config.resample.unwrap_or(3) {
            1 => Filter::Lanczos,
            2 => Filter::Bilinear,
            3 => Filter::Bicubic,
            other => {
                return unsupported(&format!("resample {other}"), "1 (Lanczos), 2 (bilinear), 3 (bicubic)");
            }
        };
        let own = match (config.do_pad, square) {
            (true, _) => Fit::Pad,
            (false, true) => Fit::Stretch,
            (false, false) => Fit::Crop,
        };
        let image_mean = config.image_mean.unwrap_or(CLIP_MEAN);
        let (mean, std) = if config.do_normalize {
            (image_mean.map(|mean| mean as f32), config.image_std.unwrap_or(CLIP_STD).map(|std| std as f32))
        } else {
            ([0.0; 3], [1.0; 3])
        };
        Ok(Self {
            side,
            fit: fit.unwrap_or(own),
            filter,
            scale: if config.do_rescale { config.rescale_factor.unwrap_or(1.0 / 255.0) } else { 1.0 },
            mean,
            std,
            fill: image_mean.map(|mean| (255.0 * mean) as u8),
        })
    }

    /// Resized, cropped or padded pixels: u8 `[height, width, 3]` to u8 `[side, side, 3]`.
    ///
    /// # Errors
    /// When `image` is not a picture.
    pub fn square(&self, image: &Tensor) -> Result<Tensor> {
        let (height, width, _) = image.dims3()?;
        resize(image, self.plan(width, height))
    }

    /// Numbers as the tower wants them: u8 `[side, side, 3]` to f32 `[1, 3, side, side]`.
    ///
    /// # Errors
    /// When `square` is not a picture.
    pub fn normalise(&self, square: &Tensor) -> Result<Tensor> {
        normalise(square, self.scale, self.mean, self.std)?.unsqueeze(0)
    }

    /// Encoder input: u8 `[height, width, 3]` to f32 `[1, 3, side, side]`.
    ///
    /// # Errors
    /// When `image` is not a picture.
    pub fn run(&self, image: &Tensor) -> Result<Tensor> {
        self.normalise(&self.square(image)?)
    }

    fn plan(&self, width: usize, height: usize) -> Resize {
        let side = self.side;
        let own = Canvas { width, height, left: 0, top: 0, fill: self.fill };
        let whole = Region { left: 0, top: 0, width: side, height: side };
        let plan =
            |canvas, width, height, region| Resize { canvas, width, height, region, filter: self.filter };
        match self.fit {
            Fit::Stretch => plan(own, side, side, whole),
            Fit::Pad => {
                let edge = width.max(height);
                let canvas = Canvas {
                    width: edge,
                    height: edge,
                    left: (edge - width) / 2,
                    top: (edge - height) / 2,
                    fill: self.fill,
                };
                plan(canvas, side, side, whole)
            }
            Fit::Crop => {
                // f64 and truncated, as Python's int(side * long / short).
                let scaled = |edge: usize, other: usize| {
                    if edge <= other { side } else { ((side * edge) as f64 / other as f64) as usize }
                };
                let (wide, high) = (scaled(width, height), scaled(height, width));
                let region = Region { left: (wide - side) / 2, top: (high - side) / 2, ..whole };
                plan(own, wide, high, region)
            }
        }
    }
}
