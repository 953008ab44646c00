//! InternVL2 and what follows it in the same form: InternViT, and pictures cut into tiles.
//!
//! Paper: <https://arxiv.org/abs/2404.16821>; reference: <https://github.com/OpenGVLab/InternVL>, `internvl_chat`, and
//! transformers, `models/internvl`, whose files have other names. Checkpoints: `OpenGVLab/InternVL2-1B` to
//! `OpenGVLab/InternVL2-8B` with a tokenizer.json, and those whose name ends in `-hf`.

use std::sync::Arc;

use candle_core::Tensor;
use candle_nn::VarBuilder;
use serde::Deserialize;

use crate::{
    CacheShape, Checkpoint, Features, Fit, Footprint, KvCache, LoadError, MediaSize, Medium, Model, Parts,
    Preprocess, Result, SizeError, Task, TextInfo,
    batch::Batch,
    end_to_end,
    nn::{
        decoder::{Decoder, DecoderConfig, TextConfig},
        image::{Filter, ImageProcessorConfig, Levels, stretch, tiles},
        intern_vit::{InternVit, InternVitConfig, InternVitLayout, InternVitShape},
        linear::Bias,
        mlp::{Mlp, read_activation},
        norm::LayerNorm,
        patches::merge,
    },
};

/// The original repository's class.
pub(crate) const PUBLISHED: &str = "InternVLChatModel";
/// That of transformers.
pub(crate) const NATIVE: &str = "InternVLForConditionalGeneration";

/// `config.json` of both classes.
#[derive(Debug, Deserialize)]
struct Config {
    architectures: Vec<String>,
    #[serde(alias = "llm_config")]
    text_config: TextConfig,
    #[serde(default)]
    vision_config: InternVitConfig,
    #[serde(alias = "select_layer")]
    vision_feature_layer: Option<serde_json::Value>,
    vision_feature_select_strategy: Option<String>,
    projector_hidden_act: Option<String>,
    downsample_ratio: Option<f64>,
    ps_version: Option<String>,
    template: Option<String>,
    force_image_size: Option<usize>,
    dynamic_image_size: Option<bool>,
    use_thumbnail: Option<bool>,
    min_dynamic_patch: Option<usize>,
    max_dynamic_patch: Option<usize>,
    pad2square: Option<bool>,
    image_token_id: Option<u32>,
    tie_word_embeddings: Option<bool>,
    eos_token_id: Option<serde_json::Value>,
}

/// What transformers' image processor has besides the usual.
#[derive(Debug, Deserialize)]
struct Limits {
    min_patches: Option<usize>,
    max_patches: Option<usize>,
}

/// Names of the projector's weights: below what, its norm, its layers.
type Projector = (&'static str, &'static str, (&'static str, &'static str));

const PROJECTOR: Projector = ("mlp1", "0", ("1", "3"));
const NATIVE_PROJECTOR: Projector = ("multi_modal_projector", "layer_norm", ("linear_1", "linear_2"));

/// Loads the network and its image processor.
pub(crate) fn load(checkpoint: &Checkpoint, _: Option<Fit>, vb: &VarBuilder<'_>) -> Result<Parts, LoadError> {
    let config: Config = checkpoint.config()?;
    let native = config.architectures.iter().any(|name| name == NATIVE);
    let (layout, (projector, norm, linears)) = if native {
        (&InternVitLayout::NATIVE, NATIVE_PROJECTOR)
    } else {
        (&InternVitLayout::PUBLISHED, PROJECTOR)
    };
    config.check(native)?;
    let vision = config.vision_config.shape(layout)?;
    let block = config.block(&vision)?;
    let side = vision.image;
    let processor: ImageProcessorConfig = checkpoint.image_processor()?;
    processor.check_side(side)?;
    let tokens = (vision.side() / block) * (vision.side() / block);
    let grid = if native { Grid::native(&checkpoint.image_processor()?, side) } else { config.grid(side) }?;

    let mut decoder = config.text_config.decoder(if native { "qwen2" } else { "llama" })?;
    // The newer class's default.
    decoder.tied |= config.tie_word_embeddings.unwrap_or(native);
    let hidden = decoder.attention.hidden;
    let token = |name: &str| checkpoint.required_token(name);
    let placeholder = match config.image_token_id.filter(|_| native) {
        Some(id) => id,
        None => token("<IMG_CONTEXT>")?,
    };
    let merged = block * block * vision.vit.hidden;
    let projector = vb.pp(projector);
    let activation = config.projector_hidden_act.as_deref().unwrap_or("gelu");
    let activation = read_activation("projector_hidden_act", activation)?;
    let language = vb.pp("language_model");
    Ok(Parts {
        width: hidden,
        // The tower has several rows for one of these; joined, they are normalised, and two layers follow.
        encoder_row: (vision.rows() * vision.vit.row_size()).div_ceil(tokens).max(3 * merged + 2 * hidden),
        task: Task::Chat(config.text(&decoder, placeholder)),
        preprocess: Arc::new(Tiles {
            grid,
            filter: processor.filter(Filter::Bicubic)?,
            levels: processor.levels(),
            tokens,
            ids: [token("<img>")?, placeholder, token("</img>")?],
        }),
        model: Box::new(InternVl {
            tower: InternVit::load(&vision, layout, vb)?,
            block,
            // torch's default epsilon.
            norm: LayerNorm::load(merged, 1e-5, &projector.pp(norm))?,
            projector: Mlp::load(linears, (merged, hidden, hidden), Bias::Yes, activation, &projector)?,
            cache_shape: decoder.cache_shape(),
            decoder: Decoder::load(&decoder, &language.pp("model"), &language.pp(decoder.head()))?,
        }),
    })
}

impl Config {
    fn check(&self, native: bool) -> Result<(), LoadError> {
        if let Some(layer) = self.vision_feature_layer.as_ref().filter(|&layer| layer != -1) {
            let key = if native { "vision_feature_layer" } else { "select_layer" };
            return Err(LoadError::unsupported(key, &layer.to_string(), "-1"));
        }
        let strategy = self.vision_feature_select_strategy.as_deref().unwrap_or("default");
        if strategy != "default" {
            return Err(LoadError::unsupported("vision_feature_select_strategy", strategy, "default"));
        }
        if self.pad2square == Some(true) {
            return Err(LoadError::unsupported("pad2square", "true", "false"));
        }
        let version = self.ps_version.as_deref().unwrap_or(if native { "v2" } else { "v1" });
        if version != "v2" {
            return Err(LoadError::unsupported("ps_version", version, "v2"));
        }
        Ok(())
    }

    /// Patches along a side of what becomes one row.
    fn block(&self, vision: &InternVitShape) -> Result<usize, LoadError> {
        let ratio = self.downsample_ratio.unwrap_or(0.5);
        let block = (1.0 / ratio).round();
        let divides = block >= 1.0 && vision.side().is_multiple_of(block as usize);
        if !divides || (block * ratio - 1.0).abs() > 1e-9 {
            let supported = format!("one over a divisor of {}", vision.side());
            return Err(LoadError::unsupported("downsample_ratio", &ratio.to_string(), &supported));
        }
        Ok(block as usize)
    }

    fn text(&self, decoder: &DecoderConfig, placeholder: u32) -> TextInfo {
        TextInfo {
            template: self.template.as_deref().and_then(template),
            ..decoder.text_info(placeholder, &[&self.eos_token_id, &self.text_config.eos_token_id])
        }
    }

    fn grid(&self, side: usize) -> Result<Grid, LoadError> {
        if let Some(forced) = self.force_image_size.filter(|&forced| forced != side) {
            let supported = format!("the vision tower's {side}");
            return Err(LoadError::unsupported("force_image_size", &forced.to_string(), &supported));
        }
        let (least, most) = if self.dynamic_image_size.unwrap_or(false) {
            (self.min_dynamic_patch.unwrap_or(1), self.max_dynamic_patch.unwrap_or(6))
        } else {
            (1, 1)
        };
        Grid::new(side, ("max_dynamic_patch", least, most), self.use_thumbnail.unwrap_or(false))
    }
}

/// The prompts that the published `chat()` writes: `conversation.py` of the original repository. Another name leaves
/// them to the checkpoint's own template.
fn template(name: &str) -> Option<String> {
    const SYSTEM: &str = "你是由上海人工智能实验室联合商汤科技开发的书生多模态大模型，英文名叫InternVL, 是一个有用无害的人工智能助手。";
    const SYSTEM_2_5: &str = "你是书生·万象，英文名是InternVL，是由上海人工智能实验室、清华大学及多家合作单位联合开发的多模态大语言模型。";
    const BODY: &str = "{% if messages[0].role != 'system' %}{{ open + 'system' + close + system + end }}{% endif %}\
        {% for message in messages %}{{ open + message.role + close + message.content + end }}{% endfor %}\
        {% if add_generation_prompt %}{{ open + 'assistant' + close }}{% endif %}";
    let (system, [open, close, end]) = match name {
        "internlm2-chat" | "Hermes-2" => (SYSTEM, ["<|im_start|>", r"\n", "<|im_end|>"]),
        "phi3-chat" => (SYSTEM, ["<|", r"|>\n", "<|end|>"]),
        "internvl2_5" => (SYSTEM_2_5, ["<|im_start|>", r"\n", r"<|im_end|>\n"]),
        _ => return None,
    };
    let set = |name, value| format!("{{% set {name} = '{value}' %}}");
    let parts = [("system", system), ("open", open), ("close", close), ("end", end)];
    Some(parts.map(|(name, value)| set(name, value)).concat() + BODY)
}

struct InternVl {
    tower: InternVit,
    /// Patches along a side of what becomes one row.
    block: usize,
    norm: LayerNorm,
    projector: Mlp,
    decoder: Decoder,
    cache_shape: CacheShape,
}

impl Model for InternVl {
    fn cache_shape(&self) -> CacheShape {
        self.cache_shape
    }

    fn encode(&self, media: &[Features]) -> Result<Tensor> {
        let patches = self.tower.forward(&end_to_end(media)?)?;
        let merged = merge(&patches, self.tower.side(), self.block)?;
        self.projector.forward(&self.norm.forward(&merged)?)
    }

    fn forward(&self, batch: &Batch, cache: &KvCache) -> Result<Tensor> {
        self.decoder.forward(batch, cache)
    }
}

/// How pictures are cut into tiles.
#[derive(Debug)]
struct Grid {
    /// Pixels of a tile's side.
    side: usize,
    /// Columns and rows that there are, by their product.
    shapes: Vec<(usize, usize)>,
    /// Whether the whole picture follows as one more tile.
    thumbnail: bool,
}

impl Grid {
    /// All shapes of `least` to `most` tiles; `key` is the configuration's name for `most`.
    fn new(
        side: usize,
        (key, least, most): (&str, usize, usize),
        thumbnail: bool,
    ) -> Result<Self, LoadError> {
        if most == 0 || least > most {
            let supported = format!("{} and more", least.max(1));
            return Err(LoadError::unsupported(key, &most.to_string(), &supported));
        }
        let rows = |columns| (1..=most / columns).map(move |rows| (columns, rows));
        let mut shapes: Vec<_> = (1..=most).flat_map(rows).collect();
        shapes.retain(|(columns, rows)| columns * rows >= least);
        shapes.sort_by_key(|(columns, rows)| columns * rows);
        Ok(Self { side, shapes, thumbnail })
    }

    /// transformers' processor cuts whatever its file says of `crop_to_patches`, and always adds the whole picture.
    fn native(limits: &Limits, side: usize) -> Result<Self, LoadError> {
        let (least, most) = (limits.min_patches.unwrap_or(1), limits.max_patches.unwrap_or(12));
        Self::new(side, ("max_patches", least, most), true)
    }

    /// Columns and rows of the shape nearest to a picture's: `find_closest_aspect_ratio` of the original repository.
    fn choose(&self, width: usize, height: usize) -> (usize, usize) {
        let ratio = |width: usize, height: usize| width as f64 / height as f64;
        let (mut best, mut least) = ((1, 1), f64::INFINITY);
        for &(columns, rows) in &self.shapes {
            let difference = (ratio(width, height) - ratio(columns, rows)).abs();
            // Of two that are as near, the larger one, unless the picture would be blown up.
            let fills = (width * height) as f64 > 0.5 * (self.side * self.side * columns * rows) as f64;
            if difference < least || difference == least && fills {
                (best, least) = ((columns, rows), difference);
            }
        }
        best
    }

    fn has_thumbnail(&self, (columns, rows): (usize, usize)) -> bool {
        self.thumbnail && columns * rows > 1
    }

    /// Tiles of a picture.
    fn count(&self, width: usize, height: usize) -> usize {
        let shape = self.choose(width, height);
        shape.0 * shape.1 + usize::from(self.has_thumbnail(shape))
    }
}

#[derive(Debug)]
struct Tiles {
    grid: Grid,
    filter: Filter,
    levels: Levels,
    /// Rows of a tile.
    tokens: usize,
    /// What is in front of a picture's rows, for each of them, and behind them.
    ids: [u32; 3],
}

impl Preprocess for Tiles {
    fn footprint(&self, size: MediaSize) -> Result<Footprint, SizeError> {
        let tiles = size.picture().map_or(0, |(width, height)| self.grid.count(width, height));
        let [front, row, back] = self.ids;
        Ok(Footprint::line([vec![front], vec![row; tiles * self.tokens], vec![back]].concat()))
    }

    /// `[tiles, 3, side, side]`, the whole picture last.
    fn run(&self, medium: Medium<'_>) -> Result<Tensor> {
        let picture = medium.picture()?;
        let (height, width, _) = picture.dims3()?;
        let side = self.grid.side;
        let shape @ (columns, rows) = self.grid.choose(width, height);
        let canvas = stretch(picture, columns * side, rows * side, self.filter)?;
        let parts = tiles(&self.levels.numbers(&canvas)?, side)?;
        if !self.grid.has_thumbnail(shape) {
            return Ok(parts);
        }
        let whole = self.levels.numbers(&stretch(picture, side, side, self.filter)?)?;
        Tensor::cat(&[&parts, &whole.unsqueeze(0)?], 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest() -> serde_json::Value {
        let manifest = include_str!("../tests/fixtures/goldens/internvl2/manifest.json");
        serde_json::from_str(manifest).expect("a manifest")
    }

    #[test]
    fn real_pictures_have_as_many_rows_as_in_the_reference() {
        let manifest = manifest();
        let plans = manifest["real_size_plans"].as_array().expect("plans");
        assert!(plans.len() >= 28);
        for plan in plans {
            let number = |value: &serde_json::Value| value.as_u64().expect("a number") as usize;
            let grid = Grid::new(448, ("most", 1, number(&plan["max_num"])), true).expect("a grid");
            let (width, height) = (number(&plan["width"]), number(&plan["height"]));
            let (columns, rows) = grid.choose(width, height);
            assert_eq!([columns, rows], [0, 1].map(|index| number(&plan["grid_cols_rows"][index])), "{plan}");
            assert_eq!(grid.count(width, height) * 256, number(&plan["tokens"]), "{plan}");
        }
    }

    #[test]
    fn patches_are_joined_as_in_the_reference() {
        let expected: Vec<Vec<u32>> =
            serde_json::from_value(manifest()["pixel_shuffle_order"]["tokens"].clone()).expect("an order");
        let patches = Tensor::arange(0u32, 16, &candle_core::Device::Cpu).expect("a tensor");
        let merged = merge(&patches.reshape((1, 16, 1)).expect("patches"), 4, 2).expect("rows");
        assert_eq!(merged.to_vec2::<u32>().expect("rows"), expected);
    }

    #[test]
    fn without_tiles_a_picture_is_one() {
        let grid = Grid::new(448, ("most", 1, 1), true).expect("a grid");
        assert_eq!(grid.count(4000, 200), 1);
        assert!(Grid::new(448, ("most", 1, 0), true).is_err());
        assert!(Grid::new(448, ("most", 3, 2), true).is_err());
    }
}
