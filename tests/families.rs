//! Every network that sees pictures, against what PyTorch computed: prompts, pixels, encoded rows, logits and greedy
//! answers, alone and in company, and through the API.
#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::{collections::BTreeSet, path::PathBuf, sync::Arc};

use candle_core::{DType, Device, Tensor};
use futures_util::future::join_all;
use percept::{
    config::Settings,
    engine::{self, EngineConfig, Handle, Limits},
    request::{self, Prompt, Readout, Request, Sampling, Span},
    text::{Conversation, Message, Part, Role, TextModel},
};
use percept_models::{
    Batch, Checkpoint, Insert, KvCache, Loaded, MediaSize, Pages, Ragged, Remembered, Task,
};
use serde_json::{Value, json};
use support::{
    Case, Golden,
    answers::{answer, media, roomy},
    copy_of, edit, encode, features, fixtures,
    forward::{self, PAGE},
    internvl::{Layout, converted},
    largest_difference, load, picture, server, sha256,
};
use tempfile::TempDir;

const CONTEXT: usize = 1024;

/// A model with its goldens.
struct Family {
    folder: PathBuf,
    /// Keeps a changed copy of the fixture.
    _copy: Option<TempDir>,
    /// Most tiles, in cases that say how many.
    crops: Option<u64>,
    golden: Golden,
    loaded: Loaded,
    text: TextModel,
}

impl Family {
    /// One for each number of tiles that cases were made with.
    fn all(name: &str, dtype: DType) -> Vec<Self> {
        let golden = Golden::read(name);
        let crops: BTreeSet<_> = golden.prompts().map(crops).collect();
        crops.into_iter().map(|crops| Self::read(name, dtype, crops)).collect()
    }

    fn read(name: &str, dtype: DType, crops: Option<u64>) -> Self {
        let copy = crops.map(|crops| with_crops(name, crops));
        let folder = copy.as_ref().map_or_else(|| fixtures().join(name), |copy| copy.path().to_owned());
        Self { _copy: copy, crops, ..Self::of(folder, name, dtype) }
    }

    /// A checkpoint in `folder` with the goldens of `name`.
    fn of(folder: PathBuf, name: &str, dtype: DType) -> Self {
        let loaded = load(folder.clone(), dtype, None);
        let Task::Chat(info) = &loaded.task else { panic!("{name} is no chat model") };
        let text = TextModel::read(&Checkpoint::new(&folder), info, None).unwrap();
        Self { folder, _copy: None, crops: None, golden: Golden::read(name), loaded, text }
    }

    /// Cases of this number of tiles.
    fn all_cases(&self) -> impl Iterator<Item = &Case> {
        self.golden.prompts().filter(|case| crops(case) == self.crops)
    }

    /// Those that the server's own rules lead to; the others force a choice that is not a client's.
    fn cases(&self) -> Vec<&Case> {
        self.all_cases().filter(|case| !case.name.contains('@')).collect()
    }

    fn prompt(&self, case: &Case) -> Prompt {
        let footprints: Vec<_> = case
            .images
            .iter()
            .map(|name| {
                let (height, width, _) = picture(name).dims3().unwrap();
                self.loaded.preprocess.footprint(MediaSize::Image { width, height }).unwrap()
            })
            .collect();
        self.text.prompt(&conversation(case), &footprints, 4096).unwrap()
    }

    fn placeholder(&self) -> u32 {
        let Task::Chat(info) = &self.loaded.task else { unreachable!() };
        info.placeholder
    }

    /// Logits of every row of a prompt, computed in one step.
    fn logits(&self, case: &Case) -> Tensor {
        let Prompt { tokens, spans } = self.prompt(case);
        let rows = tokens.len();
        let pages = rows.div_ceil(PAGE);
        let of_memories: usize = spans.iter().map(|span| span.memory.div_ceil(PAGE)).sum();
        let cache = forward::cache(&self.loaded, pages + of_memories + 1);
        let encoded = encode(&self.loaded, case);
        let memory = self.remember(&spans, encoded.as_ref(), rows, &cache, pages);
        let long = case.extra.get("rope").map(|rope| {
            let forced = rope["mode"].as_str().unwrap();
            let long = forced == "long" || forced == "auto" && rope["long_at_prompt"].as_bool().unwrap();
            Tensor::full(u32::from(long), rows, &Device::Cpu).unwrap()
        });
        let seen = tokens.iter().enumerate().filter(|(_, token)| **token == self.placeholder());
        let inserts = seen.enumerate().map(|(index, (at, _))| Insert {
            at,
            rows: encoded.as_ref().unwrap().narrow(0, index, 1).unwrap(),
        });
        let inserts: Vec<_> = if memory.is_some() { Vec::new() } else { inserts.collect() };
        let taken = inserts.len() + spans.iter().map(|span| span.memory).sum::<usize>();
        assert_eq!(taken, encoded.as_ref().map_or(0, |rows| rows.dim(0).unwrap()), "{}", case.name);
        let mut batch = Batch { long, memory, ..forward::batch(&self.loaded, &tokens, inserts) };
        if let Some(positions) = self.golden.tensor(&case.name, "position_ids") {
            batch.positions = positions.reshape((3, rows)).unwrap().to_dtype(DType::U32).unwrap();
        }
        self.loaded.model.forward(&batch, &cache).unwrap()
    }

    /// What `rows` rows see besides the text, written to pages from `first` on: from each picture on its rows, and those
    /// of pictures right in front of it.
    fn remember(
        &self,
        spans: &[Span],
        encoded: Option<&Tensor>,
        rows: usize,
        cache: &KvCache,
        first: usize,
    ) -> Option<Remembered> {
        let device = &Device::Cpu;
        if spans.iter().all(|span| span.memory == 0) {
            return None;
        }
        let upload = |list: &[u32]| Tensor::from_slice(list, list.len(), device).unwrap();
        // Rows in front, and then each row's table and count.
        let mut runs: Vec<(usize, Vec<u32>, usize)> = vec![(spans[0].rows.start, Vec::new(), 0)];
        let mut next_page = first as u32;
        let mut from = 0;
        for (index, span) in spans.iter().enumerate() {
            let follows = index > 0 && spans[index - 1].rows.end == span.rows.start;
            let until = spans.get(index + 1).map_or(rows, |next| next.rows.start);
            let (mut table, before) = match runs.last() {
                Some((_, table, seen)) if follows => (table.clone(), *seen),
                _ => (Vec::new(), 0),
            };
            while table.len() * PAGE < before + span.memory {
                table.push(next_page);
                next_page += 1;
            }
            let slot = |row: usize| table[row / PAGE] * PAGE as u32 + (row % PAGE) as u32;
            let slots: Vec<u32> = (before..before + span.memory).map(slot).collect();
            let picture = encoded.unwrap().narrow(0, from, span.memory).unwrap();
            self.loaded.model.remember(&picture, &upload(&slots), cache).unwrap();
            from += span.memory;
            runs.push((until - span.rows.start, table, before + span.memory));
        }
        let widest = runs.iter().map(|(_, table, _)| table.len()).max().unwrap();
        // Places behind the last page are not read.
        let padded =
            |table: &Vec<u32>| (0..widest).map(|page| *table.get(page).unwrap_or(&u32::MAX)).collect();
        let table: Vec<u32> = runs.iter().flat_map(|(_, table, _)| -> Vec<u32> { padded(table) }).collect();
        let lengths: Vec<u32> = runs.iter().map(|run| run.2 as u32).collect();
        let seen: Vec<f32> = (0..rows).map(|row| f32::from(u8::from(row >= spans[0].rows.start))).collect();
        let counts: Vec<usize> = runs.iter().map(|run| run.0).collect();
        Some(Remembered {
            rows: Ragged::new(&counts, device).unwrap(),
            pages: Pages {
                table: Tensor::from_vec(table, (runs.len(), widest), device).unwrap(),
                lengths: upload(&lengths),
            },
            seen: Some(Tensor::from_vec(seen, (rows, 1), device).unwrap()),
        })
    }

    fn tolerance(&self, of: &str) -> f64 {
        self.golden.tolerance(of)
    }

    fn request(&self, case: &Case, sampling: Sampling) -> Request {
        Request {
            prompt: self.prompt(case),
            media: media(case),
            sampling,
            limits: request::Limits { tokens: self.length(case), stops: Arc::clone(self.text.stops()) },
            readout: Readout::Answer,
            constraint: None,
        }
    }

    /// Tokens that the reference drew.
    fn length(&self, case: &Case) -> usize {
        case.greedy_tokens.len().max(12)
    }

    fn start(&self, config: EngineConfig) -> Handle {
        engine::spawn(load(self.folder.clone(), DType::F32, None), config).unwrap()
    }

    fn config(&self) -> EngineConfig {
        roomy(CONTEXT, self.text.tokenizer().size())
    }

    /// Cases at once, each compared with the reference.
    async fn check(&self, handle: &Handle, cases: &[&Case]) {
        let answers = cases.iter().map(|case| answer(handle, self.request(case, Sampling::greedy())));
        for (case, tokens) in cases.iter().zip(join_all(answers).await) {
            let last = case.greedy_tokens.last().filter(|last| self.text.stops().contains(last));
            let expected = &case.greedy_tokens[..case.greedy_tokens.len() - usize::from(last.is_some())];
            assert_eq!(tokens, expected, "{}", case.name);
        }
    }
}

fn crops(case: &Case) -> Option<u64> {
    case.extra.get("num_crops").map(|crops| crops.as_u64().unwrap())
}

/// A copy of the fixture whose pictures have at most so many tiles.
fn with_crops(name: &str, crops: u64) -> TempDir {
    let copy = copy_of(name, |_| true);
    edit(copy.path(), "preprocessor_config.json", |config| config["num_crops"] = crops.into());
    copy
}

fn conversation(case: &Case) -> Conversation {
    let part = |part: &Value| match part["type"].as_str().unwrap() {
        "image" => Part::Picture,
        _ => Part::Text(part["text"].as_str().unwrap().to_owned()),
    };
    let message = |message: &Value| {
        let role = match message["role"].as_str().unwrap() {
            "system" => Role::System,
            "user" => Role::User,
            _ => Role::Assistant,
        };
        let parts = match &message["content"] {
            Value::String(text) => vec![Part::Text(text.clone())],
            parts => parts.as_array().unwrap().iter().map(part).collect(),
        };
        Message::new(role, parts)
    };
    Conversation { messages: case.turns().iter().map(message).collect(), ..Conversation::default() }
}

/// Bytes of the pixels that `features` were made of: what normalising did is undone.
fn levels(features: &Tensor, config: &Value) -> Vec<u8> {
    let of = |key: &str| -> Vec<f64> {
        config[key].as_array().unwrap().iter().map(|number| number.as_f64().unwrap()).collect()
    };
    let (mean, std) = (of("image_mean"), of("image_std"));
    let [.., channels, height, width] = *features.dims() else { panic!("no pixels: {features:?}") };
    let numbers = features.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    let level = |(index, number): (usize, &f32)| {
        let channel = index / (height * width) % channels;
        let level = (f64::from(*number) * std[channel] + mean[channel]) * 255.0;
        assert!((level - level.round()).abs() < 1e-3, "{level} is no level");
        level.round() as u8
    };
    numbers.iter().enumerate().map(level).collect()
}

/// The area that tiles were cut from, the first being the whole picture: `[1, 3, height, width]`.
fn canvas(features: &Tensor, shape: &[usize]) -> Tensor {
    let (tiles, channels, side, _) = features.dims4().unwrap();
    let (height, width) = (shape[1], shape[2]);
    features
        .narrow(0, 1, tiles - 1)
        .unwrap()
        .reshape((height / side, width / side, channels, side, side))
        .unwrap()
        .permute((2, 0, 3, 1, 4))
        .unwrap()
        .reshape((1, channels, height, width))
        .unwrap()
}

fn prompts_equal_the_reference(families: &[Family]) {
    let mut compared = 0;
    for family in families {
        for case in family.all_cases() {
            let found = family.prompt(case);
            // Published code counts pictures below zero where this has its placeholder.
            let expected = case.input_ids.iter().map(|&id| u32::try_from(id).unwrap_or(family.placeholder()));
            assert_eq!(found.tokens, expected.collect::<Vec<_>>(), "{}", case.name);
            assert_eq!(found.spans.len(), case.images.len(), "{}", case.name);
            compared += case.images.len();
        }
    }
    assert!(compared >= 8);
}

fn pixels_equal_the_reference(name: &'static str) {
    let config: Value = Checkpoint::new(fixtures().join(name)).image_processor().unwrap();
    let families = Family::all(name, DType::F32);
    let mut compared = 0;
    for (family, case) in
        families.iter().flat_map(|family| family.cases().into_iter().map(move |case| (family, case)))
    {
        // Some cases have all pictures' tiles in one.
        let together = case.uint8_stage.as_ref().and_then(|stage| stage.get("pixel_u8"));
        if let Some(expected) = together.filter(|_| case.images.len() > 1) {
            let all: Vec<_> =
                case.images.iter().map(|image| features(&family.loaded, image).tensor).collect();
            let all = Tensor::cat(&all, 0).unwrap();
            assert_eq!(all.dims(), expected.shape, "{}", case.name);
            assert_eq!(sha256(&levels(&all, &config)), expected.sha256, "{}", case.name);
            compared += 1;
        }
        for (index, image) in case.images.iter().enumerate() {
            let features = features(&family.loaded, image).tensor;
            let stage = case.uint8_stage.as_ref();
            let expected = stage.and_then(|stage| {
                stage
                    .get(&format!("pixel_u8_{index}"))
                    .or_else(|| stage.get("pixel_u8").filter(|_| index == 0))
            });
            if let Some(expected) = expected.filter(|_| case.images.len() == 1 || index > 0) {
                assert_eq!(features.dims(), expected.shape, "{} {image}", case.name);
                assert_eq!(sha256(&levels(&features, &config)), expected.sha256, "{} {image}", case.name);
                compared += 1;
            }
            if let Some(expected) = stage.and_then(|stage| stage.get(&format!("canvas_u8_{index}"))) {
                let found = levels(&canvas(&features, &expected.shape), &config);
                assert_eq!(sha256(&found), expected.sha256, "{} {image}", case.name);
                compared += 1;
            }
            if let Some(expected) = family.golden.tensor(&case.name, &format!("global_{index}")) {
                let difference = largest_difference(&features.get(0).unwrap(), expected);
                assert!(difference <= 2e-5, "{} {image}: {difference}", case.name);
                compared += 1;
            }
            let floats = family.golden.tensor(&case.name, "pixel_values").filter(|_| case.images.len() == 1);
            if let Some(expected) = floats {
                let expected = expected.reshape(features.dims()).unwrap();
                let difference = largest_difference(&features, &expected);
                assert!(difference <= family.tolerance("pixel_f32"), "{}: {difference}", case.name);
                compared += 1;
            }
        }
    }
    assert!(compared > 0);
}

fn rows_and_logits_equal_the_reference(families: &[Family]) {
    let mut compared = BTreeSet::new();
    for (family, case) in
        families.iter().flat_map(|family| family.all_cases().map(move |case| (family, case)))
    {
        if let Some(found) = encode(&family.loaded, case) {
            let whole = family.golden.tensor(&case.name, "image_features").cloned();
            let parts: Vec<_> = (0..case.images.len())
                .filter_map(|index| {
                    family.golden.tensor(&case.name, &format!("image_features_{index}")).cloned()
                })
                .collect();
            let expected =
                whole.or_else(|| (parts.len() == case.images.len()).then(|| Tensor::cat(&parts, 0).unwrap()));
            if let Some(expected) = expected {
                let expected = expected.reshape(found.dims()).unwrap();
                let difference = largest_difference(&found, &expected);
                assert!(difference <= family.tolerance("features"), "{}: features {difference}", case.name);
                compared.insert("features");
            }
            compared.extend(family.tiles_equal_the_reference(case, &found).then_some("features"));
        }
        let found = family.logits(case);
        let last = found.get(found.dim(0).unwrap() - 1).unwrap();
        let difference = largest_difference(&last, family.golden.tensor(&case.name, "logits_last").unwrap());
        assert!(difference <= family.tolerance("logits"), "{}: last logits {difference}", case.name);
        if let Some(all) = family.golden.tensor(&case.name, "logits_all") {
            let difference = largest_difference(&found, &all.reshape(found.dims()).unwrap());
            assert!(difference <= family.tolerance("logits"), "{}: all logits {difference}", case.name);
            compared.insert("all logits");
        }
    }
    assert_eq!(compared.len(), 2, "{compared:?}");
}

fn bf16_stays_near_the_reference(name: &'static str) {
    let families = Family::all(name, DType::BF16);
    for (family, case) in
        families.iter().flat_map(|family| family.cases().into_iter().map(move |case| (family, case)))
    {
        let found = family.logits(case);
        let last = found.get(found.dim(0).unwrap() - 1).unwrap();
        let difference = largest_difference(&last, family.golden.tensor(&case.name, "logits_last").unwrap());
        assert!(difference <= family.tolerance("logits_bf16_guide"), "{}: {difference}", case.name);
        assert!(difference > family.tolerance("logits"), "{}: bf16 cannot be this near", case.name);
    }
}

/// Each alone, all at once, and again with warm caches.
async fn answers_equal_the_reference_in_any_company(name: &'static str) {
    for family in Family::all(name, DType::F32) {
        let cases = family.cases();
        let handle = family.start(family.config());
        for case in &cases {
            family.check(&handle, &[case]).await;
        }
        let handle = family.start(family.config());
        let many: Vec<&Case> = cases.iter().cycle().take(4 * cases.len()).copied().collect();
        family.check(&handle, &many).await;
        family.check(&handle, &cases).await;
        assert_eq!(handle.status().pages().0, 0);
    }
}

async fn answers_do_not_depend_on_chunks(name: &'static str) {
    for family in Family::all(name, DType::F32) {
        for chunk in [7, 1] {
            let config = family.config();
            let config = EngineConfig { limits: Limits { chunk, ..config.limits }, ..config };
            family.check(&family.start(config), &family.cases()).await;
        }
    }
}

/// So few pages that sequences give up their rows for others.
async fn answers_do_not_depend_on_pages(name: &'static str) {
    for family in Family::all(name, DType::F32) {
        let cases = family.cases();
        for page_size in [4, 1] {
            let most = cases.iter().map(|case| family.pages(case, page_size)).max().unwrap();
            let mut preemptions = 0;
            // Which number makes somebody wait halfway depends on the lengths.
            for spare in [0, 2] {
                let handle = family.start(EngineConfig { page_size, pages: most + spare, ..family.config() });
                let many: Vec<&Case> = cases.iter().cycle().take(3 * cases.len()).copied().collect();
                family.check(&handle, &many).await;
                preemptions += handle.status().preemptions();
                assert_eq!(handle.status().pages().0, 0);
            }
            // One alone has all it needs.
            assert!(preemptions > 0 || cases.len() == 1, "pages were not short: {page_size}");
        }
    }
}

impl Family {
    /// Pages that a case takes.
    fn pages(&self, case: &Case, page_size: usize) -> usize {
        let Prompt { tokens, spans } = self.prompt(case);
        let memories = spans.iter().map(|span| span.memory.div_ceil(page_size));
        (tokens.len() + self.length(case)).div_ceil(page_size) + memories.sum::<usize>()
    }

    /// Whether there are the first three rows of each tile, and they are as `encoded` has them.
    fn tiles_equal_the_reference(&self, case: &Case, encoded: &Tensor) -> bool {
        let Some(expected) = self.golden.tensor(&case.name, "cross_states") else { return false };
        let (_, _, some, _) = expected.dims4().unwrap();
        let counts: Vec<usize> = serde_json::from_value(case.extra["num_tiles"].clone()).unwrap();
        let rows = encoded.dim(0).unwrap() / counts.iter().sum::<usize>();
        let mut first = 0;
        for (picture, count) in counts.into_iter().enumerate() {
            for tile in 0..count {
                let found = encoded.narrow(0, first, some).unwrap();
                let expected = expected.get(picture).unwrap().get(tile).unwrap();
                let difference = largest_difference(&found, &expected);
                assert!(difference <= self.tolerance("features"), "{}: {difference}", case.name);
                first += rows;
            }
        }
        assert_eq!(first, encoded.dim(0).unwrap());
        true
    }
}

/// Several pictures in several turns: alone, and with each other where pages are short.
#[tokio::test]
async fn conversations_do_not_depend_on_company() {
    let user = |parts: Vec<Value>| serde_json::json!({"role": "user", "content": parts});
    let model =
        || serde_json::json!({"role": "assistant", "content": [say("the image shows a blue circle.")]});
    fn say(text: &str) -> Value {
        serde_json::json!({"type": "text", "text": text})
    }
    let see = || serde_json::json!({"type": "image"});
    let (land, port, square) = ("land_90x60.png", "port_48x120.png", "square_56x56.png");
    let first = || user(vec![see(), say("what is shown in this image?")]);
    let second = || user(vec![see(), see(), say("compare the two images.")]);
    let between = || user(vec![say("is this"), see(), say("like this?"), see()]);
    let talks: Vec<Case> = [
        (vec![first(), model(), second()], vec![land, port, square]),
        (vec![first(), model(), first()], vec![land, land]),
        (vec![first(), model(), user(vec![say("why?")])], vec![land]),
        (vec![second(), model(), between()], vec![port, square, square, land]),
        (vec![user(vec![say("hello")]), model(), between()], vec![square, port]),
        (vec![user(vec![say("hello")])], vec![]),
    ]
    .into_iter()
    .map(|(messages, images)| {
        let case = serde_json::json!({
            // So many tokens long.
            "name": "a talk", "messages": messages, "images": images, "greedy_tokens": vec![0; 40],
        });
        serde_json::from_value(case).unwrap()
    })
    .collect();
    let family = Family::read("mllama", DType::F32, None);
    let mut alone = Vec::new();
    for talk in &talks {
        let handle = family.start(family.config());
        alone.push(answer(&handle, family.request(talk, Sampling::greedy())).await);
    }
    assert!(alone.iter().collect::<BTreeSet<_>>().len() >= talks.len() - 1, "{alone:?}");
    let mut preemptions = 0;
    for (page_size, chunk, spare) in [(16, 7, 100), (4, 4096, 2), (1, 4096, 2)] {
        let most = talks.iter().map(|talk| family.pages(talk, page_size)).max().unwrap();
        let config = family.config();
        let limits = Limits { chunk, ..config.limits };
        let handle = family.start(EngineConfig { limits, page_size, pages: most + spare, ..config });
        let many: Vec<&Case> = talks.iter().cycle().take(4 * talks.len()).collect();
        let asked = many.iter().map(|talk| answer(&handle, family.request(talk, Sampling::greedy())));
        for (index, found) in join_all(asked).await.into_iter().enumerate() {
            assert_eq!(found, alone[index % talks.len()], "talk {index}, pages of {page_size}");
        }
        preemptions += handle.status().preemptions();
        assert_eq!(handle.status().pages().0, 0);
    }
    assert!(preemptions > 0, "pages were not short");
}

async fn the_api_answers_as_the_reference(name: &'static str) {
    for family in Family::all(name, DType::F32) {
        let model = format!("{name}={}", family.folder.display());
        let server = server::start(Settings { model: vec![model], ..Settings::default() }).await;
        for case in family.cases() {
            check_answer(&server, name, case).await;
        }
        server.idle().await;
    }
}

async fn check_answer(server: &server::Server, name: &str, case: &Case) {
    let mut body = server::golden_request(case);
    body["model"] = name.into();
    body["max_tokens"] = case.greedy_tokens.len().into();
    // What a checkpoint suggests may be something else.
    body["repetition_penalty"] = 1.0.into();
    let whole = server.ask(&body).await;
    assert_eq!(whole["choices"][0]["message"]["content"], case.greedy_text, "{}", case.name);
    assert_eq!(whole["usage"]["prompt_tokens"], case.input_ids.len(), "{}", case.name);
    let (pieces, done) = server.stream(&body).await;
    assert!(done);
    assert_eq!(server::text(&pieces), case.greedy_text, "{}", case.name);
}

/// Nothing of them would be left after resizing.
#[tokio::test]
async fn pictures_that_are_lines_are_their_senders_mistake() {
    for (name, limit) in [("pixtral", 112), ("qwen2_5_vl", 200)] {
        let model = fixtures().join(name).to_str().unwrap().to_owned();
        let server = server::start(Settings { model: vec![model], ..Settings::default() }).await;
        let body = |width, height| {
            let mut file = std::io::Cursor::new(Vec::new());
            image::RgbImage::new(width, height).write_to(&mut file, image::ImageFormat::Png).unwrap();
            let parts = [server::image_part(&server::data_url_of(file.get_ref()))];
            json!({"model": name, "max_tokens": 1, "messages": [{"role": "user", "content": parts}]})
        };
        server.ask(&body(limit, 1)).await;
        server.ask(&body(1, limit)).await;
        for (width, height) in [(limit + 1, 1), (1, limit + 1)] {
            let (status, error) = server.refuse(&body(width, height)).await;
            assert_eq!(status, 400, "{error}");
            assert_eq!(error["code"], "invalid_image");
            assert_eq!(error["param"], "messages[0].content[0].image_url");
            let message = error["message"].as_str().unwrap();
            assert!(message.contains(&format!("{width}x{height}")), "{message}");
            assert!(message.contains(&format!("more than {limit} times")), "{message}");
        }
        server.idle().await;
    }
}

macro_rules! families {
    ($($name:ident),* $(,)?) => {
        $(mod $name {
            const NAME: &str = stringify!($name);

            #[test]
            fn prompts_equal_the_reference() {
                super::prompts_equal_the_reference(&super::Family::all(NAME, super::DType::F32));
            }

            #[test]
            fn pixels_equal_the_reference() {
                super::pixels_equal_the_reference(NAME);
            }

            #[test]
            fn rows_and_logits_equal_the_reference() {
                super::rows_and_logits_equal_the_reference(&super::Family::all(NAME, super::DType::F32));
            }

            #[test]
            fn bf16_stays_near_the_reference() {
                super::bf16_stays_near_the_reference(NAME);
            }

            #[tokio::test]
            async fn answers_equal_the_reference_in_any_company() {
                super::answers_equal_the_reference_in_any_company(NAME).await;
            }

            #[tokio::test]
            async fn answers_do_not_depend_on_chunks() {
                super::answers_do_not_depend_on_chunks(NAME).await;
            }

            #[tokio::test]
            async fn answers_do_not_depend_on_pages() {
                super::answers_do_not_depend_on_pages(NAME).await;
            }

            #[tokio::test]
            async fn the_api_answers_as_the_reference() {
                super::the_api_answers_as_the_reference(NAME).await;
            }
        })*
    };
}

families![internvl2, llava_next, mllama, phi3_v, pixtral, qwen2_5_vl, qwen2_vl, smolvlm];

/// One network under other names, with another text: what the original repository and transformers make of it.
#[test]
fn internvl2_is_the_same_in_every_layout() {
    for layout in [
        Layout::Published("llama"),
        Layout::Published("qwen2"),
        Layout::Native("llama"),
        Layout::Renamed("qwen2"),
    ] {
        let folder = converted(layout);
        let family = [Family::of(folder.path().to_owned(), "internvl2", DType::F32)];
        prompts_equal_the_reference(&family);
        rows_and_logits_equal_the_reference(&family);
    }
}
