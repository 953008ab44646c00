//! Where lines wait that were refused: one of them finds out when there is room again, and the others come after it, more
//! of them with each one that is let in. Each try takes a place and is counted; as many as there are lines would only be
//! refused again.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    sync::Notify,
    time::{Instant, sleep_until},
};

/// A gate that so many may pass at once needs none.
const WIDE: usize = 32;

/// Gates of tenants, one for each model: what is refused for a full queue has nothing to do with other models.
#[derive(Debug, Default)]
pub(super) struct Gates(Mutex<HashMap<Key, Arc<Gate>>>);

/// A tenant and a model.
type Key = (Option<String>, String);

/// Stands open until a line is refused.
#[derive(Debug, Default)]
pub(super) struct Gate {
    closed: Mutex<Option<Closed>>,
    changed: Notify,
}

/// A gate that is not open.
#[derive(Debug)]
struct Closed {
    /// When the next try makes sense.
    until: Instant,
    /// Lines that have passed since it was closed, and have no outcome.
    within: usize,
    /// Most of them.
    most: usize,
}

/// The turn of a line at a gate that is closed. It is given up when this is dropped.
#[derive(Debug)]
pub(super) struct Turn(Arc<Gate>);

impl Gates {
    /// The gate of a tenant and a model. There are as many as there are of both, for models that are served only.
    pub(super) fn of(&self, tenant: Option<&str>, model: &str) -> Arc<Gate> {
        let mut gates = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(gates.entry((tenant.map(str::to_owned), model.to_owned())).or_default())
    }
}

impl Gate {
    /// Waits until a line may try; with a turn, where the gate is closed.
    pub(super) async fn pass(self: &Arc<Self>) -> Option<Turn> {
        loop {
            // From here on it hears of changes.
            let changed = self.changed.notified();
            let until = {
                let mut closed = self.closed();
                let closed = closed.as_mut()?;
                let is_full = closed.within >= closed.most;
                if !is_full && closed.until <= Instant::now() {
                    closed.within += 1;
                    return Some(Turn(Arc::clone(self)));
                }
                (!is_full).then_some(closed.until)
            };
            match until {
                Some(until) => tokio::select! {
                    () = changed => {}
                    () = sleep_until(until) => {}
                },
                None => changed.await,
            }
        }
    }

    pub(super) fn is_closed(&self) -> bool {
        self.closed().is_some()
    }

    /// A line was refused, which had this turn if the gate was closed: another try makes sense after `wait`, of one line
    /// besides those that were let in.
    pub(super) fn refuse(&self, turn: Option<Turn>, wait: Duration) {
        drop(turn);
        let mut closed = self.closed();
        let within = closed.as_ref().map_or(0, |closed| closed.within);
        *closed = Some(Closed { until: Instant::now() + wait, within, most: within + 1 });
        drop(closed);
        self.changed.notify_waiters();
    }

    fn closed(&self) -> MutexGuard<'_, Option<Closed>> {
        // It is whole at every point where a holder could panic.
        self.closed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Turn {
    /// It was let in: one more may be within.
    pub(super) fn succeed(self) {
        let mut closed = self.0.closed();
        if let Some(found) = &mut *closed {
            found.most += 1;
            if found.most > WIDE {
                *closed = None;
            }
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        if let Some(closed) = &mut *self.0.closed() {
            closed.within = closed.within.saturating_sub(1);
        }
        self.0.changed.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

    use tokio::{task::JoinSet, time::sleep};

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// A limit that lets one in each second.
    struct Limit {
        next: Mutex<Instant>,
        refused: AtomicUsize,
    }

    impl Limit {
        fn ask(&self) -> Result<(), Duration> {
            let mut next = self.next.lock().unwrap();
            let now = Instant::now();
            if now < *next {
                self.refused.fetch_add(1, Relaxed);
                return Err(*next - now);
            }
            *next = now + SECOND;
            Ok(())
        }
    }

    #[tokio::test(start_paused = true)]
    async fn few_are_refused_though_many_wait() {
        let began = Instant::now();
        let limit = Arc::new(Limit { next: Mutex::new(began), refused: AtomicUsize::new(0) });
        let gate = Arc::new(Gate::default());
        let mut lines = JoinSet::new();
        for _ in 0..50 {
            let (gate, limit) = (Arc::clone(&gate), Arc::clone(&limit));
            lines.spawn(async move {
                loop {
                    let turn = gate.pass().await;
                    if let Err(wait) = limit.ask() {
                        gate.refuse(turn, wait);
                        continue;
                    }
                    sleep(SECOND / 10).await;
                    return turn.into_iter().for_each(Turn::succeed);
                }
            });
        }
        while lines.join_next().await.is_some() {}
        // No second is lost. All but one are refused once; then it is one or two for each that is let in, and not all.
        assert!(began.elapsed() < 50 * SECOND, "{:?}", began.elapsed());
        let refused = limit.refused.load(Relaxed);
        assert!((49..49 + 2 * 50).contains(&refused), "{refused} were refused");
    }

    #[tokio::test(start_paused = true)]
    async fn one_tries_until_one_is_let_in_and_whoever_leaves_makes_room() {
        let gate = Arc::new(Gate::default());
        assert!(gate.pass().await.is_none(), "it does not stand open");
        gate.refuse(None, SECOND);
        let began = Instant::now();
        let turn = gate.pass().await;
        assert!(turn.is_some() && began.elapsed() >= SECOND);
        let waits = async |gate: &Arc<Gate>| tokio::time::timeout(9 * SECOND, gate.pass()).await.is_err();
        assert!(waits(&gate).await, "two try at once");
        drop(turn);
        let turn = gate.pass().await.unwrap();
        turn.succeed();
        let turns = [gate.pass().await, gate.pass().await];
        assert!(waits(&gate).await, "the gate is wider than it should be");
        // Those that are within go on: one more may try.
        let [first, second] = turns;
        gate.refuse(first, SECOND);
        let third = gate.pass().await;
        assert!(waits(&gate).await, "two try at once");
        drop((second, third));
        for _ in 0..WIDE {
            gate.pass().await.into_iter().for_each(Turn::succeed);
        }
        assert!(!gate.is_closed(), "it stays closed");
    }

    #[test]
    fn models_and_tenants_have_gates_of_their_own() {
        let gates = Gates::default();
        gates.of(Some("a"), "one").refuse(None, SECOND);
        let closed = [(Some("a"), "one"), (Some("a"), "two"), (Some("b"), "one"), (None, "one")]
            .map(|(tenant, model)| gates.of(tenant, model).is_closed());
        assert_eq!(closed, [true, false, false, false]);
    }
}
