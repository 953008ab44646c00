//! When requests are sent: so many at once, or so many a second. Knows neither servers nor what is asked.

use std::{
    future::{Future, pending},
    sync::Arc,
    time::Duration,
};

use rand::{RngExt as _, SeedableRng as _};
use rand_pcg::Pcg64;
use serde::{Deserialize, Serialize};
use tokio::{
    sync::watch,
    task::JoinSet,
    time::{Instant, sleep, sleep_until},
};

use super::client::{Failure, Outcome};

/// Longest pause behind a request that failed, and the one where the server names none. Without it, a server that
/// refuses at once would be asked as fast as a machine can.
const PAUSE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_millis(100));

/// How requests follow each other.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Load {
    /// So many at once: each client asks again when it has its answer.
    Closed {
        /// Clients.
        concurrency: usize,
    },
    /// So many a second, whether earlier ones are answered or not.
    Open {
        /// Requests per second.
        rate: f64,
        /// How they are spread.
        arrivals: Arrivals,
    },
}

/// How requests of an open loop are spread.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Arrivals {
    /// One like the other.
    Even,
    /// As if from many people who do not know of each other.
    Poisson,
}

/// When a level ends. What was begun until then is finished.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Until {
    /// After so many requests.
    Requests(u64),
    /// After so long.
    Elapsed(Duration),
}

/// A level of load.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Round {
    /// How requests follow each other.
    pub load: Load,
    /// When it ends.
    pub until: Until,
    /// The number of its first request.
    pub first: u64,
    /// Of random arrivals.
    pub seed: u64,
}

/// What requests are sent to.
pub trait Target: Send + Sync + 'static {
    /// A request that is ready to be sent.
    type Request: Send;

    /// Makes a request. Takes its time before that of the request begins.
    fn prepare(&self, index: u64) -> Self::Request;

    /// Sends it; all times count from `start`.
    fn send(&self, request: Self::Request, start: Instant) -> impl Future<Output = Outcome> + Send;
}

/// How a level went, besides its requests.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Ran {
    /// When the first request was meant to be sent.
    pub started: Instant,
    /// When the last one ended.
    pub ended: Instant,
    /// Requests that were begun.
    pub begun: u64,
    /// Those that were given up because somebody stopped it.
    pub cut_off: u64,
}

/// Sends the requests of a level; tells `record` of each that ends. Where `stop` becomes true, requests that run are
/// given up.
pub async fn run<T: Target>(
    target: &Arc<T>,
    round: Round,
    stop: watch::Receiver<bool>,
    record: impl FnMut(&Outcome),
) -> Ran {
    let Round { load, until, first, seed } = round;
    let now = Instant::now();
    let mut level = Level {
        first,
        ran: Ran { started: now, ended: now, begun: 0, cut_off: 0 },
        running: JoinSet::new(),
        until,
        record,
    };
    match load {
        Load::Closed { concurrency } => level.closed(target, concurrency.max(1), stop).await,
        Load::Open { rate, arrivals } => {
            level.open(target, Times::new(rate, arrivals, seed), stop).await;
        }
    }
    level.ran
}

struct Level<R> {
    first: u64,
    ran: Ran,
    running: JoinSet<Outcome>,
    until: Until,
    record: R,
}

impl<R: FnMut(&Outcome)> Level<R> {
    async fn closed<T: Target>(
        &mut self,
        target: &Arc<T>,
        concurrency: usize,
        mut stop: watch::Receiver<bool>,
    ) {
        loop {
            while self.running.len() < concurrency && self.more(Instant::now()) {
                let (index, target) = (self.next(), Arc::clone(target));
                self.running.spawn(async move {
                    let request = target.prepare(index);
                    let outcome = target.send(request, Instant::now()).await;
                    if let Err(failure) = &outcome.result {
                        sleep(pause(failure)).await;
                    }
                    outcome
                });
            }
            if self.running.is_empty() || !self.wait(&mut stop, pending()).await {
                return;
            }
        }
    }

    async fn open<T: Target>(&mut self, target: &Arc<T>, times: Times, mut stop: watch::Receiver<bool>) {
        let begin = self.ran.started;
        for at in times {
            let start = begin + at;
            if !self.more(start) {
                break;
            }
            let target = Arc::clone(target);
            let request = target.prepare(self.first + self.ran.begun);
            while Instant::now() < start {
                if !self.wait(&mut stop, sleep_until(start)).await {
                    return;
                }
            }
            // One that was stopped before its time was not begun.
            self.next();
            self.running.spawn(async move { target.send(request, start).await });
            if *stop.borrow() {
                break;
            }
        }
        while !self.running.is_empty() {
            if !self.wait(&mut stop, pending()).await {
                return;
            }
        }
    }

    fn more(&self, at: Instant) -> bool {
        match self.until {
            Until::Requests(requests) => self.ran.begun < requests,
            Until::Elapsed(time) => at < self.ran.started + time,
        }
    }

    fn next(&mut self) -> u64 {
        self.ran.begun += 1;
        self.first + self.ran.begun - 1
    }

    /// Waits for a request to end or for `enough`; false when it was stopped, and then nothing runs.
    async fn wait(&mut self, stop: &mut watch::Receiver<bool>, enough: impl Future<Output = ()>) -> bool {
        let stopped = async {
            // Who cannot stop any more never does.
            if stop.wait_for(|stop| *stop).await.is_err() {
                pending::<()>().await;
            }
        };
        tokio::select! {
            Some(outcome) = self.running.join_next() => self.ended(outcome.ok()),
            () = enough => {}
            () = stopped => {
                // What has ended counts, and what has not is given up.
                while let Some(outcome) = self.running.try_join_next() {
                    self.ended(outcome.ok());
                }
                self.ran.cut_off = self.running.len() as u64;
                self.ran.ended = self.ran.ended.max(Instant::now());
                self.running.shutdown().await;
                return false;
            }
        }
        true
    }

    fn ended(&mut self, outcome: Option<Outcome>) {
        // A task that panicked has no outcome, and has said why.
        if let Some(outcome) = outcome {
            self.ran.ended = self.ran.ended.max(outcome.end);
            (self.record)(&outcome);
        }
    }
}

/// How long a client waits after a failure.
fn pause(failure: &Failure) -> Duration {
    match failure {
        Failure::Busy { again: Some(again), .. } => (*again).min(PAUSE.0),
        _ => PAUSE.1,
    }
}

/// When requests of an open loop are meant to be sent, from its start on.
struct Times {
    rate: f64,
    arrivals: Arrivals,
    draws: Pcg64,
    sent: u64,
    last: f64,
}

impl Times {
    fn new(rate: f64, arrivals: Arrivals, seed: u64) -> Self {
        Self { rate, arrivals, draws: Pcg64::seed_from_u64(seed), sent: 0, last: 0.0 }
    }
}

impl Iterator for Times {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        let at = match self.arrivals {
            // Not a sum, which would drift.
            Arrivals::Even => self.sent as f64 / self.rate,
            Arrivals::Poisson => {
                // Between requests that do not know of each other lies an exponentially distributed time.
                let draw: f64 = self.draws.random();
                if self.sent > 0 {
                    self.last -= (1.0 - draw).ln() / self.rate;
                }
                self.last
            }
        };
        self.sent += 1;
        Duration::try_from_secs_f64(at).ok()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

    use super::*;
    use crate::bench::client::{Answer, Work};

    const SECOND: Duration = Duration::from_secs(1);

    /// A server in virtual time that works on so many requests at once, the earliest first.
    struct Scripted {
        takes: Duration,
        places: tokio::sync::Semaphore,
        now: AtomicUsize,
        most: AtomicUsize,
        result: Result<Answer, Failure>,
    }

    impl Scripted {
        fn new(takes: Duration, places: usize) -> Arc<Self> {
            Arc::new(Self {
                takes,
                places: tokio::sync::Semaphore::new(places),
                now: AtomicUsize::new(0),
                most: AtomicUsize::new(0),
                result: Ok(Answer::default()),
            })
        }
    }

    impl Target for Scripted {
        type Request = u64;

        fn prepare(&self, index: u64) -> u64 {
            index
        }

        async fn send(&self, index: u64, start: Instant) -> Outcome {
            let sent = Instant::now();
            let now = self.now.fetch_add(1, SeqCst) + 1;
            self.most.fetch_max(now, SeqCst);
            let place = self.places.acquire().await.unwrap();
            sleep(self.takes).await;
            drop(place);
            self.now.fetch_sub(1, SeqCst);
            let work = Work { pictures: index, sound: 0.0 };
            Outcome { start, sent, end: Instant::now(), work, result: self.result.clone() }
        }
    }

    async fn outcomes(target: &Arc<Scripted>, load: Load, until: Until) -> (Vec<Outcome>, Ran) {
        let (_stop, stopped) = watch::channel(false);
        let mut all = Vec::new();
        let ran = run(target, Round { load, until, first: 100, seed: 7 }, stopped, |outcome| {
            all.push(outcome.clone());
        })
        .await;
        all.sort_by_key(|outcome| outcome.work.pictures);
        (all, ran)
    }

    fn round(load: Load, requests: u64) -> Round {
        Round { load, until: Until::Requests(requests), first: 0, seed: 0 }
    }

    fn near(found: Duration, expected: Duration) {
        // Timers are exact to a millisecond, each.
        let apart = found.abs_diff(expected);
        assert!(apart <= Duration::from_millis(25), "{found:?} {expected:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn as_many_requests_run_at_once_as_there_are_clients() {
        let target = Scripted::new(SECOND, usize::MAX >> 4);
        let (all, ran) = outcomes(&target, Load::Closed { concurrency: 4 }, Until::Requests(10)).await;
        assert_eq!(target.most.load(SeqCst), 4);
        let numbers: Vec<u64> = all.iter().map(|outcome| outcome.work.pictures).collect();
        assert_eq!(numbers, (100..110).collect::<Vec<_>>());
        near(ran.ended - ran.started, 3 * SECOND);
        assert_eq!((ran.begun, ran.cut_off), (10, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_begun_in_time_is_finished() {
        let target = Scripted::new(3 * SECOND, 64);
        let (all, ran) = outcomes(&target, Load::Closed { concurrency: 2 }, Until::Elapsed(4 * SECOND)).await;
        assert_eq!(all.len(), 4);
        near(ran.ended - ran.started, 6 * SECOND);
        let load = Load::Open { rate: 2.0, arrivals: Arrivals::Even };
        let (all, ran) = outcomes(&target, load, Until::Elapsed(2 * SECOND)).await;
        assert_eq!(all.len(), 4, "at 0, 0.5, 1 and 1.5 s");
        near(ran.ended - ran.started, Duration::from_millis(4500));
    }

    /// Coordinated omission: who waits for a slow server before the next request does not see how late that is.
    #[tokio::test(start_paused = true)]
    async fn a_slow_server_is_not_flattered() {
        // Four requests a second to a server that does one.
        let target = Scripted::new(SECOND, 1);
        let load = Load::Open { rate: 4.0, arrivals: Arrivals::Even };
        let (all, _) = outcomes(&target, load, Until::Requests(20)).await;
        for (index, outcome) in all.iter().enumerate() {
            let index = index as u32;
            near(outcome.sent - outcome.start, Duration::ZERO);
            near(outcome.end - outcome.start, (index + 1) * SECOND - index * SECOND / 4);
        }
        // The same server seems to need a second, asked by one client.
        let (all, _) = outcomes(&target, Load::Closed { concurrency: 1 }, Until::Requests(5)).await;
        assert!(all.iter().all(|outcome| outcome.end - outcome.start < SECOND + SECOND / 2));
    }

    /// A target whose requests take long to make.
    struct Sluggish(Arc<Scripted>);

    impl Target for Sluggish {
        type Request = u64;

        fn prepare(&self, index: u64) -> u64 {
            index
        }

        async fn send(&self, index: u64, start: Instant) -> Outcome {
            sleep(SECOND).await;
            self.0.send(index, start).await
        }
    }

    #[tokio::test(start_paused = true)]
    async fn times_count_from_when_a_request_was_meant_to_be_sent() {
        let target = Arc::new(Sluggish(Scripted::new(SECOND, 64)));
        let (_stop, stopped) = watch::channel(false);
        let load = Load::Open { rate: 1.0, arrivals: Arrivals::Even };
        let mut all = Vec::new();
        run(&target, round(load, 3), stopped, |outcome| all.push(outcome.clone())).await;
        for outcome in all {
            near(outcome.sent - outcome.start, SECOND);
            near(outcome.end - outcome.start, 2 * SECOND);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_that_refuses_is_not_stormed() {
        let refusing = |failure| {
            let mut target = Scripted::new(Duration::ZERO, 64);
            Arc::get_mut(&mut target).unwrap().result = Err(failure);
            target
        };
        let again = |again| Failure::Busy { message: String::new(), again };
        for (failure, most) in [
            (Failure::Refused(String::new()), 100),
            (again(None), 100),
            (again(Some(Duration::from_millis(500))), 20),
            (again(Some(Duration::from_secs(3600))), 10),
        ] {
            let load = Load::Closed { concurrency: 1 };
            let (all, _) = outcomes(&refusing(failure), load, Until::Elapsed(10 * SECOND)).await;
            assert!(all.len() > most / 2 && all.len() <= most, "{} of {most}", all.len());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn stopping_gives_up_what_runs_and_keeps_what_is_done() {
        for load in [Load::Closed { concurrency: 3 }, Load::Open { rate: 3.0, arrivals: Arrivals::Even }] {
            let target = Scripted::new(SECOND, 64);
            let (stop, stopped) = watch::channel(false);
            let mut done = 0;
            let running = run(&target, round(load, 1000), stopped, |_| done += 1);
            let stopping = async {
                sleep(Duration::from_millis(2500)).await;
                stop.send(true).unwrap();
            };
            let (ran, ()) = tokio::join!(running, stopping);
            assert_eq!(ran.begun, done + ran.cut_off, "{load:?}");
            assert!(done >= 4 && ran.cut_off == 3, "{load:?}: {done} {}", ran.cut_off);
            near(ran.ended - ran.started, Duration::from_millis(2500));
        }
    }

    #[test]
    fn arrivals_are_as_random_as_they_should_be_and_the_same_for_a_seed() {
        let times = |seed| Times::new(5.0, Arrivals::Poisson, seed).take(20_000).collect::<Vec<_>>();
        let all = times(1);
        assert_eq!(all, times(1));
        assert_ne!(all, times(2));
        assert_eq!(all[0], Duration::ZERO);
        let gaps: Vec<f64> = all.windows(2).map(|pair| (pair[1] - pair[0]).as_secs_f64()).collect();
        let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
        let variance = gaps.iter().map(|gap| (gap - mean).powi(2)).sum::<f64>() / gaps.len() as f64;
        // An exponential distribution's deviation is its mean.
        assert!((mean - 0.2).abs() < 0.006 && (variance.sqrt() - 0.2).abs() < 0.012, "{mean} {variance}");
        let even: Vec<_> = Times::new(4.0, Arrivals::Even, 0).take(3).collect();
        assert_eq!(even, [0, 250, 500].map(Duration::from_millis));
    }
}
