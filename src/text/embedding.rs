//! Texts to the tokens of a network that makes vectors.

use percept_models::Checkpoint;

use super::{
    prompt::TextError,
    tokenizer::{Tokenizer, TokenizerError},
};

/// The text side of an embedding model: its tokenizer, and what it puts around a text.
#[derive(Debug)]
pub struct EmbeddingText {
    tokenizer: Tokenizer,
    before: Vec<u32>,
    behind: Vec<u32>,
    /// The id that fills up each text to the whole context.
    filler: Option<u32>,
}

/// How long a text may be, in tokens, those around it included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TextLimit {
    /// A longer one is an error.
    Refuse(usize),
    /// A longer one loses its end.
    Cut(usize),
}

/// Why a text has no tokens.
#[derive(Debug, thiserror::Error)]
pub enum TextTokensError {
    /// It has too many.
    #[error("the text has {tokens} tokens or more, and {limit} may be")]
    TooLong {
        /// Tokens that it has at least.
        tokens: usize,
        /// Tokens that it may have.
        limit: usize,
    },
    /// The tokenizer fails.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
}

impl EmbeddingText {
    /// Reads the tokenizer of a checkpoint, whose texts `filler` fills up, if any are.
    ///
    /// # Errors
    /// When it is missing or broken.
    pub fn read(checkpoint: &Checkpoint, filler: Option<u32>) -> Result<Self, TextError> {
        // Any text that is a token would do.
        const TEXT: &str = "a";
        let tokenizer = Tokenizer::read(checkpoint)?;
        let whole = tokenizer.encode(TEXT, true)?;
        let bare = tokenizer.encode(TEXT, false)?;
        let at = whole.windows(bare.len().max(1)).position(|run| run == bare).unwrap_or(0);
        let behind = whole.get(at + bare.len()..).unwrap_or_default().to_vec();
        Ok(Self { tokenizer, before: whole[..at].to_vec(), behind, filler })
    }

    /// The tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// Tokens around each text.
    pub fn around(&self) -> usize {
        self.before.len() + self.behind.len()
    }

    /// The ids of a text. Where texts are filled up, `context` is how far. What looks like a token of the network's own
    /// is text.
    ///
    /// # Errors
    /// When it is too long.
    pub fn tokens(&self, text: &str, limit: TextLimit, context: usize) -> Result<Vec<u32>, TextTokensError> {
        let (TextLimit::Refuse(most) | TextLimit::Cut(most)) = limit;
        let refuse = |tokens: usize| match limit {
            TextLimit::Refuse(limit) if tokens > limit => Err(TextTokensError::TooLong { tokens, limit }),
            _ => Ok(()),
        };
        // Before a long one takes long.
        refuse(self.tokenizer.least_tokens(text.len()) + self.around())?;
        let mut tokens = self.tokenizer.encode(&self.tokenizer.mark(text), true)?;
        refuse(tokens.len())?;
        if tokens.len() > most {
            tokens.truncate(most.saturating_sub(self.behind.len()));
            tokens.extend_from_slice(&self.behind);
        }
        if let Some(filler) = self.filler {
            tokens.resize(context.max(tokens.len()), filler);
        }
        Ok(tokens)
    }
}
