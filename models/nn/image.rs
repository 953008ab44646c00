//! From decoded pixels to encoder input, as the checkpoint's image processor describes it.

use candle_core::Tensor;
pub use percept_kernels::Filter;
use percept_kernels::{Canvas, Region, Resize, normalise, resize};
use serde::{Deserialize, Deserializer};

use crate::{Features, LoadError, Result};

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
    ShortestEdge {
        shortest_edge: usize,
    },
    LongestEdge {
        longest_edge: usize,
    },
    /// Of Qwen2-VL's processor in transformers 4.45 to 4.48.
    Pixels {
        min_pixels: usize,
        max_pixels: usize,
    },
    Exact {
        height: usize,
        width: usize,
    },
    Side(usize),
}

/// `OPENAI_CLIP_MEAN` and `OPENAI_CLIP_STD` of transformers.
const CLIP_MEAN: [f64; 3] = [0.481_454_66, 0.457_827_5, 0.408_210_73];
const CLIP_STD: [f64; 3] = [0.268_629_54, 0.261_302_58, 0.275_777_11];

impl ImageProcessorConfig {
    /// How pictures are resampled; `default` where the file does not say.
    ///
    /// # Errors
    /// When it is in a way that is not done here.
    pub fn filter(&self, default: Filter) -> Result<Filter, LoadError> {
        if !self.do_resize {
            return Err(LoadError::unsupported("image processor do_resize", "false", "true"));
        }
        match self.resample {
            None => Ok(default),
            Some(1) => Ok(Filter::Lanczos),
            Some(2) => Ok(Filter::Bilinear),
            Some(3) => Ok(Filter::Bicubic),
            Some(other) => {
                let supported = "1 (Lanczos), 2 (bilinear), 3 (bicubic)";
                Err(LoadError::unsupported("image processor resample", &other.to_string(), supported))
            }
        }
    }

    /// The same without a part that is cut out, for classes that cut none out and whose files do not say so.
    #[must_use]
    pub fn uncropped(self) -> Self {
        Self { do_center_crop: false, ..self }
    }

    /// How levels become numbers.
    pub fn levels(&self) -> Levels {
        self.levels_or(CLIP_MEAN, CLIP_STD)
    }

    /// How levels become numbers, with the mean and deviation of another class where the file has none.
    pub fn levels_or(&self, mean: [f64; 3], std: [f64; 3]) -> Levels {
        let (mean, std) = if self.do_normalize {
            let mean = self.image_mean.unwrap_or(mean).map(|mean| mean as f32);
            (mean, self.image_std.unwrap_or(std).map(|std| std as f32))
        } else {
            ([0.0; 3], [1.0; 3])
        };
        let scale = if self.do_rescale { self.rescale_factor.unwrap_or(1.0 / 255.0) } else { 1.0 };
        Levels { scale, mean, std }
    }

    /// The side of the square that pictures are brought to, where there is one.
    pub fn side(&self) -> Option<usize> {
        let size = if self.do_center_crop { self.crop_size.or(self.size) } else { self.size };
        match size? {
            Size::Exact { height, width } if height == width => Some(height),
            Size::Side(side) | Size::ShortestEdge { shortest_edge: side } => Some(side),
            Size::Exact { .. } | Size::LongestEdge { .. } | Size::Pixels { .. } => None,
        }
    }

    /// The longest edge that pictures may have; `default` where the file does not say.
    ///
    /// # Errors
    /// When it names another size.
    pub fn longest_edge(&self, default: usize) -> Result<usize, LoadError> {
        match self.size {
            None => Ok(default),
            Some(Size::LongestEdge { longest_edge }) if longest_edge > 0 => Ok(longest_edge),
            Some(other) => {
                Err(LoadError::unsupported("image processor size", &format!("{other:?}"), "longest_edge"))
            }
        }
    }

    /// Checks that the square that pictures are brought to is the vision tower's, where the file tells one.
    ///
    /// # Errors
    /// When it is another.
    pub fn check_side(&self, side: usize) -> Result<(), LoadError> {
        match self.side().filter(|&own| own != side) {
            None => Ok(()),
            Some(own) => {
                let supported = format!("the vision tower's {side}");
                Err(LoadError::unsupported("image processor size", &own.to_string(), &supported))
            }
        }
    }
}

/// How levels of 0 to 255 become numbers: `(level · scale - mean) / std`.
#[derive(Debug, Clone, Copy)]
pub struct Levels {
    scale: f64,
    mean: [f32; 3],
    std: [f32; 3],
}

impl Levels {
    /// u8 `[height, width, 3]` to f32 `[3, height, width]`.
    ///
    /// # Errors
    /// When `picture` is none.
    pub fn numbers(&self, picture: &Tensor) -> Result<Tensor> {
        normalise(picture, self.scale, self.mean, self.std)
    }
}

/// A picture resized to `width` × `height`, whatever its shape: u8 `[h, w, 3]` to u8 `[height, width, 3]`.
///
/// # Errors
/// When `picture` is none.
pub fn stretch(picture: &Tensor, width: usize, height: usize, filter: Filter) -> Result<Tensor> {
    let (rows, columns, _) = picture.dims3()?;
    let canvas = Canvas { width: columns, height: rows, left: 0, top: 0, fill: [0; 3] };
    resize(
        picture,
        Resize { canvas, width, height, region: Region { left: 0, top: 0, width, height }, filter },
    )
}

/// A picture on a larger area of one level: u8 `[h, w, 3]` to u8 `[height, width, 3]`.
///
/// # Errors
/// When it does not fit there.
pub fn place(
    picture: &Tensor,
    (width, height): (usize, usize),
    (left, top): (usize, usize),
    level: u8,
) -> Result<Tensor> {
    let (rows, columns, _) = picture.dims3()?;
    if left + columns > width || top + rows > height {
        candle_core::bail!("{columns} × {rows} pixels at {left}, {top} do not fit {width} × {height}")
    }
    let area = |rows: usize, columns: usize| Tensor::full(level, (rows, columns, 3), picture.device());
    let (right, bottom) = (width - left - columns, height - top - rows);
    let wide = Tensor::cat(&[&area(rows, left)?, picture, &area(rows, right)?], 1)?;
    Tensor::cat(&[&area(top, width)?, &wide, &area(bottom, width)?], 0)
}

/// Squares of `side` pixels, row by row: `[3, height, width]` to `[tiles, 3, side, side]`.
///
/// # Errors
/// When the size is no multiple of the side.
pub fn tiles(pixels: &Tensor, side: usize) -> Result<Tensor> {
    let (channels, height, width) = pixels.dims3()?;
    pixels.reshape((channels, height / side, side, width / side, side))?.permute((1, 3, 0, 2, 4))?.reshape((
        height / side * (width / side),
        channels,
        side,
        side,
    ))
}

/// The processor of a tower that sees one square picture.
#[derive(Debug, Clone)]
pub struct SquareProcessor {
    side: usize,
    fit: Fit,
    filter: Filter,
    levels: Levels,
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
        let filter = config.filter(Filter::Bicubic)?;
        let is_side = |size: Size| match size {
            Size::ShortestEdge { shortest_edge } => shortest_edge == side,
            Size::Exact { height, width } => (height, width) == (side, side),
            Size::Side(length) => length == side,
            Size::LongestEdge { .. } | Size::Pixels { .. } => false,
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
        let own = match (config.do_pad, square) {
            (true, _) => Fit::Pad,
            (false, true) => Fit::Stretch,
            (false, false) => Fit::Crop,
        };
        Ok(Self {
            side,
            fit: fit.unwrap_or(own),
            filter,
            levels: config.levels(),
            fill: config.image_mean.unwrap_or(CLIP_MEAN).map(|mean| (255.0 * mean) as u8),
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
        self.levels.numbers(square)?.unsqueeze(0)
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

/// Rows of `all` in this order.
///
/// # Errors
/// When there is no such row.
pub fn gather(all: &Tensor, order: Vec<u32>) -> Result<Tensor> {
    let count = order.len();
    all.index_select(&Tensor::from_vec(order, count, all.device())?, 0)
}

/// The rows of several pictures, and separators between them, each picture's in an order of its own: for a picture's
/// width and height, where its rows begin in `rows`, and where separators do, `order` gives that order and how many rows
/// the picture has.
///
/// # Errors
/// When a medium is no picture, or there is no such row.
pub(crate) fn pack(
    rows: &Tensor,
    separators: &Tensor,
    media: &[Features],
    order: impl Fn((usize, usize), usize, usize) -> (Vec<u32>, usize),
) -> Result<Tensor> {
    let behind = rows.dim(0)?;
    let (mut all, mut first) = (Vec::new(), 0);
    for features in media {
        let (order, count) = order(features.size.picture()?, first, behind);
        all.extend(order);
        first += count;
    }
    gather(&Tensor::cat(&[rows, separators], 0)?, all)
}

/// PyTorch's `interpolate(mode="bicubic", align_corners=False)` without antialiasing: four taps along each axis, cubic
/// with a = -0.75, what lies outside being the edge. `x`: f32 `[channels, h, w]`; returns `[channels, height, width]`.
///
/// # Errors
/// When `x` has another shape.
pub fn bicubic(x: &Tensor, height: usize, width: usize) -> Result<Tensor> {
    let (_, rows, columns) = x.dims3()?;
    let narrow = cubic_taps(x, 2, columns, width)?;
    cubic_taps(&narrow, 1, rows, height)
}

fn cubic_taps(x: &Tensor, axis: usize, from: usize, to: usize) -> Result<Tensor> {
    const A: f32 = -0.75;
    let near = |x: f32| ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0;
    let far = |x: f32| ((A * x - 5.0 * A) * x + 8.0 * A) * x - 4.0 * A;
    let scale = from as f32 / to as f32;
    let mut taps = [const { (Vec::new(), Vec::new()) }; 4];
    for index in 0..to {
        let center = scale * (index as f32 + 0.5) - 0.5;
        let base = center.floor();
        let t = center - base;
        let weights = [far(t + 1.0), near(t), near(1.0 - t), far(2.0 - t)];
        for ((tap, (places, all)), weight) in (-1i64..).zip(&mut taps).zip(weights) {
            places.push((base as i64 + tap).clamp(0, from as i64 - 1) as u32);
            all.push(weight);
        }
    }
    let shape = if axis == 2 { vec![1, 1, to] } else { vec![1, to, 1] };
    let tap = |(places, weights): (Vec<u32>, Vec<f32>)| {
        let places = Tensor::from_vec(places, to, x.device())?;
        x.index_select(&places, axis)?.broadcast_mul(&Tensor::from_vec(
            weights,
            shape.as_slice(),
            x.device(),
        )?)
    };
    let [first, second, third, fourth] = taps;
    ((tap(first)? + tap(second)?)? + tap(third)?)? + tap(fourth)?
}
