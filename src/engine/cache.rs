//! The encoder cache: rows of media that were encoded, found by the hash of the file they came from.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use candle_core::Tensor;

use super::pages::Key;

/// What the asynchronous side may ask of the cache: whether something is there. It never touches a tensor.
#[derive(Debug, Clone)]
pub(super) struct Index {
    entries: Arc<Mutex<Entries>>,
    /// Most rows that pins may hold.
    most: usize,
}

#[derive(Debug, Default)]
struct Entries {
    known: HashMap<Key, Arc<Entry>>,
    /// Rows held by pins, which the scheduler does not know of; an entry with several pins counts once.
    pinned: usize,
}

#[derive(Debug)]
struct Entry {
    rows: usize,
    /// Changed under the lock of [`Entries`] only.
    pins: AtomicUsize,
}

/// Keeps an entry of the cache from being thrown out.
#[derive(Debug)]
pub struct Pin {
    /// Always there, until it is dropped.
    entry: Option<Arc<Entry>>,
    entries: Arc<Mutex<Entries>>,
}

impl Drop for Pin {
    fn drop(&mut self) {
        // The holder goes under the lock: whoever finds rows unpinned finds them free.
        let mut entries = lock(&self.entries);
        let Some(entry) = self.entry.take() else { return };
        if entry.pins.fetch_sub(1, Ordering::Relaxed) == 1 {
            entries.pinned -= entry.rows;
        }
        drop(entry);
    }
}

impl Index {
    fn new(most: usize) -> Self {
        Self { entries: Arc::default(), most }
    }

    /// Finds an entry and keeps it. `None` also when pins hold as much as they may: encode it again then.
    pub(super) fn pin(&self, key: &Key) -> Option<Pin> {
        let mut entries = lock(&self.entries);
        let entry = Arc::clone(entries.known.get(key)?);
        if entry.pins.load(Ordering::Relaxed) == 0 {
            if entries.pinned + entry.rows > self.most {
                return None;
            }
            entries.pinned += entry.rows;
        }
        entry.pins.fetch_add(1, Ordering::Relaxed);
        Some(Pin { entry: Some(entry), entries: Arc::clone(&self.entries) })
    }
}

fn lock(entries: &Mutex<Entries>) -> MutexGuard<'_, Entries> {
    // The map is whole at every point where a holder could panic.
    entries.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The engine's side: the tensors. The scheduler sees to it that running sequences hold no more than they may, and
/// pins hold at most what is spare.
#[derive(Debug)]
pub(super) struct EncoderCache {
    index: Index,
    rows: HashMap<Key, Rows>,
    capacity: usize,
    held: usize,
    clock: u64,
}

#[derive(Debug)]
struct Rows {
    tensor: Tensor,
    count: usize,
    used: u64,
}

/// The rows of a medium. They stay in the cache, and so in its count, as long as this lives.
#[derive(Debug)]
pub(super) struct Encoded {
    /// `[rows, width]`.
    pub(super) rows: Tensor,
    /// Held, never read: the cache counts the holders.
    _entry: Arc<Entry>,
}

impl EncoderCache {
    /// An empty cache for `running` rows of sequences that run and `spare` rows besides.
    pub(super) fn new(running: usize, spare: usize) -> Self {
        let capacity = running + spare;
        Self { index: Index::new(spare), rows: HashMap::new(), capacity, held: 0, clock: 0 }
    }

    /// What the asynchronous side sees.
    pub(super) fn index(&self) -> &Index {
        &self.index
    }

    /// The rows of a medium, if they are there.
    pub(super) fn get(&mut self, key: &Key) -> Option<Encoded> {
        self.clock += 1;
        let rows = self.rows.get_mut(key)?;
        rows.used = self.clock;
        let entry = Arc::clone(lock(&self.index.entries).known.get(key)?);
        Some(Encoded { rows: rows.tensor.clone(), _entry: entry })
    }

    /// Adds rows, throwing out what was not used for longest. What does not fit is not kept.
    pub(super) fn insert(&mut self, key: Key, tensor: Tensor) {
        let Ok(count) = tensor.dim(0) else { return };
        if self.rows.contains_key(&key) || !self.make_room(count) {
            return;
        }
        self.clock += 1;
        self.held += count;
        self.rows.insert(key, Rows { tensor, count, used: self.clock });
        lock(&self.index.entries)
            .known
            .insert(key, Arc::new(Entry { rows: count, pins: AtomicUsize::new(0) }));
    }

    /// Forgets all rows. Who has some keeps them.
    pub(super) fn clear(&mut self) {
        lock(&self.index.entries).known.clear();
        self.rows.clear();
        self.held = 0;
    }

    fn make_room(&mut self, count: usize) -> bool {
        let known = &mut lock(&self.index.entries).known;
        while self.held + count > self.capacity {
            let is_free = |key: &Key| known.get(key).is_none_or(|entry| Arc::strong_count(entry) == 1);
            let oldest = self.rows.iter().filter(|(key, _)| is_free(key)).min_by_key(|(_, rows)| rows.used);
            let Some(key) = oldest.map(|(key, _)| *key) else { return false };
            known.remove(&key);
            if let Some(rows) = self.rows.remove(&key) {
                self.held -= rows.count;
            }
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};

    use super::*;

    fn rows(count: usize) -> Tensor {
        Tensor::zeros((count, 2), DType::F32, &Device::Cpu).unwrap()
    }

    #[test]
    fn the_least_used_goes_first_and_the_pinned_stays() {
        let mut cache = EncoderCache::new(5, 5);
        let index = cache.index().clone();
        let [a, b, c] = [b"a", b"b", b"c"].map(|name| Key::of(name));
        cache.insert(a, rows(4));
        cache.insert(b, rows(4));
        let held = cache.get(&a).unwrap();
        let pin = index.pin(&a).unwrap();
        drop(held);
        cache.get(&b);
        cache.insert(c, rows(4));
        assert!(cache.get(&a).is_some(), "a is pinned, though it was not used for longest");
        assert!(cache.get(&b).is_none() && cache.get(&c).is_some());
        assert!(index.pin(&b).is_none());
        drop(pin);
        cache.insert(b, rows(8));
        assert!(cache.get(&a).is_none() && cache.get(&c).is_none() && cache.get(&b).is_some());
    }

    #[test]
    fn pins_hold_no_more_than_is_spare() {
        let mut cache = EncoderCache::new(5, 5);
        let index = cache.index().clone();
        let [a, b] = [b"a", b"b"].map(|name| Key::of(name));
        cache.insert(a, rows(3));
        cache.insert(b, rows(3));
        let pins = [index.pin(&a), index.pin(&a)];
        assert!(pins.iter().all(Option::is_some), "the same rows count once");
        assert!(index.pin(&b).is_none());
        let [first, second] = pins;
        drop(first);
        assert!(index.pin(&b).is_none());
        drop(second);
        assert!(index.pin(&b).is_some());
    }
}
