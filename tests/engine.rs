//! The engine with a network that fails on demand: one request's fault is its own.
#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use candle_core::{DType, Device, Tensor};
use futures_util::future::join_all;
use percept::{
    config::Settings,
    engine::{self, EngineConfig, EngineError, Event, Events, FinishReason, Handle, Key, Limits, Refused},
    media::Picture,
    request::{self, Media, Prompt, Readout, Request, Sampling, Source, Span},
    router::{ChatModel, Served, Work},
    text::TextModel,
};
use percept_models::{
    Batch, CacheShape, Checkpoint, Features, Footprint, KvCache, Loaded, MediaSize, Medium, Model,
    Preprocess, SizeError, Task, TextInfo,
};
use serde_json::{Value, json};
use support::{llava, server};

const VOCABULARY: usize = 482;
const PLACEHOLDER: u32 = 480;
/// A picture's rows.
const ROWS: usize = 4;

/// Tokens that make a step fail in which they are computed.
const ERROR: u32 = 470;
const PANIC: u32 = 471;
const NAN: u32 = 472;
/// A token whose answer goes on for three tokens, and then breaks.
const LATE: u32 = 458;
/// Sides of pictures that cannot be prepared, or not be encoded.
const UNPREPARED: usize = 13;
const UNENCODED: usize = 17;

#[derive(Debug, Default)]
struct Counts {
    encoded: AtomicUsize,
}

/// Answers each token with the next but three, unless a fault is asked for.
struct Fake {
    counts: Arc<Counts>,
    slow: Duration,
}

fn next(token: u32) -> u32 {
    if token >= LATE { token + 3 } else { (token + 3) % LATE }
}

impl Model for Fake {
    fn cache_shape(&self) -> CacheShape {
        CacheShape { layers: 1, kv_heads: 1, head_dim: 2 }
    }

    fn encode(&self, media: &[Features]) -> candle_core::Result<Tensor> {
        let sides: Vec<f32> =
            media.iter().map(|medium| medium.tensor.to_scalar()).collect::<candle_core::Result<_>>()?;
        if sides.contains(&(UNENCODED as f32)) {
            candle_core::bail!("this picture cannot be encoded");
        }
        self.counts.encoded.fetch_add(sides.len(), Relaxed);
        Tensor::zeros((sides.len() * ROWS, 8), DType::F32, &Device::Cpu)
    }

    fn forward(&self, batch: &Batch, _: &KvCache) -> candle_core::Result<Tensor> {
        std::thread::sleep(self.slow);
        let tokens = batch.tokens.to_vec1::<u32>()?;
        if tokens.contains(&ERROR) {
            candle_core::bail!("this step fails");
        }
        assert!(!tokens.contains(&PANIC), "this step panics");
        let last = batch.last.to_vec1::<u32>()?;
        let logits: Vec<f32> = last
            .iter()
            .flat_map(|&row| {
                let token = tokens[row as usize];
                let broken = token == NAN || token == LATE + 9;
                (0..VOCABULARY as u32).map(move |id| match id == next(token) {
                    _ if broken => f32::NAN,
                    true => 9.0,
                    false => 0.0,
                })
            })
            .collect();
        Tensor::from_vec(logits, (last.len(), VOCABULARY), &Device::Cpu)
    }
}

impl Preprocess for Counts {
    fn footprint(&self, _: MediaSize) -> Result<Footprint, SizeError> {
        Ok(Footprint::line(vec![PLACEHOLDER; ROWS]))
    }

    fn run(&self, medium: Medium<'_>) -> candle_core::Result<Tensor> {
        let Medium::Picture(pixels) = medium else { panic!("only pictures are sent") };
        let side = pixels.dim(0)?;
        if side == UNPREPARED {
            candle_core::bail!("this picture cannot be prepared");
        }
        Tensor::new(side as f32, &Device::Cpu)
    }
}

fn fake(slow: Duration) -> (Loaded, Arc<Counts>) {
    let counts = Arc::new(Counts::default());
    let loaded = Loaded {
        model: Box::new(Fake { counts: Arc::clone(&counts), slow }),
        preprocess: Arc::clone(&counts) as Arc<dyn Preprocess>,
        task: Task::Chat(TextInfo::new(4096, PLACEHOLDER, Vec::new())),
        width: 8,
        encoder_row: 8,
        weight_bytes: 0,
        dtype: DType::F32,
        device: Device::Cpu,
    };
    (loaded, counts)
}

fn config() -> EngineConfig {
    EngineConfig {
        limits: Limits { sequences: 32, rows: 512, chunk: 512, encoded: 1024, spare: 128, encode: 64 },
        pages: 256,
        page_size: 4,
        queue: 64,
        context: 1024,
        vocabulary: VOCABULARY,
    }
}

fn start(slow: Duration) -> (Handle, Arc<Counts>) {
    let (loaded, counts) = fake(slow);
    (engine::spawn(loaded, config()).unwrap(), counts)
}

fn request(prompt: &[u32], pictures: &[usize], tokens: usize) -> Request {
    let mut all = Vec::new();
    let mut spans = Vec::new();
    let mut media = Vec::new();
    for &side in pictures {
        spans.push(Span::line(all.len()..all.len() + ROWS));
        all.extend([PLACEHOLDER; ROWS]);
        let picture = Picture::new(side, side, vec![0; side * side * 3]);
        media.push(Media { key: Key::of(&side.to_le_bytes()), source: Source::Pixels(Arc::new(picture)) });
    }
    all.extend(prompt);
    Request {
        prompt: Prompt { tokens: all, spans },
        media,
        sampling: Sampling::greedy(),
        limits: request::Limits { tokens, stops: Arc::new([]) },
        readout: Readout::Answer,
        constraint: None,
    }
}

async fn answer(mut events: Events) -> Result<Vec<u32>, EngineError> {
    let mut tokens = Vec::new();
    loop {
        match events.next().await {
            Event::Started { .. } => {}
            Event::Token(drawn) => tokens.push(drawn.id),
            Event::Probability(_) | Event::Aligned(_) | Event::Embedded(_) => {
                panic!("nobody asked for it")
            }
            Event::Finished { reason, generated, .. } => {
                assert_eq!((reason, generated), (FinishReason::Length, tokens.len()));
                return Ok(tokens);
            }
            Event::Failed(error) => return Err(error),
        }
    }
}

fn expected(first: u32, count: usize) -> Vec<u32> {
    std::iter::successors(Some(next(first)), |&token| Some(next(token))).take(count).collect()
}

#[tokio::test]
async fn a_fault_is_its_own_requests() {
    let (handle, _) = start(Duration::ZERO);
    let good = (1..20u32).map(|first| (first, handle.submit(request(&[first], &[], 30)).unwrap()));
    let good: Vec<_> = good.collect();
    let faults = [
        (request(&[5, ERROR], &[], 9), EngineError::Step),
        (request(&[6, PANIC, 6], &[], 9), EngineError::Step),
        (request(&[7, NAN], &[], 9), EngineError::NotFinite),
        (request(&[1], &[UNPREPARED], 9), EngineError::Step),
        (request(&[2], &[UNENCODED], 9), EngineError::Step),
        (request(&[3], &[5, UNENCODED, 6], 9), EngineError::Step),
    ];
    let faults = faults.map(|(request, error)| (handle.submit(request).unwrap(), error));
    let pictures = [5, 6, 7, 5, 8].map(|side| (side, handle.submit(request(&[9], &[side], 20)).unwrap()));
    for (events, error) in faults {
        assert_eq!(answer(events).await, Err(error));
    }
    for (first, events) in good {
        assert_eq!(answer(events).await, Ok(expected(first, 30)), "{first}");
    }
    for (side, events) in pictures {
        assert_eq!(answer(events).await, Ok(expected(9, 20)), "picture {side}");
    }
    assert!(handle.status().alive());
    assert_eq!(handle.status().pages().0, 0);
    assert_eq!(handle.status().running(), 0);
}

#[tokio::test]
async fn a_late_fault_keeps_what_was_said() {
    let (handle, _) = start(Duration::ZERO);
    let mut events = handle.submit(request(&[1, 2, 3, 4, LATE], &[], 30)).unwrap();
    let mut tokens = 0;
    let error = loop {
        match events.next().await {
            Event::Token(_) => tokens += 1,
            Event::Probability(_) | Event::Aligned(_) | Event::Embedded(_) => {
                panic!("nobody asked for it")
            }
            Event::Failed(error) => break error,
            Event::Finished { .. } => panic!("the fault was not noticed"),
            Event::Started { .. } => {}
        }
    };
    assert_eq!((tokens, error), (3, EngineError::NotFinite));
}

#[tokio::test]
async fn a_picture_is_encoded_once_while_it_is_remembered() {
    let (handle, counts) = start(Duration::ZERO);
    let warm_up = counts.encoded.load(Relaxed);
    let many = (0..12).map(|index| handle.submit(request(&[index], &[3 + index as usize % 2], 5)).unwrap());
    let many: Vec<_> = many.collect();
    for answer in join_all(many.into_iter().map(answer)).await {
        answer.unwrap();
    }
    assert_eq!(counts.encoded.load(Relaxed) - warm_up, 2);
    // Later it is found before it is decoded: no pixels are needed.
    let pin = handle.pin(&Key::of(&3usize.to_le_bytes())).unwrap();
    let mut again = request(&[40], &[3], 5);
    again.media[0].source = Source::Encoded(Arc::new(pin));
    assert_eq!(answer(handle.submit(again).unwrap()).await, Ok(expected(40, 5)));
    assert_eq!(counts.encoded.load(Relaxed) - warm_up, 2);
    assert!(handle.pin(&Key::of(b"unknown")).is_none());
}

#[tokio::test]
async fn draining_answers_what_was_accepted() {
    let (handle, _) = start(Duration::from_millis(1));
    let running: Vec<_> =
        (0..40).map(|first| (first, handle.submit(request(&[first], &[], 10)).unwrap())).collect();
    handle.drain();
    assert_eq!(handle.submit(request(&[1], &[], 1)).unwrap_err(), Refused::Stopped);
    for (first, events) in running {
        assert_eq!(answer(events).await, Ok(expected(first, 10)));
    }
    while handle.status().alive() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// As small as an engine can be.
#[tokio::test]
async fn a_context_of_two_answers_one_token() {
    let (loaded, _) = fake(Duration::ZERO);
    let limits = Limits { sequences: 1, encoded: 2, spare: 2, ..config().limits };
    let config = EngineConfig { limits, pages: 2, page_size: 1, context: 2, ..config() };
    let handle = engine::spawn(loaded, config).unwrap();
    assert_eq!(answer(handle.submit(request(&[1], &[], 1)).unwrap()).await, Ok(expected(1, 1)));
    // What fits nowhere fails, and harms nobody.
    for (prompt, tokens) in [(&[][..], 1), (&[1, 2], 1), (&[1], 0), (&[1], 100)] {
        let failed = answer(handle.submit(request(prompt, &[], tokens)).unwrap()).await;
        assert_eq!(failed, Err(EngineError::Step), "{prompt:?} {tokens}");
    }
    assert_eq!(answer(handle.submit(request(&[1], &[], 1)).unwrap()).await, Ok(expected(1, 1)));
}

#[tokio::test]
async fn a_full_queue_refuses_and_recovers() {
    let (loaded, _) = fake(Duration::from_millis(2));
    let limits = Limits { sequences: 2, ..config().limits };
    let handle = engine::spawn(loaded, EngineConfig { queue: 3, limits, ..config() }).unwrap();
    let mut accepted = Vec::new();
    let refused = loop {
        match handle.submit(request(&[1], &[], 50)) {
            Ok(events) => accepted.push(events),
            Err(refused) => break refused,
        }
    };
    assert!((3..=5).contains(&accepted.len()), "{}", accepted.len());
    assert!(matches!(refused, Refused::Busy { waiting: 3, retry_after: 1..=60 }), "{refused:?}");
    assert_eq!(handle.reserve().is_err(), handle.waiting() == 3);
    drop(accepted);
    while handle.waiting() > 0 || handle.status().running() > 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert_eq!(answer(handle.submit(request(&[1], &[], 3)).unwrap()).await, Ok(expected(1, 3)));
}

/// The fixture's tokenizer and template in front of the network that fails.
async fn serve_fake() -> server::Server {
    let config = server::config(Settings::default());
    let (loaded, counts) = fake(Duration::ZERO);
    let Task::Chat(info) = &loaded.task else { panic!("it chats") };
    let text = TextModel::read(&Checkpoint::new(llava()), info, None).unwrap();
    let served = Served {
        id: "llava".into(),
        aliases: Vec::new(),
        work: Work::Chat(Arc::new(ChatModel { text, preprocess: counts })),
        handle: engine::spawn(loaded, self::config()).unwrap(),
        created: 0,
        fingerprint: "fp_fake".into(),
    };
    server::start_with(vec![served], config.api, config.drain).await
}

#[tokio::test]
async fn a_failure_reaches_the_client_in_the_shape_of_the_api() {
    let server = serve_fake().await;
    // Token 470 stands for a piece of a word.
    let tokenizer = server.app.models().unwrap().models()[0].chat().unwrap().text.tokenizer().clone();
    let mut request = server::words(&tokenizer.token(ERROR).unwrap().replace('▁', " "));
    // By chance, the network could go on with a token that fails.
    request["temperature"] = json!(0);
    let (status, error) = server.refuse(&request).await;
    assert_eq!((status, error["type"].as_str(), &error["code"]), (500, Some("server_error"), &Value::Null));
    assert!(!error["message"].as_str().unwrap().contains("step"), "what went wrong is for the log");

    let (pieces, done) = server.stream(&request).await;
    assert!(!done, "a failed stream must not look complete");
    server::check_error(pieces.last().unwrap());
    assert_eq!(pieces[0]["choices"][0]["delta"]["role"], "assistant");

    request["messages"][0]["content"] = json!("hello");
    assert_eq!(server.ask(&request).await["usage"]["completion_tokens"], 8);
    server.idle().await;
}
