//! A network without weights behind the real engine and server: it answers as a test wants, and fails on demand.

use std::{
    sync::{
        Arc, Condvar, Mutex,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use candle_core::{DType, Device, Tensor};
use percept::{
    config::Settings,
    engine::{self, EngineConfig, Limits},
    router::{ChatModel, Served, Work},
    text::TextModel,
};
use percept_models::{
    Batch, CacheShape, Checkpoint, Features, Footprint, KvCache, Loaded, MediaSize, Medium, Model,
    Preprocess, SizeError, Task, TextInfo,
};

use super::{llava, server};

pub const VOCABULARY: usize = 482;
/// The token that ends an answer.
pub const END: u32 = 2;
pub const PLACEHOLDER: u32 = 480;
/// A picture's rows.
pub const ROWS: usize = 4;

/// Tokens that make a step fail in which they are computed.
pub const ERROR: u32 = 470;
pub const PANIC: u32 = 471;
pub const NAN: u32 = 472;
/// A token whose answer goes on for three tokens, and then breaks.
pub const LATE: u32 = 458;
/// Sides of pictures that cannot be prepared, or not be encoded.
pub const UNPREPARED: usize = 13;
pub const UNENCODED: usize = 17;

/// What it did.
#[derive(Debug, Default)]
pub struct Counts {
    pub encoded: AtomicUsize,
}

/// What goes wrong, or goes on, as a test wants it.
#[derive(Debug, Default)]
pub struct Faults {
    /// How long a step takes besides.
    pub slow: Duration,
    /// Steps wait as long as this is set.
    pub held: (Mutex<bool>, Condvar),
    /// What it says behind so many tokens, whatever they are, and then ends; [`NAN`] breaks it.
    pub script: Mutex<Option<(usize, Vec<u32>)>>,
}

impl Faults {
    /// Has steps wait, or go on.
    pub fn hold(&self, held: bool) {
        *self.held.0.lock().unwrap() = held;
        self.held.1.notify_all();
    }

    /// Has it say the same for ever, whatever it is asked.
    pub fn always(&self) {
        *self.script.lock().unwrap() = Some((0, vec![100; 4096]));
    }

    fn wait(&self) {
        let held = self.held.0.lock().unwrap();
        drop(self.held.1.wait_while(held, |held| *held).unwrap());
        std::thread::sleep(self.slow);
    }

    /// What follows the token at a position, where a script says so.
    fn scripted(&self, position: usize) -> Option<u32> {
        let script = self.script.lock().unwrap();
        let (prompt, says) = script.as_ref()?;
        let index = (position + 1).checked_sub(*prompt)?;
        Some(says.get(index).copied().unwrap_or(END))
    }
}

/// Answers each token with the next but three, unless a fault is asked for.
struct Fake {
    counts: Arc<Counts>,
    faults: Arc<Faults>,
}

pub fn next(token: u32) -> u32 {
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
        self.faults.wait();
        let tokens = batch.tokens.to_vec1::<u32>()?;
        if tokens.contains(&ERROR) {
            candle_core::bail!("this step fails");
        }
        assert!(!tokens.contains(&PANIC), "this step panics");
        let last = batch.last.to_vec1::<u32>()?;
        let positions = batch.positions.to_vec1::<u32>()?;
        let logits: Vec<f32> = last
            .iter()
            .flat_map(|&row| {
                let token = tokens[row as usize];
                let said =
                    self.faults.scripted(positions[row as usize] as usize).unwrap_or_else(|| next(token));
                let broken = token == NAN || token == LATE + 9;
                (0..VOCABULARY as u32).map(move |id| match id == said {
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

/// The network, and what it did.
pub fn fake(faults: &Arc<Faults>) -> (Loaded, Arc<Counts>) {
    let counts = Arc::new(Counts::default());
    let loaded = Loaded {
        model: Box::new(Fake { counts: Arc::clone(&counts), faults: Arc::clone(faults) }),
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

/// An engine for it.
pub fn config() -> EngineConfig {
    EngineConfig {
        limits: Limits { sequences: 32, rows: 512, chunk: 512, encoded: 1024, spare: 128, encode: 64 },
        pages: 256,
        page_size: 4,
        queue: 64,
        context: 1024,
        vocabulary: VOCABULARY,
        look_ahead: true,
    }
}

/// The fixture's tokenizer and template in front of the network that fails.
pub async fn serve(faults: &Arc<Faults>) -> server::Server {
    let config = server::config(Settings::default());
    let (loaded, counts) = fake(faults);
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
