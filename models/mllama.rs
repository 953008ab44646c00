//! Llama 3.2 Vision: a text that attends to pictures in layers of their own between Llama's.
//!
//! Model card: <https://github.com/meta-llama/llama-models/blob/main/models/llama3_2/MODEL_CARD_VISION.md>. Reference:
//! meta-llama/llama-models, `models/llama3/reference_impl/multimodal`; names are those of transformers, `models/mllama`.
//! Where the two differ this is Meta's: a kept state is the input of its layer, and rows that see no picture are left
//! alone. Checkpoints: `meta-llama/Llama-3.2-11B-Vision-Instruct`, `meta-llama/Llama-3.2-90B-Vision-Instruct` and
//! fine-tunes in that layout.

use std::sync::Arc;

use candle_core::Tensor;
use candle_nn::VarBuilder;
use rayon::prelude::*;
use serde::Deserialize;

use crate::{
    CacheShape, Checkpoint, Features, Fit, Footprint, KvCache, LoadError, MediaSize, Medium, Model, Parts,
    Preprocess, Result, SizeError, Task,
    batch::{Batch, Remembered},
    cache::LayerCache,
    end_to_end,
    nn::{
        attention::{Biases, CrossAttention, Sight},
        decoder::{Block, DecoderConfig, Ends, Pending, TextConfig},
        image::{Filter, ImageProcessorConfig, Levels, gather, place, stretch, tiles},
        linear::{Bias, Linear},
        mlp::{GateUp, GatedMlp, read_activation},
        norm::{LayerNorm, RmsNorm},
        patches::{PatchEmbedding, check_patches},
        rope::Rope,
        vit::{VitBlock, VitConfig, VitNames},
    },
};

/// Published files keep the old names; transformers 4.52 and 5 moved them in memory, and some tools save those.
pub(crate) const ALIASES: &[(&str, &str)] = &[
    ("language_model.model.", "model.language_model."),
    ("language_model.lm_head.", "lm_head."),
    ("vision_model.", "model.vision_model."),
    ("multi_modal_projector.", "model.multi_modal_projector."),
];

/// Rows that the embedding has beyond the vocabulary: `MllamaTextModel`.
const EXTRA_IDS: usize = 8;

/// What `config.json` has besides the text's network.
#[derive(Debug, Deserialize)]
struct Config {
    image_token_index: Option<u32>,
    /// The newer name; some tools save both.
    image_token_id: Option<u32>,
    #[serde(default)]
    text_config: TextConfig,
    #[serde(default)]
    vision_config: VisionConfig,
}

/// What the text's own class leaves out.
#[derive(Debug, Default, Deserialize)]
struct CrossConfig {
    #[serde(default)]
    text_config: CrossLayers,
}

#[derive(Debug, Default, Deserialize)]
struct CrossLayers {
    cross_attention_layers: Option<Vec<usize>>,
}

impl CrossConfig {
    /// Whether each layer attends to pictures instead of to the text, with `MllamaTextConfig`'s default.
    fn crosses(self, layers: usize) -> Result<Vec<bool>, LoadError> {
        let listed = self.text_config.cross_attention_layers;
        let listed = listed.unwrap_or_else(|| vec![3, 8, 13, 18, 23, 28, 33, 38]);
        if !listed.is_sorted_by(|a, b| a < b) || listed.last().is_some_and(|&last| last >= layers) {
            let supported = format!("rising numbers below {layers}");
            let value = format!("{listed:?}");
            return Err(LoadError::unsupported("text_config cross_attention_layers", &value, &supported));
        }
        Ok((0..layers).map(|layer| listed.contains(&layer)).collect())
    }
}

/// `vision_config`, with `MllamaVisionConfig`'s defaults.
#[derive(Debug, Deserialize)]
#[serde(default)]
struct VisionConfig {
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_global_layers: usize,
    #[serde(alias = "num_attention_heads")]
    attention_heads: usize,
    num_channels: usize,
    image_size: usize,
    patch_size: usize,
    max_num_tiles: usize,
    hidden_act: String,
    norm_eps: f64,
    vision_output_dim: usize,
    intermediate_layers_indices: Vec<usize>,
    supported_aspect_ratios: Vec<(usize, usize)>,
}

impl Default for VisionConfig {
    fn default() -> Self {
        Self {
            hidden_size: 1280,
            intermediate_size: 5120,
            num_hidden_layers: 32,
            num_global_layers: 8,
            attention_heads: 16,
            num_channels: 3,
            image_size: 448,
            patch_size: 14,
            max_num_tiles: 4,
            hidden_act: "gelu".into(),
            norm_eps: 1e-5,
            vision_output_dim: 7680,
            intermediate_layers_indices: vec![3, 7, 15, 23, 30],
            supported_aspect_ratios: arrangements(4),
        }
    }
}

/// Rows and columns of up to `most` tiles, in the reference's order.
fn arrangements(most: usize) -> Vec<(usize, usize)> {
    (1..=most).flat_map(|rows| (1..=most / rows).map(move |columns| (rows, columns))).collect()
}

impl VisionConfig {
    fn check(&self) -> Result<(), LoadError> {
        let unsupported = |key: &str, value: &dyn std::fmt::Debug, supported: &str| {
            Err(LoadError::unsupported(&format!("vision_config {key}"), &format!("{value:?}"), supported))
        };
        check_patches(self.num_channels, self.image_size, self.patch_size)?;
        if self.supported_aspect_ratios != arrangements(self.max_num_tiles) || self.max_num_tiles == 0 {
            let supported = "all arrangements of 1 to max_num_tiles tiles, in order";
            return unsupported("supported_aspect_ratios", &self.supported_aspect_ratios, supported);
        }
        let kept = &self.intermediate_layers_indices;
        if !kept.is_sorted_by(|a, b| a < b) || kept.last().is_some_and(|&last| last >= self.num_hidden_layers)
        {
            let supported = format!("rising numbers below {}", self.num_hidden_layers);
            return unsupported("intermediate_layers_indices", kept, &supported);
        }
        if self.vision_output_dim != self.output() {
            return unsupported("vision_output_dim", &self.vision_output_dim, &self.output().to_string());
        }
        self.layer()?.check()
    }

    fn layer(&self) -> Result<VitConfig, LoadError> {
        Ok(VitConfig {
            hidden: self.hidden_size,
            intermediate: self.intermediate_size,
            heads: self.attention_heads,
            eps: self.norm_eps,
            activation: read_activation("vision_config hidden_act", &self.hidden_act)?,
        })
    }

    /// Rows of a tile: its patches, and the class row.
    fn rows(&self) -> usize {
        (self.image_size / self.patch_size).pow(2) + 1
    }

    /// Numbers of an encoded row: the last state and those that were kept.
    fn output(&self) -> usize {
        self.hidden_size * (1 + self.intermediate_layers_indices.len())
    }

    /// Numbers that are alive at once, at most, for a row that the text will see of a picture with all tiles. One with
    /// fewer has fewer rows, and as much is computed for it.
    fn row_size(&self, layer: &VitConfig, hidden: usize) -> usize {
        let computed = self.rows().next_multiple_of(Sight::PAGE);
        // Keys and values are copied once more.
        let layer = layer.row_size() + 2 * layer.hidden;
        (computed * layer).div_ceil(self.rows()) + 2 * self.output() + hidden
    }
}

/// What the image processor's file has besides.
#[derive(Debug, Deserialize)]
struct TileConfig {
    max_image_tiles: Option<usize>,
    do_pad: Option<bool>,
}

/// Loads the network and its image processor.
pub(crate) fn load(checkpoint: &Checkpoint, _: Option<Fit>, vb: &VarBuilder<'_>) -> Result<Parts, LoadError> {
    let config: Config = checkpoint.config()?;
    let decoder = config.text_config.decoder("mllama_text_model")?;
    let crosses = checkpoint.config::<CrossConfig>()?.crosses(decoder.layers)?;
    let vision = &config.vision_config;
    vision.check()?;
    let hidden = decoder.attention.hidden;
    let placeholder = config.image_token_index.or(config.image_token_id).unwrap_or(128_256);
    let info = decoder.text_info(placeholder, &[&config.text_config.eos_token_id]);
    let canvases = Canvases { side: vision.image_size, arrangements: arrangements(vision.max_num_tiles) };
    let preprocess = preprocess(checkpoint, vision, placeholder, canvases.clone())?;
    let language = vb.pp("language_model");
    let text = language.pp("model");
    let crossing = crosses.iter().filter(|crosses| **crosses).count();
    Ok(Parts {
        width: hidden,
        encoder_row: vision.row_size(&vision.layer()?, hidden),
        task: Task::Chat(info),
        preprocess: Arc::new(preprocess),
        model: Box::new(Mllama {
            tower: Tower::load(vision, &vb.pp("vision_model"))?,
            projector: Linear::load(vision.output(), hidden, Bias::Yes, &vb.pp("multi_modal_projector"))?,
            canvases,
            rope: Rope::new(&decoder.rope, vb.dtype(), vb.device())?,
            ends: Ends::load(&decoder, decoder.vocabulary + EXTRA_IDS, &text, &language.pp("lm_head"))?,
            // Text and pictures lie in different pages, so that layers of both kinds share a layer of the cache.
            cache_shape: CacheShape {
                layers: crossing.max(decoder.layers - crossing),
                ..decoder.cache_shape()
            },
            layers: crosses
                .into_par_iter()
                .enumerate()
                .map(|(index, crosses)| {
                    let vb = text.pp("layers").pp(index);
                    Ok(match crosses {
                        false => Layer::Text(Block::load(&decoder, &vb)?),
                        true => Layer::Cross(CrossBlock::load(&decoder, &vb)?),
                    })
                })
                .collect::<Result<_>>()?,
        }),
    })
}

fn preprocess(
    checkpoint: &Checkpoint,
    vision: &VisionConfig,
    placeholder: u32,
    canvases: Canvases,
) -> Result<Tiles, LoadError> {
    let processor: ImageProcessorConfig = checkpoint.image_processor()?;
    let own: TileConfig = checkpoint.image_processor()?;
    let expected = |key: &str, found: Option<usize>, expected: usize| match found {
        Some(found) if found != expected => {
            let supported = format!("the vision tower's {expected}");
            Err(LoadError::unsupported(&format!("image processor {key}"), &found.to_string(), &supported))
        }
        _ => Ok(()),
    };
    expected("size", processor.side(), vision.image_size)?;
    expected("max_image_tiles", own.max_image_tiles, vision.max_num_tiles)?;
    if own.do_pad == Some(false) {
        return Err(LoadError::unsupported("image processor do_pad", "false", "true"));
    }
    Ok(Tiles {
        canvases,
        filter: processor.filter(Filter::Bilinear)?,
        levels: processor.levels(),
        placeholder,
        rows: vision.rows(),
    })
}

struct Mllama {
    tower: Tower,
    projector: Linear,
    canvases: Canvases,
    rope: Rope,
    ends: Ends,
    layers: Vec<Layer>,
    cache_shape: CacheShape,
}

enum Layer {
    Text(Block),
    Cross(CrossBlock),
}

impl Mllama {
    /// Layers that attend to pictures, each with its layer of the cache.
    fn cross_layers(&self) -> impl Iterator<Item = (usize, &CrossBlock)> {
        let crossing = self.layers.iter().filter_map(|layer| match layer {
            Layer::Cross(block) => Some(block),
            Layer::Text(_) => None,
        });
        crossing.enumerate()
    }
}

impl Model for Mllama {
    fn cache_shape(&self) -> CacheShape {
        self.cache_shape
    }

    fn encode(&self, media: &[Features]) -> Result<Tensor> {
        let plan = |features: &Features| {
            let (width, height) = features.size.picture()?;
            Ok(self.canvases.plan(width, height))
        };
        let plans = media.iter().map(plan).collect::<Result<Vec<_>>>()?;
        self.projector.forward(&self.tower.forward(&end_to_end(media)?, &plans)?)
    }

    fn remember(&self, encoded: &Tensor, slots: &Tensor, cache: &KvCache) -> Result<()> {
        for (index, block) in self.cross_layers() {
            block.attention.remember(encoded, slots, cache.layer(index))?;
        }
        Ok(())
    }

    fn forward(&self, batch: &Batch, cache: &KvCache) -> Result<Tensor> {
        let mut x = Pending::from(self.ends.embed(batch)?);
        let rotation = self.rope.at(batch)?;
        let (mut texts, mut crossings) = (0, 0);
        for layer in &self.layers {
            match layer {
                Layer::Text(block) => {
                    x = block.forward(x, &rotation, batch, cache.layer(texts))?;
                    texts += 1;
                }
                Layer::Cross(block) => {
                    if let Some(memory) = &batch.memory {
                        x = block.forward(x, memory, cache.layer(crossings))?;
                    }
                    crossings += 1;
                }
            }
        }
        self.ends.logits(&x, batch)
    }
}

/// A layer that attends to pictures, then a feed-forward part, both through gates.
struct CrossBlock {
    input_norm: RmsNorm,
    attention: CrossAttention,
    attention_gate: Tensor,
    mlp_norm: RmsNorm,
    mlp: GatedMlp,
    mlp_gate: Tensor,
}

impl CrossBlock {
    fn load(config: &DecoderConfig, vb: &VarBuilder<'_>) -> Result<Self> {
        let (shape, eps) = (config.attention, config.eps);
        let attention = vb.pp("cross_attn");
        Ok(Self {
            input_norm: RmsNorm::load(shape.hidden, eps, &vb.pp("input_layernorm"))?,
            attention: CrossAttention::load(shape, Biases::NONE, "o_proj", &attention)?
                .normed(eps, &attention)?,
            attention_gate: gate(vb, "cross_attn_attn_gate")?,
            mlp_norm: RmsNorm::load(shape.hidden, eps, &vb.pp("post_attention_layernorm"))?,
            mlp: GatedMlp::load(
                (shape.hidden, config.intermediate),
                (GateUp::Apart("gate_proj", "up_proj"), "down_proj", Bias::No),
                config.activation,
                &vb.pp("mlp"),
            )?,
            mlp_gate: gate(vb, "cross_attn_mlp_gate")?,
        })
    }

    /// `x`: `[rows, hidden]`. Rows that see no picture stay as they are.
    fn forward(&self, x: Pending, memory: &Remembered, cache: &LayerCache) -> Result<Pending> {
        let (x, normed) = {
            let (x, normed) = x.normed(&self.input_norm)?;
            let attended = self.attention.attend(&self.attention.queries(&normed)?, memory, cache)?;
            self.mlp_norm.add(&x, &attended.broadcast_mul(&self.attention_gate)?)?
        };
        let mut fed = self.mlp.forward(&normed)?;
        if let Some(seen) = &memory.seen {
            fed = fed.broadcast_mul(&seen.to_dtype(fed.dtype())?)?;
        }
        Ok(Pending::sum(x, fed.broadcast_mul(&self.mlp_gate)?))
    }
}

/// A gate `[1]`, between -1 and 1.
fn gate(vb: &VarBuilder<'_>, name: &str) -> Result<Tensor> {
    vb.get(1, name)?.tanh()
}

const VISION_NAMES: VitNames = VitNames {
    norms: ("input_layernorm", "post_attention_layernorm"),
    output: "o_proj",
    biases: Biases::NONE,
    ..VitNames::CLIP
};

/// The vision tower: layers over all tiles of a picture.
struct Tower {
    patches: PatchEmbedding,
    class: Tensor,
    /// `[rows, hidden]`, of a tile.
    positions: Tensor,
    /// Of each tile of each arrangement: `[…, rows * hidden]`, and `[…, hidden]` in front of all layers and in front of
    /// the global ones.
    tile_positions: Tensor,
    pre_tile: Tensor,
    post_tile: Tensor,
    pre_norm: LayerNorm,
    post_norm: LayerNorm,
    layers: Vec<VitBlock>,
    global_layers: Vec<VitBlock>,
    /// Layers whose input is kept.
    kept: Vec<usize>,
    /// Tiles that are computed for a picture, empty ones included.
    tiles: usize,
    rows: usize,
}

impl Tower {
    fn load(config: &VisionConfig, vb: &VarBuilder<'_>) -> Result<Self, LoadError> {
        let (hidden, rows, tiles) = (config.hidden_size, config.rows(), config.max_num_tiles);
        let layer = config.layer()?;
        // Number 0 stands for no picture.
        let numbers = config.supported_aspect_ratios.len() + 1;
        let of_tiles = |vb: &VarBuilder<'_>, name: &str, width: usize| {
            let all = vb.pp(name).get((numbers, tiles * width), "weight")?;
            all.reshape((numbers * tiles, width))?.broadcast_mul(&gate(vb, "gate")?)
        };
        let (pre, post) = (vb.pp("pre_tile_positional_embedding"), vb.pp("post_tile_positional_embedding"));
        let positions = vb.pp("gated_positional_embedding");
        let norm = |name| LayerNorm::load(hidden, config.norm_eps, &vb.pp(name));
        let blocks = |name: &str, count: usize| {
            let vb = vb.pp(name).pp("layers");
            let load = |index: usize| {
                let vb = vb.pp(index);
                let block = VitBlock::load(&layer, &VISION_NAMES, &vb)?;
                Ok((block, vb))
            };
            (0..count).into_par_iter().map(load).collect::<Result<Vec<_>>>()
        };
        let gated = |(block, vb): (VitBlock, VarBuilder<'_>)| {
            Ok(block.scaled(gate(&vb, "gate_attn")?, gate(&vb, "gate_ffn")?))
        };
        let global = blocks("global_transformer", config.num_global_layers)?;
        let layers = blocks("transformer", config.num_hidden_layers)?;
        Ok(Self {
            patches: PatchEmbedding::load(config.patch_size, hidden, Bias::No, &vb.pp("patch_embedding"))?,
            class: vb.get(hidden, "class_embedding")?,
            positions: positions
                .get((rows, hidden), "embedding")?
                .broadcast_mul(&(1.0 - gate(&positions, "gate")?)?)?,
            tile_positions: of_tiles(&positions, "tile_embedding", rows * hidden)?,
            pre_tile: of_tiles(&pre, "embedding", hidden)?,
            post_tile: of_tiles(&post, "embedding", hidden)?,
            pre_norm: norm("layernorm_pre")?,
            post_norm: norm("layernorm_post")?,
            layers: layers.into_iter().map(|(block, _)| block).collect(),
            global_layers: global.into_iter().map(gated).collect::<Result<_>>()?,
            kept: config.intermediate_layers_indices.clone(),
            tiles,
            rows,
        })
    }

    /// Tiles `[…, 3, side, side]` of pictures, end to end, to `[… * rows, output]`.
    fn forward(&self, pixels: &Tensor, pictures: &[Plan]) -> Result<Tensor> {
        let layout = self.layout(pictures);
        let upload = |list: &Vec<u32>| Tensor::from_slice(list, list.len(), pixels.device());
        let shown = upload(&layout.shown)?;
        let sight = Sight::new(&layout.runs, pixels.device())?;
        let mut x = self.embed(pixels, pictures)?.index_select(&upload(&layout.order)?, 0)?;
        let mut states = Vec::with_capacity(self.kept.len());
        for (index, layer) in self.layers.iter().enumerate() {
            if self.kept.contains(&index) {
                states.push(x.index_select(&shown, 0)?);
            }
            x = layer.partial(&x, &sight)?;
        }
        let tiles = self.post_tile.index_select(&upload(&layout.tiles)?, 0)?;
        x = (self.post_norm.forward(&x)? + tiles)?;
        for layer in &self.global_layers {
            x = layer.partial(&x, &sight)?;
        }
        let last = x.index_select(&shown, 0)?;
        if states.is_empty() {
            return Ok(last);
        }
        // Channel by channel, the states side by side.
        Tensor::cat(&[&last, &Tensor::stack(&states, 2)?.flatten_from(1)?], 1)
    }

    /// Rows of all tiles of all pictures, padded: `[pictures * tiles * padded, hidden]`.
    fn embed(&self, pixels: &Tensor, pictures: &[Plan]) -> Result<Tensor> {
        let patches = self.patches.forward(pixels)?;
        let (count, ..) = patches.dims3()?;
        // The empty tile, whose pixels are 0, as the convolution has no bias.
        let empty = patches.narrow(0, 0, 1)?.zeros_like()?;
        let mut order = Vec::new();
        let mut numbers = Vec::new();
        let mut first = 0;
        for picture in pictures {
            let tile = |tile: usize| if tile < picture.tiles() { first + tile } else { count };
            order.extend((0..self.tiles).map(|index| tile(index) as u32));
            numbers.extend((0..self.tiles).map(|tile| self.number(picture, tile)));
            first += picture.tiles();
        }
        let all = numbers.len();
        let patches = gather(&Tensor::cat(&[&patches, &empty], 0)?, order)?;
        let patches = patches.broadcast_add(&gather(&self.pre_tile, numbers.clone())?.unsqueeze(1)?)?;
        let class = self.class.reshape((1, 1, ()))?.repeat((all, 1, 1))?;
        let x = Tensor::cat(&[&class, &patches], 1)?.broadcast_add(&self.positions)?;
        let x = (&x + gather(&self.tile_positions, numbers)?.reshape(x.shape())?)?;
        let x = self.pre_norm.forward(&x)?;
        x.pad_with_zeros(1, 0, self.padded() - self.rows)?.flatten_to(1)
    }

    /// Rows of a tile with padding, which is seen like any other row: `MllamaVisionModel`.
    fn padded(&self) -> usize {
        self.rows.next_multiple_of(Sight::PAGE)
    }

    /// The row of a tile in the tables of arrangements.
    fn number(&self, picture: &Plan, tile: usize) -> u32 {
        (picture.number * self.tiles + tile) as u32
    }

    /// Rows that show something lie in front of the padding and of empty tiles. They see all rows of their picture; the
    /// others see them, and not each other.
    fn layout(&self, pictures: &[Plan]) -> Layout {
        let padded = self.padded();
        let all = self.tiles * padded;
        let mut layout = Layout::default();
        for (index, picture) in pictures.iter().enumerate() {
            let first = index * all;
            let shows = |row: &usize| row / padded < picture.tiles() && row % padded < self.rows;
            let (shown, other): (Vec<usize>, Vec<usize>) = (0..all).partition(shows);
            layout.runs.push((shown.len(), (first, all)));
            layout.runs.push((other.len(), (first, shown.len())));
            layout.shown.extend((first..first + shown.len()).map(|row| row as u32));
            for row in shown.into_iter().chain(other) {
                layout.order.push((first + row) as u32);
                layout.tiles.push(self.number(picture, row / padded));
            }
        }
        layout
    }
}

/// How the tower's rows lie.
#[derive(Default)]
struct Layout {
    /// From which row of the embedded tiles each comes.
    order: Vec<u32>,
    /// Of which tile each is, in the tables of arrangements.
    tiles: Vec<u32>,
    /// Those that show something.
    shown: Vec<u32>,
    /// See [`Sight::new`].
    runs: Vec<(usize, (usize, usize))>,
}

/// Which tiles a picture becomes.
#[derive(Debug, Clone)]
struct Canvases {
    /// Pixels of a tile's side.
    side: usize,
    /// Rows and columns of tiles.
    arrangements: Vec<(usize, usize)>,
}

/// Of one picture.
#[derive(Debug, PartialEq, Eq)]
struct Plan {
    /// Of its arrangement, from 1 on.
    number: usize,
    /// Tiles of the canvas.
    rows: usize,
    columns: usize,
    /// Width and height of the picture on the canvas.
    resized: (usize, usize),
}

impl Plan {
    fn tiles(&self) -> usize {
        self.rows * self.columns
    }
}

impl Canvases {
    /// The canvas that enlarges a picture least, or else shrinks it least; the smaller one of equals:
    /// transformers, `get_optimal_tiled_canvas` and `get_image_size_fit_to_canvas`.
    fn plan(&self, width: usize, height: usize) -> Plan {
        let scale = |&(rows, columns): &(usize, usize)| {
            let down = (rows * self.side) as f64 / height as f64;
            let across = (columns * self.side) as f64 / width as f64;
            down.min(across)
        };
        let better = |a: f64, b: f64| match (a >= 1.0, b >= 1.0) {
            (true, true) => a < b,
            (false, false) => a > b,
            (enlarges, _) => enlarges,
        };
        let mut best = 0;
        for (index, arrangement) in self.arrangements.iter().enumerate() {
            let (found, known) = (scale(arrangement), scale(&self.arrangements[best]));
            let area = |(rows, columns): (usize, usize)| rows * columns;
            let smaller = area(*arrangement) < area(self.arrangements[best]);
            if better(found, known) || found == known && smaller {
                best = index;
            }
        }
        let (rows, columns) = self.arrangements[best];
        let target = |length: usize, tiles: usize| length.clamp(self.side, tiles * self.side);
        let (wide, high) = (target(width, columns), target(height, rows));
        let (across, down) = (wide as f64 / width as f64, high as f64 / height as f64);
        let scaled = |length: usize, scale: f64| ((length as f64 * scale).floor() as usize).max(1);
        let resized = if across < down {
            (wide, scaled(height, across).min(high))
        } else {
            (scaled(width, down).min(wide), high)
        };
        Plan { number: best + 1, rows, columns, resized }
    }
}

#[derive(Debug)]
struct Tiles {
    canvases: Canvases,
    filter: Filter,
    levels: Levels,
    placeholder: u32,
    /// Of a tile.
    rows: usize,
}

impl Preprocess for Tiles {
    fn footprint(&self, size: MediaSize) -> Result<Footprint, SizeError> {
        let tiles = size.picture().map_or(0, |(width, height)| self.canvases.plan(width, height).tiles());
        Ok(Footprint { memory: tiles * self.rows, ..Footprint::line(vec![self.placeholder]) })
    }

    /// `[tiles, 3, side, side]`, without empty tiles.
    fn run(&self, medium: Medium<'_>) -> Result<Tensor> {
        let picture = medium.picture()?;
        let (height, width, _) = picture.dims3()?;
        let side = self.canvases.side;
        let plan = self.canvases.plan(width, height);
        let resized = stretch(picture, plan.resized.0, plan.resized.1, self.filter)?;
        let canvas = place(&resized, (plan.columns * side, plan.rows * side), (0, 0), 0)?;
        tiles(&self.levels.numbers(&canvas)?, side)
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};

    use super::*;

    const FIXTURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures");

    fn manifest() -> serde_json::Value {
        let manifest = include_str!("../tests/fixtures/goldens/mllama/manifest.json");
        serde_json::from_str(manifest).expect("a manifest")
    }

    #[test]
    fn real_pictures_have_as_many_tiles_as_in_the_reference() {
        let canvases = Canvases { side: 560, arrangements: arrangements(4) };
        for (width, height, columns, rows) in [
            (336, 336, 1, 1),
            (640, 480, 2, 1),
            (480, 640, 1, 2),
            (1920, 1080, 2, 2),
            (1344, 336, 3, 1),
            (500, 501, 1, 1),
            (100, 37, 1, 1),
        ] {
            let plan = canvases.plan(width, height);
            assert_eq!((plan.columns, plan.rows), (columns, rows), "{width} x {height}");
        }
        // Shrunk, and as wide as the canvas; a line stays a line.
        assert_eq!(canvases.plan(4000, 1000).resized, (2240, 560));
        assert_eq!(canvases.plan(5000, 1), Plan { number: 4, rows: 1, columns: 4, resized: (2240, 1) });
    }

    #[test]
    fn arrangements_have_the_numbers_of_the_reference() {
        assert_eq!(arrangements(4), [(1, 1), (1, 2), (1, 3), (1, 4), (2, 1), (2, 2), (3, 1), (4, 1)]);
        let canvases = Canvases { side: 56, arrangements: arrangements(4) };
        let mut compared = 0;
        for case in manifest()["cases"].as_array().expect("cases") {
            for (index, image) in case["images"].as_array().into_iter().flatten().enumerate() {
                let size = image.as_str().and_then(|name| name.rsplit_once('_')?.1.strip_suffix(".png"));
                let (width, height) = size.and_then(|size| size.split_once('x')).expect("a size");
                let length = |text: &str| text.parse::<usize>().expect("a number");
                let plan = canvases.plan(length(width), length(height));
                assert_eq!(case["aspect_ratio_ids"][index], plan.number, "{image}");
                assert_eq!(case["num_tiles"][index], plan.tiles(), "{image}");
                compared += 1;
            }
        }
        assert_eq!(compared, 9);
    }

    /// The tower alone, in front of the projector.
    #[test]
    fn the_tower_gives_what_the_reference_does() -> Result<()> {
        let file = |name: &str| format!("{FIXTURES}/{name}");
        let config = std::fs::read_to_string(file("mllama/config.json")).expect("a file");
        let config: Config = serde_json::from_str(&config).expect("a configuration");
        let processor = std::fs::read_to_string(file("mllama/preprocessor_config.json")).expect("a file");
        let processor: ImageProcessorConfig = serde_json::from_str(&processor).expect("a configuration");
        let weights = candle_core::safetensors::load(file("mllama/model.safetensors"), &Device::Cpu)?;
        let goldens =
            candle_core::safetensors::load(file("goldens/mllama/tensors.safetensors"), &Device::Cpu)?;
        let vb = VarBuilder::from_tensors(weights, DType::F32, &Device::Cpu);
        let tower = Tower::load(&config.vision_config, &vb.pp("vision_model")).expect("a tower");

        let levels = goldens["one_land/pixel_u8_0"].permute((0, 2, 3, 1))?.contiguous()?;
        let pixels = (0..4).map(|tile| processor.levels().numbers(&levels.get(tile)?));
        let pixels = Tensor::stack(&pixels.collect::<Result<Vec<_>>>()?, 0)?;
        let canvases = Canvases { side: 56, arrangements: arrangements(4) };
        let found = tower.forward(&pixels, &[canvases.plan(90, 60)])?.reshape((4, 17, ()))?;
        let expected = goldens["one_land/vision_output"].squeeze(0)?;
        let difference = (found.narrow(1, 0, 3)? - expected)?.abs()?.max_all()?.to_scalar::<f32>()?;
        let tolerance = manifest()["tolerance"]["features"].as_f64().expect("a number");
        assert!(f64::from(difference) <= tolerance, "{difference}");
        Ok(())
    }
}
