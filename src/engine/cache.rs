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
    entries: Arc<Mutex<HashMap<Key, Arc<Entry>>>>,
    /// Rows held by pins, which the scheduler does not know of.
    pinned: Arc<AtomicUsize>,
    /// Most rows that pins may hold.
    most: usize,
}

#[derive(Debug)]
struct Entry {
    rows: usize,
}

/// Keeps an entry of the cache from being thrown out.
#[derive(Debug)]
pub struct Pin {
    /// Held, never read: the cache counts the holders.
    entry: Arc<Entry>,
    pinned: Arc<AtomicUsize>,
}

impl Drop for Pin {
    fn drop(&mut self) {
        self.pinned.fetch_sub(self.entry.rows, Ordering::Relaxed);
    }
}

impl Index {
    fn new(most: usize) -> Self {
        Self { entries: Arc::default(), pinned: Arc::default(), most }
    }

    /// Finds an entry and keeps it. `None` also when pins hold as much as they may: encode it again then.
    pub(super) fn pin(&self, key: &Key) -> Option<Pin> {
        let entry = Arc::clone(self.lock().get(key)?);
        let before = self.pinned.fetch_add(entry.rows, Ordering::Relaxed);
        let pin = Pin { entry, pinned: Arc::clone(&self.pinned) };
        (before + pin.entry.rows <= self.most).then_some(pin)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Key, Arc<Entry>>> {
        // The map is whole at every point where a holder could panic.
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The engine's side: the tensors. At most `capacity` rows; the scheduler sees to it that running sequences leave
/// `spare` of them, and pins hold at most those.
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
    /// An empty cache.
    pub(super) fn new(capacity: usize, spare: usize) -> Self {
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
        let entry = Arc::clone(self.index.lock().get(key)?);
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
        self.index.lock().insert(key, Arc::new(Entry { rows: count }));
    }

    fn make_room(&mut self, count: usize) -> bool {
        let mut index = self.index.lock();
        while self.held + count > self.capacity {
            let is_free = |key: &Key| index.get(key).is_none_or(|entry| Arc::strong_count(entry) == 1);
            let oldest = self.rows.iter().filter(|(key, _)| is_free(key)).min_by_key(|(_, rows)| rows.used);
            let Some(key) = oldest.map(|(key, _)| *key) else { return false };
            index.remove(&key);
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
        let mut cache = EncoderCache::new(10, 5);
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
        let mut cache = EncoderCache::new(10, 5);
        let index = cache.index().clone();
        let [a, b] = [b"a", b"b"].map(|name| Key::of(name));
        cache.insert(a, rows(3));
        cache.insert(b, rows(3));
        let pin = index.pin(&a);
        assert!(pin.is_some() && index.pin(&b).is_none());
        drop(pin);
        assert!(index.pin(&b).is_some());
    }
}
