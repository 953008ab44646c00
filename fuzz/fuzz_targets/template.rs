//! Templates of checkpoints: the first line is a turn of the user's.
#![no_main]

use percept::text::{ChatTemplate, Conversation, Marks, Message, Part, Role};

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let Some((words, source)) = text.split_once('\n') else { return };
    let marks =
        Marks { picture: "<image>".into(), video: String::new(), bos: "<s>".into(), eos: "</s>".into() };
    let Ok(template) = ChatTemplate::new(source, marks) else { return };
    let turn = |role, words: &str| Message::new(role, vec![Part::Text(words.into())]);
    let messages = vec![turn(Role::System, "be kind"), turn(Role::User, words), turn(Role::Assistant, words)];
    for continues in [false, true] {
        let conversation = Conversation { messages: messages.clone(), tools: Vec::new(), continues };
        drop(template.render(&conversation));
    }
});
