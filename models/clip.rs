//! CLIP: texts and pictures in one space.
//!
//! Paper: <https://arxiv.org/abs/2103.00020>. Reference: transformers, `models/clip`. Checkpoints:
//! `openai/clip-vit-large-patch14`, `openai/clip-vit-base-patch32`, `laion/CLIP-ViT-B-32-laion2B-s34B-b79K`.

use std::sync::Arc;

use candle_core::Tensor;
use candle_nn::VarBuilder;
use serde::Deserialize;

use crate::{
    CacheShape, Checkpoint, EmbeddingInfo, Features, Fit, KvCache, LoadError, Model, Parts, Result, Shorter,
    Task,
    batch::Batch,
    end_to_end,
    nn::{
        clip::{ClipConfig, ClipTower},
        dual::{PICTURE, SquarePictures, TextFamily, TextTower, TextTowerConfig},
        image::{ImageProcessorConfig, SquareProcessor},
        linear::{Bias, Linear},
        norm::LayerNorm,
        pooling::unit,
    },
};

/// `config.json`, with the defaults of `CLIPConfig`.
#[derive(Debug, Deserialize)]
struct Config {
    #[serde(default)]
    text_config: TextTowerConfig,
    #[serde(default)]
    vision_config: ClipConfig,
    #[serde(default = "projection_dim")]
    projection_dim: usize,
    #[serde(flatten)]
    shorter: Shorter,
}

fn projection_dim() -> usize {
    512
}

/// Loads the network and its image processor.
pub(crate) fn load(
    checkpoint: &Checkpoint,
    fit: Option<Fit>,
    vb: &VarBuilder<'_>,
) -> Result<Parts, LoadError> {
    let config: Config = checkpoint.config()?;
    let vision = &config.vision_config;
    vision.check()?;
    let text = config.text_config.sizes(TextFamily::CLIP)?;
    let layer = vision.layer()?;
    let processor: ImageProcessorConfig = checkpoint.image_processor()?;
    let width = config.projection_dim;
    let towers = vb.pp("vision_model");
    Ok(Parts {
        width: layer.hidden,
        encoder_row: layer.row_size().max(text.layer.row_size()),
        task: Task::Embed(EmbeddingInfo {
            context: text.positions,
            dimensions: width,
            shorter: config.shorter,
            filler: None,
            pictures: Some(PICTURE),
        }),
        preprocess: Arc::new(SquarePictures {
            processor: SquareProcessor::new(&processor, vision.image_size, fit)?,
            rows: vision.patches() + 1,
        }),
        model: Box::new(Clip {
            tower: ClipTower::load(vision, vision.num_hidden_layers, &towers)?,
            layers: vision.num_hidden_layers,
            norm: LayerNorm::load(layer.hidden, layer.eps, &towers.pp("post_layernorm"))?,
            projection: Linear::load(layer.hidden, width, Bias::No, &vb.pp("visual_projection"))?,
            text: TextTower::load(&text, &vb.pp("text_model"))?,
            text_projection: Linear::load(text.layer.hidden, width, Bias::No, &vb.pp("text_projection"))?,
        }),
    })
}

struct Clip {
    tower: ClipTower,
    layers: usize,
    norm: LayerNorm,
    projection: Linear,
    text: TextTower,
    text_projection: Linear,
}

impl Model for Clip {
    fn cache_shape(&self) -> CacheShape {
        CacheShape::NONE
    }

    fn encode(&self, media: &[Features]) -> Result<Tensor> {
        let states = self.tower.states(&end_to_end(media)?, &[self.layers])?;
        Tensor::cat(&states, 0)?.flatten_to(1)
    }

    fn forward(&self, _: &Batch, _: &KvCache) -> Result<Tensor> {
        candle_core::bail!("this network makes vectors, and no text")
    }

    fn embed(&self, batch: &Batch) -> Result<Tensor> {
        if batch.inserts.is_empty() {
            // A text ends in the token that stands for all of it.
            let vectors = self.text_projection.forward(&self.text.last(batch)?)?;
            return unit(&vectors);
        }
        let class = batch.inserts.iter().map(|picture| picture.rows.narrow(0, 0, 1));
        let class = Tensor::cat(&class.collect::<Result<Vec<_>>>()?, 0)?;
        unit(&self.projection.forward(&self.norm.forward(&class)?)?)
    }
}
