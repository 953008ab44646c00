//! Phi-3-Vision and Phi-3.5-Vision: CLIP over tiles, patches merged by four, and a Phi-3 decoder.
//!
//! Paper: <https://arxiv.org/abs/2404.14219>. Reference: the checkpoints' own `modeling_phi3_v.py`,
//! `image_embedding_phi3_v.py` and `processing_phi3_v.py`. Checkpoints: `microsoft/Phi-3-vision-128k-instruct`,
//! `microsoft/Phi-3.5-vision-instruct` and fine-tunes in that layout.

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
        clip::{ClipConfig, ClipTower},
        decoder::{Decoder, DecoderConfig, TextConfig},
        image::{Filter, ImageProcessorConfig, Levels, bicubic, pack, place, stretch, tiles},
        linear::Bias,
        mlp::{Activation, Mlp},
        vit::hidden_state,
    },
};

/// Some files have the embedding in the vision part only, and some in both places.
pub(crate) const ALIASES: &[(&str, &str)] = &[("model.embed_tokens.", "model.vision_embed_tokens.wte.")];

/// The token that stands for a picture. Published code counts pictures below zero instead.
const PLACEHOLDER: &str = "<|image|>";
/// Patches along the side of a block that becomes one row.
const MERGE: usize = 2;
/// The level of what is around a picture.
const WHITE: u8 = 255;

#[derive(Debug, Deserialize)]
struct Config {
    embd_layer: Embedding,
    img_processor: ImageProcessor,
}

#[derive(Debug, Deserialize)]
struct Embedding {
    embedding_cls: String,
    hd_transform_order: Option<String>,
    projection_cls: Option<String>,
    #[serde(default)]
    use_hd_transform: bool,
    #[serde(default)]
    with_learnable_separator: bool,
}

#[derive(Debug, Deserialize)]
struct ImageProcessor {
    name: String,
    image_dim_out: usize,
    num_img_tokens: usize,
    #[serde(default = "layer")]
    layer_idx: i64,
    type_feature: Option<String>,
    /// Published files have none: the tower is a constant of the code.
    #[serde(default = "ClipConfig::large_336")]
    clip_config: ClipConfig,
}

fn layer() -> i64 {
    -2
}

#[derive(Debug, Deserialize)]
struct Crops {
    num_crops: usize,
}

impl Config {
    /// Whether the vision part is the one that was published.
    fn check(&self) -> Result<(), LoadError> {
        let Embedding { embedding_cls, hd_transform_order, projection_cls, .. } = &self.embd_layer;
        let vision = &self.img_processor;
        vision.clip_config.check()?;
        let side = vision.clip_config.side();
        let merged = (side / MERGE) * (side / MERGE);
        let checks = [
            ("embd_layer embedding_cls", embedding_cls.clone(), "image".into()),
            (
                "embd_layer hd_transform_order",
                hd_transform_order.clone().unwrap_or_default(),
                "sub_glb".into(),
            ),
            ("embd_layer projection_cls", projection_cls.clone().unwrap_or_default(), "mlp".into()),
            ("embd_layer use_hd_transform", self.embd_layer.use_hd_transform.to_string(), "true".into()),
            (
                "embd_layer with_learnable_separator",
                self.embd_layer.with_learnable_separator.to_string(),
                "true".into(),
            ),
            ("img_processor name", vision.name.clone(), "clip_vision_model".to_owned()),
            (
                "img_processor type_feature",
                vision.type_feature.clone().unwrap_or_else(|| "patch".into()),
                "patch".into(),
            ),
            ("img_processor num_img_tokens", vision.num_img_tokens.to_string(), merged.to_string()),
            (
                "img_processor image_dim_out",
                vision.image_dim_out.to_string(),
                vision.clip_config.hidden_size.to_string(),
            ),
            ("img_processor patches along a side, modulo 2,", (side % MERGE).to_string(), "0".into()),
        ];
        match checks.into_iter().find(|(_, found, supported)| found != supported) {
            Some((key, found, supported)) => Err(LoadError::unsupported(key, &found, &supported)),
            None => Ok(()),
        }
    }
}

/// Loads the network and its image processor.
pub(crate) fn load(checkpoint: &Checkpoint, _: Option<Fit>, vb: &VarBuilder<'_>) -> Result<Parts, LoadError> {
    let config: Config = checkpoint.config()?;
    config.check()?;
    let mut text: TextConfig = checkpoint.config()?;
    // It lies beside the keys of the vision part, and its type is the whole network's.
    text.model_type = None;
    let decoder = text.decoder("phi3")?;
    let hidden = decoder.attention.hidden;
    let vision = &config.img_processor.clip_config;
    let crops: Crops = checkpoint.image_processor()?;
    if crops.num_crops == 0 {
        return Err(LoadError::unsupported("image processor num_crops", "0", "1 and more"));
    }
    let processor: ImageProcessorConfig = checkpoint.image_processor()?;
    let placeholder = checkpoint.required_token(PLACEHOLDER)?;
    let grid = Grid { side: vision.image_size, patches: vision.side(), crops: crops.num_crops };
    let state = hidden_state(config.img_processor.layer_idx, vision.num_hidden_layers)?;
    let width = MERGE * MERGE * vision.hidden_size;
    let model = vb.pp("model");
    let embedding = model.pp("vision_embed_tokens");
    let separator = |name: &str, shape: &[usize]| embedding.get(shape, name)?.reshape((MERGE * MERGE, ()));
    Ok(Parts {
        width: hidden,
        encoder_row: MERGE * MERGE * vision.layer()?.row_size() + width + 2 * hidden,
        task: Task::Chat(text_info(&text, &decoder, placeholder)),
        preprocess: Arc::new(Tiles {
            grid: grid.clone(),
            filter: processor.filter(Filter::Bilinear)?,
            levels: processor.levels(),
            placeholder,
        }),
        model: Box::new(Phi3V {
            tower: ClipTower::load(vision, state, &embedding.pp("img_processor.vision_model"))?,
            state,
            separators: Tensor::cat(
                &[separator("sub_GN", &[1, 1, 1, width])?, separator("glb_GN", &[1, 1, width])?],
                0,
            )?,
            projector: Mlp::load(
                ("0", "2"),
                (width, hidden, hidden),
                Bias::Yes,
                Activation::Gelu,
                &embedding.pp("img_projection"),
            )?,
            decoder: Decoder::load(&decoder, &model, &vb.pp("lm_head"))?,
            cache_shape: decoder.cache_shape(),
            grid,
        }),
    })
}

fn text_info(text: &TextConfig, decoder: &DecoderConfig, placeholder: u32) -> TextInfo {
    TextInfo {
        // `processing_phi3_v.py` encodes what is between pictures each by itself.
        stretches: true,
        ..decoder.text_info(placeholder, &[&text.eos_token_id])
    }
}

struct Phi3V {
    tower: ClipTower,
    state: usize,
    /// What ends a line of blocks, then what is between tiles and the whole picture; each in four rows.
    separators: Tensor,
    projector: Mlp,
    decoder: Decoder,
    cache_shape: CacheShape,
    grid: Grid,
}

impl Model for Phi3V {
    fn cache_shape(&self) -> CacheShape {
        self.cache_shape
    }

    fn encode(&self, media: &[Features]) -> Result<Tensor> {
        let states = self.tower.states(&end_to_end(media)?, &[self.state])?;
        let patches = states[0].narrow(1, 1, self.grid.patches * self.grid.patches)?.flatten_to(1)?;
        let blocks = pack(&patches, &self.separators, media, |(width, height), first, separators| {
            let plan = self.grid.plan(width, height);
            let patches = (1 + plan.rows * plan.columns) * self.grid.patches * self.grid.patches;
            (self.grid.order(&plan, first, separators), patches)
        })?;
        let rows = blocks.dim(0)? / (MERGE * MERGE);
        self.projector.forward(&blocks.reshape((rows, ()))?)
    }

    fn forward(&self, batch: &Batch, cache: &KvCache) -> Result<Tensor> {
        self.decoder.forward(batch, cache)
    }
}

/// Which tiles a picture becomes, and in which order their patches are seen.
#[derive(Debug, Clone)]
struct Grid {
    /// Pixels of a tile's side.
    side: usize,
    /// Patches along it.
    patches: usize,
    /// Most tiles.
    crops: usize,
}

/// Of one picture.
#[derive(Debug, PartialEq, Eq)]
struct Plan {
    /// Whether rows and columns are swapped while it is resized.
    transposed: bool,
    /// Width and height of the resized picture, which is wider than high.
    resized: (usize, usize),
    /// Tiles, the picture being as it was.
    rows: usize,
    columns: usize,
}

impl Grid {
    /// `HD_transform` of `image_processing_phi3_v.py`.
    fn plan(&self, width: usize, height: usize) -> Plan {
        let transposed = width < height;
        let (width, height) = if transposed { (height, width) } else { (width, height) };
        let ratio = width as f64 / height as f64;
        let mut scale = 1;
        while scale as f64 * (scale as f64 / ratio).ceil() <= self.crops as f64 {
            scale += 1;
        }
        let scale = (scale - 1).max(1);
        let wide = scale * self.side;
        let high = ((wide as f64 / ratio) as usize).max(1);
        let (rows, columns) = (high.div_ceil(self.side), scale);
        let (rows, columns) = if transposed { (columns, rows) } else { (rows, columns) };
        Plan { transposed, resized: (wide, high), rows, columns }
    }

    /// Blocks along a tile's side.
    fn blocks(&self) -> usize {
        self.patches / MERGE
    }

    /// Rows that a picture has.
    fn count(&self, plan: &Plan) -> usize {
        let side = self.blocks();
        (plan.rows * plan.columns + 1) * side * side + 1 + (plan.rows + 1) * side
    }

    /// The patches of a picture whose crops begin at patch `first`, the whole picture's first: block by block, four
    /// patches each, the tiles' lines and then the whole picture's. `separators` is the first row of these.
    fn order(&self, plan: &Plan, first: usize, separators: usize) -> Vec<u32> {
        let side = self.blocks();
        let mut order = Vec::with_capacity(self.count(plan) * MERGE * MERGE);
        let mut lines = |first_crop: usize, (rows, columns): (usize, usize)| {
            for y in 0..rows * side {
                for x in 0..columns * side {
                    let crop = first_crop + y / side * columns + x / side;
                    for (dy, dx) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
                        let (py, px) = (y % side * MERGE + dy, x % side * MERGE + dx);
                        order.push((first + (crop * self.patches + py) * self.patches + px) as u32);
                    }
                }
                order.extend((0..MERGE * MERGE).map(|row| (separators + row) as u32));
            }
            order.len()
        };
        let between = lines(1, (plan.rows, plan.columns));
        lines(0, (1, 1));
        order.splice(
            between..between,
            (MERGE * MERGE..2 * MERGE * MERGE).map(|row| (separators + row) as u32),
        );
        order
    }
}

#[derive(Debug)]
struct Tiles {
    grid: Grid,
    filter: Filter,
    levels: Levels,
    placeholder: u32,
}

impl Preprocess for Tiles {
    fn footprint(&self, size: MediaSize) -> Result<Footprint, SizeError> {
        let rows =
            size.picture().map_or(0, |(width, height)| self.grid.count(&self.grid.plan(width, height)));
        Ok(Footprint::line(vec![self.placeholder; rows]))
    }

    /// `[1 + tiles, 3, side, side]`, the whole picture first.
    fn run(&self, medium: Medium<'_>) -> Result<Tensor> {
        let side = self.grid.side;
        let numbers = self.levels.numbers(&self.canvas(medium.picture()?)?)?;
        Tensor::cat(&[&bicubic(&numbers, side, side)?.unsqueeze(0)?, &tiles(&numbers, side)?], 0)
    }
}

impl Tiles {
    /// The picture on an area of whole tiles: u8 `[rows · side, columns · side, 3]`.
    fn canvas(&self, picture: &Tensor) -> Result<Tensor> {
        let (height, width, _) = picture.dims3()?;
        let plan = self.grid.plan(width, height);
        // Mirrored on the diagonal, not rotated; and back.
        let turned = |picture: &Tensor| {
            if plan.transposed { picture.transpose(0, 1)?.contiguous() } else { Ok(picture.clone()) }
        };
        let (wide, high) = plan.resized;
        let resized = stretch(&turned(picture)?, wide, high, self.filter)?;
        let whole = high.next_multiple_of(self.grid.side);
        turned(&place(&resized, (wide, whole), (0, (whole - high) / 2), WHITE)?)
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, IndexOp as _};
    use serde_json::Value;

    use super::*;

    fn manifest() -> Value {
        let manifest = include_str!("../tests/fixtures/goldens/phi3_v/manifest.json");
        serde_json::from_str(manifest).expect("a manifest")
    }

    fn number(value: &Value) -> usize {
        value.as_u64().expect("a number") as usize
    }

    /// The reference's blocks of 2 × 3 tiles of 4 × 4 patches: crop · 16 + patch, tiles counted from 0.
    #[test]
    fn blocks_lie_as_in_the_reference() {
        let grid = Grid { side: 56, patches: 4, crops: 6 };
        let plan = Plan { transposed: false, resized: (168, 112), rows: 2, columns: 3 };
        let order = grid.order(&plan, 0, 1000);
        assert_eq!(order.len(), 4 * grid.count(&plan));
        let (tiles, rest) = order.split_at(4 * 4 * 7);
        let lines: Vec<Vec<Vec<u32>>> = tiles
            .chunks(4 * 7)
            .map(|line| {
                let (blocks, end) = line.split_at(4 * 6);
                assert_eq!(end, [1000, 1001, 1002, 1003]);
                blocks.chunks(4).map(|block| block.iter().map(|patch| patch - 16).collect()).collect()
            })
            .collect();
        let expected: Vec<Vec<Vec<u32>>> =
            serde_json::from_value(manifest()["merge_order_2x3"]["grid"].clone()).expect("a grid");
        assert_eq!(lines, expected);
        let line = |first: u32| {
            let block = |first: u32| [first, first + 1, first + 4, first + 5];
            [block(first), block(first + 2), [1000, 1001, 1002, 1003]].concat()
        };
        let whole = [vec![1004, 1005, 1006, 1007], line(0), line(8)];
        assert_eq!(rest, whole.concat());
    }

    #[test]
    fn real_pictures_have_as_many_rows_as_in_the_reference() {
        let manifest = manifest();
        let plans = manifest["real_size_plans"].as_array().expect("plans");
        assert_eq!(plans.len(), 30);
        for plan in plans {
            let grid = Grid { side: 336, patches: 24, crops: number(&plan["num_crops"]) };
            let found = grid.plan(number(&plan["width"]), number(&plan["height"]));
            assert_eq!(Value::from(found.transposed), plan["transposed"], "{plan}");
            assert_eq!(
                [found.resized.0, found.resized.1],
                [0, 1].map(|i| number(&plan["resize_to"][i])),
                "{plan}"
            );
            assert_eq!([found.rows, found.columns], [0, 1].map(|i| number(&plan["grid"][i])), "{plan}");
            assert_eq!(grid.count(&found), number(&plan["tokens"]), "{plan}");
        }
    }

    /// The picture of the reference, described in `scripts/reference/README.md`.
    fn pattern(width: usize, height: usize) -> Tensor {
        let level = |index: usize| {
            let (y, x, c) = (index / 3 / width, index / 3 % width, index % 3);
            ((x * (3 + c) + y * (5 - c) + (x * y / 32) * (c + 1)) % 256) as u8
        };
        let levels: Vec<u8> = (0..height * width * 3).map(level).collect();
        Tensor::from_vec(levels, (height, width, 3), &Device::Cpu).expect("a picture")
    }

    #[test]
    fn real_pictures_become_the_canvases_of_the_reference() {
        let manifest = include_str!("../tests/fixtures/goldens/preprocess/manifest.json");
        let manifest: Value = serde_json::from_str(manifest).expect("a manifest");
        let config: ImageProcessorConfig = serde_json::from_str("{}").expect("a configuration");
        let published = |crops| Tiles {
            grid: Grid { side: 336, patches: 24, crops },
            filter: Filter::Bilinear,
            levels: config.levels(),
            placeholder: 0,
        };
        let mut compared = 0;
        for case in manifest["cases"].as_array().expect("cases") {
            let what = case["what"].as_str().expect("a name");
            let Some(crops) = what.strip_prefix("phi3-v HD canvas, num_crops ") else { continue };
            let [from, to] = ["from", "to"].map(|key| [number(&case[key][0]), number(&case[key][1])]);
            let tiles = published(crops.parse().expect("a number"));
            let canvas = tiles.canvas(&pattern(from[0], from[1])).expect("a canvas");
            assert_eq!(canvas.dims(), [to[1], to[0], 3], "{case}");
            for sample in case["samples"].as_array().expect("samples") {
                let [y, x, r, g, b] = [0, 1, 2, 3, 4].map(|index| number(&sample[index]));
                let found = canvas.i((y, x)).and_then(|pixel| pixel.to_vec1::<u8>()).expect("a pixel");
                assert_eq!(found, [r as u8, g as u8, b as u8], "{what} {from:?} at {x}, {y}");
            }
            compared += 1;
        }
        assert_eq!(compared, 12);

        let whole = published(4).run(Medium::Picture(&pattern(640, 480))).expect("features");
        let expected = &manifest["phi3v_global_640x480"];
        let tolerance = expected["tolerance"].as_f64().expect("a tolerance");
        for sample in expected["samples"].as_array().expect("samples") {
            let [c, y, x] = [0, 1, 2].map(|index| number(&sample[index]));
            let found = whole.i((0, c, y, x)).and_then(|number| number.to_scalar::<f32>()).expect("a number");
            let expected = sample[3].as_f64().expect("a number");
            assert!((f64::from(found) - expected).abs() <= tolerance, "{c} {y} {x}: {found}, not {expected}");
        }
    }
}
