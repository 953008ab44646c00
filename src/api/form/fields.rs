//! The texts of a form as the fields of a wire type: numbers, switches, lists and objects in all the ways in which
//! clients write them.

use std::{collections::BTreeMap, fmt, vec};

use serde::{
    de::{
        self, DeserializeOwned, DeserializeSeed, Deserializer, MapAccess, SeqAccess, Unexpected, Visitor,
        value::StringDeserializer,
    },
    forward_to_deserialize_any,
};
use serde_json::Value as Json;

use super::shown;
use crate::{
    api::{
        params::{Ignored, Parsed},
        wire::TOO_MANY,
    },
    request::InvalidRequest,
};

/// The texts of a form, by the names of fields.
#[derive(Debug, Default)]
pub(in crate::api) struct Fields(BTreeMap<String, Texts>);

/// What a form has of one field.
#[derive(Debug, Default, Clone)]
struct Texts {
    /// Of `name`, `name[]` and `name[0]`, in order.
    items: Vec<String>,
    /// Of `name[member]`.
    members: Vec<(String, String)>,
}

impl Fields {
    /// Adds a text under the name that its part has.
    pub(in crate::api) fn push(&mut self, name: &str, text: String) {
        let (field, member) = split(name);
        let texts = self.0.entry(shown(field)).or_default();
        match member {
            None => texts.items.push(text),
            Some(member) => texts.members.push((shown(member), text)),
        }
    }

    /// Reads the fields that a type has. Of the others, `harmless` says which are known all the same.
    pub(in crate::api) fn read<T: DeserializeOwned>(
        self,
        harmless: &[&str],
    ) -> Result<Parsed<T>, InvalidRequest> {
        let mut ignored = Ignored::default();
        let value = T::deserialize(Form { fields: self.0, harmless, ignored: &mut ignored })
            .map_err(|error| error.of("the form"))?;
        Ok(Parsed { value, ignored })
    }
}

/// A part's name is a field's, with or without brackets behind it.
pub(in crate::api) fn split(name: &str) -> (&str, Option<&str>) {
    let Some((field, rest)) = name.split_once('[') else { return (name, None) };
    let Some(member) = rest.strip_suffix(']') else { return (name, None) };
    if member.bytes().all(|byte| byte.is_ascii_digit()) {
        return (field, None);
    }
    (field, Some(member))
}

/// Why a field cannot be read, before it is known which.
#[derive(Debug)]
enum Wrong {
    Type {
        expected: String,
        found: String,
    },
    Repeated,
    TooMany {
        limit: usize,
    },
    /// Of a field that is named already.
    Invalid(InvalidRequest),
}

impl Wrong {
    fn found(text: &str, expected: &str) -> Self {
        let found: String = text.chars().take(100).collect();
        Self::Type { expected: expected.into(), found: format!("'{found}'") }
    }

    fn of(self, param: &str) -> InvalidRequest {
        let param = param.to_owned();
        match self {
            Self::Type { expected, found } => InvalidRequest::Type { param, expected, found },
            Self::Repeated => InvalidRequest::Repeated { param },
            Self::TooMany { limit } => {
                InvalidRequest::ArrayTooLong { param, items: "items", found: "more".into(), limit }
            }
            Self::Invalid(invalid) => invalid,
        }
    }
}

impl fmt::Display for Wrong {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{self:?}")
    }
}

impl std::error::Error for Wrong {}

impl de::Error for Wrong {
    fn custom<T: fmt::Display>(message: T) -> Self {
        let message = message.to_string();
        match message.strip_prefix(TOO_MANY).and_then(|limit| limit.parse().ok()) {
            Some(limit) => Self::TooMany { limit },
            None => Self::Type { expected: message, found: "something else".into() },
        }
    }

    fn invalid_type(unexpected: Unexpected<'_>, expected: &dyn de::Expected) -> Self {
        match unexpected {
            Unexpected::Str(text) => Self::found(text, &expected.to_string()),
            other => Self::Type { expected: expected.to_string(), found: other.to_string() },
        }
    }

    /// A field under two of its names.
    fn duplicate_field(field: &'static str) -> Self {
        Self::Invalid(InvalidRequest::Repeated { param: field.into() })
    }
}

/// The whole form.
struct Form<'a> {
    fields: BTreeMap<String, Texts>,
    harmless: &'a [&'a str],
    ignored: &'a mut Ignored,
}

impl<'de> Deserializer<'de> for Form<'_> {
    type Error = Wrong;

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        known: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Wrong> {
        let Self { fields, harmless, ignored } = self;
        let (known, others): (Vec<_>, Vec<_>) =
            fields.into_iter().partition(|(name, _)| known.contains(&name.as_str()));
        for (name, _) in others {
            let harmless = harmless.contains(&name.as_str());
            ignored.push(name, harmless);
        }
        visitor.visit_map(Entries { rest: known.into_iter(), value: None, within: "" })
    }

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Wrong> {
        self.deserialize_struct("", &[], visitor)
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 u8 u16 u32 u64 f32 f64 char str string bytes byte_buf option unit unit_struct
        newtype_struct seq tuple tuple_struct map enum identifier ignored_any
    }
}

/// Fields of a form, or members of an object.
struct Entries<'a> {
    rest: vec::IntoIter<(String, Texts)>,
    value: Option<(String, Texts)>,
    /// The object's name, with a point.
    within: &'a str,
}

impl<'de> MapAccess<'de> for Entries<'_> {
    type Error = Wrong;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Wrong> {
        let Some((name, texts)) = self.rest.next() else { return Ok(None) };
        let key = seed.deserialize(StringDeserializer::<Wrong>::new(name.clone()))?;
        self.value = Some((name, texts));
        Ok(Some(key))
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Wrong> {
        let (name, texts) = self.value.take().expect("serde asks for a value behind its key");
        let param = format!("{}{name}", self.within);
        seed.deserialize(Field { param: &param, texts }).map_err(|wrong| Wrong::Invalid(wrong.of(&param)))
    }
}

/// One field.
struct Field<'a> {
    param: &'a str,
    texts: Texts,
}

impl<'a> Field<'a> {
    fn of(param: &'a str, text: String) -> Self {
        Self { param, texts: Texts { items: vec![text], members: Vec::new() } }
    }

    /// The text of a field that is no list.
    fn text(mut self, expected: &str) -> Result<String, Wrong> {
        if !self.texts.members.is_empty() {
            return Err(Wrong::Type { expected: expected.into(), found: "an object".into() });
        }
        match self.texts.items.len() {
            0 | 1 => Ok(self.texts.items.pop().unwrap_or_default()),
            _ => Err(Wrong::Repeated),
        }
    }

    fn number<T: std::str::FromStr>(self, expected: &str) -> Result<T, Wrong> {
        let text = self.text(expected)?;
        text.trim().parse().map_err(|_| Wrong::found(&text, expected))
    }

    /// The texts of a list: repeated, in JSON, or with commas in between.
    fn items(self) -> Result<Vec<String>, Wrong> {
        if !self.texts.members.is_empty() {
            return Err(Wrong::Type { expected: "an array".into(), found: "an object".into() });
        }
        let [text] = self.texts.items.as_slice() else { return Ok(self.texts.items) };
        if text.trim_start().starts_with('[') {
            let items: Vec<Json> = serde_json::from_str(text).map_err(|_| Wrong::found(text, "an array"))?;
            return items
                .iter()
                .map(|item| scalar(item).ok_or_else(|| Wrong::found(text, "an array of texts")))
                .collect();
        }
        Ok(text.split(',').map(|item| item.trim().to_owned()).filter(|item| !item.is_empty()).collect())
    }

    /// The members of an object: each a part of its own, or all in JSON. `None` where it is another text.
    fn members(&self) -> Result<Option<Vec<(String, Texts)>>, Wrong> {
        let texts = |text: String| Texts { items: vec![text], members: Vec::new() };
        if !self.texts.members.is_empty() {
            let mut members = BTreeMap::<String, Texts>::new();
            for (name, text) in &self.texts.members {
                members.entry(name.clone()).or_default().items.push(text.clone());
            }
            return Ok(Some(members.into_iter().collect()));
        }
        let [text] = self.texts.items.as_slice() else { return Err(Wrong::Repeated) };
        if !text.trim_start().starts_with('{') {
            return Ok(None);
        }
        let object: serde_json::Map<String, Json> =
            serde_json::from_str(text).map_err(|_| Wrong::found(text, "an object"))?;
        let member = |(name, value): (String, Json)| {
            scalar(&value)
                .map(|text| (name, texts(text)))
                .ok_or_else(|| Wrong::found(text, "an object of texts and numbers"))
        };
        object
            .into_iter()
            .filter(|(_, value)| !value.is_null())
            .map(member)
            .collect::<Result<_, _>>()
            .map(Some)
    }
}

/// A JSON value as a form would have it.
fn scalar(value: &Json) -> Option<String> {
    match value {
        Json::String(text) => Some(text.clone()),
        Json::Number(_) | Json::Bool(_) => Some(value.to_string()),
        Json::Null | Json::Array(_) | Json::Object(_) => None,
    }
}

macro_rules! numbers {
    ($($method:ident $visit:ident $type:ty, $expected:literal;)*) => {
        $(fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Wrong> {
            visitor.$visit(self.number::<$type>($expected)?)
        })*
    };
}

impl<'de> Deserializer<'de> for Field<'_> {
    type Error = Wrong;

    /// An empty text is what clients send for nothing.
    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Wrong> {
        if self.texts.members.is_empty() && self.texts.items.iter().all(String::is_empty) {
            return visitor.visit_none();
        }
        visitor.visit_some(self)
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Wrong> {
        let text = self.text("a boolean")?;
        match text.trim().to_ascii_lowercase().as_str() {
            "true" | "1" | "yes" | "on" => visitor.visit_bool(true),
            "false" | "0" | "no" | "off" => visitor.visit_bool(false),
            _ => Err(Wrong::found(&text, "a boolean")),
        }
    }

    numbers! {
        deserialize_i64 visit_i64 i64, "an integer";
        deserialize_u32 visit_u32 u32, "an integer of at least 0";
    }

    fn deserialize_f64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Wrong> {
        let text = self.text("a number")?;
        let number = text.trim().parse().ok().filter(|number: &f64| number.is_finite());
        visitor.visit_f64(number.ok_or_else(|| Wrong::found(&text, "a number"))?)
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Wrong> {
        let param = self.param;
        visitor.visit_seq(List { param, rest: self.items()?.into_iter() })
    }

    /// An object, or else a text.
    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Wrong> {
        match self.members()? {
            Some(members) => {
                let within = format!("{}.", self.param);
                visitor.visit_map(Entries { rest: members.into_iter(), value: None, within: &within })
            }
            None => visitor.visit_string(self.text("an object")?),
        }
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Wrong> {
        self.deserialize_map(visitor)
    }

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Wrong> {
        visitor.visit_string(self.text("a string")?)
    }

    forward_to_deserialize_any! {
        i8 i16 i32 u8 u16 u64 f32 char str string bytes byte_buf unit unit_struct newtype_struct tuple tuple_struct
        enum identifier ignored_any
    }
}

/// The items of a list.
struct List<'a> {
    param: &'a str,
    rest: vec::IntoIter<String>,
}

impl<'de> SeqAccess<'de> for List<'_> {
    type Error = Wrong;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Wrong> {
        self.rest.next().map(|text| seed.deserialize(Field::of(self.param, text))).transpose()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::wire::audio::{AudioRequest, Chunking, Silences, Threshold};

    fn read(parts: &[(&str, &str)]) -> Result<Parsed<AudioRequest>, InvalidRequest> {
        let mut fields = Fields::default();
        for (name, text) in parts {
            fields.push(name, (*text).into());
        }
        fields.read(&["user"])
    }

    fn request(parts: &[(&str, &str)]) -> AudioRequest {
        read(parts).unwrap_or_else(|error| panic!("{parts:?}: {error}")).value
    }

    #[test]
    fn lists_are_read_in_all_their_forms() {
        for parts in [
            &[("timestamp_granularities[]", "word"), ("timestamp_granularities[]", "segment")][..],
            &[("timestamp_granularities", "word"), ("timestamp_granularities", "segment")],
            &[("timestamp_granularities[0]", "word"), ("timestamp_granularities[1]", "segment")],
            &[("timestamp_granularities", "word,segment")],
            &[("timestamp_granularities[]", " word , segment ,")],
            &[("timestamp_granularities", r#"["word", "segment"]"#)],
            &[("timestamp_granularities[]", r#" ["word","segment"]"#)],
        ] {
            assert_eq!(request(parts).timestamp_granularities.unwrap().0, ["word", "segment"], "{parts:?}");
        }
        assert_eq!(request(&[("temperatures", "0, 0.5,1")]).temperatures.unwrap().0, [0.0, 0.5, 1.0]);
        assert_eq!(request(&[("temperatures[]", "[0, 0.5]")]).temperatures.unwrap().0, [0.0, 0.5]);
        assert_eq!(request(&[("suppress_tokens", "-1")]).suppress_tokens.unwrap().0, [-1]);
        assert!(request(&[("suppress_tokens", "[]")]).suppress_tokens.unwrap().0.is_empty());
        assert!(request(&[("suppress_tokens", "")]).suppress_tokens.is_none());
    }

    #[test]
    fn switches_and_numbers_are_read_in_all_their_forms() {
        for (text, on) in [
            ("true", true),
            ("True", true),
            ("1", true),
            (" TRUE ", true),
            ("on", true),
            ("false", false),
            ("0", false),
        ] {
            assert_eq!(request(&[("stream", text)]).stream, Some(on), "{text}");
        }
        assert_eq!(request(&[("temperature", " 1e-1 ")]).temperature, Some(0.1));
        assert_eq!(request(&[("beam_size", "5")]).beam_size, Some(5));
        for (text, expected) in
            [("2.5", Threshold::At(2.5)), ("-1", Threshold::At(-1.0)), ("None", Threshold::Off)]
        {
            assert_eq!(request(&[("log_prob_threshold", text)]).logprob_threshold, Some(expected), "{text}");
        }
        // What is sent for nothing is nothing, but for spaces in a prompt.
        let nothing =
            request(&[("stream", ""), ("temperature", ""), ("prompt", ""), ("chunking_strategy", "")]);
        assert!(nothing.stream.is_none() && nothing.temperature.is_none() && nothing.prompt.is_none());
        assert!(nothing.chunking_strategy.is_none());
        assert_eq!(request(&[("prompt", " a,b [c] ")]).prompt.as_deref(), Some(" a,b [c] "));
    }

    #[test]
    fn objects_are_read_in_all_their_forms() {
        let silences = Silences {
            kind: Some("server_vad".into()),
            threshold: Some(0.5),
            prefix_padding_ms: Some(300),
            silence_duration_ms: None,
        };
        for parts in [
            &[
                ("chunking_strategy[type]", "server_vad"),
                ("chunking_strategy[threshold]", "0.5"),
                ("chunking_strategy[prefix_padding_ms]", "300"),
                ("chunking_strategy[silence_duration_ms]", ""),
                ("chunking_strategy[other]", "x"),
            ][..],
            &[(
                "chunking_strategy",
                r#"{"type": "server_vad", "threshold": 0.5, "prefix_padding_ms": 300, "silence_duration_ms": null}"#,
            )],
        ] {
            assert_eq!(
                request(parts).chunking_strategy,
                Some(Chunking::Silences(silences.clone())),
                "{parts:?}"
            );
        }
        let auto = request(&[("chunking_strategy", "auto")]).chunking_strategy;
        assert_eq!(auto, Some(Chunking::Name("auto".into())));
    }

    #[test]
    fn what_is_wrong_names_the_field() {
        let type_of = |param: &str, expected: &str, found: &str| {
            format!("Invalid type for '{param}': expected {expected}, but got {found} instead.")
        };
        let twice = |param: &str| format!("Invalid '{param}': it was given more than once.");
        for (parts, message) in [
            (&[("stream", "maybe")][..], type_of("stream", "a boolean", "'maybe'")),
            (&[("temperature", "warm")], type_of("temperature", "a number", "'warm'")),
            (&[("temperature", "NaN")], type_of("temperature", "a number", "'NaN'")),
            (&[("temperature", "inf")], type_of("temperature", "a number", "'inf'")),
            (&[("temperature", "0"), ("temperature", "1")], twice("temperature")),
            (&[("model", "a"), ("model", "b")], twice("model")),
            (&[("temperature[high]", "1")], type_of("temperature", "a number", "an object")),
            (&[("beam_size", "1.5")], type_of("beam_size", "an integer", "'1.5'")),
            (
                &[("beam_size", "99999999999999999999")],
                type_of("beam_size", "an integer", "'99999999999999999999'"),
            ),
            (&[("temperatures", "0,x")], type_of("temperatures", "a number", "'x'")),
            (&[("temperatures", "[0, null]")], type_of("temperatures", "an array of texts", "'[0, null]'")),
            (&[("include", "[oops")], type_of("include", "an array", "'[oops'")),
            (&[("include[x]", "logprobs")], type_of("include", "an array", "an object")),
            (&[("no_speech_threshold", "x")], type_of("no_speech_threshold", "a number or 'none'", "'x'")),
            (&[("chunking_strategy", "{oops")], type_of("chunking_strategy", "an object", "'{oops'")),
            (
                &[("chunking_strategy[threshold]", "x")],
                type_of("chunking_strategy.threshold", "a number", "'x'"),
            ),
            (
                &[("chunking_strategy[type]", "a"), ("chunking_strategy[type]", "b")],
                twice("chunking_strategy.type"),
            ),
            (&[("chunking_strategy", "auto"), ("chunking_strategy", "auto")], twice("chunking_strategy")),
            (&[("logprob_threshold", "1"), ("log_prob_threshold", "1")], twice("logprob_threshold")),
            (
                &[("temperatures", "0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0")],
                "Invalid 'temperatures': array too long. Expected at most 16 items, but got more instead."
                    .into(),
            ),
        ] {
            assert_eq!(read(parts).err().map(|error| error.to_string()), Some(message), "{parts:?}");
        }
    }

    #[test]
    fn fields_that_nobody_knows_are_told_from_harmless_ones() {
        let ignored = |parts: &[(&str, &str)]| read(parts).unwrap().ignored;
        assert!(ignored(&[("user", "me"), ("model", "a")]).check(true).is_ok());
        let unknown = ignored(&[("user", "me"), ("foo[bar]", "1"), ("foo[]", "2")]);
        assert!(unknown.check(false).is_ok());
        let error = unknown.check(true).unwrap_err().to_string();
        assert_eq!(error, "Unrecognized request argument supplied: foo");
    }
}
