//! What a pickle of `torch.save` may speak of: tensors and their storages, and the walk that names tensors.

use std::collections::{BTreeMap, BTreeSet};

use super::globals::{Global, StorageType};
use super::pickle::{Machine, Parsed, Value};
use super::raw::RawTensor;

/// The first 80 characters, control characters escaped: what a hostile file may put into a message.
fn short(text: &str) -> String {
    text.chars().take(80).flat_map(char::escape_debug).collect()
}

/// A storage as the pickle describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct StorageRef {
    pub key: String,
    pub element: StorageType,
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

/// Why a tensor whose storage the pickle does not name cannot be rebuilt.
const NO_STORAGE: &str = "its storage is not in the file: save it with torch.save and protocol 2 or later";
/// Why a tensor of a type without a conversion to floats cannot be rebuilt.
const OTHER_ELEMENTS: &str =
    "its elements are of a type that is not read (complex, quantised or 8-bit floats)";

impl<'a> Machine<'a> {
    /// What a global with these arguments describes. Nothing is called.
    pub fn describe(&mut self, global: Global, arguments: &[Value<'a>]) -> Parsed<Value<'a>> {
        match global {
            Global::Dict => self.dict_of_pairs(arguments),
            Global::Tensor => self.tensor(arguments),
            Global::Parameter => Ok(match arguments.first() {
                Some(tensor @ (Value::Tensor(_) | Value::Unreadable(_))) => *tensor,
                _ => Value::Opaque,
            }),
            Global::Subclass => self.subclass(arguments),
            Global::Size => Ok(match arguments {
                [sizes @ Value::Sequence(_)] => *sizes,
                _ => Value::Opaque,
            }),
            Global::Unreadable(reason) => Ok(Value::Unreadable(reason)),
            Global::Data | Global::ElementType(_) => Ok(Value::Opaque),
            Global::Other => self.object_of(arguments),
            Global::Storage(_) => Err("expected a storage as persistent id, found a call".into()),
        }
    }

    /// An object made with these arguments; dictionaries among them may be its content (`Counter({..})`).
    fn object_of(&mut self, arguments: &[Value<'a>]) -> Parsed<Value<'a>> {
        let dicts = arguments.iter().filter(|value| matches!(value, Value::Dict(_)));
        let items = dicts.flat_map(|dict| [Value::None, *dict]).collect();
        self.new_object(items)
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

    /// A tensor of a type derived from `torch.Tensor`, or one with attributes: the numbers are the inner function's.
    fn subclass(&mut self, arguments: &[Value<'a>]) -> Parsed<Value<'a>> {
        let [function, kind, Value::Sequence(inner), ..] = arguments else {
            return Ok(Value::Opaque);
        };
        match (function, kind) {
            (Value::Global(Global::Unreadable(reason)), _)
            | (_, Value::Global(Global::Unreadable(reason))) => Ok(Value::Unreadable(reason)),
            (Value::Global(function @ (Global::Tensor | Global::Parameter)), _) => {
                self.spend(self.arena[*inner].len())?;
                let inner = self.arena[*inner].clone();
                self.describe(*function, &inner)
            }
            _ => Ok(Value::Opaque),
        }
    }

    fn tensor(&mut self, arguments: &[Value<'a>]) -> Parsed<Value<'a>> {
        let [storage, offset, sizes, strides, flags @ ..] = arguments else {
            return Err("expected storage, offset, sizes and strides of a tensor".into());
        };
        let (storage, element) = match storage {
            Value::Storage(storage, element) => (*storage, *element),
            Value::Opaque => return Ok(Value::Unreadable(NO_STORAGE)),
            _ => return Err("expected storage, offset, sizes and strides of a tensor".into()),
        };
        let element = match (flags.get(2), element) {
            (Some(Value::Global(Global::ElementType(element))), _) => *element,
            // An element type that the tables do not have.
            (Some(Value::Global(_)), _) => return Ok(Value::Unreadable(OTHER_ELEMENTS)),
            // The flags are requires_grad, backward hooks and a dictionary of lazy negation or conjugation.
            (Some(Value::Dict(lazy)), _) if !self.arena[*lazy].is_empty() => {
                return Ok(Value::Unreadable(
                    "it is lazily negated or conjugated: save it with resolve_neg()",
                ));
            }
            (_, element) => element,
        };
        let StorageType::Known(element) = element else {
            return Ok(Value::Unreadable(OTHER_ELEMENTS));
        };
        let tensor = RawTensor {
            element,
            shape: self.counts(sizes, "a size")?,
            storage,
            offset: count(offset, "the offset")?,
            strides: self.counts(strides, "a stride")?,
        };
        if self.tensors.len() >= MAX_TENSORS {
            return Err(format!("more than {MAX_TENSORS} tensors"));
        }
        tensor.check(self.storages[storage].bytes()? / element.size())?;
        self.tensors.push(tensor);
        Ok(Value::Tensor(self.tensors.len() - 1))
    }

    fn counts(&self, value: &Value<'a>, what: &str) -> Parsed<Vec<usize>> {
        match value {
            Value::Sequence(items) if self.arena[*items].len() > MAX_AXES => Err(format!(
                "expected at most {MAX_AXES} axes, found {}",
                self.arena[*items].len()
            )),
            Value::Sequence(items) => self.arena[*items].iter().map(|item| count(item, what)).collect(),
            other => Err(format!("expected a tuple of counts, found {}", other.kind())),
        }
    }

    /// What a persistent id stands for. A storage is `("storage", type, key, location, elements)`, with `None` after it in
    /// old files, or the view of another storage. Old files also name the classes of modules, with their source.
    pub fn storage(&mut self, id: &[Value<'a>]) -> Parsed<Value<'a>> {
        let Some(Value::Text("storage")) = id.first() else {
            return Ok(match id {
                [Value::Text("module"), Value::Global(class), ..] => Value::Global(*class),
                _ => Value::Opaque,
            });
        };
        let (element, key, elements, view) = match id {
            [
                _,
                Value::Global(Global::Storage(element)),
                Value::Text(key),
                _,
                elements,
            ] => (*element, *key, elements, None),
            [
                _,
                Value::Global(Global::Storage(element)),
                Value::Text(key),
                _,
                elements,
                view,
            ] => (*element, *key, elements, Some(view)),
            [_, Value::Global(Global::Other), Value::Text(_), ..] => return Ok(Value::Opaque),
            _ => return Err("expected a storage of a known type as persistent id".into()),
        };
        let found = StorageRef {
            key: key.into(),
            element,
            elements: count(elements, "the elements of a storage")?,
        };
        let bytes = found.bytes()?;
        let index = match self.storage_index.get(key) {
            Some(index) if self.storages[*index].bytes()? == bytes => *index,
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
        match view {
            None | Some(Value::None) => Ok(Value::Storage(index, element)),
            Some(_) => Ok(Value::Opaque),
        }
    }

    /// Every tensor below `root` under the keys that lead to it, joined by dots. Sequences count from 0; attributes of
    /// objects go by their names, and of a module only parameters, buffers and modules count, as in its state dict.
    pub fn named_tensors(&self, root: Value<'a>) -> Parsed<Named> {
        let mut walk = Walk {
            machine: self,
            holds: self.containers_with_tensors(),
            above: BTreeSet::new(),
            visits: 0,
            found: Named::default(),
        };
        walk.visit(root, "", 0)?;
        Ok(walk.found)
    }

    /// Which containers have a tensor in them, at any depth. Configurations, however deep or shared, are then not walked.
    fn containers_with_tensors(&self) -> Vec<bool> {
        let mut holds = vec![false; self.arena.len()];
        // Fewer containers than 2^32: `Machine` counts them.
        let mut parents: Vec<(u32, u32)> = Vec::new();
        let mut new = Vec::new();
        for (parent, items) in self.arena.iter().enumerate() {
            for item in items {
                match item {
                    Value::Tensor(_) | Value::Unreadable(_) if !holds[parent] => {
                        holds[parent] = true;
                        new.push(parent);
                    }
                    Value::Sequence(child) | Value::Dict(child) | Value::Object(child) => {
                        parents.push((*child as u32, parent as u32));
                    }
                    _ => {}
                }
            }
        }
        parents.sort_unstable();
        while let Some(child) = new.pop() {
            let start = parents.partition_point(|(c, _)| (*c as usize) < child);
            for (_, parent) in parents[start..].iter().take_while(|(c, _)| *c as usize == child) {
                let parent = *parent as usize;
                if !holds[parent] {
                    holds[parent] = true;
                    new.push(parent);
                }
            }
        }
        holds
    }
}

/// The tensors of a pickle by name.
#[derive(Debug, Default)]
pub(super) struct Named {
    pub tensors: BTreeMap<String, RawTensor>,
    /// Those that cannot be rebuilt, and why.
    pub unreadable: BTreeMap<String, String>,
}

/// Most tensors. An optimizer state of ViT-g has a few thousand.
const MAX_TENSORS: usize = 1 << 20;
/// Most axes of a tensor.
const MAX_AXES: usize = 16;
/// Deepest nesting of dictionaries and lists with tensors in them.
const DEEPEST: usize = 32;
/// Most values below the top. Shared containers are visited once for every way to them.
const MAX_VISITS: usize = 2 << 20;
/// Longest name of a tensor.
const LONGEST_NAME: usize = 1024;

/// The attributes in which a `torch.nn.Module` keeps what its state dict lists; none of the names in it.
const MODULE_STATE: [&str; 3] = ["_parameters", "_buffers", "_modules"];

struct Walk<'m, 'a> {
    machine: &'m Machine<'a>,
    /// Which containers have tensors in them.
    holds: Vec<bool>,
    /// The containers on the way to the present one: an object may point back at what holds it.
    above: BTreeSet<usize>,
    visits: usize,
    found: Named,
}

impl<'a> Walk<'_, 'a> {
    fn visit(&mut self, value: Value<'a>, name: &str, depth: usize) -> Parsed<()> {
        let items = match value {
            Value::Dict(items) | Value::Sequence(items) | Value::Object(items) => Some(items),
            _ => None,
        };
        if let Some(items) = items
            && (!self.holds[items] || !self.above.insert(items))
        {
            return Ok(());
        }
        self.visits += 1 + items.map_or(0, |items| self.machine.arena[items].len());
        if depth > DEEPEST || self.visits > MAX_VISITS || name.len() > LONGEST_NAME {
            return Err(format!(
                "expected at most {DEEPEST} levels, {MAX_VISITS} values and names of {LONGEST_NAME} bytes"
            ));
        }
        match value {
            Value::Tensor(index) => self.name(name, Ok(self.machine.tensors[index].clone())),
            Value::Unreadable(reason) => self.name(name, Err(reason)),
            Value::Dict(items) => self.visit_pairs(items, name, depth)?,
            Value::Sequence(items) => {
                for (index, item) in self.machine.arena[items].iter().enumerate() {
                    self.visit_below(*item, name, &index.to_string(), depth)?;
                }
            }
            Value::Object(items) => self.visit_object(items, name, depth)?,
            _ => {}
        }
        if let Some(items) = items {
            self.above.remove(&items);
        }
        Ok(())
    }

    fn name(&mut self, name: &str, tensor: std::result::Result<RawTensor, &'static str>) {
        let found = &mut self.found;
        let reason = match tensor {
            _ if found.tensors.remove(name).is_some() || found.unreadable.contains_key(name) => {
                "two tensors have this name"
            }
            Ok(tensor) => {
                found.tensors.insert(name.into(), tensor);
                return;
            }
            Err(reason) => reason,
        };
        found.unreadable.insert(name.into(), reason.into());
    }

    fn visit_pairs(&mut self, items: usize, name: &str, depth: usize) -> Parsed<()> {
        for pair in self.machine.arena[items].chunks_exact(2) {
            match pair[0] {
                Value::Text(key) => self.visit_below(pair[1], name, key, depth)?,
                Value::Int(key) => self.visit_below(pair[1], name, &key.to_string(), depth)?,
                _ => {}
            }
        }
        Ok(())
    }

    /// The items of an object, and its states: a dictionary of attributes, or such a pair with slots.
    fn visit_object(&mut self, items: usize, name: &str, depth: usize) -> Parsed<()> {
        let machine = self.machine;
        for pair in machine.arena[items].chunks_exact(2) {
            match pair {
                [Value::None, Value::Dict(state)] => self.visit_state(*state, name, depth)?,
                [Value::None, Value::Sequence(states)] => {
                    if let [attributes, slots] = machine.arena[*states].as_slice() {
                        for state in [attributes, slots] {
                            if let Value::Dict(state) = state {
                                self.visit_state(*state, name, depth)?;
                            }
                        }
                    }
                }
                [Value::Text(key), value] => self.visit_below(*value, name, key, depth)?,
                [Value::Int(key), value] => self.visit_below(*value, name, &key.to_string(), depth)?,
                _ => {}
            }
        }
        Ok(())
    }

    fn visit_state(&mut self, state: usize, name: &str, depth: usize) -> Parsed<()> {
        let machine = self.machine;
        let pairs = || machine.arena[state].chunks_exact(2);
        let is_state = |key: &Value<'_>| matches!(key, Value::Text(key) if MODULE_STATE.contains(key));
        if pairs().filter(|pair| is_state(&pair[0])).count() < MODULE_STATE.len() {
            return self.visit(Value::Dict(state), name, depth + 1);
        }
        for pair in pairs().filter(|pair| is_state(&pair[0])) {
            self.visit(pair[1], name, depth)?;
        }
        Ok(())
    }

    fn visit_below(&mut self, value: Value<'a>, name: &str, key: &str, depth: usize) -> Parsed<()> {
        let deeper = matches!(
            value,
            Value::Tensor(_) | Value::Unreadable(_) | Value::Dict(_) | Value::Sequence(_) | Value::Object(_)
        );
        if !deeper {
            return Ok(());
        }
        if name.is_empty() {
            self.visit(value, key, depth + 1)
        } else {
            self.visit(value, &format!("{name}.{key}"), depth + 1)
        }
    }
}
