//! Which pages of the cache are free, which are shared, and what the free ones still hold.

use std::collections::HashMap;

/// A page of the cache.
pub type Page = u32;

/// The hash of everything a page's rows depend on: all tokens and media up to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key([u8; 32]);

impl Key {
    /// Of the bytes of a file. Collisions cannot be made (BLAKE3), so a picture never answers for another.
    pub fn of(bytes: &[u8]) -> Self {
        Self(*blake3::hash(bytes).as_bytes())
    }

    /// The same of what only requests of one scope share; see [`Handle::reserve_in`](super::Handle::reserve_in).
    pub fn within(self, scope: Option<Self>) -> Self {
        scope.map_or(self, |scope| Self::chain(Some(scope), &[], std::iter::once((self, 0))))
    }

    /// Of a page: the one before it, its tokens, and the media whose rows lie in it (key and first row).
    pub fn chain(before: Option<Self>, tokens: &[u32], media: impl Iterator<Item = (Self, usize)>) -> Self {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&before.map_or([0; 32], |key| key.0));
        for token in tokens {
            hasher.update(&token.to_le_bytes());
        }
        for (key, row) in media {
            hasher.update(&key.0);
            hasher.update(&(row as u64).to_le_bytes());
        }
        Self(*hasher.finalize().as_bytes())
    }
}

/// All pages. A page is in use by one sequence or more, or free; a free page keeps its rows until it is taken, so
/// that a prompt which begins the same finds them.
#[derive(Debug)]
pub struct Pages {
    states: Vec<State>,
    /// Free pages, the first to be taken in front.
    free: List,
    known: HashMap<Key, Page>,
}

#[derive(Debug, Clone, Copy, Default)]
struct State {
    users: u32,
    key: Option<Key>,
}

impl Pages {
    /// `count` free pages.
    pub fn new(count: usize) -> Self {
        let mut free = List::new(count);
        for page in 0..count as Page {
            free.push_back(page);
        }
        Self { states: vec![State::default(); count], free, known: HashMap::new() }
    }

    /// Pages there are.
    pub fn total(&self) -> usize {
        self.states.len()
    }

    /// Pages that nobody uses.
    pub fn available(&self) -> usize {
        self.free.len
    }

    /// Takes the free page that was used longest ago, and forgets what it held.
    pub fn take(&mut self) -> Option<Page> {
        let page = self.free.pop_front()?;
        let state = &mut self.states[page as usize];
        state.users = 1;
        if let Some(key) = state.key.take() {
            self.known.remove(&key);
        }
        Some(page)
    }

    /// The page with these rows, if there is one.
    pub fn find(&self, key: &Key) -> Option<Page> {
        self.known.get(key).copied()
    }

    /// Whether nobody uses the page.
    pub fn is_free(&self, page: Page) -> bool {
        self.states[page as usize].users == 0
    }

    /// Adds a user to a page that was found.
    pub fn share(&mut self, page: Page) {
        let state = &mut self.states[page as usize];
        if state.users == 0 {
            self.free.remove(page);
        }
        state.users += 1;
    }

    /// Notes what a page holds, now that all its rows are computed. The first page with some rows is kept.
    pub fn publish(&mut self, page: Page, key: Key) {
        let state = &mut self.states[page as usize];
        if state.key.is_none() && !self.known.contains_key(&key) {
            state.key = Some(key);
            self.known.insert(key, page);
        }
    }

    /// Takes a user off a page.
    pub fn release(&mut self, page: Page) {
        let state = &mut self.states[page as usize];
        debug_assert!(state.users > 0, "page {page} released twice");
        state.users -= 1;
        if state.users > 0 {
            return;
        }
        if state.key.is_some() {
            self.free.push_back(page);
        } else {
            self.free.push_front(page);
        }
    }

    /// Panics unless every page is free or held exactly as often as `held` says.
    #[cfg(test)]
    pub fn check(&self, held: impl Iterator<Item = Page>) {
        let mut users = vec![0u32; self.states.len()];
        for page in held {
            users[page as usize] += 1;
        }
        let mut free = vec![false; self.states.len()];
        for page in self.free.iter() {
            assert!(!free[page as usize], "page {page} is free twice");
            free[page as usize] = true;
        }
        assert_eq!(free.iter().filter(|free| **free).count(), self.free.len);
        for (page, state) in self.states.iter().enumerate() {
            assert_eq!(state.users, users[page], "users of page {page}");
            assert_eq!(state.users == 0, free[page], "page {page} must be free or used, not both or neither");
            if let Some(key) = state.key {
                assert_eq!(self.known.get(&key), Some(&(page as Page)), "page {page} is known");
            }
        }
        assert_eq!(self.known.len(), self.states.iter().filter(|state| state.key.is_some()).count());
    }
}

/// A list of pages with constant-time removal from the middle.
#[derive(Debug)]
struct List {
    /// Of each page, the one before and the one behind; the last entry is the list's own ends.
    links: Vec<(Page, Page)>,
    len: usize,
}

impl List {
    fn new(pages: usize) -> Self {
        let end = pages as Page;
        Self { links: vec![(end, end); pages + 1], len: 0 }
    }

    fn end(&self) -> Page {
        (self.links.len() - 1) as Page
    }

    fn insert_between(&mut self, before: Page, page: Page, after: Page) {
        self.links[before as usize].1 = page;
        self.links[page as usize] = (before, after);
        self.links[after as usize].0 = page;
        self.len += 1;
    }

    fn push_back(&mut self, page: Page) {
        self.insert_between(self.links[self.end() as usize].0, page, self.end());
    }

    fn push_front(&mut self, page: Page) {
        self.insert_between(self.end(), page, self.links[self.end() as usize].1);
    }

    fn remove(&mut self, page: Page) {
        let (before, after) = self.links[page as usize];
        self.links[before as usize].1 = after;
        self.links[after as usize].0 = before;
        self.len -= 1;
    }

    fn pop_front(&mut self) -> Option<Page> {
        let first = self.links[self.end() as usize].1;
        if first == self.end() {
            return None;
        }
        self.remove(first);
        Some(first)
    }

    #[cfg(test)]
    fn iter(&self) -> impl Iterator<Item = Page> + '_ {
        let after = |page: Page| {
            let next = self.links[page as usize].1;
            (next != self.end()).then_some(next)
        };
        std::iter::successors(after(self.end()), move |&page| after(page))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_free_page_is_found_until_it_is_taken() {
        let mut pages = Pages::new(2);
        let key = Key::of(b"rows");
        let page = pages.take().unwrap();
        pages.publish(page, key);
        pages.release(page);
        assert_eq!(pages.find(&key), Some(page));
        assert_ne!(pages.take(), Some(page), "a page that holds nothing goes first");
        assert_eq!(pages.take(), Some(page));
        assert_eq!(pages.find(&key), None);
        assert_eq!(pages.take(), None);
    }

    #[test]
    fn the_key_of_a_page_depends_on_what_came_before_and_on_its_media() {
        let (cat, dog) = (Key::of(b"cat"), Key::of(b"dog"));
        let plain = Key::chain(None, &[1, 2], std::iter::empty());
        let keys = [
            plain,
            Key::chain(Some(plain), &[1, 2], std::iter::empty()),
            Key::chain(None, &[1, 3], std::iter::empty()),
            Key::chain(None, &[1, 2], [(cat, 0)].into_iter()),
            Key::chain(None, &[1, 2], [(dog, 0)].into_iter()),
            Key::chain(None, &[1, 2], [(cat, 1)].into_iter()),
        ];
        for (index, key) in keys.iter().enumerate() {
            assert!(!keys[..index].contains(key));
        }
    }
}
