//! The events of an engine as text, calls of functions and probabilities.

use std::{collections::VecDeque, sync::Arc};

use super::{
    detokenizer::{Cut, Detokenizer, Stops},
    prompt::TextModel,
    tokenizer::{Tokenizer, TokenizerError},
    tools::{CallReader, CallSyntax, Found},
};
use crate::engine::{Drawn, EngineError, Event, Events, FinishReason};

/// Tokens of a request.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Of the prompt, pictures included.
    pub prompt: usize,
    /// Of the prompt, those that an earlier request had computed.
    pub reused: usize,
    /// Of the answer, the one that ended it included.
    pub generated: usize,
}

/// How an answer is read.
#[derive(Debug, Clone, Default)]
pub struct Reading {
    /// Texts that end it.
    pub stops: Vec<String>,
    /// How calls of functions are written, where there may be some.
    pub calls: Option<CallSyntax>,
    /// Whether it goes on with a text, so that its first word may have a space in front.
    pub begun: bool,
    /// Whether the probabilities of its tokens are wanted.
    pub logprobs: bool,
}

/// A token and how probable it was.
#[derive(Debug, Clone, PartialEq)]
pub struct Scored {
    /// The text that it completed.
    pub text: String,
    /// Its own bytes, which may be part of a character only.
    pub bytes: Vec<u8>,
    /// The natural logarithm of its probability.
    pub logprob: f32,
    /// The most probable tokens in its place, each without such a list of its own.
    pub top: Vec<Scored>,
}

/// A step of an answer.
#[derive(Debug, Clone, PartialEq)]
pub enum AnswerEvent {
    /// More text, never empty.
    Text(String),
    /// More tokens whose probabilities were wanted; their texts together are the text so far. Comes behind it.
    Scored(Vec<Scored>),
    /// A call of this function begins.
    Call(String),
    /// More of its arguments, as JSON.
    Arguments(String),
    /// The end.
    Finished(FinishReason, Usage),
}

/// An answer that is being generated. Dropping it cancels it.
#[derive(Debug)]
pub struct Answer {
    events: Option<Events>,
    tokenizer: Arc<Tokenizer>,
    text: Option<(Detokenizer, Stops)>,
    calls: Option<CallReader>,
    scores: Option<Scores>,
    /// What is to be given next.
    ready: VecDeque<AnswerEvent>,
    /// The stop text that ended it.
    stopped_by: Option<String>,
    finished: Option<FinishReason>,
    usage: Usage,
}

impl Answer {
    /// The answer to a prompt of `prompt` tokens.
    pub fn new(events: Events, model: &TextModel, prompt: usize, reading: Reading) -> Self {
        let tokenizer = Arc::clone(model.tokenizer());
        let detokenizer = Detokenizer::new(Arc::clone(&tokenizer), reading.begun);
        Self {
            events: Some(events),
            tokenizer,
            text: Some((detokenizer, Stops::new(reading.stops))),
            calls: reading.calls.map(CallReader::new),
            scores: reading.logprobs.then(|| Scores { begun: reading.begun, ..Scores::default() }),
            ready: VecDeque::new(),
            stopped_by: None,
            finished: None,
            usage: Usage { prompt, ..Usage::default() },
        }
    }

    /// The next step; after [`AnswerEvent::Finished`] and after an error there is none. Dropping the future loses nothing.
    ///
    /// # Errors
    /// When the engine fails.
    pub async fn next(&mut self) -> Result<AnswerEvent, EngineError> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Ok(event);
            }
            let Some(events) = &mut self.events else {
                return match self.finished {
                    Some(reason) => Ok(AnswerEvent::Finished(reason, self.usage)),
                    None => Err(EngineError::Stopped),
                };
            };
            match events.next().await {
                Event::Started { reused } => self.usage.reused = reused,
                // Asked for by others.
                Event::Probability(_) | Event::Aligned(_) | Event::Embedded(_) => {}
                Event::Token(drawn) => {
                    self.usage.generated += 1;
                    self.push(&drawn)?;
                }
                Event::Finished { reason, generated, .. } => {
                    self.usage.generated = generated;
                    self.end(reason);
                    self.rest()?;
                }
                Event::Failed(error) => {
                    self.events = None;
                    return Err(error);
                }
            }
        }
    }

    /// Waits until the engine has begun with it, and tells what is known of its usage then. Called before
    /// [`Answer::next`], if at all.
    ///
    /// # Errors
    /// When the engine fails.
    pub async fn started(&mut self) -> Result<Usage, EngineError> {
        let Some(events) = &mut self.events else { return Err(EngineError::Stopped) };
        match events.next().await {
            Event::Started { reused } => self.usage.reused = reused,
            Event::Failed(error) => {
                self.events = None;
                return Err(error);
            }
            other => debug_assert!(false, "{other:?} before the start"),
        }
        Ok(self.usage)
    }

    /// Whether a function was called.
    pub fn called(&self) -> bool {
        self.calls.as_ref().is_some_and(CallReader::called)
    }

    /// The stop text that ended it, if one did.
    pub fn stopped_by(&self) -> Option<&str> {
        self.stopped_by.as_deref()
    }

    fn push(&mut self, drawn: &Drawn) -> Result<(), EngineError> {
        let Some((detokenizer, stops)) = &mut self.text else { return Ok(()) };
        let mut piece = detokenizer.push(drawn.id).map_err(failed)?;
        // What calls begin with may be a special token, which is in no text.
        let special = self.calls.is_some() && self.tokenizer.is_special(drawn.id);
        if let Some(mark) = self.tokenizer.token(drawn.id).filter(|_| special) {
            piece += &mark;
        }
        if let Some(scores) = &mut self.scores {
            scores.add(&self.tokenizer, drawn, &piece).map_err(failed)?;
        }
        match stops.push(&piece) {
            Cut::Open(text) => self.give(&text),
            Cut::Stopped(text, stop) => {
                self.text = None;
                self.stopped_by = Some(stop);
                self.end(FinishReason::Stop);
                self.give(&text);
                self.give_rest();
            }
        }
        Ok(())
    }

    /// The text that was held back.
    fn rest(&mut self) -> Result<(), EngineError> {
        let Some((detokenizer, mut stops)) = self.text.take() else { return Ok(()) };
        let piece = detokenizer.finish().map_err(failed)?;
        if let Some(scores) = &mut self.scores {
            scores.complete(&piece);
        }
        let text = match stops.push(&piece) {
            Cut::Open(text) => text + &stops.finish(),
            Cut::Stopped(text, stop) => {
                self.stopped_by = Some(stop);
                self.finished = Some(FinishReason::Stop);
                text
            }
        };
        self.give(&text);
        self.give_rest();
        Ok(())
    }

    /// Gives text on, and what is found in it.
    fn give(&mut self, text: &str) {
        if text.is_empty() {
            return;
        }
        let found = match &mut self.calls {
            Some(calls) => calls.push(text),
            None => vec![Found::Text(text.to_owned())],
        };
        self.give_all(found);
    }

    /// Gives what calls held back: nothing follows.
    fn give_rest(&mut self) {
        let found = self.calls.as_mut().map(CallReader::finish).unwrap_or_default();
        self.give_all(found);
        let cut = self.scores.as_mut().and_then(Scores::cut).filter(|_| !self.called());
        self.ready.extend(cut.map(|token| AnswerEvent::Scored(vec![token])));
    }

    fn give_all(&mut self, found: Vec<Found>) {
        for found in found {
            let text = match found {
                Found::Call(name) => {
                    self.ready.push_back(AnswerEvent::Call(name));
                    continue;
                }
                Found::Arguments(part) => {
                    self.ready.push_back(AnswerEvent::Arguments(part));
                    continue;
                }
                Found::Text(text) => text,
            };
            let scored = self.scores.as_mut().map(|scores| scores.up_to(text.len()));
            self.ready.push_back(AnswerEvent::Text(text));
            if let Some(scored) = scored.filter(|scored| !scored.is_empty()) {
                self.ready.push_back(AnswerEvent::Scored(scored));
            }
        }
    }

    /// Dropping the events cancels what the engine still computes.
    fn end(&mut self, reason: FinishReason) {
        self.events = None;
        self.finished = Some(reason);
    }
}

fn failed(_: TokenizerError) -> EngineError {
    EngineError::Text
}

/// Probabilities of tokens whose text is not given yet.
#[derive(Debug, Default)]
struct Scores {
    waiting: VecDeque<Scored>,
    /// Bytes of text that were given, of which tokens are waiting for the rest of theirs.
    given: usize,
    begun: bool,
}

impl Scores {
    fn add(&mut self, tokenizer: &Tokenizer, drawn: &Drawn, text: &str) -> Result<(), TokenizerError> {
        let begun = self.begun;
        let one = |&(id, logprob): &(u32, f32)| {
            let (text, bytes) = (tokenizer.decode_more(&[id], begun)?, tokenizer.token_bytes(id));
            Ok(Scored { text, bytes, logprob, top: Vec::new() })
        };
        let top = drawn.top.iter().map(one).collect::<Result<_, TokenizerError>>()?;
        let bytes = tokenizer.token_bytes(drawn.id);
        self.waiting.push_back(Scored { text: text.to_owned(), bytes, logprob: drawn.logprob, top });
        self.begun |= !tokenizer.is_special(drawn.id);
        Ok(())
    }

    /// The last token completes this text after all.
    fn complete(&mut self, text: &str) {
        if let Some(last) = self.waiting.back_mut() {
            last.text += text;
        }
    }

    /// The tokens of so many more bytes of text.
    fn up_to(&mut self, bytes: usize) -> Vec<Scored> {
        self.given += bytes;
        let mut tokens = Vec::new();
        while let Some(first) = self.waiting.front() {
            if first.text.len() <= self.given {
                self.given -= first.text.len();
                tokens.extend(self.waiting.pop_front());
                continue;
            }
            break;
        }
        tokens
    }

    /// The token that the answer ends in the middle of, where it does.
    fn cut(&mut self) -> Option<Scored> {
        let mut last = self.waiting.pop_front().filter(|_| self.given > 0)?;
        last.text.truncate(last.text.floor_char_boundary(self.given));
        Some(last)
    }
}
