//! A pickle read as data: a small stack machine for the opcodes of protocols 0 to 5.
//!
//! No global is ever called. The globals that describe tensors are on the list in [`super::globals`]; what any
//! other would make is an object of which only the attributes are kept, so that neither a path nor a module of someone's
//! own stops the reading of the weights beside it. Every container lies in an arena, so neither deep nesting nor cycles can
//! recurse, and every count is bounded.

use std::collections::BTreeMap;

use super::globals::{Global, StorageType};
use super::raw::RawTensor;
use super::torch_objects::StorageRef;

/// Longest pickle that is read, in bytes. That of ViT-g is under 100 kB; optimizer states and logs take a few MB.
pub(super) const LARGEST_PICKLE: u64 = 64 << 20;
/// Most containers, stack places and memo places.
const MAX_OBJECTS: usize = 4 << 20;
/// Most items copied out of containers, as arguments.
const MAX_COPIES: usize = 16 << 20;

/// What can go wrong, as a line that says where in the pickle.
pub(super) type Parsed<T> = std::result::Result<T, String>;

/// A value on the stack. Containers are indices into the arena.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Value<'a> {
    None,
    Bool(bool),
    Int(i64),
    Text(&'a str),
    /// Lists, sets and tuples.
    Sequence(usize),
    /// Keys and values alternate.
    Dict(usize),
    /// What a global that is not on the list would make: alternately a key and a value. The key of a state
    /// (`__setstate__`'s, or `__dict__`) is `None`.
    Object(usize),
    Global(Global),
    /// A storage, as elements of this type.
    Storage(usize, StorageType),
    Tensor(usize),
    /// A tensor that cannot be rebuilt, and why.
    Unreadable(&'static str),
    /// Data that no tensor depends on: floats, bytes, numpy scalars.
    Opaque,
}

/// The machine, and after [`Machine::run`] the arena behind the value it returned.
pub(super) struct Machine<'a> {
    bytes: &'a [u8],
    at: usize,
    stack: Vec<Value<'a>>,
    marks: Vec<usize>,
    memo: BTreeMap<u32, Value<'a>>,
    /// Items of every sequence and dictionary.
    pub arena: Vec<Vec<Value<'a>>>,
    /// Every tensor that was described; its view lies inside the storage.
    pub tensors: Vec<RawTensor>,
    /// Every storage that was named, once a key.
    pub storages: Vec<StorageRef>,
    /// Where a key's storage is in that list.
    pub storage_index: BTreeMap<&'a str, usize>,
    /// Items copied out of containers so far.
    copied: usize,
}

impl Value<'_> {
    /// What it is, for messages: never the content, which may be long.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::None => "None",
            Self::Bool(_) => "a truth value",
            Self::Int(_) => "an integer",
            Self::Text(_) => "text",
            Self::Sequence(_) => "a sequence",
            Self::Dict(_) => "a dictionary",
            Self::Object(_) => "an object",
            Self::Global(_) => "a global",
            Self::Storage(..) => "a storage",
            Self::Tensor(_) | Self::Unreadable(_) => "a tensor",
            Self::Opaque => "other data",
        }
    }
}

impl<'a> Machine<'a> {
    pub fn new(bytes: &'a [u8]) -> Self {
        Self {
            bytes,
            at: 0,
            stack: Vec::new(),
            marks: Vec::new(),
            memo: BTreeMap::new(),
            arena: Vec::new(),
            tensors: Vec::new(),
            storages: Vec::new(),
            storage_index: BTreeMap::new(),
            copied: 0,
        }
    }

    /// Bytes read so far: where the next pickle of the same stream begins.
    pub fn position(&self) -> usize {
        self.at
    }

    /// Runs one pickle to its STOP and returns its value.
    pub fn run(&mut self) -> Parsed<Value<'a>> {
        self.stack.clear();
        self.marks.clear();
        self.memo.clear();
        loop {
            let at = self.at;
            let done = self.step().map_err(|e| format!("pickle, byte {at}: {e}"))?;
            if let Some(value) = done {
                return Ok(value);
            }
            if self.stack.len().max(self.marks.len()).max(self.memo.len()) > MAX_OBJECTS {
                return Err(format!("pickle, byte {at}: more than {MAX_OBJECTS} values"));
            }
        }
    }

    /// One opcode; the value at STOP. Opcodes are named as in Python's `pickletools`.
    fn step(&mut self) -> Parsed<Option<Value<'a>>> {
        let opcode = self.array::<1>()?[0];
        match opcode {
            // PROTO, FRAME
            0x80 => self.protocol()?,
            0x95 => drop(self.array::<8>()?),
            // MARK, STOP, POP, POP_MARK, DUP
            b'(' => self.marks.push(self.stack.len()),
            b'.' => return self.pop().map(Some),
            b'0' => drop(self.pop()?),
            b'1' => drop(self.pop_mark()?),
            b'2' => {
                let top = self.top()?;
                self.stack.push(top);
            }
            _ if self.scalar(opcode)?
                || self.line_scalar(opcode)?
                || self.container(opcode)?
                || self.memoised(opcode)?
                || self.object(opcode)? => {}
            _ => return Err(format!("opcode {opcode:#04x} is none of protocols 0 to 5")),
        }
        Ok(None)
    }

    fn protocol(&mut self) -> Parsed<()> {
        match self.array::<1>()? {
            [0..=5] => Ok(()),
            [other] => Err(format!("expected protocol 0 to 5, found {other}")),
        }
    }

    /// Numbers, text, bytes. Whether the opcode was one of them.
    fn scalar(&mut self, opcode: u8) -> Parsed<bool> {
        let value = match opcode {
            // NONE, NEWTRUE, NEWFALSE
            b'N' => Value::None,
            0x88 => Value::Bool(true),
            0x89 => Value::Bool(false),
            // BININT, BININT1, BININT2, LONG1, LONG4, BINFLOAT
            b'J' => Value::Int(i32::from_le_bytes(self.array()?).into()),
            b'K' => Value::Int(self.array::<1>()?[0].into()),
            b'M' => Value::Int(u16::from_le_bytes(self.array()?).into()),
            0x8a => {
                let len = self.len8()?;
                long(self.take(len)?)
            }
            0x8b => {
                let len = self.len32()?;
                long(self.take(len)?)
            }
            b'G' => {
                self.array::<8>()?;
                Value::Opaque
            }
            // SHORT_BINUNICODE, BINUNICODE, BINUNICODE8; Python 2 strings: SHORT_BINSTRING, BINSTRING
            0x8c | b'U' => {
                let len = self.len8()?;
                self.text(len)?
            }
            b'X' | b'T' => {
                let len = self.len32()?;
                self.text(len)?
            }
            0x8d => {
                let len = self.len64()?;
                self.text(len)?
            }
            // SHORT_BINBYTES, BINBYTES
            b'C' => {
                let len = self.len8()?;
                self.opaque(len)?
            }
            b'B' => {
                let len = self.len32()?;
                self.opaque(len)?
            }
            // BINBYTES8, BYTEARRAY8
            0x8e | 0x96 => {
                let len = self.len64()?;
                self.opaque(len)?
            }
            // NEXT_BUFFER: bytes kept outside the pickle
            0x97 => Value::Opaque,
            _ => return Ok(false),
        };
        self.stack.push(value);
        Ok(true)
    }

    /// Numbers and text as lines, which protocol 0 writes. Whether the opcode was one of them.
    fn line_scalar(&mut self, opcode: u8) -> Parsed<bool> {
        let value = match opcode {
            // INT, which also stands for truth values, and LONG
            b'I' => match self.line()? {
                "00" => Value::Bool(false),
                "01" => Value::Bool(true),
                number => number.parse().map_or(Value::Opaque, Value::Int),
            },
            b'L' => {
                let line = self.line()?;
                let number = line.strip_suffix('L').unwrap_or(line);
                number.parse().map_or(Value::Opaque, Value::Int)
            }
            // FLOAT
            b'F' => {
                self.line()?;
                Value::Opaque
            }
            // STRING, in quotes; UNICODE
            b'S' => {
                let line = self.line()?;
                let inner = |quote| line.strip_prefix(quote).and_then(|rest| rest.strip_suffix(quote));
                inner('\'')
                    .or_else(|| inner('"'))
                    .map_or(Value::Opaque, Value::Text)
            }
            b'V' => Value::Text(self.line()?),
            _ => return Ok(false),
        };
        self.stack.push(value);
        Ok(true)
    }

    /// Tuples, lists, sets, dictionaries. Whether the opcode was one of them.
    fn container(&mut self, opcode: u8) -> Parsed<bool> {
        match opcode {
            // EMPTY_TUPLE, EMPTY_LIST, EMPTY_SET, EMPTY_DICT
            b')' | b']' | 0x8f => self.push_sequence(Vec::new())?,
            b'}' => self.push_dict(Vec::new())?,
            // TUPLE1, TUPLE2, TUPLE3
            0x85..=0x87 => {
                let items = self.pop_many(usize::from(opcode - 0x84))?;
                self.push_sequence(items)?;
            }
            // TUPLE, LIST, FROZENSET, DICT
            b't' | b'l' | 0x91 => {
                let items = self.pop_mark()?;
                self.push_sequence(items)?;
            }
            b'd' => {
                let items = self.pop_mark()?;
                self.push_dict(items)?;
            }
            // APPEND, SETITEM, APPENDS, ADDITEMS, SETITEMS
            b'a' => {
                let items = self.pop_many(1)?;
                self.extend_sequence(items)?;
            }
            b's' => {
                let items = self.pop_many(2)?;
                self.extend_dict(items)?;
            }
            b'e' | 0x90 => {
                let items = self.pop_mark()?;
                self.extend_sequence(items)?;
            }
            b'u' => {
                let items = self.pop_mark()?;
                self.extend_dict(items)?;
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// The memo. Whether the opcode was one of its own.
    fn memoised(&mut self, opcode: u8) -> Parsed<bool> {
        match opcode {
            // BINPUT, LONG_BINPUT, PUT, MEMOIZE
            b'q' => {
                let place = self.array::<1>()?[0].into();
                self.remember(place)?;
            }
            b'r' => {
                let place = u32::from_le_bytes(self.array()?);
                self.remember(place)?;
            }
            b'p' => {
                let place = self.place()?;
                self.remember(place)?;
            }
            0x94 => {
                let place = u32::try_from(self.memo.len()).map_err(|e| e.to_string())?;
                self.remember(place)?;
            }
            // BINGET, LONG_BINGET, GET
            b'h' => {
                let place = self.array::<1>()?[0].into();
                self.recall(place)?;
            }
            b'j' => {
                let place = u32::from_le_bytes(self.array()?);
                self.recall(place)?;
            }
            b'g' => {
                let place = self.place()?;
                self.recall(place)?;
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// Globals and what is built from them. Whether the opcode was one of these.
    fn object(&mut self, opcode: u8) -> Parsed<bool> {
        match opcode {
            // GLOBAL, STACK_GLOBAL; EXT1, EXT2, EXT4: a global by its number in a registry that no file holds
            b'c' => {
                let (module, name) = (self.line()?, self.line()?);
                self.stack.push(Value::Global(Global::find(module, name)));
            }
            0x93 => {
                let [module, name] = self.pop_array()?;
                let (Value::Text(module), Value::Text(name)) = (module, name) else {
                    return Err("expected the name of a global".into());
                };
                self.stack.push(Value::Global(Global::find(module, name)));
            }
            0x82..=0x84 => {
                self.take(1 << (opcode - 0x82))?;
                self.stack.push(Value::Global(Global::Other));
            }
            // REDUCE, NEWOBJ; NEWOBJ_EX, whose keywords are dropped
            b'R' | 0x81 => {
                let [callable, arguments] = self.pop_array()?;
                self.called(callable, arguments)?;
            }
            0x92 => {
                let [callable, arguments, _] = self.pop_array()?;
                self.called(callable, arguments)?;
            }
            // INST, OBJ: the arguments stand above the mark
            b'i' => {
                let (module, name) = (self.line()?, self.line()?);
                let arguments = self.pop_mark()?;
                let value = self.describe(Global::find(module, name), &arguments)?;
                self.stack.push(value);
            }
            b'o' => {
                let items = self.pop_mark()?;
                let [Value::Global(global), arguments @ ..] = items.as_slice() else {
                    return Err("expected a global and its arguments".into());
                };
                let value = self.describe(*global, arguments)?;
                self.stack.push(value);
            }
            // BUILD
            b'b' => {
                let state = self.pop()?;
                if let Value::Object(object) = self.top()? {
                    self.arena[object].extend([Value::None, state]);
                }
            }
            // BINPERSID; PERSID, whose line holds Python's `str` of the tuple, which names no storage
            b'Q' => {
                let Value::Sequence(id) = self.pop()? else {
                    return Err("expected a tuple as persistent id".into());
                };
                self.spend(self.arena[id].len())?;
                let id = self.arena[id].clone();
                let value = self.storage(&id)?;
                self.stack.push(value);
            }
            b'P' => {
                self.line()?;
                self.stack.push(Value::Opaque);
            }
            // READONLY_BUFFER
            0x98 => drop(self.top()?),
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// Pushes what the call of `callable` stands for. Nothing is called.
    fn called(&mut self, callable: Value<'a>, arguments: Value<'a>) -> Parsed<()> {
        let global = match callable {
            Value::Global(global) => global,
            // What another call would have made: a bound method, a partial function.
            Value::Object(_) | Value::Opaque => Global::Other,
            _ => return Err("expected a global and its arguments".into()),
        };
        let Value::Sequence(arguments) = arguments else {
            return Err("expected a global and its arguments".into());
        };
        self.spend(self.arena[arguments].len())?;
        let arguments = self.arena[arguments].clone();
        let value = self.describe(global, &arguments)?;
        self.stack.push(value);
        Ok(())
    }

    /// Counts items that are about to be copied: one long container could be named again and again.
    pub fn spend(&mut self, items: usize) -> Parsed<()> {
        self.copied = self.copied.saturating_add(items);
        if self.copied > MAX_COPIES {
            return Err(format!("more than {MAX_COPIES} arguments"));
        }
        Ok(())
    }

    fn take(&mut self, len: usize) -> Parsed<&'a [u8]> {
        let rest = &self.bytes[self.at..];
        let taken = rest
            .get(..len)
            .ok_or_else(|| format!("expected {len} bytes more, found {}", rest.len()))?;
        self.at += len;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Parsed<[u8; N]> {
        self.take(N)?.try_into().map_err(|_| "expected more bytes".into())
    }

    fn len8(&mut self) -> Parsed<usize> {
        Ok(self.array::<1>()?[0].into())
    }

    fn len32(&mut self) -> Parsed<usize> {
        Ok(u32::from_le_bytes(self.array()?) as usize)
    }

    fn len64(&mut self) -> Parsed<usize> {
        usize::try_from(u64::from_le_bytes(self.array()?)).map_err(|e| e.to_string())
    }

    fn text(&mut self, len: usize) -> Parsed<Value<'a>> {
        let text = std::str::from_utf8(self.take(len)?);
        // A Python 2 string may hold any bytes; no name or key does.
        Ok(text.map_or(Value::Opaque, Value::Text))
    }

    fn opaque(&mut self, len: usize) -> Parsed<Value<'a>> {
        self.take(len)?;
        Ok(Value::Opaque)
    }

    fn line(&mut self) -> Parsed<&'a str> {
        let rest = &self.bytes[self.at..];
        let end = rest.iter().position(|byte| *byte == b'\n');
        let line = self.take(end.ok_or("expected the end of a line")?)?;
        self.at += 1;
        std::str::from_utf8(line).map_err(|_| "expected a line in UTF-8".into())
    }

    /// A place of the memo, in decimal digits.
    fn place(&mut self) -> Parsed<u32> {
        let line = self.line()?;
        line.parse()
            .map_err(|_| "expected the number of a place of the memo".into())
    }

    fn top(&self) -> Parsed<Value<'a>> {
        let floor = self.marks.last().copied().unwrap_or(0);
        let top = self.stack[floor..].last().copied();
        top.ok_or_else(|| "the stack is empty".into())
    }

    fn pop(&mut self) -> Parsed<Value<'a>> {
        let top = self.top()?;
        self.stack.pop();
        Ok(top)
    }

    fn pop_many(&mut self, count: usize) -> Parsed<Vec<Value<'a>>> {
        let floor = self.marks.last().copied().unwrap_or(0);
        match self.stack.len().checked_sub(count) {
            Some(start) if start >= floor => Ok(self.stack.split_off(start)),
            _ => Err("the stack is empty".into()),
        }
    }

    fn pop_array<const N: usize>(&mut self) -> Parsed<[Value<'a>; N]> {
        let items = self.pop_many(N)?;
        items.try_into().map_err(|_| "the stack is empty".into())
    }

    fn pop_mark(&mut self) -> Parsed<Vec<Value<'a>>> {
        let mark = self.marks.pop().ok_or("no mark on the stack")?;
        Ok(self.stack.split_off(mark))
    }

    fn remember(&mut self, place: u32) -> Parsed<()> {
        let top = self.top()?;
        self.memo.insert(place, top);
        Ok(())
    }

    fn recall(&mut self, place: u32) -> Parsed<()> {
        let value = self.memo.get(&place);
        let value = *value.ok_or_else(|| format!("nothing at place {place} of the memo"))?;
        self.stack.push(value);
        Ok(())
    }

    fn store(&mut self, items: Vec<Value<'a>>) -> Parsed<usize> {
        if self.arena.len() >= MAX_OBJECTS {
            return Err(format!("more than {MAX_OBJECTS} containers"));
        }
        self.arena.push(items);
        Ok(self.arena.len() - 1)
    }

    fn push_sequence(&mut self, items: Vec<Value<'a>>) -> Parsed<()> {
        let index = self.store(items)?;
        self.stack.push(Value::Sequence(index));
        Ok(())
    }

    /// An object whose state holds `items`, keys and values in turn.
    pub fn new_object(&mut self, items: Vec<Value<'a>>) -> Parsed<Value<'a>> {
        self.store(items).map(Value::Object)
    }

    fn push_dict(&mut self, items: Vec<Value<'a>>) -> Parsed<()> {
        let dict = self.dict(items)?;
        self.stack.push(dict);
        Ok(())
    }

    /// A dictionary of alternating keys and values.
    pub fn dict(&mut self, items: Vec<Value<'a>>) -> Parsed<Value<'a>> {
        if !items.len().is_multiple_of(2) {
            return Err("a key without a value".into());
        }
        self.store(items).map(Value::Dict)
    }

    fn extend_sequence(&mut self, items: Vec<Value<'a>>) -> Parsed<()> {
        match self.top()? {
            Value::Sequence(index) => self.arena[index].extend(items),
            Value::Object(index) => {
                for item in items {
                    let place = Value::Int((self.arena[index].len() / 2) as i64);
                    self.arena[index].extend([place, item]);
                }
            }
            Value::Opaque | Value::Unreadable(_) => {}
            other => return Err(format!("expected a list to append to, found {}", other.kind())),
        }
        Ok(())
    }

    fn extend_dict(&mut self, items: Vec<Value<'a>>) -> Parsed<()> {
        if !items.len().is_multiple_of(2) {
            return Err("a key without a value".into());
        }
        match self.top()? {
            Value::Dict(index) | Value::Object(index) => self.arena[index].extend(items),
            Value::Opaque | Value::Unreadable(_) => {}
            other => return Err(format!("expected a dictionary to add to, found {}", other.kind())),
        }
        Ok(())
    }
}

/// A two's complement little-endian integer; one too long for 64 bits is no size or count.
fn long<'a>(bytes: &[u8]) -> Value<'a> {
    if bytes.len() > 8 {
        return Value::Opaque;
    }
    let negative = bytes.last().is_some_and(|byte| byte & 0x80 != 0);
    let mut all = [if negative { 0xff } else { 0 }; 8];
    all[..bytes.len()].copy_from_slice(bytes);
    Value::Int(i64::from_le_bytes(all))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(bytes: &[u8]) -> Parsed<String> {
        let mut machine = Machine::new(bytes);
        let value = machine.run()?;
        Ok(format!("{value:?} {:?}", machine.arena))
    }

    #[test]
    fn longs_are_two_complement() {
        for (bytes, value) in [(&[][..], 0), (&[5], 5), (&[0xff], -1), (&[0xff, 0], 255)] {
            assert_eq!(long(bytes), Value::Int(value));
        }
        assert_eq!(long(&[1; 9]), Value::Opaque);
    }

    #[test]
    fn plain_data_is_read() {
        // pickle.dumps({"a": [1, True], "b": (2.0, None)}, 2)
        let bytes = b"\x80\x02}q\x00(X\x01\x00\x00\x00aq\x01]q\x02(K\x01\x88eX\x01\x00\x00\x00bq\x03G@\x00\x00\x00\x00\x00\x00\x00N\x86q\x04u.";
        let expected = "Dict(0) [[Text(\"a\"), Sequence(1), Text(\"b\"), Sequence(2)], [Int(1), Bool(true)], [Opaque, None]]";
        assert_eq!(run(bytes).as_deref(), Ok(expected));
    }

    /// What a global would do is of no concern: it is not called, and what it would make is an object without content.
    #[test]
    fn a_foreign_call_is_an_object() {
        for bytes in [
            &b"\x80\x02cposix\nsystem\nX\x02\x00\x00\x00ls\x85R."[..],
            b"\x80\x04\x8c\x05posix\x8c\x06system\x93\x8c\x02ls\x85R.",
            b"\x80\x02(X\x02\x00\x00\x00lsiposix\nsystem\n.",
            b"\x80\x02(cposix\nsystem\nX\x02\x00\x00\x00lso.",
            b"\x80\x04\x8c\x05posix\x8c\x06system\x93\x8c\x02ls\x85}\x92.",
            b"\x80\x02\x82\x07X\x02\x00\x00\x00ls\x85R.",
        ] {
            let value = run(bytes).expect("read");
            assert!(value.starts_with("Object("), "{value}");
        }
    }

    #[test]
    fn lines_of_protocol_0_are_read() {
        // pickle.dumps([7, True, 2**40, 1.5, "x", None], 0)
        let bytes = b"(lp0\nI7\naI01\naL1099511627776L\naF1.5\naVx\np1\nag1\naNa.";
        let expected =
            "Sequence(0) [[Int(7), Bool(true), Int(1099511627776), Opaque, Text(\"x\"), Text(\"x\"), None]]";
        assert_eq!(run(bytes).as_deref(), Ok(expected));
    }

    /// `BUILD`, items and members of an object are kept under it; of other data they are dropped.
    #[test]
    fn objects_keep_their_state() {
        let bytes = b"\x80\x02cm\nC\n)\x81}X\x01\x00\x00\x00aK\x01sb(X\x01\x00\x00\x00bK\x02uK\x03a.";
        let read = run(bytes).expect("read");
        assert_eq!(
            read,
            "Object(1) [[], [None, Dict(2), Text(\"b\"), Int(2), Int(2), Int(3)], [Text(\"a\"), Int(1)]]"
        );
    }

    #[test]
    fn nesting_and_cycles_are_only_data() {
        let mut deep = b"\x80\x02)".to_vec();
        deep.extend(std::iter::repeat_n(0x85, 1 << 20));
        deep.push(b'.');
        assert!(run(&deep).is_ok());
        assert_eq!(
            run(b"\x80\x02]q\x00h\x00a.").as_deref(),
            Ok("Sequence(0) [[Sequence(0)]]")
        );
    }

    #[test]
    fn damaged_pickles_are_refused() {
        for bytes in [
            &b""[..],
            b"\x80\x02",
            b"\x80\x02.",
            b"\x80\x09N.",
            b"\x80\x02(.",
            b"\x80\x02h\x05.",
            b"\x80\x02t.",
            b"\x80\x02X\xff\xff\xff\xffab.",
            b"\x80\x02}K\x01u.",
            b"\x80\x02}(K\x01u.",
            b"\x80\x02K\x01K\x02a.",
            b"\x80\x02im\nC\n.",
            b"\x80\x02(o.",
            b"\x80\x02gx\n.",
            b"\x80\x02\x84\x00.",
            b"\x80\x02NQ.",
            b"\x80\x02N)R.",
            b"\x80\x02ccollections\nOrderedDict",
        ] {
            assert!(run(bytes).is_err(), "{bytes:02x?}");
        }
    }
}
