//! Qwen2.5-VL and Qwen2-VL: a tower that takes pictures in their own shape, and a Qwen2 decoder whose positions tell rows
//! and columns of a picture. The younger tower sees the picture through windows in most of its layers.
//!
//! Papers: <https://arxiv.org/abs/2502.13923>, <https://arxiv.org/abs/2409.12191>. Reference: transformers,
//! `models/qwen2_5_vl` and `models/qwen2_vl`. Checkpoints: `Qwen/Qwen2.5-VL-3B-Instruct`, `Qwen/Qwen2.5-VL-7B-Instruct`,
//! `Qwen/Qwen2.5-VL-72B-Instruct`, `Qwen/Qwen2-VL-2B-Instruct`, `Qwen/Qwen2-VL-7B-Instruct` and fine-tunes in that layout.

use std::sync::Arc;

use candle_core::Tensor;
use candle_nn::VarBuilder;
use rayon::prelude::*;
use serde::Deserialize;

use crate::{
    CacheShape, Checkpoint, Features, Fit, Footprint, Grid, KvCache, LoadError, MediaSize, Medium, Model,
    Parts, Preprocess, Ragged, Result, SizeError, Task, TextInfo, VideoInfo,
    batch::Batch,
    nn::{
        attention::{Biases, Qkv},
        decoder::{Decoder, DecoderConfig, TextConfig},
        image::{Filter, ImageProcessorConfig, Levels, gather, stretch},
        linear::{Bias, Linear},
        mlp::{Activation, GateUp, Mlp, read_activation},
        norm::{LayerNorm, Norm, RmsNorm},
        rope::{GridRope, RopeParameters},
        vit::{GatedNames, VitBlock, VitConfig, VitNames},
        windows::WindowOrder,
    },
};

/// Published files keep these names; transformers 4.52 and 5 moved them in memory, and some tools save those.
pub(crate) const ALIASES: &[(&str, &str)] =
    &[("model.", "model.language_model."), ("visual.", "model.visual.")];

#[derive(Debug, Deserialize)]
struct Config {
    model_type: String,
    image_token_id: Option<u32>,
    video_token_id: Option<u32>,
    tie_word_embeddings: Option<bool>,
    eos_token_id: Option<serde_json::Value>,
    /// Older files have its keys beside `vision_config`.
    text_config: Option<TextConfig>,
    #[serde(default)]
    vision_config: VisionConfig,
}

/// `vision_config`. The classes of the two towers differ in names and defaults.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct VisionConfig {
    depth: Option<usize>,
    num_heads: Option<usize>,
    hidden_act: Option<String>,
    in_channels: Option<usize>,
    patch_size: Option<usize>,
    spatial_merge_size: Option<usize>,
    temporal_patch_size: Option<usize>,
    rope_parameters: Option<RopeParameters>,
    /// Width of the tower; in Qwen2-VL of the text.
    hidden_size: Option<usize>,
    // Of Qwen2-VL.
    embed_dim: Option<usize>,
    mlp_ratio: Option<f64>,
    // Of Qwen2.5-VL.
    intermediate_size: Option<usize>,
    out_hidden_size: Option<usize>,
    window_size: Option<usize>,
    fullatt_block_indexes: Option<Vec<usize>>,
    tokens_per_second: Option<f64>,
}

/// A tower as it is built.
#[derive(Debug)]
struct TowerConfig {
    layer: VitConfig,
    depth: usize,
    /// Width of the text.
    output: usize,
    theta: f64,
    patch: Patch,
    windows: Option<Windows>,
    /// Positions of a second of a video; without, a moment has one.
    pace: Option<f64>,
}

/// What becomes a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Patch {
    /// Pixels of its side.
    side: usize,
    /// Frames, of which a picture is one that stands still.
    frames: usize,
    /// So many patches in height and in width become one row of the text: a unit.
    merge: usize,
}

impl Patch {
    fn numbers(self) -> usize {
        3 * self.frames * self.side * self.side
    }

    /// Rows of a unit.
    fn rows(self) -> usize {
        self.merge * self.merge
    }
}

/// Which layers see a window only.
#[derive(Debug)]
struct Windows {
    /// Units of a window's side.
    side: usize,
    /// Layers that see all of the picture.
    full: Vec<usize>,
}

impl Config {
    fn text(&self, checkpoint: &Checkpoint) -> Result<(DecoderConfig, TextInfo), LoadError> {
        let mut text = match &self.text_config {
            Some(text) => text.clone(),
            None => checkpoint.config()?,
        };
        // Older files have the whole model's here, newer ones one with an ending.
        let of_qwen_vl = ["qwen2_vl", "qwen2_5_vl", "qwen2_vl_text", "qwen2_5_vl_text"];
        text.model_type = text.model_type.filter(|name| !of_qwen_vl.contains(&name.as_str()));
        let mut decoder = text.decoder("qwen2_vl_text")?;
        decoder.tied |= self.tie_word_embeddings.unwrap_or(false);
        if !decoder.rope.has_planes() {
            return Err(LoadError::unsupported("text_config rope", "without mrope_section", "mrope"));
        }
        let info = decoder.text_info(self.placeholder(), &[&self.eos_token_id, &text.eos_token_id]);
        Ok((decoder, info))
    }

    /// The default is that of the configuration classes.
    fn placeholder(&self) -> u32 {
        self.image_token_id.unwrap_or(151_655)
    }

    fn video(&self, tower: &TowerConfig) -> VideoInfo {
        // As above.
        let placeholder = self.video_token_id.unwrap_or(151_656);
        VideoInfo { placeholder, frames: tower.patch.frames, pace: tower.pace }
    }

    fn tower(&self) -> Result<TowerConfig, LoadError> {
        let tower = match self.model_type.as_str() {
            "qwen2_5_vl" => self.vision_config.windowed()?,
            "qwen2_vl" => self.vision_config.plain()?,
            other => return Err(LoadError::unsupported("model_type", other, "qwen2_5_vl, qwen2_vl")),
        };
        tower.layer.check()?;
        let head = tower.layer.hidden / tower.layer.heads;
        if !head.is_multiple_of(4) {
            let key = "vision_config head size";
            return Err(LoadError::unsupported(key, &head.to_string(), "multiples of 4"));
        }
        let channels = self.vision_config.in_channels.unwrap_or(3);
        if channels != 3 {
            return Err(LoadError::unsupported("vision_config in_channels", &channels.to_string(), "3"));
        }
        let Patch { side, frames, merge } = tower.patch;
        if [side, frames, merge].contains(&0) {
            let value = format!("{side}, {frames} and {merge}");
            let key = "vision_config patch_size, temporal_patch_size and spatial_merge_size";
            return Err(LoadError::unsupported(key, &value, "1 and more"));
        }
        if let Some(pace) = tower.pace.filter(|pace| !pace.is_finite() || *pace < 0.0) {
            let key = "vision_config tokens_per_second";
            return Err(LoadError::unsupported(key, &pace.to_string(), "0 and more"));
        }
        Ok(tower)
    }
}

impl VisionConfig {
    /// Qwen2.5-VL's, with the defaults of `Qwen2_5_VLVisionConfig`.
    fn windowed(&self) -> Result<TowerConfig, LoadError> {
        let (hidden, intermediate) =
            (self.hidden_size.unwrap_or(3584), self.intermediate_size.unwrap_or(3420));
        let patch = self.patch();
        let side = self.window_size.unwrap_or(112) / patch.merge.max(1) / patch.side.max(1);
        if side == 0 {
            let value = self.window_size.unwrap_or(112).to_string();
            return Err(LoadError::unsupported("vision_config window_size", &value, "one unit and more"));
        }
        let full = self.fullatt_block_indexes.clone().unwrap_or_else(|| vec![7, 15, 23, 31]);
        Ok(TowerConfig {
            layer: self.layer((hidden, intermediate), "silu")?,
            depth: self.depth.unwrap_or(32),
            output: self.out_hidden_size.unwrap_or(3584),
            theta: GridRope::theta(self.rope_parameters.as_ref(), None)?,
            patch,
            windows: Some(Windows { side, full }),
            pace: Some(self.tokens_per_second.unwrap_or(4.0)),
        })
    }

    /// Qwen2-VL's, with the defaults of `Qwen2VLVisionConfig`.
    fn plain(&self) -> Result<TowerConfig, LoadError> {
        let hidden = self.embed_dim.unwrap_or(1280);
        let intermediate = (hidden as f64 * self.mlp_ratio.unwrap_or(4.0)) as usize;
        Ok(TowerConfig {
            layer: self.layer((hidden, intermediate), "quick_gelu")?,
            depth: self.depth.unwrap_or(32),
            output: self.hidden_size.unwrap_or(3584),
            theta: GridRope::theta(self.rope_parameters.as_ref(), None)?,
            patch: self.patch(),
            windows: None,
            pace: None,
        })
    }

    fn layer(&self, (hidden, intermediate): (usize, usize), act: &str) -> Result<VitConfig, LoadError> {
        let act = self.hidden_act.as_deref().unwrap_or(act);
        Ok(VitConfig {
            hidden,
            intermediate,
            heads: self.num_heads.unwrap_or(16),
            // Of the classes, which have no key for it.
            eps: 1e-6,
            activation: read_activation("vision_config hidden_act", act)?,
        })
    }

    fn patch(&self) -> Patch {
        Patch {
            side: self.patch_size.unwrap_or(14),
            frames: self.temporal_patch_size.unwrap_or(2),
            merge: self.spatial_merge_size.unwrap_or(2),
        }
    }
}

/// Loads the network and its image processor.
pub(crate) fn load(checkpoint: &Checkpoint, _: Option<Fit>, vb: &VarBuilder<'_>) -> Result<Parts, LoadError> {
    let config: Config = checkpoint.config()?;
    let (decoder, info) = config.text(checkpoint)?;
    let tower = config.tower()?;
    let info = TextInfo { video: Some(config.video(&tower)), ..info };
    let hidden = decoder.attention.hidden;
    if tower.output != hidden {
        let supported = format!("the text's {hidden}");
        let key = "vision_config output of width";
        return Err(LoadError::unsupported(key, &tower.output.to_string(), &supported));
    }
    let row = match tower.windows {
        Some(_) => tower.layer.gated_row_size(),
        // Queries and keys are there twice, since they are rotated.
        None => tower.layer.row_size() + 2 * tower.layer.hidden,
    };
    Ok(Parts {
        width: hidden,
        encoder_row: tower.patch.rows() * (row + tower.patch.numbers()),
        preprocess: Arc::new(Smart::read(checkpoint, &tower, &info)?),
        task: Task::Chat(info),
        model: Box::new(QwenVl {
            tower: Tower::load(&tower, &vb.pp("visual"))?,
            decoder: Decoder::load(&decoder, &vb.pp("model"), &vb.pp("lm_head"))?,
            cache_shape: decoder.cache_shape(),
        }),
    })
}

const WINDOWED: GatedNames = GatedNames {
    norms: ("norm1", "norm2"),
    attention: "attn",
    qkv: Qkv::Packed("qkv"),
    output: "proj",
    mlp: (GateUp::Apart("mlp.gate_proj", "mlp.up_proj"), "mlp.down_proj"),
    bias: Bias::Yes,
};

const PLAIN: VitNames = VitNames {
    norms: ("norm1", "norm2"),
    attention: "attn",
    qkv: Qkv::Packed("qkv"),
    output: "proj",
    biases: Biases::ALL,
    mlp: ("mlp.fc1", "mlp.fc2"),
};

struct Tower {
    patches: Linear,
    /// Each with whether it sees a window only.
    layers: Vec<(VitBlock, bool)>,
    rope: GridRope,
    norm: Norm,
    merger: Mlp,
    /// Patches of a unit's side.
    merge: usize,
    /// Units of a window's side; without windows a picture is one.
    window: usize,
}

impl Tower {
    fn load(config: &TowerConfig, vb: &VarBuilder<'_>) -> Result<Self> {
        let TowerConfig { layer, patch, windows, .. } = config;
        let Patch { side, frames, merge } = *patch;
        let hidden = layer.hidden;
        let load = |index: usize| {
            let vb = vb.pp("blocks").pp(index);
            Ok(match windows {
                Some(windows) => {
                    (VitBlock::load_gated(layer, &WINDOWED, &vb)?, !windows.full.contains(&index))
                }
                None => (VitBlock::load(layer, &PLAIN, &vb)?, false),
            })
        };
        let patches = vb.pp("patch_embed.proj").get((hidden, 3, frames, side, side), "weight")?;
        let merger = vb.pp("merger");
        let norm = merger.pp("ln_q");
        let unit = patch.rows() * hidden;
        Ok(Self {
            patches: Linear::of(patches.reshape((hidden, patch.numbers()))?, None),
            layers: (0..config.depth).into_par_iter().map(load).collect::<Result<_>>()?,
            rope: GridRope::alike(hidden / layer.heads, config.theta),
            norm: match windows {
                Some(_) => Norm::Rms(RmsNorm::load(hidden, layer.eps, &norm)?),
                None => Norm::Layer(LayerNorm::load(hidden, layer.eps, &norm)?),
            },
            merger: Mlp::load(
                ("mlp.0", "mlp.2"),
                (unit, unit, config.output),
                Bias::Yes,
                Activation::Gelu,
                &merger,
            )?,
            merge,
            window: windows.as_ref().map_or(usize::MAX, |windows| windows.side),
        })
    }

    /// Pictures and moments `[rows, columns, patches of a unit, numbers]`, each of its own size, to `[units, output]`, one
    /// after another. No moment of a video sees another one here.
    fn forward(&self, media: &[Features]) -> Result<Tensor> {
        let mut order = WindowOrder::default();
        let mut pictures = Vec::with_capacity(media.len());
        for Features { tensor, .. } in media {
            let (rows, columns, ..) = tensor.dims4()?;
            order.add((rows, columns), self.window, self.merge);
            pictures.push(tensor.flatten_to(2)?);
        }
        let pixels = Tensor::cat(&pictures, 0)?.to_dtype(self.patches.dtype())?;
        let units = order.units.len();
        let x = self.patches.forward(&pixels)?.reshape((units, ()))?;
        let x = gather(&x, order.units.clone())?;
        let mut x = x.reshape((units * self.merge * self.merge, ()))?;
        let rotation = self.rope.at(&order.places, &x)?;
        let windows = Ragged::new(&order.windows, x.device())?;
        let pictures = Ragged::new(&order.pictures, x.device())?;
        for (layer, windowed) in &self.layers {
            x = layer.rotated(&x, Some(&rotation), if *windowed { &windows } else { &pictures })?;
        }
        let merged = self.merger.forward(&self.norm.forward(&x)?.reshape((units, ()))?)?;
        gather(&merged, order.back())
    }
}

struct QwenVl {
    tower: Tower,
    decoder: Decoder,
    cache_shape: CacheShape,
}

impl Model for QwenVl {
    fn cache_shape(&self) -> CacheShape {
        self.cache_shape
    }

    fn encode(&self, media: &[Features]) -> Result<Tensor> {
        self.tower.forward(media)
    }

    fn forward(&self, batch: &Batch, cache: &KvCache) -> Result<Tensor> {
        self.decoder.forward(batch, cache)
    }
}

/// What the image processor of these towers has besides, and their video processor, too.
#[derive(Debug, Deserialize)]
struct ProcessorConfig {
    min_pixels: Option<usize>,
    max_pixels: Option<usize>,
    size: Option<PixelRange>,
    patch_size: Option<usize>,
    temporal_patch_size: Option<usize>,
    merge_size: Option<usize>,
}

/// The limits in newer files, which are no edges in spite of their names; transformers 4.45 to 4.48 has the older names
/// here, too.
#[derive(Debug, Deserialize)]
struct PixelRange {
    #[serde(alias = "min_pixels")]
    shortest_edge: usize,
    #[serde(alias = "max_pixels")]
    longest_edge: usize,
}

/// Fewest and most pixels of a picture.
type Pixels = (usize, usize);

impl ProcessorConfig {
    /// The limits, once what it says of patches is what the tower has.
    fn pixels(&self, patch: Patch, default: Pixels) -> Result<Pixels, LoadError> {
        // Defaults are those of `Qwen2VLImageProcessor` and `Qwen2VLVideoProcessor`.
        let found = Patch {
            side: self.patch_size.unwrap_or(14),
            frames: self.temporal_patch_size.unwrap_or(2),
            merge: self.merge_size.unwrap_or(2),
        };
        if found != patch {
            let (value, supported) = (format!("{found:?}"), format!("the vision tower's {patch:?}"));
            return Err(LoadError::unsupported("image processor", &value, &supported));
        }
        let size = self.size.as_ref().map_or(default, |size| (size.shortest_edge, size.longest_edge));
        let pixels = (self.min_pixels.unwrap_or(size.0), self.max_pixels.unwrap_or(size.1));
        if pixels.0 == 0 || pixels.0 > pixels.1 {
            let value = format!("{} and {}", pixels.0, pixels.1);
            let supported = "1 and more, in this order";
            return Err(LoadError::unsupported(
                "image processor min_pixels and max_pixels",
                &value,
                supported,
            ));
        }
        Ok(pixels)
    }
}

/// Pictures of whole units, with a number of pixels within limits.
#[derive(Debug)]
struct Smart {
    patch: Patch,
    picture: Kind,
    moment: Kind,
    filter: Filter,
    levels: Levels,
}

/// What pictures and frames of videos differ in.
#[derive(Debug)]
struct Kind {
    pixels: Pixels,
    placeholder: u32,
}

/// `smart_resize` takes no picture with a longer edge of more than so many times the shorter.
const LONGEST: usize = 200;

impl Smart {
    fn read(checkpoint: &Checkpoint, tower: &TowerConfig, info: &TextInfo) -> Result<Self, LoadError> {
        let config: ImageProcessorConfig = checkpoint.image_processor()?;
        let of_pictures: ProcessorConfig = checkpoint.image_processor()?;
        let pixels = of_pictures.pixels(tower.patch, (56 * 56, 28 * 28 * 1280))?;
        // Published checkpoints have one file for both.
        let of_videos: Option<ProcessorConfig> = checkpoint.video_processor()?;
        let of_videos = of_videos.map(|own| own.pixels(tower.patch, (128 * 28 * 28, 28 * 28 * 768)));
        let placeholder = info.video.map_or(info.placeholder, |video| video.placeholder);
        Ok(Self {
            patch: tower.patch,
            picture: Kind { pixels, placeholder: info.placeholder },
            moment: Kind { pixels: of_videos.transpose()?.unwrap_or(pixels), placeholder },
            filter: config.filter(Filter::Bicubic)?,
            levels: config.levels(),
        })
    }

    /// Rows and columns of units: transformers, `smart_resize`.
    fn units(&self, (fewest, most): Pixels, width: usize, height: usize) -> (usize, usize) {
        let unit = self.patch.side * self.patch.merge;
        let pixels = (height * width) as f64;
        let near = |length: usize| (length as f64 / unit as f64).round_ties_even() as usize;
        let (rows, columns) = (near(height), near(width));
        let found = rows * unit * columns * unit;
        if found > most {
            let shrink = (pixels / most as f64).sqrt();
            let fit = |length: usize| (length as f64 / shrink / unit as f64).floor().max(1.0) as usize;
            return (fit(height), fit(width));
        }
        if found < fewest {
            let grow = (fewest as f64 / pixels).sqrt();
            let fit = |length: usize| (length as f64 * grow / unit as f64).ceil() as usize;
            return (fit(height), fit(width));
        }
        (rows, columns)
    }
}

impl Preprocess for Smart {
    fn footprint(&self, size: MediaSize) -> Result<Footprint, SizeError> {
        let (kind, width, height) = match size {
            MediaSize::Image { width, height } => (&self.picture, width, height),
            MediaSize::Moment { width, height } => (&self.moment, width, height),
            MediaSize::Sound => return Ok(Footprint::line(Vec::new())),
        };
        if width.max(height) > LONGEST * width.min(height) {
            return Err(SizeError::Narrow { width, height, limit: LONGEST });
        }
        let (rows, columns) = self.units(kind.pixels, width, height);
        let tokens = vec![kind.placeholder; rows * columns];
        Ok(Footprint { grid: Some(Grid::first(rows, columns)), ..Footprint::line(tokens) })
    }

    /// `[rows, columns, patches of a unit, numbers]`, numbers as the tower's weights lie: channel, frame, row, column.
    fn run(&self, medium: Medium<'_>) -> Result<Tensor> {
        let (kind, shown) = match medium {
            Medium::Moment(frames) => (&self.moment, frames.clone()),
            picture => (&self.picture, picture.picture()?.unsqueeze(0)?),
        };
        let (count, height, width, _) = shown.dims4()?;
        let Patch { side, frames, merge } = self.patch;
        if !(1..=frames).contains(&count) {
            candle_core::bail!("a moment has 1 to {frames} frames, not {count}")
        }
        let (rows, columns) = self.units(kind.pixels, width, height);
        let unit = side * merge;
        let pixels = |frame: usize| {
            let level = stretch(&shown.get(frame)?, columns * unit, rows * unit, self.filter)?;
            let pixels = self.levels.numbers(&level)?;
            let patches = pixels.reshape(&[3, rows, merge, side, columns, merge, side][..])?;
            let patches = patches.permute([1, 4, 2, 5, 0, 3, 6])?;
            patches.reshape((rows * columns * merge * merge, 3, 1, side * side))
        };
        let mut all = (0..count).map(pixels).collect::<Result<Vec<_>>>()?;
        all.resize(frames, all[count - 1].clone());
        Tensor::cat(&all, 2)?.reshape((rows, columns, merge * merge, self.patch.numbers()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn smart(pixels: Pixels) -> Smart {
        let config: ImageProcessorConfig = serde_json::from_str("{}").expect("defaults");
        Smart {
            patch: Patch { side: 14, frames: 2, merge: 2 },
            picture: Kind { pixels, placeholder: 151_655 },
            moment: Kind { pixels, placeholder: 151_656 },
            filter: Filter::Bicubic,
            levels: config.levels(),
        }
    }

    fn units(pixels: Pixels, width: usize, height: usize) -> (usize, usize) {
        smart(pixels).units(pixels, width, height)
    }

    #[test]
    fn real_pictures_have_as_many_rows_as_in_the_reference() {
        let manifest = include_str!("../tests/fixtures/goldens/qwen2_5_vl/manifest.json");
        let manifest: serde_json::Value = serde_json::from_str(manifest).expect("a manifest");
        let plans = manifest["real_size_plans"].as_array().expect("plans");
        assert_eq!(plans.len(), 15);
        for plan in plans {
            let number = |value: &serde_json::Value| value.as_u64().expect("a number") as usize;
            let (width, height) = (number(&plan["width"]), number(&plan["height"]));
            let pixels = (56 * 56, 28 * 28 * 1280);
            let (rows, columns) = units(pixels, width, height);
            assert_eq!(
                [rows * 28, columns * 28],
                [0, 1].map(|index| number(&plan["resized"][index])),
                "{plan}"
            );
            let footprint = smart(pixels).footprint(MediaSize::Image { width, height }).expect("it is taken");
            assert_eq!(footprint.tokens.len(), number(&plan["tokens"]), "{plan}");
            assert_eq!(footprint.grid, Some(Grid::first(rows, columns)));
        }
    }

    #[test]
    fn the_published_limit_is_sixteen_thousand_rows() {
        let published = (3136, 12_845_056);
        assert_eq!(units(published, 4032, 3024), (108, 144));
        // As Python's numbers have it: 127.99999999999999.
        assert_eq!(units(published, 10_000, 10_000), (127, 127));
    }

    #[test]
    fn rounding_is_pythons() {
        let any = (1, usize::MAX);
        // Halves go to the even number: 42 is 1.5 units, 70 is 2.5.
        assert_eq!(units(any, 42, 70), (2, 2));
        assert_eq!(units(any, 98, 43), (2, 4));
    }

    #[test]
    fn a_line_is_no_picture() {
        let size =
            |width, height| smart((3136, 1 << 20)).footprint(MediaSize::Image { width, height }).map(|_| ());
        assert_eq!(size(200, 1), Ok(()));
        assert_eq!(size(1, 200), Ok(()));
        assert_eq!(size(201, 1), Err(SizeError::Narrow { width: 201, height: 1, limit: 200 }));
        assert_eq!(size(3, 601), Err(SizeError::Narrow { width: 3, height: 601, limit: 200 }));
    }
}
