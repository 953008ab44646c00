//! Model name or alias to what serves it.

use std::sync::Arc;

use percept_models::Preprocess;

use crate::{engine::Handle, text::TextModel};

/// A model that is being served.
#[derive(Debug)]
pub struct Served {
    /// Its name.
    pub id: String,
    /// Other names for it.
    pub aliases: Vec<String>,
    /// Its engine.
    pub handle: Handle,
    /// Its text side.
    pub text: Arc<TextModel>,
    /// What its media take.
    pub preprocess: Arc<dyn Preprocess>,
    /// When it was loaded, in seconds since 1970.
    pub created: u64,
    /// Changes when its answers may change.
    pub fingerprint: String,
}

impl Served {
    /// All its names, each once, its own first.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        let aliases = self.aliases.iter().enumerate();
        let new =
            aliases.filter(|(index, alias)| **alias != self.id && !self.aliases[..*index].contains(alias));
        std::iter::once(&self.id).chain(new.map(|(_, alias)| alias)).map(String::as_str)
    }
}

/// All models.
#[derive(Debug, Default)]
pub struct Router {
    models: Vec<Arc<Served>>,
}

impl Router {
    /// Serves `models`.
    pub fn new(models: Vec<Served>) -> Self {
        Self { models: models.into_iter().map(Arc::new).collect() }
    }

    /// The model of a name or an alias.
    pub fn find(&self, name: &str) -> Option<&Arc<Served>> {
        self.models.iter().find(|model| model.names().any(|known| known == name))
    }

    /// All models.
    pub fn models(&self) -> &[Arc<Served>] {
        &self.models
    }
}
