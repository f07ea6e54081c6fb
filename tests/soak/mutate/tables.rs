//! Edits of files whose directory is apart from their data: Parquet's footer, the header of safetensors, protobuf messages.

use rand::Rng as _;

use super::{Rng, bytes, text};

const MAGIC: &[u8] = b"PAR1";

/// One edit of a Parquet file's footer or of its first pages; its length is put right, mostly.
pub fn parquet(file: &mut Vec<u8>, other: &[u8], rng: &mut Rng) {
    let end = file.len().saturating_sub(8);
    let length = file
        .get(end..end + 4)
        .and_then(|bytes| bytes.try_into().ok())
        .map_or(0, u32::from_le_bytes);
    let start = end.saturating_sub(length as usize);
    if start < 4 || start >= end || rng.random_bool(0.2) {
        let place = bytes::place(file.len().clamp(1, 200), rng);
        match file.get_mut(place) {
            Some(byte) if rng.random_bool(0.5) => *byte = rng.random(),
            _ => bytes::edit(file, other, rng),
        }
        return;
    }
    let mut footer = file[start..end].to_vec();
    match rng.random_range(0..4) {
        0 => bytes::edit(&mut footer, other, rng),
        1 => {
            let place = rng.random_range(0..footer.len());
            footer[place] = footer[place].wrapping_add([1, 255, 2, 254][rng.random_range(0..4)]);
        }
        2 => {
            let place = rng.random_range(0..footer.len());
            footer[place] = rng.random();
        }
        _ => {
            // A number of the thrift protocol is a varint.
            let place = rng.random_range(0..footer.len());
            let mut varint = Vec::new();
            prost::encoding::encode_varint(bytes::number(rng), &mut varint);
            footer.splice(place..=place, varint);
        }
    }
    file.truncate(start);
    file.extend_from_slice(&footer);
    file.extend((footer.len() as u32).to_le_bytes());
    file.extend(MAGIC);
}

/// One edit of the JSON header of a safetensors file, with its length put right.
pub fn safetensors(file: &mut Vec<u8>, other: &[u8], rng: &mut Rng) {
    let Some((mut header, data)) = safetensors_parts(file) else {
        return bytes::edit(file, other, rng);
    };
    text::edit(&mut header, other, rng);
    let mut written = (header.len() as u64).to_le_bytes().to_vec();
    written.extend(header);
    written.extend(data);
    *file = written;
}

/// The header and the numbers of a safetensors file.
pub fn safetensors_parts(file: &[u8]) -> Option<(Vec<u8>, Vec<u8>)> {
    let (length, rest) = file.split_first_chunk::<8>()?;
    let length = usize::try_from(u64::from_le_bytes(*length)).ok()?;
    let header = rest
        .get(..length)
        .filter(|header| header.first() == Some(&b'{'))?;
    Some((header.to_vec(), rest[length..].to_vec()))
}

/// A field of a protobuf message.
#[derive(Debug, Clone)]
enum Value {
    Varint(u64),
    Fixed(Vec<u8>),
    Bytes(Vec<u8>),
    Message(Vec<(u64, Value)>),
}

/// Messages in messages that are looked into.
const DEPTH: usize = 8;

/// One edit of a field anywhere in a protobuf message; the lengths around it are put right.
pub fn protobuf(file: &mut Vec<u8>, other: &[u8], rng: &mut Rng) {
    let Some(mut message) = message(file, DEPTH).filter(|fields| !fields.is_empty()) else {
        return bytes::edit(file, other, rng);
    };
    let mut left = rng.random_range(0..count(&message));
    edit_at(&mut message, &mut left, other, rng);
    file.clear();
    encode(&message, file);
}

fn count(fields: &[(u64, Value)]) -> usize {
    let of_value = |value: &Value| match value {
        Value::Message(fields) => 1 + count(fields),
        _ => 1,
    };
    fields.iter().map(|(_, value)| of_value(value)).sum()
}

/// Edits the field that `left` counts down to.
fn edit_at(fields: &mut Vec<(u64, Value)>, left: &mut usize, other: &[u8], rng: &mut Rng) -> bool {
    for index in 0..fields.len() {
        if *left == 0 {
            edit_field(fields, index, other, rng);
            return true;
        }
        *left -= 1;
        if let Value::Message(inner) = &mut fields[index].1
            && edit_at(inner, left, other, rng)
        {
            return true;
        }
    }
    false
}

fn edit_field(fields: &mut Vec<(u64, Value)>, index: usize, other: &[u8], rng: &mut Rng) {
    match rng.random_range(0..8) {
        0 => drop(fields.remove(index)),
        1 => {
            let field = fields[index].clone();
            let at = rng.random_range(0..=fields.len());
            let many = if rng.random_bool(0.05) { 3000 } else { 1 };
            fields.splice(at..at, std::iter::repeat_n(field, many));
        }
        // Another number, the same kind of value.
        2 => fields[index].0 = (rng.random_range(1..32) << 3) | (fields[index].0 & 7),
        _ => match &mut fields[index].1 {
            Value::Varint(value) => *value = bytes::number(rng),
            Value::Fixed(raw) => bytes::number_at(raw, 0, rng),
            Value::Bytes(raw) => text::edit(raw, other, rng),
            Value::Message(_) => {
                let mut raw = Vec::new();
                if let Value::Message(inner) = &fields[index].1 {
                    encode(inner, &mut raw);
                }
                bytes::edit(&mut raw, other, rng);
                fields[index].1 = Value::Bytes(raw);
            }
        },
    }
}

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    prost::encoding::decode_varint(bytes).ok()
}

/// The fields of `bytes`, where they are a message from end to end.
fn message(mut bytes: &[u8], depth: usize) -> Option<Vec<(u64, Value)>> {
    let mut fields = Vec::new();
    while !bytes.is_empty() {
        let key = varint(&mut bytes)?;
        let value = match key & 7 {
            0 => Value::Varint(varint(&mut bytes)?),
            kind @ (1 | 5) => {
                let (raw, rest) = bytes.split_at_checked(if kind == 1 { 8 } else { 4 })?;
                bytes = rest;
                Value::Fixed(raw.to_vec())
            }
            2 => {
                let length = usize::try_from(varint(&mut bytes)?).ok()?;
                let (raw, rest) = bytes.split_at_checked(length)?;
                bytes = rest;
                let inner = if depth > 0 && raw.len() > 1 {
                    message(raw, depth - 1)
                } else {
                    None
                };
                inner.map_or_else(|| Value::Bytes(raw.to_vec()), Value::Message)
            }
            _ => return None,
        };
        if key >> 3 == 0 {
            return None;
        }
        fields.push((key, value));
    }
    Some(fields)
}

fn encode(fields: &[(u64, Value)], out: &mut Vec<u8>) {
    for (key, value) in fields {
        prost::encoding::encode_varint(*key, out);
        match value {
            Value::Varint(number) => prost::encoding::encode_varint(*number, out),
            Value::Fixed(raw) => out.extend(raw),
            Value::Bytes(raw) => {
                prost::encoding::encode_varint(raw.len() as u64, out);
                out.extend(raw);
            }
            Value::Message(inner) => {
                let mut raw = Vec::new();
                encode(inner, &mut raw);
                prost::encoding::encode_varint(raw.len() as u64, out);
                out.extend(raw);
            }
        }
    }
}
