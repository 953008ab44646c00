//! LLaVA-1.5: CLIP, a two-layer projector and a Llama decoder.
//!
//! Paper: <https://arxiv.org/abs/2310.03744>. Reference: transformers, `models/llava`. Checkpoints:
//! `llava-hf/llava-1.5-7b-hf`, `llava-hf/llava-1.5-13b-hf` and fine-tunes in that layout.

use std::sync::Arc;

use candle_core::Tensor;
use candle_nn::VarBuilder;

use crate::{
    CacheShape, Checkpoint, Features, Fit, Footprint, KvCache, LoadError, MediaSize, Medium, Model, Parts,
    Preprocess, Result, SizeError, Task,
    batch::Batch,
    end_to_end,
    nn::{
        decoder::Decoder,
        image::{ImageProcessorConfig, SquareProcessor},
        projected::{ProjectedConfig, ProjectedTower},
    },
};

/// Loads the network and its image processor.
pub(crate) fn load(
    checkpoint: &Checkpoint,
    fit: Option<Fit>,
    vb: &VarBuilder<'_>,
) -> Result<Parts, LoadError> {
    let config: ProjectedConfig = checkpoint.config()?;
    config.vision_config.check()?;
    let decoder = config.decoder()?;
    let hidden = decoder.attention.hidden;
    let processor: ImageProcessorConfig = checkpoint.image_processor()?;
    let preprocess = LlavaPreprocess {
        processor: SquareProcessor::new(&processor, config.vision_config.image_size, fit.or(config.fit()?))?,
        rows: config.rows(),
        placeholder: config.image_token(),
    };
    let tower = ProjectedTower::load(&config, hidden, vb)?;
    Ok(Parts {
        width: hidden,
        encoder_row: tower.row_size,
        task: Task::Chat(config.text()?),
        preprocess: Arc::new(preprocess),
        model: Box::new(Llava {
            tower,
            decoder: Decoder::load(
                &decoder,
                &vb.pp("language_model.model"),
                &vb.pp("language_model.lm_head"),
            )?,
            cache_shape: decoder.cache_shape(),
        }),
    })
}

struct Llava {
    tower: ProjectedTower,
    decoder: Decoder,
    cache_shape: CacheShape,
}

impl Model for Llava {
    fn cache_shape(&self) -> CacheShape {
        self.cache_shape
    }

    fn encode(&self, media: &[Features]) -> Result<Tensor> {
        self.tower.forward(&end_to_end(media)?)?.flatten_to(1)
    }

    fn forward(&self, batch: &Batch, cache: &KvCache) -> Result<Tensor> {
        self.decoder.forward(batch, cache)
    }
}

#[derive(Debug)]
struct LlavaPreprocess {
    processor: SquareProcessor,
    rows: usize,
    placeholder: u32,
}

impl Preprocess for LlavaPreprocess {
    fn footprint(&self, _: MediaSize) -> Result<Footprint, SizeError> {
        Ok(Footprint::line(vec![self.placeholder; self.rows]))
    }

    fn has_one_shape(&self) -> bool {
        true
    }

    fn has_fit(&self) -> bool {
        true
    }

    fn run(&self, medium: Medium<'_>) -> Result<Tensor> {
        self.processor.run(medium.picture()?)
    }
}
