//! SmolVLM, SmolVLM2 and Idefics3: SigLIP, whose tiles are told apart in the prompt.
//!
//! Papers: <https://arxiv.org/abs/2504.05299>, <https://arxiv.org/abs/2408.12637>; reference: transformers,
//! `models/idefics3` and `models/smolvlm`. Checkpoints: `HuggingFaceTB/SmolVLM-Instruct`,
//! `HuggingFaceTB/SmolVLM-256M-Instruct`, `HuggingFaceTB/SmolVLM2-2.2B-Instruct` (its pictures, no videos),
//! `HuggingFaceM4/Idefics3-8B-Llama3`.

use std::sync::Arc;

use candle_core::Tensor;
use candle_nn::VarBuilder;
use serde::Deserialize;

use crate::{
    CacheShape, Checkpoint, Features, Fit, Footprint, KvCache, LoadError, MediaSize, Medium, Model, Parts,
    Preprocess, Result, SizeError, Task,
    batch::Batch,
    end_to_end,
    nn::{
        decoder::{Decoder, TextConfig},
        image::{Filter, ImageProcessorConfig, Levels, stretch, tiles},
        linear::{Bias, Linear},
        patches::merge,
        siglip::{SiglipConfig, SiglipFamily, SiglipTower},
    },
};

/// `config.json`, with the defaults of `Idefics3Config`, which `SmolVLMConfig` shares.
#[derive(Debug, Deserialize)]
struct Config {
    #[serde(default = "image_token")]
    image_token_id: u32,
    #[serde(default = "scale_factor")]
    scale_factor: usize,
    #[serde(default)]
    text_config: TextConfig,
    #[serde(default)]
    vision_config: SiglipConfig,
    #[serde(default)]
    tie_word_embeddings: bool,
    eos_token_id: Option<serde_json::Value>,
}

fn image_token() -> u32 {
    128_257
}

fn scale_factor() -> usize {
    2
}

/// What `Idefics3ImageProcessor` has besides the usual.
#[derive(Debug, Deserialize)]
struct Splitting {
    do_image_splitting: Option<bool>,
    max_image_size: Option<Longest>,
}

#[derive(Debug, Deserialize)]
struct Longest {
    longest_edge: usize,
}

/// Pixels of a tile's side where the file has none.
const SIDE: usize = 364;

/// Loads the network and its image processor.
pub(crate) fn load(checkpoint: &Checkpoint, _: Option<Fit>, vb: &VarBuilder<'_>) -> Result<Parts, LoadError> {
    let config: Config = checkpoint.config()?;
    let vision = config.vision_config.sizes(SiglipFamily::IDEFICS)?;
    let vit = vision.layer;
    let (side, block) = (vision.side(), config.scale_factor);
    if block == 0 || !side.is_multiple_of(block) {
        let supported = format!("a divisor of {side}");
        return Err(LoadError::unsupported("scale_factor", &block.to_string(), &supported));
    }
    let mut decoder = config.text_config.decoder("llama")?;
    decoder.tied |= config.tie_word_embeddings;
    let hidden = decoder.attention.hidden;
    let merged = block * block * vit.hidden;
    let rows = side / block * (side / block);
    let processor: ImageProcessorConfig = checkpoint.image_processor()?;
    let longest = processor.longest_edge(4 * SIDE)?;
    let grid = Grid::new(&checkpoint.image_processor()?, longest, vision.image_size)?;
    let model = vb.pp("model");
    Ok(Parts {
        width: hidden,
        // The tower has several rows for one of these; joined, they are projected.
        encoder_row: (block * block * vit.row_size()).max(2 * merged + hidden),
        task: Task::Chat(
            decoder
                .text_info(config.image_token_id, &[&config.eos_token_id, &config.text_config.eos_token_id]),
        ),
        preprocess: Arc::new(Tiles {
            words: Words::read(checkpoint, &grid)?,
            grid,
            rows,
            placeholder: config.image_token_id,
            filter: processor.filter(Filter::Lanczos)?,
            // transformers, `IMAGENET_STANDARD_MEAN` and `IMAGENET_STANDARD_STD`.
            levels: processor.levels_or([0.5; 3], [0.5; 3]),
        }),
        model: Box::new(SmolVlm {
            tower: SiglipTower::load(&vision, &model.pp("vision_model"))?,
            block,
            projection: Linear::load(
                merged,
                hidden,
                Bias::No,
                &model.pp("connector.modality_projection.proj"),
            )?,
            cache_shape: decoder.cache_shape(),
            decoder: Decoder::load(&decoder, &model.pp("text_model"), &vb.pp("lm_head"))?,
        }),
    })
}

struct SmolVlm {
    tower: SiglipTower,
    /// Patches along a side of what becomes one row.
    block: usize,
    projection: Linear,
    decoder: Decoder,
    cache_shape: CacheShape,
}

impl Model for SmolVlm {
    fn cache_shape(&self) -> CacheShape {
        self.cache_shape
    }

    fn encode(&self, media: &[Features]) -> Result<Tensor> {
        let patches = self.tower.forward(&end_to_end(media)?)?;
        let side = patches.dim(1)?.isqrt();
        self.projection.forward(&merge(&patches, side, self.block)?)
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
    /// Pixels of a picture's longer edge.
    longest: usize,
    /// Whether there are tiles at all.
    split: bool,
}

/// Of one picture, in pixels: width and height.
#[derive(Debug, PartialEq, Eq)]
struct Plan {
    /// Of the first resizing, which keeps its shape.
    first: (usize, usize),
    /// Of the second one, which ends in whole tiles.
    second: (usize, usize),
}

impl Grid {
    /// For pictures whose longer edge has `longest` pixels, and a tower that sees `tower` × `tower`.
    fn new(config: &Splitting, longest: usize, tower: usize) -> Result<Self, LoadError> {
        let side = config.max_image_size.as_ref().map_or(SIDE, |size| size.longest_edge);
        if side != tower {
            let supported = format!("the vision tower's {tower}");
            return Err(LoadError::unsupported(
                "image processor max_image_size",
                &side.to_string(),
                &supported,
            ));
        }
        Ok(Self { side, longest, split: config.do_image_splitting.unwrap_or(true) })
    }

    /// transformers, `get_resize_output_image_size` and `resize_for_vision_encoder`: in f64, and truncated.
    fn plan(&self, width: usize, height: usize) -> Plan {
        let aspect = |width: usize, height: usize| width as f64 / height as f64;
        let even = |length: f64| (length as usize).next_multiple_of(2).max(1);
        let ratio = aspect(width, height);
        let first @ (width, height) = if width >= height {
            (self.longest, even(self.longest as f64 / ratio))
        } else {
            (even(self.longest as f64 * ratio), self.longest)
        };
        if !self.split {
            return Plan { first, second: (self.side, self.side) };
        }
        let tiled = |length: usize| length.next_multiple_of(self.side);
        let ratio = aspect(width, height);
        let second = if width >= height {
            let width = tiled(width);
            (width, tiled((width as f64 / ratio) as usize))
        } else {
            let height = tiled(height);
            (tiled((height as f64 * ratio) as usize), height)
        };
        Plan { first, second }
    }

    /// Columns and rows of tiles, besides the whole picture; none where that says it all.
    fn tiles(&self, plan: &Plan) -> Option<(usize, usize)> {
        let (columns, rows) = (plan.second.0 / self.side, plan.second.1 / self.side);
        (columns > 1 || rows > 1).then_some((columns, rows))
    }

    /// Most columns or rows. One edge that was made even may be longer than the longest.
    fn most(&self) -> usize {
        (self.longest + 1).div_ceil(self.side)
    }
}

/// Ids of the texts between the rows of a picture: `_prompt_split_image` of transformers' processors.
#[derive(Debug)]
struct Words {
    /// In front of the tile of a row and a column.
    tiles: Vec<Vec<Vec<u32>>>,
    /// In front of the whole picture, behind tiles and without.
    whole: [Vec<u32>; 2],
    end: Vec<u32>,
}

impl Words {
    /// Each text is followed or preceded by placeholders, which are tokens by themselves, so that it is read alone.
    fn read(checkpoint: &Checkpoint, grid: &Grid) -> Result<Self, LoadError> {
        const AROUND: &str = "<fake_token_around_image>";
        let tokenizer = checkpoint.literals()?;
        let tile = |row: usize, column: usize| {
            let line = if row > 0 && column == 0 { "\n" } else { "" };
            tokenizer.ids(&format!("{line}{AROUND}<row_{}_col_{}>", row + 1, column + 1))
        };
        let most = if grid.split { grid.most() } else { 0 };
        let row = |row| (0..most).map(|column| tile(row, column)).collect();
        Ok(Self {
            tiles: (0..most).map(row).collect::<Result<_, _>>()?,
            whole: [
                tokenizer.ids(&format!("\n\n{AROUND}<global-img>"))?,
                tokenizer.ids(&format!("{AROUND}<global-img>"))?,
            ],
            end: tokenizer.ids(AROUND)?,
        })
    }
}

#[derive(Debug)]
struct Tiles {
    grid: Grid,
    words: Words,
    /// Rows of a tile.
    rows: usize,
    placeholder: u32,
    filter: Filter,
    levels: Levels,
}

impl Preprocess for Tiles {
    fn footprint(&self, size: MediaSize) -> Result<Footprint, SizeError> {
        let MediaSize::Image { width, height } = size else { return Ok(Footprint::line(Vec::new())) };
        let shape = self.grid.tiles(&self.grid.plan(width, height));
        let (columns, rows) = shape.unwrap_or((0, 0));
        let mut tokens = Vec::new();
        let mut tile = |words: &[u32]| {
            tokens.extend_from_slice(words);
            tokens.resize(tokens.len() + self.rows, self.placeholder);
        };
        for row in &self.words.tiles[..rows] {
            row[..columns].iter().for_each(|words| tile(words));
        }
        tile(&self.words.whole[usize::from(shape.is_none())]);
        tokens.extend_from_slice(&self.words.end);
        Ok(Footprint::line(tokens))
    }

    /// `[tiles, 3, side, side]`, the whole picture last.
    fn run(&self, medium: Medium<'_>) -> Result<Tensor> {
        let picture = medium.picture()?;
        let (height, width, _) = picture.dims3()?;
        let side = self.grid.side;
        let plan = self.grid.plan(width, height);
        let picture = stretch(picture, plan.first.0, plan.first.1, self.filter)?;
        let picture = stretch(&picture, plan.second.0, plan.second.1, self.filter)?;
        let whole = self.levels.numbers(&stretch(&picture, side, side, self.filter)?)?.unsqueeze(0)?;
        if self.grid.tiles(&plan).is_none() {
            return Ok(whole);
        }
        Tensor::cat(&[&tiles(&self.levels.numbers(&picture)?, side)?, &whole], 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Columns and rows of tiles, and rows that the text sees, of pictures at the sizes of SmolVLM with 2.2B parameters:
    /// tiles of 384 pixels and 27 patches, of which 3 × 3 are one row.
    #[test]
    fn real_pictures_have_as_many_rows_as_in_the_reference() {
        let grid = Grid { side: 384, longest: 1536, split: true };
        for (size, shape, rows) in [
            ((336, 336), (4, 4), 1377),
            ((640, 480), (4, 3), 1053),
            ((480, 640), (3, 4), 1053),
            ((1920, 1080), (4, 3), 1053),
            ((1344, 336), (4, 1), 405),
            ((500, 501), (4, 4), 1377),
            ((100, 37), (4, 2), 729),
        ] {
            let found = grid.tiles(&grid.plan(size.0, size.1));
            assert_eq!(found, Some(shape), "{size:?}");
            assert_eq!((shape.0 * shape.1 + 1) * 81, rows, "{size:?}");
        }
    }

    #[test]
    fn no_picture_has_more_tiles_than_there_are_words_for() {
        for (side, longest) in [(5, 15), (5, 14), (4, 13), (7, 3), (364, 1456)] {
            let grid = Grid { side, longest, split: true };
            for (width, height) in (1..60).flat_map(|width| (1..60).map(move |height| (width, height))) {
                let plan = grid.plan(width, height);
                let (columns, rows) = grid.tiles(&plan).unwrap_or((1, 1));
                assert!(columns.max(rows) <= grid.most(), "{width} {height}: {plan:?}");
                assert!(plan.first.0 > 0 && plan.first.1 > 0, "{width} {height}: {plan:?}");
            }
        }
    }

    #[test]
    fn without_splitting_a_picture_is_one_tile() {
        let grid = Grid { side: 384, longest: 1536, split: false };
        let plan = grid.plan(1920, 1080);
        assert_eq!(plan, Plan { first: (1536, 864), second: (384, 384) });
        assert_eq!(grid.tiles(&plan), None);
    }
}
