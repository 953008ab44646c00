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

use std::{collections::BTreeMap, fmt, marker::PhantomData};

use serde::{
    Deserialize, Deserializer,
    de::{Error as _, MapAccess, SeqAccess, Visitor, value::MapAccessDeserializer},
};

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
