//! Batch invariance: the same tokens alone, batched, in chunks, short of pages, and with warm caches.
#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::sync::Arc;

use candle_core::DType;
use futures_util::future::join_all;
use percept::{
    engine::{self, EngineConfig, Handle, Limits},
    request::{self, Prompt, Readout, Request, Sampling, Span},
};
use support::{
    Case, Golden,
    answers::{self, answer, media},
    llava, load,
};

const CONTEXT: usize = 4096;
const VOCABULARY: usize = 482;
const END: u32 = 2;

fn roomy() -> EngineConfig {
    answers::roomy(CONTEXT, VOCABULARY)
}

fn start(config: EngineConfig, fit: percept_models::Fit) -> Handle {
    engine::spawn(load(llava(), DType::F32, Some(fit)), config).unwrap()
}

fn request(case: &Case, sampling: Sampling) -> Request {
    let spans = case.image_spans.iter().map(|&(start, length)| Span::line(start..start + length));
    Request {
        prompt: Prompt { tokens: case.ids(), spans: spans.collect() },
        media: media(case),
        sampling,
        limits: request::Limits { tokens: 12, stops: Arc::new([END]) },
        readout: Readout::Answer,
        constraint: None,
    }
}

fn cases(golden: &Golden, fit: percept_models::Fit) -> Vec<&Case> {
    golden.prompts().filter(|case| case.fit() == fit).collect()
}

/// All cases at once, each compared with the reference.
async fn check(handle: &Handle, cases: &[&Case]) {
    let answers = join_all(cases.iter().map(|case| answer(handle, request(case, Sampling::greedy())))).await;
    for (case, tokens) in cases.iter().zip(answers) {
        let expected = case.greedy_tokens.strip_suffix(&[END]).unwrap_or(&case.greedy_tokens);
        assert_eq!(tokens, expected, "{}", case.name);
    }
}

const FITS: [percept_models::Fit; 2] = [percept_models::Fit::Crop, percept_models::Fit::Pad];

#[tokio::test]
async fn alone() {
    let golden = Golden::read("llava");
    for fit in FITS {
        let cases = cases(&golden, fit);
        for case in &cases {
            check(&start(roomy(), fit), &[case]).await;
        }
    }
}

#[tokio::test]
async fn batched_and_with_warm_caches() {
    let golden = Golden::read("llava");
    for fit in FITS {
        let handle = start(roomy(), fit);
        let cases = cases(&golden, fit);
        let many: Vec<&Case> = cases.iter().cycle().take(4 * cases.len()).copied().collect();
        check(&handle, &many).await;
        check(&handle, &cases).await;
    }
}

#[tokio::test]
async fn in_chunks_of_seven_rows_and_of_one() {
    let golden = Golden::read("llava");
    for chunk in [7, 1] {
        for fit in FITS {
            let config = EngineConfig { limits: Limits { chunk, ..roomy().limits }, ..roomy() };
            check(&start(config, fit), &cases(&golden, fit)).await;
        }
    }
}

#[tokio::test]
async fn short_of_pages() {
    let golden = Golden::read("llava");
    let cases = cases(&golden, percept_models::Fit::Crop);
    for (page_size, pages) in [(4, 25), (2, 49), (1, 98)] {
        let config = EngineConfig { page_size, pages, ..roomy() };
        let handle = start(config, percept_models::Fit::Crop);
        let many: Vec<&Case> = cases.iter().cycle().take(3 * cases.len()).copied().collect();
        check(&handle, &many).await;
        assert!(handle.status().preemptions() > 0, "pages were not short: {page_size} {pages}");
        assert_eq!(handle.status().pages().0, 0);
    }
}

#[tokio::test]
async fn a_seed_gives_the_same_text_in_any_company() {
    let golden = Golden::read("llava");
    let cases = cases(&golden, percept_models::Fit::Crop);
    let sampling = |seed| Sampling { temperature: 1.0, top_p: 0.95, seed, ..Sampling::greedy() };
    let alone = start(roomy(), percept_models::Fit::Crop);
    let mut expected = Vec::new();
    for case in &cases {
        expected.push(answer(&alone, request(case, sampling(7))).await);
    }
    let other = answer(&alone, request(cases[0], sampling(8))).await;
    assert_ne!(other, expected[0], "another seed, the same text");
    for chunk in [4096, 7] {
        let config = EngineConfig { limits: Limits { chunk, ..roomy().limits }, pages: 40, ..roomy() };
        let handle = start(config, percept_models::Fit::Crop);
        let strangers = cases.iter().map(|case| answer(&handle, request(case, sampling(99))));
        let ours = cases.iter().map(|case| answer(&handle, request(case, sampling(7))));
        let (_, ours) = tokio::join!(join_all(strangers), join_all(ours));
        assert_eq!(ours, expected);
    }
}

#[tokio::test]
async fn whoever_leaves_frees_its_pages_within_a_step() {
    let golden = Golden::read("llava");
    let cases = cases(&golden, percept_models::Fit::Crop);
    let handle = start(roomy(), percept_models::Fit::Crop);
    let endless = |case| Request {
        limits: request::Limits { tokens: 3000, stops: Arc::new([]) },
        ..request(case, Sampling::greedy())
    };
    let mut events = handle.submit(endless(cases[0])).unwrap();
    let mut others = handle.submit(endless(cases[1])).unwrap();
    for _ in 0..3 {
        events.next().await;
        others.next().await;
    }
    drop(events);
    // The other goes on; the next step that it sees has begun after the departure.
    let steps = handle.status().steps();
    while handle.status().steps() < steps + 2 {
        others.next().await;
    }
    assert_eq!(handle.status().running(), 1);
}
