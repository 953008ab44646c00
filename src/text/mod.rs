//! Conversations to tokens, and tokens to text.

mod answer;
mod detokenizer;
mod prompt;
mod template;
mod tokenizer;

pub use self::{
    answer::{Answer, AnswerEvent, Usage},
    detokenizer::{Cut, Detokenizer, Stops},
    prompt::{Defaults, PromptError, TextError, TextModel},
    template::{ChatTemplate, Marks, Message, Part, Role, TemplateError},
    tokenizer::{Tokenizer, TokenizerError},
};
