//! Pixtral: a tower that takes pictures in their own shape, with rows and columns as positions, and a Mistral decoder.
//!
//! Paper: <https://arxiv.org/abs/2410.07073>. Reference: transformers, `models/pixtral` and `models/llava`. Checkpoints:
//! `mistral-community/pixtral-12b` and fine-tunes in that layout.

use std::sync::Arc;

use candle_core::Tensor;
use candle_nn::VarBuilder;
use rayon::prelude::*;
use serde::Deserialize;

use crate::{
    CacheShape, Checkpoint, Features, Fit, Footprint, KvCache, LoadError, MediaSize, Medium, Model, Parts,
    Preprocess, Ragged, Result, SizeError, Task,
    batch::Batch,
    nn::{
        attention::Qkv,
        decoder::Decoder,
        image::{Filter, ImageProcessorConfig, Levels, stretch},
        linear::Bias,
        mlp::{GateUp, Mlp, read_activation},
        norm::RmsNorm,
        patches::{PatchEmbedding, check_patches},
        projected::{ProjectedConfig, Strategy, VisionConfig},
        rope::{GridRope, RopeParameters},
        vit::{GatedNames, VitBlock, VitConfig},
    },
};

/// `vision_config` with `PixtralVisionConfig`'s defaults.
#[derive(Debug, Clone, Deserialize)]
#[serde(default)]
struct PixtralConfig {
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    head_dim: Option<usize>,
    num_channels: usize,
    image_size: usize,
    patch_size: usize,
    hidden_act: String,
    rope_theta: Option<f64>,
    rope_parameters: Option<RopeParameters>,
}

impl Default for PixtralConfig {
    fn default() -> Self {
        Self {
            hidden_size: 1024,
            intermediate_size: 4096,
            num_hidden_layers: 24,
            num_attention_heads: 16,
            head_dim: None,
            num_channels: 3,
            image_size: 1024,
            patch_size: 16,
            hidden_act: "gelu".into(),
            rope_theta: None,
            rope_parameters: None,
        }
    }
}

impl VisionConfig for PixtralConfig {
    fn absent() -> Self {
        Self::default()
    }

    fn layers(&self) -> usize {
        self.num_hidden_layers
    }
}

impl PixtralConfig {
    /// Sizes of a layer, whose heads have a size that is a multiple of 4.
    fn layer(&self) -> Result<VitConfig, LoadError> {
        let unsupported = |key: &str, value: usize, supported: &str| {
            Err(LoadError::unsupported(&format!("vision_config {key}"), &value.to_string(), supported))
        };
        let config = VitConfig {
            hidden: self.hidden_size,
            intermediate: self.intermediate_size,
            heads: self.num_attention_heads,
            // Of the class, which has no key for it.
            eps: 1e-5,
            activation: read_activation("vision_config hidden_act", &self.hidden_act)?,
        };
        config.check()?;
        let head = config.hidden / config.heads;
        if self.head_dim.is_some_and(|size| size != head) {
            return unsupported("head_dim", self.head_dim.unwrap_or(head), &head.to_string());
        }
        if !head.is_multiple_of(4) {
            return unsupported("head_dim", head, "multiples of 4");
        }
        check_patches(self.num_channels, self.image_size, self.patch_size)?;
        Ok(config)
    }
}

const NAMES: GatedNames = GatedNames {
    norms: ("attention_norm", "ffn_norm"),
    attention: "attention",
    qkv: Qkv::Apart("q_proj", "k_proj", "v_proj"),
    output: "o_proj",
    mlp: (GateUp::Apart("feed_forward.gate_proj", "feed_forward.up_proj"), "feed_forward.down_proj"),
    bias: Bias::No,
};

/// `processor_config.json` with `PixtralProcessor`'s defaults.
#[derive(Debug, Deserialize)]
#[serde(default)]
struct Processor {
    image_break_token: String,
    image_end_token: String,
}

impl Default for Processor {
    fn default() -> Self {
        Self { image_break_token: "[IMG_BREAK]".into(), image_end_token: "[IMG_END]".into() }
    }
}

/// What the image processor of this tower has besides.
#[derive(Debug, Deserialize)]
struct Patches {
    patch_size: Option<Side>,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(untagged)]
enum Side {
    Both(usize),
    Each { height: usize, width: usize },
}

/// Loads the network and its image processor.
pub(crate) fn load(checkpoint: &Checkpoint, _: Option<Fit>, vb: &VarBuilder<'_>) -> Result<Parts, LoadError> {
    let config: ProjectedConfig<PixtralConfig> = checkpoint.config()?;
    let decoder = config.decoder()?;
    let hidden = decoder.attention.hidden;
    let vision = &config.vision_config;
    let layer = vision.layer()?;
    let row = layer.gated_row_size() + 3 * vision.patch_size * vision.patch_size;
    Ok(Parts {
        width: hidden,
        encoder_row: row.max(2 * (layer.hidden + hidden)),
        task: Task::Chat(config.text()?),
        preprocess: Arc::new(Grid::read(checkpoint, vision, config.image_token())?),
        model: Box::new(Pixtral {
            tower: Tower::load(&config, &vb.pp("vision_tower"))?,
            projector: config.projector((layer.hidden, hidden), &vb.pp("multi_modal_projector"))?,
            decoder: Decoder::load(
                &decoder,
                &vb.pp("language_model.model"),
                &vb.pp("language_model.lm_head"),
            )?,
            cache_shape: decoder.cache_shape(),
        }),
    })
}

struct Tower {
    patches: PatchEmbedding,
    norm: RmsNorm,
    layers: Vec<VitBlock>,
    rope: GridRope,
    /// Pixels of a patch's side.
    side: usize,
}

impl Tower {
    fn load(config: &ProjectedConfig<PixtralConfig>, vb: &VarBuilder<'_>) -> Result<Self, LoadError> {
        let vision = &config.vision_config;
        let layer = vision.layer()?;
        // The other strategy cuts off a class row, which this tower does not have.
        if config.strategy() != Strategy::Full {
            return Err(LoadError::unsupported("vision_feature_select_strategy", "default", "full"));
        }
        let states = config.states()?;
        let &[last] = &states[..] else {
            return Err(LoadError::unsupported("vision_feature_layer", "with several layers", "one layer"));
        };
        let theta = GridRope::theta(vision.rope_parameters.as_ref(), vision.rope_theta)?;
        let layers = vb.pp("transformer.layers");
        Ok(Self {
            patches: PatchEmbedding::load(vision.patch_size, layer.hidden, Bias::No, &vb.pp("patch_conv"))?,
            norm: RmsNorm::load(layer.hidden, layer.eps, &vb.pp("ln_pre"))?,
            layers: (0..last)
                .into_par_iter()
                .map(|index| VitBlock::load_gated(&layer, &NAMES, &layers.pp(index)))
                .collect::<Result<_>>()?,
            rope: GridRope::by_turns(layer.hidden / layer.heads, theta),
            side: vision.patch_size,
        })
    }

    /// Pictures `[3, height, width]`, each of its own size, to `[patches, hidden]`, one after another.
    fn forward(&self, media: &[Features]) -> Result<Tensor> {
        let (mut pictures, mut places, mut lengths) = (Vec::new(), Vec::new(), Vec::new());
        for Features { tensor, .. } in media {
            let (_, height, width) = tensor.dims3()?;
            let (rows, columns) = (height / self.side, width / self.side);
            places.extend((0..rows).flat_map(|row| (0..columns).map(move |column| (row, column))));
            lengths.push(rows * columns);
            pictures.push(self.patches.forward(&tensor.unsqueeze(0)?)?.squeeze(0)?);
        }
        let mut x = self.norm.forward(&Tensor::cat(&pictures, 0)?)?;
        let rotation = self.rope.at(&places, &x)?;
        let rows = Ragged::new(&lengths, x.device())?;
        for layer in &self.layers {
            x = layer.rotated(&x, Some(&rotation), &rows)?;
        }
        Ok(x)
    }
}

struct Pixtral {
    tower: Tower,
    projector: Mlp,
    decoder: Decoder,
    cache_shape: CacheShape,
}

impl Model for Pixtral {
    fn cache_shape(&self) -> CacheShape {
        self.cache_shape
    }

    fn encode(&self, media: &[Features]) -> Result<Tensor> {
        self.projector.forward(&self.tower.forward(media)?)
    }

    fn forward(&self, batch: &Batch, cache: &KvCache) -> Result<Tensor> {
        self.decoder.forward(batch, cache)
    }
}

/// Pictures in whole patches, and a token behind each line of them.
#[derive(Debug)]
struct Grid {
    /// Pixels of the longest edge.
    longest: usize,
    /// Pixels of a patch's side.
    side: usize,
    filter: Filter,
    levels: Levels,
    /// Ids of a patch, of a line's end and of the last line's end.
    tokens: [u32; 3],
}

impl Grid {
    fn read(checkpoint: &Checkpoint, vision: &PixtralConfig, placeholder: u32) -> Result<Self, LoadError> {
        let config: ImageProcessorConfig = checkpoint.image_processor()?;
        let patches: Patches = checkpoint.image_processor()?;
        let side = vision.patch_size;
        let is_side = |patch: &Side| match *patch {
            Side::Both(length) => length == side,
            Side::Each { height, width } => height == side && width == side,
        };
        if let Some(other) = patches.patch_size.filter(|patch| !is_side(patch)) {
            let (value, supported) = (format!("{other:?}"), format!("the vision tower's {side}"));
            return Err(LoadError::unsupported("image processor patch_size", &value, &supported));
        }
        // Of `PixtralImageProcessor`.
        let longest = config.longest_edge(1024)?;
        if longest.div_ceil(side) > vision.image_size / side {
            let supported = format!("up to the vision tower's {}", vision.image_size);
            return Err(LoadError::unsupported("image processor size", &longest.to_string(), &supported));
        }
        let processor: Processor = checkpoint.json("processor_config.json")?.unwrap_or_default();
        let token = |text: &str| checkpoint.required_token(text);
        Ok(Self {
            longest,
            side,
            filter: config.filter(Filter::Bicubic)?,
            levels: config.levels(),
            tokens: [placeholder, token(&processor.image_break_token)?, token(&processor.image_end_token)?],
        })
    }

    /// Rows and columns of patches: transformers, `get_resize_output_image_size`.
    fn patches(&self, width: usize, height: usize) -> (usize, usize) {
        let ratio = (width.max(height) as f64 / self.longest as f64).max(1.0);
        let patches = |length: usize| ((length as f64 / ratio) as usize).div_ceil(self.side);
        (patches(height), patches(width))
    }
}

impl Preprocess for Grid {
    fn footprint(&self, size: MediaSize) -> Result<Footprint, SizeError> {
        let MediaSize::Image { width, height } = size else { return Ok(Footprint::line(Vec::new())) };
        let (rows, columns) = self.patches(width, height);
        if rows == 0 || columns == 0 {
            return Err(SizeError::Narrow { width, height, limit: self.longest });
        }
        let [patch, line, end] = self.tokens;
        let mut tokens = Vec::with_capacity(rows * (columns + 1));
        for row in 1..=rows {
            tokens.resize(tokens.len() + columns, patch);
            tokens.push(if row == rows { end } else { line });
        }
        Ok(Footprint::line(tokens))
    }

    /// `[3, height, width]`, in whole patches.
    fn run(&self, medium: Medium<'_>) -> Result<Tensor> {
        let picture = medium.picture()?;
        let (height, width, _) = picture.dims3()?;
        let (rows, columns) = self.patches(width, height);
        self.levels.numbers(&stretch(picture, columns * self.side, rows * self.side, self.filter)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn published() -> Grid {
        let config: ImageProcessorConfig = serde_json::from_str("{}").expect("defaults");
        Grid {
            longest: 1024,
            side: 16,
            filter: Filter::Bicubic,
            levels: config.levels(),
            tokens: [10, 12, 13],
        }
    }

    #[test]
    fn real_pictures_have_as_many_rows_as_in_the_reference() {
        for (width, height, resized, tokens) in [
            (336, 336, (336, 336), 462),
            (640, 480, (640, 480), 1230),
            (480, 640, (480, 640), 1240),
            (1920, 1080, (1024, 576), 2340),
            (1344, 336, (1024, 256), 1040),
            (500, 501, (512, 512), 1056),
            (100, 37, (112, 48), 24),
        ] {
            let grid = published();
            let (rows, columns) = grid.patches(width, height);
            assert_eq!((columns * 16, rows * 16), resized, "{width}x{height}");
            let footprint = grid.footprint(MediaSize::Image { width, height }).expect("it is taken");
            assert_eq!(footprint.tokens.len(), tokens, "{width}x{height}");
            let of = |id| footprint.tokens.iter().filter(|&&token| token == id).count();
            assert_eq!([of(10), of(12), of(13)], [rows * columns, rows - 1, 1]);
            assert_eq!(footprint.tokens.last(), Some(&13));
        }
    }

    #[test]
    fn a_line_is_no_picture() {
        let size = |width, height| published().footprint(MediaSize::Image { width, height });
        assert_eq!(size(3000, 2), Err(SizeError::Narrow { width: 3000, height: 2, limit: 1024 }));
        assert_eq!(size(2, 3000), Err(SizeError::Narrow { width: 2, height: 3000, limit: 1024 }));
        // The longest that the reference takes.
        assert_eq!(size(3000, 3).map(|footprint| footprint.tokens.len()), Ok(65));
        assert_eq!(size(1024, 1).map(|footprint| footprint.tokens.len()), Ok(65));
    }
}
