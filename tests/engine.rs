//! The engine with a network that fails on demand: one request's fault is its own.
#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::{
    sync::{Arc, Mutex, atomic::Ordering::Relaxed},
    time::Duration,
};

use futures_util::future::join_all;
use percept::{
    engine::{self, EngineConfig, EngineError, Event, Events, FinishReason, Handle, Key, Limits, Refused},
    media::Picture,
    request::{self, Media, Prompt, Readout, Request, Sampling, Source, Span},
};
use serde_json::{Value, json};
use support::{
    fake::{
        Counts, ERROR, Faults, LATE, NAN, PANIC, PLACEHOLDER, ROWS, UNENCODED, UNPREPARED, config, fake,
        next, serve,
    },
    server,
};

fn slow_fake(slow: Duration) -> (percept_models::Loaded, Arc<Counts>) {
    fake(&Arc::new(Faults { slow, ..Faults::default() }))
}

fn start(slow: Duration) -> (Handle, Arc<Counts>) {
    let (loaded, counts) = slow_fake(slow);
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

/// All tokens of an answer, and how it ended.
async fn tokens_and_end(mut events: Events) -> (Vec<u32>, Event) {
    let mut tokens = Vec::new();
    loop {
        match events.next().await {
            Event::Token(drawn) => tokens.push(drawn.id),
            event if event.is_last() => return (tokens, event),
            _ => {}
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
async fn steps_begin_before_their_tokens_are_known() {
    let (handle, _) = start(Duration::ZERO);
    let before = handle.status().foreseen();
    assert_eq!(answer(handle.submit(request(&[5, 6], &[], 30)).unwrap()).await, Ok(expected(6, 30)));
    // All but that of the prompt.
    assert_eq!(handle.status().foreseen() - before, 29);
    let (loaded, _) = slow_fake(Duration::ZERO);
    let handle = engine::spawn(loaded, EngineConfig { look_ahead: false, ..config() }).unwrap();
    assert_eq!(answer(handle.submit(request(&[5, 6], &[], 30)).unwrap()).await, Ok(expected(6, 30)));
    assert_eq!(handle.status().foreseen(), 0);
}

/// A step that fails does so for the sequence that it must fail for, when its turn comes, also where it had begun before:
/// whoever waits for other tokens, this one's too, gets them.
#[tokio::test]
async fn a_fault_in_the_middle_of_an_answer_comes_behind_its_tokens() {
    for fault in [ERROR, PANIC, NAN] {
        for look_ahead in [false, true] {
            let says = vec![10, 11, 12, fault, 13, 14];
            let faults = Faults { script: Mutex::new(Some((1, says.clone()))), ..Faults::default() };
            let (loaded, _) = fake(&Arc::new(faults));
            let handle = engine::spawn(loaded, EngineConfig { look_ahead, ..config() }).unwrap();
            let answers = (2..9).map(|most| tokens_and_end(handle.submit(request(&[5], &[], most)).unwrap()));
            for (most, (tokens, end)) in (2..9).zip(join_all(answers).await) {
                let what = format!("{most} tokens, {fault}, {look_ahead}");
                assert_eq!(tokens, says[..most.min(4)], "{what}");
                let kind = if fault == NAN { EngineError::NotFinite } else { EngineError::Step };
                match end {
                    Event::Finished { .. } => assert!(most <= 4, "{what}"),
                    end => assert!(most > 4 && end == Event::Failed(kind), "{what}: {end:?}"),
                }
            }
            assert_eq!(handle.status().pages().0, 0);
            assert_eq!(handle.status().restarts(), 0);
            assert_eq!(handle.status().foreseen() > 0, look_ahead);
        }
    }
}

/// Answers of all lengths, some of which end by themselves and some whose client leaves, are the same with and without.
#[tokio::test]
async fn company_that_comes_and_goes_changes_nothing() {
    let stops: Arc<[u32]> = (100..458).step_by(40).flat_map(|id| id..id + 3).collect();
    let mut all = Vec::new();
    for look_ahead in [false, true] {
        let limits = Limits { sequences: 5, rows: 20, chunk: 7, ..config().limits };
        let faults = Arc::new(Faults::default());
        let (loaded, _) = fake(&faults);
        let config = EngineConfig { limits, pages: 16, look_ahead, ..config() };
        let handle = engine::spawn(loaded, config).unwrap();
        // All of them are there before the second step.
        faults.hold(true);
        let answers = (0..60u32).map(|index| {
            let prompt: Vec<u32> = (0..1 + index % 9).map(|row| (index * 37 + row) % 400).collect();
            let mut request = request(&prompt, &[], 1 + (index * 7 % 40) as usize);
            request.limits.stops = Arc::clone(&stops);
            if index % 5 == 3 {
                request.sampling.temperature = 1.0;
                request.sampling.frequency_penalty = 0.4;
                request.sampling.logprobs = Some(2);
                request.sampling.seed = u64::from(index);
            }
            let mut events = handle.submit(request).unwrap();
            async move {
                if index % 7 == 4 {
                    events.next().await;
                    return (Vec::new(), None);
                }
                let (tokens, end) = tokens_and_end(events).await;
                (tokens, Some(end))
            }
        });
        let answers: Vec<_> = answers.collect();
        faults.hold(false);
        all.push(join_all(answers).await);
        while handle.status().running() > 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        assert_eq!(handle.status().pages().0, 0);
        assert_eq!(handle.status().foreseen() > 0, look_ahead);
        assert!(handle.status().preemptions() > 0);
    }
    assert_eq!(all[0], all[1]);
    let ended = |(_, end): &&(Vec<u32>, Option<Event>)| {
        matches!(end, Some(Event::Finished { reason: FinishReason::Stop, .. }))
    };
    assert!(all[0].iter().filter(ended).count() > 3);
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
    let (loaded, _) = slow_fake(Duration::ZERO);
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
    let (loaded, _) = slow_fake(Duration::from_millis(2));
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

#[tokio::test]
async fn a_failure_reaches_the_client_in_the_shape_of_the_api() {
    let server = serve(&Arc::default()).await;
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
