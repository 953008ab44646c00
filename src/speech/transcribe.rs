//! A served speech model: recordings in, updates out.

use std::{
    collections::BTreeMap,
    io,
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
};

use futures_util::{StreamExt as _, stream::FuturesUnordered};
use percept_models::{
    SpeechInfo,
    nn::mel::{HOP, Mel, REACH},
};
use tokio::{
    sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel},
    task::{AbortHandle, spawn_blocking},
};
use tracing::{debug, error};

use super::{
    Mode, Options, Segment, Transcript, Update, Vocabulary,
    decode::{Attempt, Decoded, Heard, Job, Texts},
    seek::{Clip, FRAMES_PER_MARK, FRAMES_PER_SECOND, Listen, Step, Walk, Window},
    vad,
    words::WordTiming,
};
use crate::{
    engine::{EngineError, Handle, Place, Turn},
    media::sound::Recording,
    request::Sound,
    text::TokenizerError,
};

/// A served speech model.
#[derive(Debug)]
pub struct Transcriber {
    handle: Handle,
    vocabulary: Arc<Vocabulary>,
    mel: Mel,
    info: SpeechInfo,
    /// Recordings of at least so many seconds are cut at silences, where nothing else is asked for.
    parallel_from: f64,
    /// Recordings that are being transcribed.
    active: Arc<AtomicUsize>,
}

/// Why there is no transcript.
#[derive(Debug, thiserror::Error)]
pub enum SpeechError {
    /// The engine failed.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The engine takes nothing any more.
    #[error("the server is shutting down")]
    Stopped,
    /// The engine answered, but not what it was asked for.
    #[error("the engine gave no answer")]
    Nothing,
    /// The recording cannot be read.
    #[error("the recording cannot be read: {0}")]
    Read(#[from] io::Error),
    /// The ears failed.
    #[error("the recording cannot be heard: {0}")]
    Hear(String),
    /// The tokenizer failed.
    #[error(transparent)]
    Text(#[from] TokenizerError),
}

/// A transcription that goes on. Dropping it cancels it.
#[derive(Debug)]
pub struct Transcription {
    updates: UnboundedReceiver<Result<Update, SpeechError>>,
    task: AbortHandle,
}

impl Transcription {
    /// The next update; after [`Update::Finished`] and after an error there is none.
    ///
    /// # Errors
    /// When the transcription fails.
    pub async fn next(&mut self) -> Result<Update, SpeechError> {
        self.updates.recv().await.unwrap_or(Err(SpeechError::Engine(EngineError::Stopped)))
    }
}

impl Drop for Transcription {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Transcriber {
    /// A speech model behind `handle`. Recordings of at least `parallel_from` seconds are transcribed in
    /// [`Mode::Parallel`] where a request leaves that open.
    pub fn new(handle: Handle, vocabulary: Vocabulary, info: SpeechInfo, parallel_from: f64) -> Self {
        Self {
            mel: Mel::new(info.mels),
            vocabulary: Arc::new(vocabulary),
            handle,
            info,
            parallel_from,
            active: Arc::default(),
        }
    }

    /// Its engine.
    pub fn handle(&self) -> &Handle {
        &self.handle
    }

    /// What its ids mean.
    pub fn vocabulary(&self) -> &Vocabulary {
        &self.vocabulary
    }

    /// Codes of the languages that it tells apart; none where it knows English only.
    pub fn languages(&self) -> impl Iterator<Item = &str> {
        self.vocabulary.languages()
    }

    /// Whether it can write English for other languages.
    pub fn can_translate(&self) -> bool {
        self.languages().next().is_some()
    }

    /// Most tokens of a window's answer.
    pub fn most_tokens(&self) -> usize {
        self.context() / 2
    }

    fn context(&self) -> usize {
        self.info.context.min(self.handle.context())
    }

    /// Starts to transcribe. `place` is kept until the transcription ends. Must be called on a runtime.
    pub fn start(
        self: &Arc<Self>,
        recording: Arc<Recording>,
        options: Options,
        place: Place,
    ) -> Transcription {
        let (sender, updates) = unbounded_channel();
        let transcriber = Arc::clone(self);
        let task = tokio::spawn(async move {
            let active = Active::new(&transcriber.active);
            let last = transcriber.run(recording, options, &place, &sender).await.map(Update::Finished);
            if let Err(error) = &last {
                error!(%error, "a transcription failed");
            }
            // Whoever hears the end finds the place free.
            drop((place, active));
            // Nobody listens when the transcription was dropped.
            let _ = sender.send(last);
        });
        Transcription { updates, task: task.abort_handle() }
    }
}

impl Transcriber {
    /// Options that cut no longer windows than the network hears.
    fn fitted(&self, mut options: Options) -> Options {
        let window = self.info.frames as f64 / FRAMES_PER_SECOND * 1000.0;
        options.vad.longest_ms = options.vad.longest_ms.min(window as u32);
        options
    }

    async fn run(
        &self,
        recording: Arc<Recording>,
        options: Options,
        place: &Place,
        updates: &UnboundedSender<Result<Update, SpeechError>>,
    ) -> Result<Transcript, SpeechError> {
        let (options, vocabulary) = (Arc::new(self.fitted(options)), Arc::clone(&self.vocabulary));
        let texts = {
            let (options, vocabulary) = (Arc::clone(&options), Arc::clone(&vocabulary));
            Arc::new(blocking(move || Texts::of(&options, &vocabulary)).await?)
        };
        let job = Job { vocabulary, texts, options, context: self.context(), memory: self.info.frames / 2 };
        Run { job, place, recording, transcriber: self, updates }.transcribe().await
    }
}

/// Counts a recording while it is being transcribed.
struct Active(Arc<AtomicUsize>);

impl Active {
    fn new(count: &Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Relaxed);
        Self(Arc::clone(count))
    }
}

impl Drop for Active {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

/// One transcription.
struct Run<'a> {
    job: Job,
    place: &'a Place,
    recording: Arc<Recording>,
    transcriber: &'a Transcriber,
    updates: &'a UnboundedSender<Result<Update, SpeechError>>,
}

impl Run<'_> {
    async fn transcribe(&self) -> Result<Transcript, SpeechError> {
        let mut all = Transcript {
            language: String::new(),
            duration: self.recording.seconds(),
            text: String::new(),
            segments: Vec::new(),
        };
        for channel in 0..self.recording.channels() {
            let spoken = self.channel(channel).await?;
            if channel == 0 {
                all.language = spoken.language;
            }
            all.text += &spoken.text;
            all.segments.extend(spoken.segments);
        }
        if self.recording.channels() > 1 {
            all.segments.sort_by(|a, b| a.start.total_cmp(&b.start));
            all.text = all.segments.iter().map(|segment| segment.text.as_str()).collect();
        }
        for (id, segment) in all.segments.iter_mut().enumerate() {
            segment.id = id;
        }
        Ok(all)
    }

    async fn channel(&self, channel: usize) -> Result<Transcript, SpeechError> {
        let options = &self.job.options;
        let content = self.recording.samples() / HOP;
        let ears = Ears {
            recording: Arc::clone(&self.recording),
            mel: self.transcriber.mel.clone(),
            window: self.transcriber.info.frames,
            channel,
        };
        let parallel = self.is_parallel();
        let (peak, spans) = ears.survey(parallel.then(|| options.vad.clone()), self.updates.clone()).await?;
        let ear =
            |peak| Ear { job: &self.job, place: self.place, ears: &ears, peak, language: String::new() };
        let language = self.language(&ear(Some(peak))).await?;
        let duration = self.recording.seconds();
        let ear = Ear { language: language.clone(), ..ear((!parallel).then_some(peak)) };
        let (text, segments) = match spans {
            Some(spans) => self.parallel(&ear, &spans, content).await?,
            None => self.sequential(&ear, content).await?,
        };
        Ok(Transcript { language, duration, text, segments })
    }

    fn is_parallel(&self) -> bool {
        let options = &self.job.options;
        match options.mode {
            Mode::Parallel => true,
            Mode::Sequential => false,
            // Whoever names parts or begins the answer has the reference's loop in mind.
            Mode::Auto => {
                options.clips.is_empty()
                    && options.prefix.is_none()
                    && self.recording.seconds() >= self.transcriber.parallel_from
            }
        }
    }

    /// The language that was asked for, or the one that is heard first.
    async fn language(&self, ear: &Ear<'_>) -> Result<String, SpeechError> {
        let known = self.transcriber.can_translate();
        let (code, probability) = match &self.job.options.language {
            _ if !known => ("en".to_owned(), 1.0),
            Some(code) => (code.clone(), 1.0),
            None => {
                // As in the reference: what follows the recording is silence, while windows end in nothing at all.
                let heard = ear.ears.hear(0..ear.ears.window, ear.peak, self.place.turn()).await?;
                let found = self.job.language(&heard).await?;
                debug!(language = ?found.first(), "language detected");
                found.into_iter().next().ok_or(SpeechError::Nothing)?
            }
        };
        self.tell(Update::Language { code: code.clone(), probability });
        Ok(code)
    }

    /// Each window begins where the one before ended.
    async fn sequential(&self, ear: &Ear<'_>, content: usize) -> Result<(String, Vec<Segment>), SpeechError> {
        let options = &self.job.options;
        let clips = Clip::of(&options.clips, content);
        let mut walk = self.walk(ear, options, content);
        let mut segments = Vec::new();
        walk.run(&clips, |step| self.step(step, ear.ears.channel, &mut segments)).await?;
        Ok((walk.text()?, segments))
    }

    fn walk<'a>(&'a self, ear: &'a Ear<'a>, options: &'a Options, content: usize) -> Walk<'a, Ear<'a>> {
        let initial = &self.job.texts.initial_prompt;
        Walk::new(ear, &self.job.vocabulary, options, initial, (content, self.job.context))
    }

    fn step(&self, step: Step, channel: usize, segments: &mut Vec<Segment>) {
        match step {
            Step::Segment(mut segment) => {
                segment.channel = channel;
                segment.id = segments.len();
                segments.push(segment.clone());
                self.tell(Update::Segment(segment));
            }
            Step::Reached(frame) => {
                self.tell(Update::Progress { seconds: frame as f64 / FRAMES_PER_SECOND });
            }
        }
    }

    /// All windows at once, but no more than this recording's share of the engine.
    async fn parallel(
        &self,
        ear: &Ear<'_>,
        spans: &[vad::Span],
        content: usize,
    ) -> Result<(String, Vec<Segment>), SpeechError> {
        // What one window says is nothing to the others.
        let options =
            Options { condition_on_previous_text: Some(false), ..Options::clone(&self.job.options) };
        let clips: Vec<Clip> = Clip::of(&options.clips, content)
            .into_iter()
            .flat_map(|part| windows(spans, part, content, &options.vad))
            .collect();
        let one = async |clip: Clip| {
            let mut walk = self.walk(ear, &options, content);
            let mut steps = Vec::new();
            walk.run(&[clip], |step| steps.push(step)).await?;
            Ok::<_, SpeechError>((steps, walk.text()?))
        };
        let mut waiting = clips.iter().copied().enumerate();
        let mut running = FuturesUnordered::new();
        // Done, but something before them is not.
        let mut done = BTreeMap::new();
        let mut next = 0;
        let mut text = String::new();
        let mut segments = Vec::new();
        loop {
            while running.len() < self.share()
                && let Some((index, clip)) = waiting.next()
            {
                let one = one(clip);
                running.push(async move { (index, one.await) });
            }
            let Some((index, result)) = running.next().await else { break };
            done.insert(index, result?);
            while let Some((steps, said)) = done.remove(&next) {
                text += &said;
                steps.into_iter().for_each(|step| self.step(step, ear.ears.channel, &mut segments));
                next += 1;
            }
        }
        Ok((text, segments))
    }

    /// How many windows of this recording may be worked on at once: long recordings leave room for others.
    fn share(&self) -> usize {
        let active = self.transcriber.active.load(Relaxed).max(1);
        (self.transcriber.handle.sequences() / active / self.job.options.width()).max(1)
    }

    fn tell(&self, update: Update) {
        // Nobody listens when the transcription was dropped.
        let _ = self.updates.send(Ok(update));
    }
}

/// The windows of speech in a part of a recording of `content` frames.
fn windows(spans: &[vad::Span], part: Clip, content: usize, vad: &vad::VadOptions) -> Vec<Clip> {
    let (start, end) = (part.start * HOP, part.end.min(content) * HOP);
    let inside = |span: &vad::Span| vad::Span { start: span.start.max(start), end: span.end.min(end) };
    let spans: Vec<_> = spans.iter().map(inside).filter(|span| span.start < span.end).collect();
    let clip = |window: vad::Window| {
        let start = (window.start / HOP).max(part.start);
        let speech_end = window.speech_end.div_ceil(HOP).saturating_sub(TAIL);
        // Short as it may be, it is heard once.
        Clip { start, end: window.end.div_ceil(HOP).min(part.end), speech_end: speech_end.max(start + 1) }
    };
    vad::windows(&spans, content * HOP, vad).into_iter().map(clip).collect()
}

/// Frames at the end of speech that are not worth a window of their own.
const TAIL: usize = 50;

/// Hears windows of a recording through an engine.
struct Ear<'a> {
    job: &'a Job,
    place: &'a Place,
    ears: &'a Ears,
    /// The largest log10 mel power of the recording; `None` where each window is measured by itself.
    peak: Option<f32>,
    language: String,
}

impl Listen for Ear<'_> {
    type Heard = Heard;

    async fn hear(&self, window: Window) -> Result<Heard, SpeechError> {
        let frames = window.seek..window.seek + window.size;
        let turn = self.place.turn();
        match self.peak {
            // The reference fills a short window with zeros of the spectrum.
            Some(_) => self.ears.hear(frames, self.peak, turn).await,
            // transformers' feature extractor fills it with silence.
            None => self.ears.hear_alone(frames, turn).await,
        }
    }

    async fn decode(
        &self,
        heard: &Heard,
        previous: &[u32],
        attempt: Attempt,
        no_speech: Option<f64>,
    ) -> Result<Decoded, SpeechError> {
        self.job.decode(heard, &self.language, previous, attempt, no_speech).await
    }

    async fn align(
        &self,
        heard: &Heard,
        window: Window,
        text: &[u32],
    ) -> Result<Vec<WordTiming>, SpeechError> {
        self.job.align(heard, &self.language, text, window.size).await
    }
}

/// Reads a channel of a recording, on the pool for blocking work.
#[derive(Debug)]
struct Ears {
    recording: Arc<Recording>,
    mel: Mel,
    /// Frames of a window.
    window: usize,
    channel: usize,
}

impl Ears {
    /// The largest log10 mel power of all, and where speech is if `vad` wants to know. Ends early when nobody listens
    /// to updates any more.
    async fn survey(
        &self,
        vad: Option<vad::VadOptions>,
        updates: UnboundedSender<Result<Update, SpeechError>>,
    ) -> Result<(f32, Option<Vec<vad::Span>>), SpeechError> {
        let (recording, mel, channel) = (Arc::clone(&self.recording), self.mel.clone(), self.channel);
        let window = self.window;
        blocking(move || {
            let mut detector = vad.map(|options| vad::Detector::new(&options));
            // The last frames are centred behind the end.
            let frames = recording.samples().div_ceil(HOP) + REACH.div_ceil(HOP) + 1;
            let mut peak = SILENCE;
            for first in (0..frames).step_by(window) {
                if updates.is_closed() {
                    return Err(SpeechError::Stopped);
                }
                let frames = first..(first + window).min(frames);
                let (samples, stretch) = read(&recording, channel, frames.clone())?;
                peak = peak.max(mel.peak(&samples, stretch).map_err(|error| hear(&error))?);
                if let Some(detector) = &mut detector {
                    detector.push(&recording.read(channel, frames.start * HOP..frames.end * HOP)?);
                }
            }
            Ok((peak, detector.map(vad::Detector::finish)))
        })
        .await
    }

    /// Frames as part of the whole recording. Those behind its end are silence.
    async fn hear(&self, frames: Range<usize>, peak: Option<f32>, turn: Turn) -> Result<Heard, SpeechError> {
        let (recording, channel) = (Arc::clone(&self.recording), self.channel);
        blocking(move || {
            let (samples, stretch) = read(&recording, channel, frames)?;
            let peak = peak.unwrap_or(SILENCE);
            Ok(Heard::new(Sound { samples: samples.into(), frames: stretch, peak }, turn))
        })
        .await
    }

    /// Frames as a recording of their own, with silence behind them, where no times lie.
    async fn hear_alone(&self, frames: Range<usize>, turn: Turn) -> Result<Heard, SpeechError> {
        let (recording, mel, channel) = (Arc::clone(&self.recording), self.mel.clone(), self.channel);
        let window = self.window;
        blocking(move || {
            let samples = recording.read(channel, frames.start * HOP..frames.end * HOP)?;
            let peak = mel.peak(&samples, 0..window).map_err(|error| hear(&error))?;
            let last_mark = (samples.len() / HOP / FRAMES_PER_MARK) as u32;
            let sound = Sound { samples: samples.into(), frames: 0..window, peak };
            Ok(Heard::new(sound, turn).until(last_mark))
        })
        .await
    }
}

/// log10 of the smallest power that counts: that of silence.
const SILENCE: f32 = -10.0;

/// The samples that some frames see, and which frames of these samples they are.
fn read(recording: &Recording, channel: usize, frames: Range<usize>) -> io::Result<(Vec<f32>, Range<usize>)> {
    // At least one frame in front, so that nothing is mirrored but at the very beginning.
    let front = frames.start.min(REACH.div_ceil(HOP));
    let first = (frames.start - front) * HOP;
    let mut samples = recording.read(channel, first..frames.end * HOP + REACH)?;
    if samples.is_empty() {
        samples.push(0.0);
    }
    Ok((samples, front..front + frames.len()))
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, SpeechError> + Send + 'static,
) -> Result<T, SpeechError> {
    spawn_blocking(work).await.unwrap_or_else(|error| Err(hear(&error)))
}

fn hear(error: &dyn std::fmt::Display) -> SpeechError {
    SpeechError::Hear(error.to_string())
}
