//! What a pickle of `torch.save` may speak of: the allowed globals, storages, tensors, and the walk that names tensors.

use std::collections::BTreeMap;

use super::element::ElementType;
use super::pickle::{Machine, Parsed, Value};
use super::raw::RawTensor;

/// What an allowed global stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Global {
    /// A dictionary, filled later or from a list of pairs.
    Dict,
    /// `_rebuild_tensor`, `_rebuild_tensor_v2`: storage, offset, sizes, strides, then flags.
    Tensor,
    /// `_rebuild_parameter`: a tensor, then flags.
    Parameter,
    /// `torch.Size`: a tuple.
    Size,
    /// A storage of this element type.
    Storage(ElementType),
    /// Data that no tensor depends on; its content is dropped.
    Opaque,
}

/// Modules, the names in them, and what they stand for. Anything else is refused.
const GLOBALS: &[(&[&str], &[&str], Global)] = &[
    (&["collections"], &["OrderedDict", "defaultdict"], Global::Dict),
    (
        &["torch._utils"],
        &["_rebuild_tensor", "_rebuild_tensor_v2"],
        Global::Tensor,
    ),
    (&["torch._utils"], &["_rebuild_parameter"], Global::Parameter),
    (&["torch"], &["Size"], Global::Size),
    (
        &["torch", "torch.cuda"],
        &["DoubleStorage"],
        Global::Storage(ElementType::F64),
    ),
    (
        &["torch", "torch.cuda"],
        &["FloatStorage"],
        Global::Storage(ElementType::F32),
    ),
    (
        &["torch", "torch.cuda"],
        &["HalfStorage"],
        Global::Storage(ElementType::F16),
    ),
    (
        &["torch", "torch.cuda"],
        &["BFloat16Storage"],
        Global::Storage(ElementType::Bf16),
    ),
    (
        &["torch", "torch.cuda"],
        &["LongStorage"],
        Global::Storage(ElementType::I64),
    ),
    (
        &["torch", "torch.cuda"],
        &["IntStorage"],
        Global::Storage(ElementType::I32),
    ),
    (
        &["torch", "torch.cuda"],
        &["ShortStorage"],
        Global::Storage(ElementType::I16),
    ),
    (
        &["torch", "torch.cuda"],
        &["CharStorage"],
        Global::Storage(ElementType::I8),
    ),
    (
        &["torch", "torch.cuda"],
        &["ByteStorage"],
        Global::Storage(ElementType::U8),
    ),
    (
        &["torch", "torch.cuda"],
        &["BoolStorage"],
        Global::Storage(ElementType::Bool),
    ),
    (&["torch.storage"], &["_load_from_bytes"], Global::Opaque),
    (
        &["torch"],
        &[
            "device", "float16", "bfloat16", "float32", "float64", "int8", "int16", "int32", "int64",
            "uint8", "bool",
        ],
        Global::Opaque,
    ),
    (&["argparse"], &["Namespace"], Global::Opaque),
    (
        &["numpy.core.multiarray", "numpy._core.multiarray"],
        &["scalar", "_reconstruct"],
        Global::Opaque,
    ),
    (&["numpy"], &["dtype", "ndarray"], Global::Opaque),
    (&["_codecs"], &["encode"], Global::Opaque),
    (
        &["builtins", "__builtin__"],
        &[
            "set",
            "frozenset",
            "dict",
            "list",
            "tuple",
            "int",
            "float",
            "bool",
            "str",
            "bytes",
            "complex",
        ],
        Global::Opaque,
    ),
];

impl Global {
    /// Looks a global up in the list.
    pub fn find(module: &str, name: &str) -> Parsed<Self> {
        let row = GLOBALS
            .iter()
            .find(|(modules, names, _)| modules.contains(&module) && names.contains(&name));
        row.map(|(_, _, global)| *global).ok_or_else(|| {
            let (module, name) = (short(module), short(name));
            format!("expected only tensors and plain data, found the foreign global `{module}.{name}`")
        })
    }
}

/// The first 80 characters, control characters escaped: what a hostile file may put into a message.
fn short(text: &str) -> String {
    text.chars().take(80).flat_map(char::escape_debug).collect()
}

/// A storage as the pickle describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct StorageRef {
    pub key: String,
    pub element: ElementType,
    pub elements: usize,
}

impl StorageRef {
    /// Its bytes.
    pub fn bytes(&self) -> Parsed<usize> {
        let bytes = self.elements.checked_mul(self.element.size());
        bytes.ok_or_else(|| {
            format!(
                "storage `{}`: {} elements overflow",
                short(&self.key),
                self.elements
            )
        })
    }
}

fn count(value: &Value<'_>, what: &str) -> Parsed<usize> {
    let count = match value {
        Value::Int(number) => usize::try_from(*number).ok(),
        _ => None,
    };
    count.ok_or_else(|| format!("expected a count as {what}, found {}", value.kind()))
}

impl<'a> Machine<'a> {
    /// What a global with these arguments describes. Nothing is called.
    pub fn describe(&mut self, global: Global, arguments: &[Value<'a>]) -> Parsed<Value<'a>> {
        match global {
            Global::Dict => self.dict_of_pairs(arguments),
            Global::Tensor => self.tensor(arguments),
            Global::Parameter => match arguments.first() {
                Some(tensor @ Value::Tensor(_)) => Ok(*tensor),
                _ => Err("expected a tensor in a parameter".into()),
            },
            Global::Size => match arguments {
                [sizes @ Value::Sequence(_)] => Ok(*sizes),
                _ => Err("expected a tuple in torch.Size".into()),
            },
            Global::Opaque => Ok(Value::Opaque),
            Global::Storage(_) => Err("expected a storage as persistent id, found a call".into()),
        }
    }

    /// `OrderedDict()` or `OrderedDict([(key, value), ..])`; the factory of a `defaultdict` is dropped.
    fn dict_of_pairs(&mut self, arguments: &[Value<'a>]) -> Parsed<Value<'a>> {
        let mut items = Vec::new();
        if let Some(Value::Sequence(pairs)) = arguments.first() {
            self.spend(self.arena[*pairs].len())?;
            for pair in &self.arena[*pairs] {
                let pair = match pair {
                    Value::Sequence(pair) => self.arena[*pair].as_slice(),
                    _ => &[],
                };
                let [key, value] = pair else {
                    return Err("expected pairs of key and value".into());
                };
                items.extend([*key, *value]);
            }
        }
        self.dict(items)
    }

    fn tensor(&mut self, arguments: &[Value<'a>]) -> Parsed<Value<'a>> {
        let [Value::Storage(storage), offset, sizes, strides, flags @ ..] = arguments else {
            return Err("expected storage, offset, sizes and strides of a tensor".into());
        };
        // The flags are requires_grad, backward hooks and a dictionary of lazy negation or conjugation.
        if let Some(Value::Dict(lazy)) = flags.get(2)
            && !self.arena[*lazy].is_empty()
        {
            return Err("a tensor that is lazily negated or conjugated is not supported".into());
        }
        let tensor = RawTensor {
            element: self.storages[*storage].element,
            shape: self.counts(sizes, "a size")?,
            storage: *storage,
            offset: count(offset, "the offset")?,
            strides: self.counts(strides, "a stride")?,
        };
        if self.tensors.len() >= MOST_TENSORS {
            return Err(format!("more than {MOST_TENSORS} tensors"));
        }
        tensor.check(self.storages[*storage].elements)?;
        self.tensors.push(tensor);
        Ok(Value::Tensor(self.tensors.len() - 1))
    }

    fn counts(&self, value: &Value<'a>, what: &str) -> Parsed<Vec<usize>> {
        match value {
            Value::Sequence(items) if self.arena[*items].len() > MOST_AXES => Err(format!(
                "expected at most {MOST_AXES} axes, found {}",
                self.arena[*items].len()
            )),
            Value::Sequence(items) => self.arena[*items].iter().map(|item| count(item, what)).collect(),
            other => Err(format!("expected a tuple of counts, found {}", other.kind())),
        }
    }

    /// The storage of a persistent id: `("storage", type, key, location, elements)`, with `None` after it in old files.
    pub fn storage(&mut self, id: &[Value<'a>]) -> Parsed<Value<'a>> {
        let [
            Value::Text("storage"),
            Value::Global(Global::Storage(element)),
            Value::Text(key),
            _,
            elements,
        ] = id.strip_suffix(&[Value::None]).unwrap_or(id)
        else {
            return Err("expected a storage of a known type as persistent id".into());
        };
        let found = StorageRef {
            key: (*key).into(),
            element: *element,
            elements: count(elements, "the elements of a storage")?,
        };
        found.bytes()?;
        let index = match self.storage_index.get(key) {
            Some(index) if self.storages[*index] == found => *index,
            Some(_) => {
                return Err(format!(
                    "storage `{}` is described twice, differently",
                    short(key)
                ));
            }
            None => {
                self.storages.push(found);
                self.storage_index.insert(key, self.storages.len() - 1);
                self.storages.len() - 1
            }
        };
        Ok(Value::Storage(index))
    }

    /// Every tensor below `root` under the keys that lead to it, joined by dots. Sequences count from 0.
    pub fn named_tensors(&self, root: Value<'a>) -> Parsed<BTreeMap<String, RawTensor>> {
        let mut walk = Walk {
            machine: self,
            visits: 0,
            found: BTreeMap::new(),
        };
        walk.visit(root, "", 0)?;
        Ok(walk.found)
    }
}

/// Most tensors. An optimizer state of ViT-g has a few thousand.
const MOST_TENSORS: usize = 1 << 20;
/// Most axes of a tensor.
const MOST_AXES: usize = 16;
/// Deepest nesting of dictionaries and lists.
const DEEPEST: usize = 32;
/// Most values below the top. Shared containers are visited once for every way to them.
const MOST_VISITS: usize = 2 << 20;
/// Longest name of a tensor.
const LONGEST_NAME: usize = 1024;

struct Walk<'m, 'a> {
    machine: &'m Machine<'a>,
    visits: usize,
    found: BTreeMap<String, RawTensor>,
}

impl<'a> Walk<'_, 'a> {
    fn visit(&mut self, value: Value<'a>, name: &str, depth: usize) -> Parsed<()> {
        self.visits += match value {
            Value::Dict(items) | Value::Sequence(items) => 1 + self.machine.arena[items].len(),
            _ => 1,
        };
        if depth > DEEPEST || self.visits > MOST_VISITS || name.len() > LONGEST_NAME {
            return Err(format!(
                "expected at most {DEEPEST} levels, {MOST_VISITS} values and names of {LONGEST_NAME} bytes"
            ));
        }
        match value {
            Value::Tensor(index) => {
                let tensor = self.machine.tensors[index].clone();
                if self.found.insert(name.into(), tensor).is_some() {
                    return Err(format!("two tensors are called `{}`", short(name)));
                }
            }
            Value::Dict(items) => {
                for pair in self.machine.arena[items].chunks_exact(2) {
                    match pair[0] {
                        Value::Text(key) => self.visit_below(pair[1], name, key, depth)?,
                        Value::Int(key) => self.visit_below(pair[1], name, &key.to_string(), depth)?,
                        _ => {}
                    }
                }
            }
            Value::Sequence(items) => {
                for (index, item) in self.machine.arena[items].iter().enumerate() {
                    self.visit_below(*item, name, &index.to_string(), depth)?;
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn visit_below(&mut self, value: Value<'a>, name: &str, key: &str, depth: usize) -> Parsed<()> {
        if !matches!(value, Value::Tensor(_) | Value::Dict(_) | Value::Sequence(_)) {
            return Ok(());
        }
        if name.is_empty() {
            self.visit(value, key, depth + 1)
        } else {
            self.visit(value, &format!("{name}.{key}"), depth + 1)
        }
    }
}
