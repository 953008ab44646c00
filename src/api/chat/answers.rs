//! Several answers in one place of the queue.

use std::{future::poll_fn, pin::pin, sync::Arc, task::Poll};

use crate::{
    engine::{EngineError, Place, Refused, Turn},
    request::Request,
    router::ChatModel,
    text::{Answer, AnswerEvent, Reading, Usage},
};

/// Answers that are being generated. Dropping them cancels them.
pub(in crate::api) struct Answers {
    answers: Vec<State>,
    later: Option<Later>,
    /// Who is asked first next time: nobody waits behind a faster one.
    turn: usize,
}

enum State {
    Open(Box<Answer>),
    /// It is complete.
    Done {
        /// Whether it called functions.
        called: bool,
        /// The stop text that ended it.
        stopped_by: Option<String>,
    },
}

/// Answers that begin when another one to the same prompt has: by then the prompt is in the cache, and its pictures are
/// encoded.
struct Later {
    requests: Vec<Request>,
    turn: Turn,
    /// Kept until all are done.
    _place: Place,
    asked: Asked,
}

/// How all answers are read.
#[derive(Clone)]
pub(super) struct Asked {
    pub(super) model: Arc<ChatModel>,
    pub(super) reading: Reading,
}

impl Asked {
    fn answer(&self, turn: &Turn, request: Request) -> Result<State, Refused> {
        let length = request.prompt.tokens.len();
        let events = turn.submit(request)?;
        Ok(State::Open(Box::new(Answer::new(events, &self.model.text, length, self.reading.clone()))))
    }
}

impl Answers {
    /// Submits requests for answers, one at least `now`, and those of `later` when one of the first has begun.
    ///
    /// # Errors
    /// When the engine takes none.
    pub(super) fn submit(
        place: Place,
        mut now: Vec<Request>,
        mut later: Vec<Request>,
        asked: Asked,
    ) -> Result<Self, Refused> {
        if now.len() == 1 && later.is_empty() {
            let first = now.pop().ok_or(Refused::Stopped)?;
            let length = first.prompt.tokens.len();
            let answer = Answer::new(place.submit(first)?, &asked.model.text, length, asked.reading);
            return Ok(Self { answers: vec![State::Open(Box::new(answer))], later: None, turn: 0 });
        }
        later.reverse();
        let turn = place.turn();
        let answers =
            now.into_iter().map(|request| asked.answer(&turn, request)).collect::<Result<_, _>>()?;
        let later = Some(Later { requests: later, turn, _place: place, asked });
        Ok(Self { answers, later, turn: 0 })
    }

    /// How many there will be.
    pub(in crate::api) fn count(&self) -> usize {
        self.answers.len() + self.later.as_ref().map_or(0, |later| later.requests.len())
    }

    /// The next step of any of them, and of which; [`None`] when all are complete. Dropping the future loses nothing.
    pub(in crate::api) async fn next(&mut self) -> Option<Result<(usize, AnswerEvent), EngineError>> {
        let count = self.answers.len();
        let first = self.turn;
        let step = {
            let mut waiting: Vec<_> = self
                .answers
                .iter_mut()
                .enumerate()
                .filter_map(|(index, state)| match state {
                    State::Open(answer) => Some((index, Box::pin(answer.next()))),
                    State::Done { .. } => None,
                })
                .collect();
            if waiting.is_empty() {
                return None;
            }
            waiting.sort_by_key(|(index, _)| (index + count - first) % count);
            let mut any = pin!(poll_fn(|context| {
                for (index, answer) in &mut waiting {
                    if let Poll::Ready(step) = answer.as_mut().poll(context) {
                        return Poll::Ready((*index, step));
                    }
                }
                Poll::Pending
            }));
            any.as_mut().await
        };
        let (index, step) = step;
        self.turn = (index + 1) % count;
        let event = match step {
            Ok(event) => event,
            Err(error) => return Some(Err(error)),
        };
        if let (AnswerEvent::Finished(..), State::Open(answer)) = (&event, &self.answers[index]) {
            let stopped_by = answer.stopped_by().map(str::to_owned);
            self.answers[index] = State::Done { called: answer.called(), stopped_by };
        }
        if let Err(refused) = self.begin_others() {
            debug_assert_eq!(refused, Refused::Stopped, "a place in the queue was kept");
            return Some(Err(EngineError::Stopped));
        }
        Some(Ok((index, event)))
    }

    /// Whether an answer called functions.
    pub(in crate::api) fn called(&self, index: usize) -> bool {
        match &self.answers[index] {
            State::Open(answer) => answer.called(),
            State::Done { called, .. } => *called,
        }
    }

    /// The stop text that ended an answer, if one did.
    pub(in crate::api) fn stopped_by(&self, index: usize) -> Option<&str> {
        match &self.answers[index] {
            State::Open(answer) => answer.stopped_by(),
            State::Done { stopped_by, .. } => stopped_by.as_deref(),
        }
    }

    /// Waits until the engine has begun with the first answer, and tells what is known of its usage then. Called before
    /// [`Answers::next`], if at all.
    ///
    /// # Errors
    /// When the engine fails.
    pub(in crate::api) async fn started(&mut self) -> Result<Usage, EngineError> {
        match self.answers.first_mut() {
            Some(State::Open(answer)) => answer.started().await,
            _ => Err(EngineError::Stopped),
        }
    }

    fn begin_others(&mut self) -> Result<(), Refused> {
        let Some(later) = &mut self.later else { return Ok(()) };
        while let Some(request) = later.requests.pop() {
            self.answers.push(later.asked.answer(&later.turn, request)?);
        }
        if self.answers.iter().all(|state| matches!(state, State::Done { .. })) {
            self.later = None;
        }
        Ok(())
    }
}
