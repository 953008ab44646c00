//! What a step costs before any arithmetic: planning, bookkeeping, page keys.
//!
//! `cargo bench --bench scheduler`
#![allow(missing_docs, clippy::unwrap_used, reason = "a benchmark")]

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use criterion::{Criterion, criterion_group, criterion_main};
use percept::engine::{Limits, Scheduler, SeqId, Sequence};

const SEQUENCES: usize = 256;
const PROMPT: usize = 700;
const PAGE: usize = 16;
const CONTEXT: usize = 4096;

/// 256 sequences whose prompts are computed, all different.
fn decoding() -> Scheduler {
    let limits = Limits { sequences: SEQUENCES, rows: 8192, chunk: 8192, encoded: 0, spare: 0, encode: 0 };
    let mut scheduler = Scheduler::new(limits, SEQUENCES * CONTEXT / PAGE, PAGE);
    for id in 0..SEQUENCES as u64 {
        let prompt = (0..PROMPT as u32).map(|token| token + id as u32).collect();
        scheduler.submit(Sequence::new(SeqId(id), prompt, Vec::new(), CONTEXT, Arc::new([])));
    }
    while scheduler.names().any(|id| scheduler.sequence(id).is_none_or(|sequence| !sequence.decodes())) {
        step(&mut scheduler);
    }
    scheduler
}

fn step(scheduler: &mut Scheduler) {
    let plan = scheduler.schedule();
    let drawn = plan.parts.iter().filter(|part| scheduler.draws(**part)).count();
    scheduler.complete(&plan.parts, std::iter::repeat_n(Some(7), drawn));
}

fn scheduler(criterion: &mut Criterion) {
    criterion.bench_function("step, 256 sequences decoding", |bencher| {
        bencher.iter_custom(|steps| {
            let mut elapsed = Duration::ZERO;
            let mut left = steps;
            while left > 0 {
                // Before the first sequence is complete.
                let some = left.min((CONTEXT - PROMPT) as u64 / 2);
                let mut scheduler = decoding();
                let start = Instant::now();
                for _ in 0..some {
                    step(&mut scheduler);
                }
                elapsed += start.elapsed();
                left -= some;
            }
            elapsed
        });
    });
    criterion.bench_function("admission of a prompt of 700 tokens beside 255", |bencher| {
        bencher.iter_custom(|steps| {
            let mut elapsed = Duration::ZERO;
            let mut scheduler = decoding();
            for number in 0..steps {
                let oldest = scheduler.names().next().unwrap();
                scheduler.remove(oldest);
                let id = SEQUENCES as u64 + number;
                let prompt = (0..PROMPT as u32).map(|token| token + 7 * id as u32).collect();
                let sequence = Sequence::new(SeqId(id), prompt, Vec::new(), CONTEXT, Arc::new([]));
                let start = Instant::now();
                scheduler.submit(sequence);
                step(&mut scheduler);
                elapsed += start.elapsed();
            }
            elapsed
        });
    });
}

criterion_group!(benches, scheduler);
criterion_main!(benches);
