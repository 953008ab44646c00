//! Model name or alias to what serves it.

use std::{collections::HashSet, str::FromStr, sync::Arc};

use percept_models::{EmbeddingInfo, Preprocess};

use crate::{
    engine::Handle,
    speech::Transcriber,
    text::{EmbeddingText, TextModel},
};

/// A model that is being served.
#[derive(Debug)]
pub struct Served {
    /// Its name.
    pub id: String,
    /// Other names for it: each once, and none of them its own.
    pub aliases: Vec<String>,
    /// What it does.
    pub work: Work,
    /// Its engine.
    pub handle: Handle,
    /// When it was loaded, in seconds since 1970.
    pub created: u64,
    /// Changes when its answers may change.
    pub fingerprint: String,
}

impl Served {
    /// What transcribes, where this is a speech model.
    pub fn speech(&self) -> Option<&Arc<Transcriber>> {
        match &self.work {
            Work::Speech(transcriber) => Some(transcriber),
            Work::Chat(_) | Work::Embedding(_) => None,
        }
    }

    /// What goes on with conversations, where this is a chat model.
    pub fn chat(&self) -> Option<&Arc<ChatModel>> {
        match &self.work {
            Work::Chat(chat) => Some(chat),
            Work::Speech(_) | Work::Embedding(_) => None,
        }
    }

    /// What makes vectors, where this is an embedding model.
    pub fn embedding(&self) -> Option<&Arc<EmbeddingModel>> {
        match &self.work {
            Work::Embedding(embedding) => Some(embedding),
            Work::Chat(_) | Work::Speech(_) => None,
        }
    }

    /// All its names, its own first.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        std::iter::once(&self.id).chain(&self.aliases).map(String::as_str)
    }
}

/// What a chat model has besides its engine.
#[derive(Debug)]
pub struct ChatModel {
    /// Its text side.
    pub text: TextModel,
    /// What its media take.
    pub preprocess: Arc<dyn Preprocess>,
}

/// What an embedding model has besides its engine.
#[derive(Debug)]
pub struct EmbeddingModel {
    /// Its text side.
    pub text: EmbeddingText,
    /// What its vectors are.
    pub info: EmbeddingInfo,
    /// What its pictures take, where it has any.
    pub preprocess: Arc<dyn Preprocess>,
}

/// What a model does, and what that takes besides an engine.
#[derive(Debug)]
pub enum Work {
    /// It goes on with conversations.
    Chat(Arc<ChatModel>),
    /// It writes down what is said.
    Speech(Arc<Transcriber>),
    /// It makes vectors.
    Embedding(Arc<EmbeddingModel>),
}

impl Work {
    /// What the model is for.
    pub fn kind(&self) -> Kind {
        match self {
            Self::Chat(_) => Kind::Chat,
            Self::Speech(_) => Kind::Speech,
            Self::Embedding(_) => Kind::Embedding,
        }
    }
}

/// What a model is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Conversations, with or without pictures.
    Chat,
    /// Recordings to text.
    Speech,
    /// Texts, and with some models pictures, to vectors.
    Embedding,
}

impl Kind {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Chat => "chat",
            Self::Speech => "speech",
            Self::Embedding => "embedding",
        }
    }

    /// A model of it, in a sentence.
    pub fn described(self) -> &'static str {
        match self {
            Self::Chat => "a chat model",
            Self::Speech => "a speech model",
            Self::Embedding => "an embedding model",
        }
    }

    /// What its models do, in a sentence.
    pub fn verb(self) -> &'static str {
        match self {
            Self::Chat => "chat",
            Self::Speech => "transcribe",
            Self::Embedding => "make embeddings",
        }
    }

    /// What the hub calls its task.
    pub fn task(self) -> &'static str {
        match self {
            Self::Chat => "image-text-to-text",
            Self::Speech => "automatic-speech-recognition",
            Self::Embedding => "feature-extraction",
        }
    }
}

/// All models.
#[derive(Debug, Default)]
pub struct Router {
    models: Vec<Arc<Served>>,
}

impl Router {
    /// Serves `models`, whose names are [`Aliases`]'s and so lead to one model each.
    pub fn new(models: Vec<Served>) -> Self {
        Self { models: models.into_iter().map(Arc::new).collect() }
    }

    /// The model of a name or an alias.
    pub fn find(&self, name: &str) -> Option<&Arc<Served>> {
        self.models.iter().find(|model| model.names().any(|known| known == name))
    }

    /// The first model that transcribes.
    pub fn first_speech(&self) -> Option<&Arc<Transcriber>> {
        self.models.iter().find_map(|model| model.speech())
    }

    /// All models.
    pub fn models(&self) -> &[Arc<Served>] {
        &self.models
    }
}

/// Names that clients of hosted services have built in, and what answers to them when nothing else does. None of a
/// chat model: an answer under a hosted name that nobody asked for would pass for that model's. None of an embedding
/// model: its vectors cannot be compared with those of another.
pub const HOSTED: &[(&str, Kind)] = &[
    ("whisper-1", Kind::Speech),
    ("gpt-4o-transcribe", Kind::Speech),
    ("gpt-4o-mini-transcribe", Kind::Speech),
    ("gpt-transcribe", Kind::Speech),
];

/// Another name for a model, as it is given: `gpt-4o`, or `gpt-4o=NAME` for the model of that name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Alias {
    name: String,
    model: Option<String>,
}

impl FromStr for Alias {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let (name, model) = match text.split_once('=') {
            Some((name, model)) => (name, Some(model.to_owned())),
            None => (text, None),
        };
        if name.is_empty() {
            return Err(NameError::Empty);
        }
        Ok(Self { name: name.to_owned(), model })
    }
}

/// Why names cannot be used together.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// A model or an alias has none.
    #[error("the name of a model or of an alias is empty")]
    Empty,
    /// A name leads to two models.
    #[error("two models are named {0}: name them apart, as in first=PATH_OR_HUB_ID second=PATH_OR_HUB_ID")]
    SameModel(String),
    /// An alias hides a model.
    #[error(
        "alias {alias} stands for {model}, but {alias} is the name of another model: choose another alias, or name \
         that model otherwise, as in NAME=PATH_OR_HUB_ID"
    )]
    HidesModel {
        /// The alias.
        alias: String,
        /// What it is to stand for.
        model: String,
    },
    /// An alias is given twice, and not for the same.
    #[error("alias {0} is given twice, for different models: leave one out")]
    Ambiguous(String),
    /// An alias leads nowhere.
    #[error("alias {alias} stands for {model}, which is not served; served: {}", served.join(", "))]
    NoModel {
        /// The alias.
        alias: String,
        /// What it is to stand for.
        model: String,
        /// The models there are.
        served: Vec<String>,
    },
}

/// The aliases of all models, without contradictions. Which model an alias stands for may depend on what the models
/// are for, and that is known once they are found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Aliases {
    given: Vec<(String, Option<usize>)>,
    hosted: Vec<(&'static str, Kind)>,
    models: usize,
}

impl Aliases {
    /// The aliases `given` for models of these names, and those of `hosted` that nothing else is called.
    ///
    /// # Errors
    /// When a name would lead to two models, or to none.
    pub fn new(
        models: &[String],
        given: &[Alias],
        hosted: &[(&'static str, Kind)],
    ) -> Result<Self, NameError> {
        let mut names = HashSet::new();
        for model in models {
            if model.is_empty() {
                return Err(NameError::Empty);
            }
            if !names.insert(model.as_str()) {
                return Err(NameError::SameModel(model.clone()));
            }
        }
        let mut aliases: Vec<(String, Option<usize>)> = Vec::with_capacity(given.len());
        for alias in given {
            let index = alias.index(models)?;
            match aliases.iter().find(|(name, _)| *name == alias.name) {
                Some((_, other)) if *other == index => continue,
                Some(_) => return Err(NameError::Ambiguous(alias.name.clone())),
                None => {}
            }
            // One that repeats a model's own name adds nothing.
            if names.insert(&alias.name) {
                aliases.push((alias.name.clone(), index));
            }
        }
        let hosted = hosted.iter().filter(|(name, _)| !names.contains(name)).copied().collect();
        Ok(Self { given: aliases, hosted, models: models.len() })
    }

    /// The aliases of each model. One given without a model stands for the first of the kind that hosted services
    /// call so, else for the first of all. `kinds` is what the models are for, in the order in which they were named.
    pub fn of(&self, kinds: &[Kind]) -> Vec<Vec<String>> {
        debug_assert_eq!(kinds.len(), self.models, "one kind per model");
        let first = |kind| kinds.iter().position(|found| *found == kind);
        let mut aliases = vec![Vec::new(); kinds.len()];
        for (name, index) in &self.given {
            let index = index.or_else(|| first(usual_kind(name))).unwrap_or(0);
            aliases[index].push(name.clone());
        }
        for &(name, kind) in &self.hosted {
            if let Some(index) = first(kind) {
                aliases[index].push(name.to_owned());
            }
        }
        aliases
    }
}

impl Alias {
    /// The model that is meant, where one is named.
    fn index(&self, models: &[String]) -> Result<Option<usize>, NameError> {
        let Some(model) = &self.model else { return Ok(None) };
        let Some(index) = models.iter().position(|name| name == model) else {
            let (alias, model, served) = (self.name.clone(), model.clone(), models.to_vec());
            return Err(NameError::NoModel { alias, model, served });
        };
        if self.name != *model && models.contains(&self.name) {
            return Err(NameError::HidesModel { alias: self.name.clone(), model: model.clone() });
        }
        Ok(Some(index))
    }
}

/// What hosted services offer under a name, as far as it tells: `whisper-1`, `gpt-4o-transcribe-diarize`,
/// `text-embedding-3-small`, `gpt-4o`.
fn usual_kind(name: &str) -> Kind {
    match name {
        name if name.contains("whisper") || name.contains("transcribe") => Kind::Speech,
        name if name.contains("embedding") => Kind::Embedding,
        _ => Kind::Chat,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Kind::{Chat, Embedding, Speech};

    fn names(models: &[&str], aliases: &[&str]) -> Result<Aliases, NameError> {
        let models: Vec<String> = models.iter().map(|&name| name.to_owned()).collect();
        let aliases: Vec<Alias> = aliases.iter().map(|alias| alias.parse()).collect::<Result<_, _>>()?;
        Aliases::new(&models, &aliases, HOSTED)
    }

    #[test]
    fn an_alias_means_the_first_model_that_it_can_mean() {
        let check = |models: &[&str], kinds: &[Kind], aliases: &[&str], expected: &[&[&str]]| {
            let aliases = names(models, aliases).unwrap();
            assert_eq!(Aliases { hosted: Vec::new(), ..aliases }.of(kinds), expected, "{models:?}");
        };
        check(&["a"], &[Chat], &["gpt-4o", "b"], &[&["gpt-4o", "b"]]);
        check(&["a", "b"], &[Chat, Chat], &["gpt-4o", "gpt-4=b"], &[&["gpt-4o"], &["gpt-4"]]);
        let speech_first: &[&[&str]] = &[&["whisper-1", "gpt-4o-transcribe-diarize"], &["gpt-4o"]];
        let aliases = ["gpt-4o", "whisper-1", "gpt-4o-transcribe-diarize"];
        check(&["a", "b"], &[Speech, Chat], &aliases, speech_first);
        let both: &[&[&str]] = &[&["gpt-4o"], &["text-embedding-3-small"]];
        check(&["a", "b"], &[Chat, Embedding], &["gpt-4o", "text-embedding-3-small"], both);
        // There is nothing else.
        check(&["a"], &[Speech], &["gpt-4o"], &[&["gpt-4o"]]);
        check(&["a", "b"], &[Chat, Chat], &["whisper-1"], &[&["whisper-1"], &[]]);
        // What is said counts.
        check(&["a", "b"], &[Speech, Chat], &["gpt-4o=a", "whisper-1=b"], &[&["gpt-4o"], &["whisper-1"]]);
        check(&["o/a", "b=c"], &[Chat, Chat], &["x=b=c", "y=o/a"], &[&["y"], &["x"]]);
    }

    #[test]
    fn hosted_names_lead_to_the_first_model_of_their_kind_unless_something_else_has_them() {
        let all: Vec<&str> = HOSTED.iter().map(|(name, _)| *name).collect();
        let of =
            |models: &[&str], aliases: &[&str], kinds: &[Kind]| names(models, aliases).unwrap().of(kinds);
        assert_eq!(of(&["a", "b", "c"], &[], &[Chat, Speech, Speech]), [vec![], all.clone(), vec![]]);
        assert_eq!(of(&["a", "b"], &[], &[Chat, Chat]), [[""; 0]; 2]);
        let others = &all[1..];
        assert_eq!(
            of(&["a", "b"], &["whisper-1=b"], &[Speech, Speech]),
            [others.to_vec(), vec!["whisper-1"]]
        );
        assert_eq!(of(&["a", "whisper-1"], &[], &[Speech, Speech]), [others.to_vec(), vec![]]);
        let off = Aliases::new(&["a".into()], &[], &[]).unwrap();
        assert_eq!(off.of(&[Speech]), [[""; 0]]);
    }

    #[test]
    fn names_that_contradict_each_other_are_errors() {
        let hides =
            |alias: &str, model: &str| NameError::HidesModel { alias: alias.into(), model: model.into() };
        for (models, aliases, expected) in [
            (vec!["a", "b", "a"], vec![], NameError::SameModel("a".into())),
            (vec!["a", ""], vec![], NameError::Empty),
            (vec!["a"], vec![""], NameError::Empty),
            (vec!["a"], vec!["=a"], NameError::Empty),
            (vec!["a", "b"], vec!["b=a"], hides("b", "a")),
            (vec!["a", "b"], vec!["x=a", "x=b"], NameError::Ambiguous("x".into())),
            (vec!["a", "b"], vec!["x", "x=b"], NameError::Ambiguous("x".into())),
            (
                vec!["a", "b"],
                vec!["y", "x=y"],
                NameError::NoModel {
                    alias: "x".into(),
                    model: "y".into(),
                    served: vec!["a".into(), "b".into()],
                },
            ),
        ] {
            assert_eq!(names(&models, &aliases), Err(expected), "{models:?} {aliases:?}");
        }
        // What says the same twice contradicts nothing.
        let aliases = names(&["a", "b"], &["b", "a=a", "x", "x", "y=b", "y=b"]).unwrap();
        assert_eq!(aliases.of(&[Chat, Chat]), [["x"], ["y"]]);
    }
}
