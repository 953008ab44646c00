//! SigLIP and SigLIP 2 at a fixed resolution: texts and pictures in one space.
//!
//! Papers: <https://arxiv.org/abs/2303.15343>, <https://arxiv.org/abs/2502.14786>. Reference: transformers,
//! `models/siglip`. Checkpoints: `google/siglip-so400m-patch14-384`, `google/siglip-base-patch16-224`,
//! `google/siglip2-base-patch16-224`.

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
        dual::{PICTURE, SquarePictures, TextFamily, TextTower, TextTowerConfig},
        image::{ImageProcessorConfig, SquareProcessor},
        linear::{Bias, Linear},
        pooling::unit,
        siglip::{SiglipConfig, SiglipFamily, SiglipHead, SiglipTower},
    },
};

/// `config.json`.
#[derive(Debug, Deserialize)]
struct Config {
    #[serde(default)]
    text_config: TextConfig,
    #[serde(default)]
    vision_config: SiglipConfig,
    #[serde(flatten)]
    shorter: Shorter,
}

#[derive(Debug, Default, Deserialize)]
struct TextConfig {
    #[serde(flatten)]
    tower: TextTowerConfig,
    projection_size: Option<usize>,
    pad_token_id: Option<u32>,
}

/// What fills texts up: the tokenizer's padding, and where it says nothing, the configuration's.
fn filler(checkpoint: &Checkpoint, config: &TextConfig) -> Result<u32, LoadError> {
    #[derive(Default, Deserialize)]
    struct Tokenizer {
        pad_token: Option<Token>,
    }
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Token {
        Text(String),
        Whole { content: String },
    }
    let tokenizer: Tokenizer = checkpoint.json("tokenizer_config.json")?.unwrap_or_default();
    let found = match tokenizer.pad_token {
        Some(Token::Text(text) | Token::Whole { content: text }) => checkpoint.added_token(&text)?,
        None => None,
    };
    Ok(found.or(config.pad_token_id).unwrap_or(1))
}

/// Loads the network and its image processor.
pub(crate) fn load(
    checkpoint: &Checkpoint,
    fit: Option<Fit>,
    vb: &VarBuilder<'_>,
) -> Result<Parts, LoadError> {
    let config: Config = checkpoint.config()?;
    let text = config.text_config.tower.sizes(TextFamily::SIGLIP)?;
    let vision = config.vision_config.sizes(SiglipFamily::SIGLIP)?;
    let width = config.text_config.projection_size.unwrap_or(text.layer.hidden);
    if width != vision.layer.hidden {
        let supported = format!("the vision tower's {}", vision.layer.hidden);
        return Err(LoadError::unsupported("text_config projection_size", &width.to_string(), &supported));
    }
    let processor: ImageProcessorConfig = checkpoint.image_processor()?;
    let tower = vb.pp("vision_model");
    Ok(Parts {
        width,
        encoder_row: vision.layer.row_size().max(text.layer.row_size()),
        task: Task::Embed(EmbeddingInfo {
            context: text.positions,
            dimensions: width,
            shorter: config.shorter,
            filler: Some(filler(checkpoint, &config.text_config)?),
            pictures: Some(PICTURE),
        }),
        preprocess: Arc::new(SquarePictures {
            processor: SquareProcessor::new(&processor.uncropped(), vision.image_size, fit)?,
            rows: vision.side() * vision.side(),
        }),
        model: Box::new(Siglip {
            tower: SiglipTower::load(&vision, &tower)?,
            head: SiglipHead::load(&vision.layer, &tower.pp("head"))?,
            text: TextTower::load(&text, &vb.pp("text_model"))?,
            text_head: Linear::load(text.layer.hidden, width, Bias::Yes, &vb.pp("text_model.head"))?,
        }),
    })
}

struct Siglip {
    tower: SiglipTower,
    head: SiglipHead,
    text: TextTower,
    text_head: Linear,
}

impl Model for Siglip {
    fn cache_shape(&self) -> CacheShape {
        CacheShape::NONE
    }

    fn encode(&self, media: &[Features]) -> Result<Tensor> {
        self.tower.forward(&end_to_end(media)?)?.flatten_to(1)
    }

    fn forward(&self, _: &Batch, _: &KvCache) -> Result<Tensor> {
        candle_core::bail!("this network makes vectors, and no text")
    }

    fn embed(&self, batch: &Batch) -> Result<Tensor> {
        let vectors = if batch.inserts.is_empty() {
            self.text_head.forward(&self.text.last(batch)?)?
        } else {
            let rows: Vec<_> = batch.inserts.iter().map(|picture| &picture.rows).collect();
            self.head.forward(&Tensor::cat(&rows, 0)?, &batch.rows, &batch.last)?
        };
        unit(&vectors)
    }
}
