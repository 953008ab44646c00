//! What goes over the wire, one file per API. Nothing else is serialised for a client.

pub mod audio;
pub mod batches;
pub mod chat;
pub mod completions;
pub mod embeddings;
pub mod error;
pub mod files;
pub mod messages;
pub mod models;
pub mod ops;
pub mod realtime;
pub mod responses;
mod schema;
pub mod tools;

use std::{cell::Cell, collections::BTreeMap, fmt, marker::PhantomData};

use serde::{
    Deserialize, Deserializer,
    de::{DeserializeSeed, Error as _, MapAccess, SeqAccess, Visitor, value::MapAccessDeserializer},
};
use serde_json::{Map, Value};

/// A JSON object. What serde derives would take an array of the fields' values as well.
#[derive(Debug, Default)]
pub struct Object<T>(pub T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Fields<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for Fields<T> {
            type Value = T;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<T, A::Error> {
                T::deserialize(MapAccessDeserializer::new(map))
            }
        }
        deserializer.deserialize_map(Fields(PhantomData)).map(Self)
    }
}

/// An array of at most `MOST` items. A longer one is given up where it becomes too long: a short body can hold
/// millions of items, each of which takes many times its length.
#[derive(Debug, Default)]
pub struct Items<T, const MOST: usize>(pub Vec<T>);

/// How [`Items`] says that there are too many, in front of the number that would do.
pub const TOO_MANY: &str = "array too long: ";

impl<'de, T: Deserialize<'de>, const MOST: usize> Deserialize<'de> for Items<T, MOST> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Bounded<T, const MOST: usize>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>, const MOST: usize> Visitor<'de> for Bounded<T, MOST> {
            type Value = Vec<T>;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("a sequence")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Vec<T>, A::Error> {
                let mut all = Vec::new();
                while all.len() < MOST {
                    let Some(item) = items.next_element()? else { return Ok(all) };
                    all.push(item);
                }
                match items.next_element::<Anything>()? {
                    Some(_) => Err(A::Error::custom(format_args!("{TOO_MANY}{MOST}"))),
                    None => Ok(all),
                }
            }
        }
        deserializer.deserialize_seq(Bounded::<T, MOST>(PhantomData)).map(Self)
    }
}

/// An object of at most `MOST` entries, given up where it becomes larger.
#[derive(Debug)]
pub struct Entries<T, const MOST: usize>(pub BTreeMap<String, T>);

impl<T, const MOST: usize> Default for Entries<T, MOST> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<'de, T: Deserialize<'de>, const MOST: usize> Deserialize<'de> for Entries<T, MOST> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Bounded<T, const MOST: usize>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>, const MOST: usize> Visitor<'de> for Bounded<T, MOST> {
            type Value = BTreeMap<String, T>;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("a map")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut entries = BTreeMap::new();
                while let Some((name, entry)) = map.next_entry()? {
                    entries.insert(name, entry);
                    if entries.len() > MOST {
                        return Err(A::Error::custom(format_args!("{TOO_MANY}{MOST}")));
                    }
                }
                Ok(entries)
            }
        }
        deserializer.deserialize_map(Bounded::<T, MOST>(PhantomData)).map(Self)
    }
}

/// Most values inside of all schemas and arguments of a body. Each takes many times the two bytes that it may be long.
pub const MOST_VALUES: usize = 1 << 19;

thread_local! {
    /// How many there may still be in the body that this thread reads.
    static VALUES: Cell<usize> = const { Cell::new(MOST_VALUES) };
}

/// A body begins: what others had does not count.
pub(super) fn begin_body() {
    VALUES.set(MOST_VALUES);
}

/// Any value, such as a schema, given up where the body has too many of them; nothing where it is null.
fn tree<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Value>, D::Error> {
    Tree.deserialize(deserializer).map(|value| Some(value).filter(|value| !value.is_null()))
}

struct Tree;

impl<'de> DeserializeSeed<'de> for Tree {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        match VALUES.get().checked_sub(1) {
            Some(left) => VALUES.set(left),
            None => return Err(D::Error::custom(format_args!("{TOO_MANY}{MOST_VALUES}"))),
        }
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Tree {
    type Value = Value;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("any value")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut all = Vec::new();
        while let Some(item) = items.next_element_seed(Self)? {
            all.push(item);
        }
        Ok(Value::Array(all))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut all = Map::new();
        while let Some(name) = map.next_key()? {
            all.insert(name, map.next_value_seed(Self)?);
        }
        Ok(Value::Object(all))
    }
}

/// A value that is there, whatever it is. serde's `IgnoredAny` would count as a field that the type does not know.
#[derive(Debug, Clone, Copy)]
pub struct Anything;

impl<'de> Deserialize<'de> for Anything {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Any;
        impl<'de> Visitor<'de> for Any {
            type Value = Anything;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("anything")
            }

            fn visit_bool<E>(self, _: bool) -> Result<Anything, E> {
                Ok(Anything)
            }

            fn visit_i64<E>(self, _: i64) -> Result<Anything, E> {
                Ok(Anything)
            }

            fn visit_u64<E>(self, _: u64) -> Result<Anything, E> {
                Ok(Anything)
            }

            fn visit_f64<E>(self, _: f64) -> Result<Anything, E> {
                Ok(Anything)
            }

            fn visit_str<E>(self, _: &str) -> Result<Anything, E> {
                Ok(Anything)
            }

            fn visit_unit<E>(self) -> Result<Anything, E> {
                Ok(Anything)
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Anything, A::Error> {
                while items.next_element::<Anything>()?.is_some() {}
                Ok(Anything)
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Anything, A::Error> {
                while map.next_entry::<Anything, Anything>()?.is_some() {}
                Ok(Anything)
            }
        }
        deserializer.deserialize_any(Any)
    }
}
