//! The events of an engine as text.

use super::{
    detokenizer::{Cut, Detokenizer, Stops},
    prompt::TextModel,
};
use crate::engine::{EngineError, Event, Events, FinishReason};

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

/// A step of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AnswerEvent {
    /// More text, never empty.
    Text(String),
    /// The end.
    Finished(FinishReason, Usage),
}

/// An answer that is being generated. Dropping it cancels it.
#[derive(Debug)]
pub struct Answer {
    events: Option<Events>,
    text: Option<(Detokenizer, Stops)>,
    finished: Option<FinishReason>,
    /// The stop text that ended it.
    stop: Option<String>,
    usage: Usage,
}

impl Answer {
    /// The answer to a prompt of `prompt` tokens, which ends at any of `stops`.
    pub fn new(events: Events, model: &TextModel, prompt: usize, stops: Vec<String>) -> Self {
        let detokenizer = Detokenizer::new(model.tokenizer().clone());
        Self {
            events: Some(events),
            text: Some((detokenizer, Stops::new(stops))),
            finished: None,
            stop: None,
            usage: Usage { prompt, ..Usage::default() },
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

    /// The stop text that ended the answer, where one did.
    pub fn stop(&self) -> Option<&str> {
        self.stop.as_deref()
    }

    /// The next step; after [`AnswerEvent::Finished`] and after an error there is none.
    ///
    /// # Errors
    /// When the engine fails.
    pub async fn next(&mut self) -> Result<AnswerEvent, EngineError> {
        loop {
            let Some(events) = &mut self.events else {
                return match self.finished {
                    Some(reason) => Ok(AnswerEvent::Finished(reason, self.usage)),
                    None => Err(EngineError::Stopped),
                };
            };
            let text = match events.next().await {
                Event::Started { reused } => {
                    self.usage.reused = reused;
                    continue;
                }
                // Asked for by others.
                Event::Probability(_) | Event::Aligned(_) => continue,
                Event::Token(drawn) => {
                    self.usage.generated += 1;
                    self.push(drawn.id)?
                }
                Event::Finished { reason, generated, .. } => {
                    self.usage.generated = generated;
                    self.end(reason);
                    self.rest()?
                }
                Event::Failed(error) => {
                    self.events = None;
                    return Err(error);
                }
            };
            if !text.is_empty() {
                return Ok(AnswerEvent::Text(text));
            }
        }
    }

    fn push(&mut self, id: u32) -> Result<String, EngineError> {
        let Some((detokenizer, stops)) = &mut self.text else { return Ok(String::new()) };
        let piece = detokenizer.push(id).map_err(|_| EngineError::Text)?;
        match stops.push(&piece) {
            Cut::Open(text) => Ok(text),
            Cut::Stopped(text) => {
                self.stop = stops.found().map(str::to_owned);
                self.text = None;
                self.end(FinishReason::Stop);
                Ok(text)
            }
        }
    }

    /// The text that was held back.
    fn rest(&mut self) -> Result<String, EngineError> {
        let Some((detokenizer, mut stops)) = self.text.take() else { return Ok(String::new()) };
        let piece = detokenizer.finish().map_err(|_| EngineError::Text)?;
        match stops.push(&piece) {
            Cut::Open(text) => Ok(text + &stops.finish()),
            Cut::Stopped(text) => {
                self.stop = stops.found().map(str::to_owned);
                self.finished = Some(FinishReason::Stop);
                Ok(text)
            }
        }
    }

    /// Dropping the events cancels what the engine still computes.
    fn end(&mut self, reason: FinishReason) {
        self.events = None;
        self.finished = Some(reason);
    }
}
