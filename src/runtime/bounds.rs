//! How much of an answer is taken in. 16 MiB of empty messages, of two bytes each, would be hundreds of MiB of ours: so
//! what is listed is counted while it is decoded, and beyond a count nothing is kept. An inventory of which a part was
//! left out is none: what is missing from it would be taken for an orphan, or for unused.

use std::collections::HashMap;
use std::fmt;
use std::marker::PhantomData;

use prost::DecodeError;
use prost::bytes::{Buf, BufMut};
use prost::encoding::{DecodeContext, WireType, message, skip_field, string};
use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::Pod;
use crate::error::{Error, Result};

/// Sandboxes, containers and images each: ten times the most that was ever seen, on nodes where nothing was collected.
pub(super) const MOST: usize = 20_000;
/// Names of one container, digests of one image, file systems.
const MOST_INSIDE: usize = 256;
/// An id, a name or a reference to an image. Those of Kubernetes have at most 253 bytes, references a few hundred.
const LONGEST: usize = 4096;

/// Refuses what no runtime has: who says so lies, or is broken.
pub(super) fn check(texts: &[&String]) -> Result<()> {
    match texts.iter().find(|text| text.len() > LONGEST) {
        Some(text) => Err(Error::malformed(format!("a name of {} bytes: no real name is that long", text.len()))),
        None => Ok(()),
    }
}

/// A protobuf message whose field 1 is a list. Of one that is too long the rest is not even looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct List<T> {
    items: Vec<T>,
    too_long: bool,
}

impl<T> Default for List<T> {
    fn default() -> Self {
        List { items: Vec::new(), too_long: false }
    }
}

impl<T> List<T> {
    /// All of them, or an error.
    pub(super) fn all(self, what: &str) -> Result<Vec<T>> {
        if self.too_long {
            Err(Error::malformed(format!("more than {MOST} {what}: no real answer has that many")))
        } else {
            Ok(self.items)
        }
    }
}

impl<T: prost::Message + Default> prost::Message for List<T> {
    fn encode_raw(&self, buffer: &mut impl BufMut) {
        message::encode_repeated(1, &self.items, buffer);
    }

    fn merge_field(
        &mut self,
        tag: u32,
        wire_type: WireType,
        buffer: &mut impl Buf,
        context: DecodeContext,
    ) -> std::result::Result<(), DecodeError> {
        if tag != 1 {
            return skip_field(wire_type, tag, buffer, context);
        }
        if self.items.len() < MOST {
            return message::merge_repeated(wire_type, &mut self.items, buffer, context);
        }
        self.too_long = true;
        buffer.advance(buffer.remaining());
        Ok(())
    }

    fn encoded_len(&self) -> usize {
        message::encoded_len_repeated(1, &self.items)
    }

    fn clear(&mut self) {
        *self = List::default();
    }
}

/// The labels of a container that tell its pod. Each entry of a `map<string, string>` is merged into it, key first, as
/// every encoder writes them; no other label is kept.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct PodLabels {
    pub(super) pod: Pod,
    key: String,
}

impl PodLabels {
    fn place(&mut self) -> Option<&mut String> {
        match self.key.as_str() {
            "io.kubernetes.pod.namespace" => Some(&mut self.pod.namespace),
            "io.kubernetes.pod.name" => Some(&mut self.pod.name),
            "io.kubernetes.pod.uid" => Some(&mut self.pod.uid),
            _ => None,
        }
    }
}

impl prost::Message for PodLabels {
    fn encode_raw(&self, _: &mut impl BufMut) {}

    fn merge_field(
        &mut self,
        tag: u32,
        wire_type: WireType,
        buffer: &mut impl Buf,
        context: DecodeContext,
    ) -> std::result::Result<(), DecodeError> {
        match tag {
            1 => string::merge(wire_type, &mut self.key, buffer, context),
            2 => {
                let Some(place) = self.place() else { return skip_field(wire_type, tag, buffer, context) };
                string::merge(wire_type, place, buffer, context)?;
                self.key.clear();
                Ok(())
            }
            _ => skip_field(wire_type, tag, buffer, context),
        }
    }

    fn encoded_len(&self) -> usize {
        0
    }

    fn clear(&mut self) {
        *self = PodLabels::default();
    }
}

/// Strings and messages inside another one: the first of them.
pub(super) fn merge_some<T, B: Buf>(
    items: &mut Vec<T>,
    merge: fn(WireType, &mut Vec<T>, &mut B, DecodeContext) -> std::result::Result<(), DecodeError>,
    (wire_type, tag): (WireType, u32),
    buffer: &mut B,
    context: DecodeContext,
) -> std::result::Result<(), DecodeError> {
    if items.len() < MOST_INSIDE {
        merge(wire_type, items, buffer, context)
    } else {
        skip_field(wire_type, tag, buffer, context)
    }
}

/// A list of JSON that is refused as soon as it is too long. Go writes an empty one as `null`.
pub(super) struct Few<T, const MOST: usize>(pub(super) Vec<T>);

impl<T, const MOST: usize> Default for Few<T, MOST> {
    fn default() -> Self {
        Few(Vec::new())
    }
}

impl<'de, T: Deserialize<'de>, const MOST: usize> Deserialize<'de> for Few<T, MOST> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> std::result::Result<Self, D::Error> {
        struct Reader<T, const MOST: usize>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>, const MOST: usize> Visitor<'de> for Reader<T, MOST> {
            type Value = Few<T, MOST>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "a list of at most {MOST}")
            }

            fn visit_unit<E>(self) -> std::result::Result<Self::Value, E> {
                Ok(Few::default())
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> std::result::Result<Self::Value, A::Error> {
                let mut items = Vec::new();
                while let Some(item) = list.next_element()? {
                    if items.len() >= MOST {
                        return Err(serde::de::Error::custom(format_args!(
                            "more than {MOST}: no real answer has that many"
                        )));
                    }
                    items.push(item);
                }
                Ok(Few(items))
            }
        }
        from.deserialize_any(Reader(PhantomData))
    }
}

/// Of an object's entries those that are wanted: labels of Docker's.
#[derive(Default)]
pub(super) struct Labels(pub(super) HashMap<String, String>);

impl<'de> Deserialize<'de> for Labels {
    fn deserialize<D: Deserializer<'de>>(from: D) -> std::result::Result<Self, D::Error> {
        struct Reader;
        impl<'de> Visitor<'de> for Reader {
            type Value = Labels;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("labels")
            }

            fn visit_unit<E>(self) -> std::result::Result<Self::Value, E> {
                Ok(Labels::default())
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Self::Value, A::Error> {
                let mut labels = Labels::default();
                while let Some(key) = map.next_key::<String>()? {
                    if key.starts_with("io.kubernetes.") && labels.0.len() < MOST_INSIDE {
                        labels.0.insert(key, map.next_value()?);
                    } else {
                        map.next_value::<IgnoredAny>()?;
                    }
                }
                Ok(labels)
            }
        }
        from.deserialize_any(Reader)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::cri_messages::{Container, Image, Sandbox};
    use prost::Message as _;

    /// So many empty messages in field 1, two bytes each.
    fn empty(count: usize) -> Vec<u8> {
        [0x0a, 0x00].repeat(count)
    }

    #[test]
    fn a_vast_list_is_not_kept() {
        let list = List::<Container>::decode(&*empty(MOST)).unwrap();
        assert_eq!(list.all("containers").unwrap().len(), MOST);
        let list = List::<Container>::decode(&*empty(8 << 20)).unwrap();
        assert!(list.items.capacity() <= 2 * MOST, "{}", list.items.capacity());
        let error = list.all("containers").unwrap_err();
        assert!(error.to_string().contains("more than 20000 containers"), "{error}");
        assert!(List::<Sandbox>::decode(&[0x0a, 0x05, 0x00][..]).is_err(), "cut off");
    }

    #[test]
    fn what_is_inside_of_one_is_bounded_too() {
        // 2,000,000 labels of one container, and as many digests of one image.
        let labels = [0x42, 0x00].repeat(2_000_000);
        let container = Container::decode(&*labels).unwrap();
        assert_eq!(container.labels.unwrap().pod, Pod::default());
        let image = Image::decode(&*[0x1a, 0x00].repeat(2_000_000)).unwrap();
        assert!(image.repo_digests.len() <= MOST_INSIDE);
    }

    #[test]
    fn labels_tell_the_pod_in_any_order_and_with_empty_ones_between() {
        let entry = |key: &str, value: &str| {
            let mut bytes = Vec::new();
            string::encode(1, &key.to_owned(), &mut bytes);
            if !value.is_empty() {
                string::encode(2, &value.to_owned(), &mut bytes);
            }
            let mut all = vec![0x42, bytes.len() as u8];
            all.extend(bytes);
            all
        };
        let bytes = [
            entry("io.kubernetes.pod.uid", "u-1"),
            entry("io.kubernetes.pod.namespace", ""),
            entry("app", "x"),
            entry("io.kubernetes.pod.name", "web-0"),
        ]
        .concat();
        let pod = Container::decode(&*bytes).unwrap().labels.unwrap().pod;
        assert_eq!(pod, Pod { namespace: String::new(), name: "web-0".into(), uid: "u-1".into() });
    }

    #[test]
    fn json_lists_end_where_nobody_believes_them() {
        let read = |text: &str| serde_json::from_str::<Few<u32, 3>>(text).map(|few| few.0);
        assert_eq!(read("[1,2,3]").unwrap(), [1, 2, 3]);
        assert!(read("null").unwrap().is_empty());
        assert!(read("[1,2,3,4]").unwrap_err().to_string().contains("more than 3"));
        assert!(read("{}").is_err());
        let labels: Labels = serde_json::from_str(r#"{"io.kubernetes.pod.name":"a","other":{"x":[1]}}"#).unwrap();
        assert_eq!(labels.0.into_iter().collect::<Vec<_>>(), [("io.kubernetes.pod.name".to_owned(), "a".to_owned())]);
        assert!(check(&[&"x".repeat(LONGEST), &String::new()]).is_ok());
        assert!(check(&[&String::new(), &"x".repeat(LONGEST + 1)]).is_err());
    }
}
