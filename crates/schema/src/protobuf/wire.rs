//! Tags, varints and lengths; the writers serve other protobuf messages as well.

use super::{MAX_DEPTH, ProtobufError};

pub(super) const VARINT: u8 = 0;
pub(super) const FIXED64: u8 = 1;
pub(super) const BYTES: u8 = 2;
const GROUP: u8 = 3;
const END_GROUP: u8 = 4;
const FIXED32: u8 = 5;

/// Reads one message.
#[derive(Debug, Clone, Copy)]
pub(super) struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(super) fn new(rest: &'a [u8]) -> Self {
        Self { rest }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// The next field number and wire type; `None` at the end.
    pub(super) fn tag(&mut self) -> Result<Option<(u32, u8)>, ProtobufError> {
        if self.rest.is_empty() {
            return Ok(None);
        }
        let tag = self.varint()?;
        let number = u32::try_from(tag >> 3).ok().filter(|number| (1..1 << 29).contains(number));
        let number = number.ok_or(ProtobufError::FieldNumber(tag >> 3))?;
        Ok(Some((number, (tag & 7) as u8)))
    }

    pub(super) fn varint(&mut self) -> Result<u64, ProtobufError> {
        let mut value = 0_u64;
        for shift in (0..64).step_by(7) {
            let (byte, rest) = self.rest.split_first().ok_or(ProtobufError::Truncated)?;
            self.rest = rest;
            if shift == 63 && *byte > 1 {
                return Err(ProtobufError::Overflow);
            }
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(ProtobufError::Overflow)
    }

    pub(super) fn bytes(&mut self) -> Result<&'a [u8], ProtobufError> {
        let length = self.varint()?;
        let length = usize::try_from(length).map_err(|_| ProtobufError::Truncated)?;
        self.take(length)
    }

    pub(super) fn string(&mut self) -> Result<&'a str, ProtobufError> {
        std::str::from_utf8(self.bytes()?).map_err(|_| ProtobufError::Utf8)
    }

    pub(super) fn fixed64(&mut self) -> Result<u64, ProtobufError> {
        let bytes = self.take(8)?;
        Ok(u64::from_le_bytes(bytes.try_into().map_err(|_| ProtobufError::Truncated)?))
    }

    /// Skips the value of an unknown field.
    pub(super) fn skip(&mut self, wire: u8) -> Result<(), ProtobufError> {
        let mut open = 0;
        let mut wire = wire;
        loop {
            match wire {
                VARINT => self.varint().map(drop)?,
                FIXED64 => self.take(8).map(drop)?,
                BYTES => self.bytes().map(drop)?,
                GROUP if open < MAX_DEPTH => open += 1,
                GROUP => return Err(ProtobufError::TooDeep),
                END_GROUP if open > 0 => open -= 1,
                FIXED32 => self.take(4).map(drop)?,
                other => return Err(ProtobufError::WireType { field: "unknown".to_owned(), found: other }),
            }
            if open == 0 {
                return Ok(());
            }
            wire = self.tag()?.ok_or(ProtobufError::Truncated)?.1;
        }
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8], ProtobufError> {
        let (taken, rest) = self.rest.split_at_checked(length).ok_or(ProtobufError::Truncated)?;
        self.rest = rest;
        Ok(taken)
    }
}

/// Appends a varint.
pub fn put_varint(mut value: u64, out: &mut Vec<u8>) {
    while value >= 0x80 {
        out.push((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    out.push((value & 0x7f) as u8);
}

pub(super) fn varint_length(value: u64) -> usize {
    (64 - (value | 1).leading_zeros() as usize).div_ceil(7)
}

/// Appends a field number with its wire type.
pub fn put_tag(number: u32, wire: u8, out: &mut Vec<u8>) {
    put_varint(u64::from(number) << 3 | u64::from(wire), out);
}

/// Appends a string, bytes or a finished message.
pub fn put_bytes(number: u32, bytes: &[u8], out: &mut Vec<u8>) {
    put_tag(number, BYTES, out);
    put_varint(bytes.len() as u64, out);
    out.extend_from_slice(bytes);
}

/// Writes a message of a length not known yet: one byte is held for the length, and the message moves up in
/// the rare case that it needs more.
pub fn put_message<R>(number: u32, out: &mut Vec<u8>, body: impl FnOnce(&mut Vec<u8>) -> R) -> R {
    put_tag(number, BYTES, out);
    let start = out.len() + 1;
    out.push(0);
    let result = body(out);
    let length = (out.len() - start) as u64;
    let extra = varint_length(length) - 1;
    if extra > 0 {
        let end = out.len();
        out.resize(end + extra, 0);
        out.copy_within(start..end, start + extra);
    }
    let mut rest = length;
    for slot in &mut out[start - 1..start + extra] {
        *slot = (rest & 0x7f) as u8 | 0x80;
        rest >>= 7;
    }
    out[start + extra - 1] &= 0x7f;
    result
}
