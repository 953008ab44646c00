//! Conversations to tokens, and tokens to text.

mod answer;
mod detokenizer;
mod embedding;
mod grammar;
mod prompt;
mod template;
mod tokenizer;
mod tools;

pub use self::{
    answer::{Answer, AnswerEvent, Reading, Scored, Usage},
    detokenizer::{Cut, Detokenizer, Stops},
    embedding::{EmbeddingText, TextLimit, TextTokensError},
    grammar::{DEEPEST_SCHEMA, Grammar, GrammarError, Grammars, LONGEST_GRAMMAR},
    prompt::{Defaults, PromptError, TextError, TextModel},
    template::{ChatTemplate, Conversation, Marks, Message, Part, Role, TemplateError},
    tokenizer::{Tokenizer, TokenizerError},
    tools::{Call, CallSyntax, Tool, ToolChoice},
};
